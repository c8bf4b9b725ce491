/* Q5_K: 256 weights in 176 bytes, 5.5 bits per weight.
 *
 *   bytes   0..1    d       f16 scale of the scales
 *   bytes   2..3    dmin    f16 scale of the mins
 *   bytes   4..15   scales  eight 6-bit scales and mins, packed (scales_6bit.h)
 *   bytes  16..47   qh      bit g of byte i is the high bit of weight 32 g + i
 *   bytes  48..175  qs      low 4 bits: byte 32 j + i holds weight 64 j + i in its low half and
 *                           weight 64 j + 32 + i in its high half, j = 0..3
 *
 *   w[32 g + i] = d * scale[g] * q - dmin * min[g],  q in 0..31
 *
 * Source: block_q5_K in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "affine_k.h"
#include "opened.h"
#include "packing.h"
#include "scales_6bit.h"
#include "weights.h"

struct block_q5_k { uint16_t d, dmin; uint8_t scales[12], qh[32], qs[128]; } PACKED;
static_assert(sizeof(struct block_q5_k) == 176, "Q5_K is 176 bytes a block");

static const struct affine_format q5_k_format = {
    .n = 32, .group_count = 8, .q_most = 31, .l_most = 63,
    .effort = {
        [EFFORT_FAST] = {
            .tries = {.ends = 3, .first = -0.7f, .step = 0.6f, .polish = 0},
            .starts = 1, .rounds = 1, .ls_reach = 1, .lm_reach = 1, .lm_side_reach = 1,
        },
        [EFFORT_NORMAL] = {
            .tries = {.ends = 6, .first = -1.6f, .step = 0.55f, .polish = 0},
            .starts = 1, .rounds = 2, .ls_reach = 1, .lm_reach = 4, .lm_side_reach = 0,
        },
        [EFFORT_BEST] = {
            .tries = {.ends = 10, .first = -2, .step = 0.4f, .polish = 0},
            .starts = 4, .rounds = 2, .ls_reach = 3, .lm_reach = 4, .lm_side_reach = 4,
        },
    },
};

static inline void pack_q5_k(struct block_q5_k *block, const uint8_t *q)
{
    pack_runs(block->qs, q, 32, 4);
    pack_planes(block->qh, q, 4);
}

static inline void unpack_q5_k(const struct block_q5_k *block, uint8_t *q)
{
    unpack_runs(block->qs, q, 32, 4);
    add_planes(block->qh, q, 4);
}

static void encode_q5_k(struct weights in, struct block_q5_k *blocks, int n_blocks,
                        enum effort effort)
{
    struct groups g;
    struct affine_codes c;
    gather(&g, 32, 8, n_blocks, in);
    encode_affine(&g, q5_k_format, effort, &c);
    for (int k = 0; k < n_blocks; k++) {
        struct block_q5_k block = {.d = c.d[k], .dmin = c.dmin[k]};
        pack_scales_mins(block.scales, c.ls + 8 * k, c.lm + 8 * k);
        pack_q5_k(&block, c.q + 256 * k);
        blocks[k] = block;
    }
}

static const struct code_space q5_k_codes = {.group = 32, .q_most = 31};

static void open_q5_k(const struct block_q5_k *block, struct opened *o)
{
    float d = f32_of_f16(block->d), dmin = f32_of_f16(block->dmin);
    uint8_t ls[8], lm[8];
    unpack_scales_mins(block->scales, ls, lm);
    for (int g = 0; g < 8; g++) {
        o->scale[g] = d * ls[g];
        o->offset[g] = -(dmin * lm[g]);
    }
    unpack_q5_k(block, o->q);
}

static void close_q5_k(struct block_q5_k *block, const struct opened *o)
{
    pack_q5_k(block, o->q);
}

static void decode_q5_k(const struct block_q5_k *block, float *x)
{
    float d = f32_of_f16(block->d), dmin = f32_of_f16(block->dmin);
    uint8_t ls[8], lm[8], q[256];
    unpack_scales_mins(block->scales, ls, lm);
    unpack_q5_k(block, q);
    for (int g = 0; g < 8; g++)
        affine_weights(q + 32 * g, 32, d * ls[g], -(dmin * lm[g]), x + 32 * g);
}

static void regain_q5_k(struct block_q5_k *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
    block->dmin = scaled_f16(block->dmin, factor);
}
