/* Q2_K: 256 weights in 84 bytes, 2.625 bits per weight.
 *
 *   bytes  0..15   scales  byte g: 4-bit scale of group g in its low half, 4-bit min in its high
 *   bytes 16..79   qs      2-bit codes: bits 2 k, 2 k + 1 of byte 32 h + i are weight
 *                          128 h + 32 k + i's, h = 0..1, k = 0..3
 *   bytes 80..81   d       f16 scale of the scales
 *   bytes 82..83   dmin    f16 scale of the mins
 *
 *   w[16 g + i] = d * scale[g] * q - dmin * min[g],  q in 0..3
 *
 * Source: block_q2_K in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "affine_k.h"
#include "opened.h"
#include "packing.h"
#include "weights.h"

struct block_q2_k { uint8_t scales[16], qs[64]; uint16_t d, dmin; } PACKED;
static_assert(sizeof(struct block_q2_k) == 84, "Q2_K is 84 bytes a block");

static const struct affine_format q2_k_format = {
    .n = 16, .group_count = 16, .q_most = 3, .l_most = 15,
    .effort = {
        [EFFORT_FAST] = {
            .tries = {.ends = 4, .first = -0.1f, .step = 0.4f, .polish = 0},
            .starts = 1, .rounds = 1, .ls_reach = 1, .lm_reach = 0, .lm_side_reach = 0,
        },
        [EFFORT_NORMAL] = {
            .tries = {.ends = 5, .first = -0.2f, .step = 0.5f, .polish = 0},
            .starts = 1, .rounds = 3, .ls_reach = 1, .lm_reach = 1, .lm_side_reach = 1,
        },
        [EFFORT_BEST] = {
            .tries = {.ends = 8, .first = -0.4f, .step = 0.3f, .polish = 0},
            .starts = 2, .rounds = 6, .ls_reach = 2, .lm_reach = 2, .lm_side_reach = 2,
        },
    },
};

static void encode_q2_k(struct weights in, struct block_q2_k *blocks, int n_blocks,
                        enum effort effort)
{
    struct groups g;
    struct affine_codes c;
    gather(&g, 16, 16, n_blocks, in);
    encode_affine(&g, q2_k_format, effort, &c);
    struct block_q2_k block = {.d = c.d[0], .dmin = c.dmin[0]};
    for (int l = 0; l < 16; l++)
        block.scales[l] = (uint8_t)(c.ls[l] | c.lm[l] << 4);
    pack_pairs(block.qs, c.q, 0);
    *blocks = block;
}

static const struct code_space q2_k_codes = {.group = 16, .q_most = 3};

static void open_q2_k(const struct block_q2_k *block, struct opened *o)
{
    float d = f32_of_f16(block->d), dmin = f32_of_f16(block->dmin);
    for (int g = 0; g < 16; g++) {
        o->scale[g] = d * (float)(block->scales[g] & 15);
        o->offset[g] = -(dmin * (float)(block->scales[g] >> 4));
    }
    unpack_pairs(block->qs, o->q);
}

static void close_q2_k(struct block_q2_k *block, const struct opened *o)
{
    pack_pairs(block->qs, o->q, 0);
}

static void decode_q2_k(const struct block_q2_k *block, float *x)
{
    float d = f32_of_f16(block->d), dmin = f32_of_f16(block->dmin);
    uint8_t q[256];
    unpack_pairs(block->qs, q);
    for (int g = 0; g < 16; g++) {
        float scale = (float)(block->scales[g] & 15), min = (float)(block->scales[g] >> 4);
        affine_weights(q + 16 * g, 16, d * scale, -(dmin * min), x + 16 * g);
    }
}

static void regain_q2_k(struct block_q2_k *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
    block->dmin = scaled_f16(block->dmin, factor);
}
