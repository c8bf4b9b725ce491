/* Q3_K: 256 weights in 110 bytes, 3.4375 bits per weight.
 *
 *   bytes   0..31   hmask   high bits of the codes: bit k of byte i is weight 32 k + i's
 *   bytes  32..95   qs      low 2 bits: bits 2 k, 2 k + 1 of byte 32 h + i are weight
 *                           128 h + 32 k + i's, h = 0..1, k = 0..3
 *   bytes  96..107  scales  sixteen 6-bit scales, 32 added to each: the low 4 bits of scale j are
 *                           the low half of byte j (j < 8), else the high half of byte j - 8; its
 *                           high 2 bits are bits 2 (j / 4), 2 (j / 4) + 1 of byte 8 + j % 4
 *   bytes 108..109  d       f16 scale of the scales
 *
 *   w[16 g + i] = d * (scale[g] - 32) * (q - 4),  q in 0..7
 *
 * Source: block_q3_K in ggml-common.h, as `gguf.quants.Q3_K` reads it. Little-endian.
 */
#include <assert.h>

#include "opened.h"
#include "packing.h"
#include "scaled_k.h"
#include "weights.h"

struct block_q3_k { uint8_t hmask[32], qs[64], scales[12]; uint16_t d; } PACKED;
static_assert(sizeof(struct block_q3_k) == 110, "Q3_K is 110 bytes a block");

static const struct scaled_format q3_k_format = {
    .n = 16, .group_count = 16, .levels = {.lo = -4, .hi = 3},
    .l_least = -32, .l_most = 31,
    .effort = {
        [EFFORT_FAST] = {
            .tries = {.count = 6, .first = 3, .step = 0.5f, .polish = 0},
            .starts = 1, .rounds = 0, .reach = 1,
        },
        [EFFORT_NORMAL] = {
            .tries = {.count = 10, .first = 3, .step = 0.4f, .polish = 0},
            .starts = 1, .rounds = 1, .reach = 1,
        },
        [EFFORT_BEST] = {
            .tries = {.count = 40, .first = 2.6f, .step = 0.15f, .polish = 0},
            .starts = 4, .rounds = 3, .reach = 1,
        },
    },
};

static inline void pack_q3_k(struct block_q3_k *block, const uint8_t *q)
{
    pack_pairs(block->qs, q, 0);
    pack_planes(block->hmask, q, 2);
}

static inline void unpack_q3_k(const struct block_q3_k *block, uint8_t *q)
{
    unpack_pairs(block->qs, q);
    add_planes(block->hmask, q, 2);
}

static inline int q3_k_scale(const struct block_q3_k *block, int g)
{
    int low = block->scales[g % 8] >> 4 * (g / 8) & 15;
    int high = block->scales[8 + g % 4] >> 2 * (g / 4) & 3;
    return (low | high << 4) - 32;
}

static void encode_q3_k(struct weights in, struct block_q3_k *blocks, int n_blocks,
                        enum effort effort)
{
    struct groups g;
    struct scaled_codes c;
    gather(&g, 16, 16, n_blocks, in);
    encode_scaled(&g, q3_k_format, effort, &c);
    struct block_q3_k block = {.d = c.d[0]};
    pack_q3_k(&block, c.q);
    for (int j = 0; j < 16; j++) {
        uint8_t scale = (uint8_t)(c.ls[j] + 32);
        block.scales[j % 8] |= (uint8_t)((scale & 15) << 4 * (j / 8));
        block.scales[8 + j % 4] |= (uint8_t)(scale >> 4 << 2 * (j / 4));
    }
    *blocks = block;
}

static const struct code_space q3_k_codes = {.group = 16, .q_most = 7};

static void open_q3_k(const struct block_q3_k *block, struct opened *o)
{
    float d = f32_of_f16(block->d);
    for (int g = 0; g < 16; g++) {
        o->scale[g] = d * (float)q3_k_scale(block, g);
        o->offset[g] = -4 * o->scale[g];
    }
    unpack_q3_k(block, o->q);
}

static void close_q3_k(struct block_q3_k *block, const struct opened *o)
{
    pack_q3_k(block, o->q);
}

static void decode_q3_k(const struct block_q3_k *block, float *x)
{
    float d = f32_of_f16(block->d);
    uint8_t q[256];
    unpack_q3_k(block, q);
    for (int g = 0; g < 16; g++)
        scaled_weights(q + 16 * g, 16, d * (float)q3_k_scale(block, g), 4, x + 16 * g);
}

static void regain_q3_k(struct block_q3_k *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
