/* Q6_K: 256 weights in 210 bytes, 6.5625 bits per weight.
 *
 *   bytes   0..127  ql      low 4 bits of the codes
 *   bytes 128..191  qh      high 2 bits of the codes
 *   bytes 192..207  scales  sixteen signed 8-bit scales, one per 16 weights
 *   bytes 208..209  d       f16 scale of the scales
 *
 * Each half h (128 weights) has 64 bytes of ql and 32 of qh. Weight 128 h + 32 k + i, k = 0..3:
 *
 *   low bits   ql[64 h + 32 (k % 2) + i], low half of the byte for k < 2, else high half
 *   high bits  bits 2 k, 2 k + 1 of qh[32 h + i]
 *
 *   w[16 g + i] = d * scale[g] * (q - 32),  q in 0..63
 *
 * Source: block_q6_K in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "opened.h"
#include "packing.h"
#include "scaled_k.h"
#include "weights.h"

struct block_q6_k { uint8_t ql[128], qh[64]; int8_t scales[16]; uint16_t d; } PACKED;
static_assert(sizeof(struct block_q6_k) == 210, "Q6_K is 210 bytes a block");

static const struct scaled_format q6_k_format = {
    .n = 16, .group_count = 16, .levels = {.lo = -32, .hi = 31},
    .l_least = -128, .l_most = 127,
    .effort = {
        [EFFORT_FAST] = {
            .tries = {.count = 5, .first = 28, .step = 1, .polish = 0},
            .starts = 1, .rounds = 0, .reach = 1,
        },
        [EFFORT_NORMAL] = {
            .tries = {.count = 8, .first = 26, .step = 1, .polish = 0},
            .starts = 1, .rounds = 1, .reach = 1,
        },
        [EFFORT_BEST] = {
            .tries = {.count = 16, .first = 17, .step = 1, .polish = 0},
            .starts = 8, .rounds = 2, .reach = 2,
        },
    },
};

static inline void pack_q6_k(struct block_q6_k *block, const uint8_t *q)
{
    pack_runs(block->ql, q, 64, 2);
    pack_pairs(block->qh, q, 4);
}

static inline void unpack_q6_k(const struct block_q6_k *block, uint8_t *q)
{
    unpack_runs(block->ql, q, 64, 2);
    add_pairs(block->qh, q, 4);
}

static void encode_q6_k(struct weights in, struct block_q6_k *blocks, int n_blocks,
                        enum effort effort)
{
    struct groups g;
    struct scaled_codes c;
    gather(&g, 16, 16, n_blocks, in);
    encode_scaled(&g, q6_k_format, effort, &c);
    struct block_q6_k block = {.d = c.d[0]};
    memcpy(block.scales, c.ls, sizeof block.scales);
    pack_q6_k(&block, c.q);
    *blocks = block;
}

static const struct code_space q6_k_codes = {.group = 16, .q_most = 63};

static void open_q6_k(const struct block_q6_k *block, struct opened *o)
{
    float d = f32_of_f16(block->d);
    for (int g = 0; g < 16; g++) {
        o->scale[g] = d * block->scales[g];
        o->offset[g] = -32 * o->scale[g];
    }
    unpack_q6_k(block, o->q);
}

static void close_q6_k(struct block_q6_k *block, const struct opened *o)
{
    pack_q6_k(block, o->q);
}

static void decode_q6_k(const struct block_q6_k *block, float *x)
{
    float d = f32_of_f16(block->d);
    uint8_t q[256];
    unpack_q6_k(block, q);
    for (int g = 0; g < 16; g++)
        scaled_weights(q + 16 * g, 16, d * block->scales[g], 32, x + 16 * g);
}

static void regain_q6_k(struct block_q6_k *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
