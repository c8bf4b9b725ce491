/* Q4_K: 256 weights in 144 bytes, 4.5 bits per weight.
 *
 *   bytes   0..1    d       f16 scale of the scales
 *   bytes   2..3    dmin    f16 scale of the mins
 *   bytes   4..15   scales  eight 6-bit scales and mins, packed (scales_6bit.h)
 *   bytes  16..143  qs      4-bit codes: byte 32 j + i holds weight 64 j + i in its low half and
 *                           weight 64 j + 32 + i in its high half, j = 0..3
 *
 *   w[32 g + i] = d * scale[g] * q - dmin * min[g],  q in 0..15
 *
 * Source: block_q4_K in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "affine_k.h"
#include "opened.h"
#include "packing.h"
#include "scales_6bit.h"
#include "weights.h"

struct block_q4_k { uint16_t d, dmin; uint8_t scales[12], qs[128]; } PACKED;
static_assert(sizeof(struct block_q4_k) == 144, "Q4_K is 144 bytes a block");

static const struct affine_format q4_k_format = {
    .n = 32, .group_count = 8, .q_most = 15, .l_most = 63,
    .effort = {
        [EFFORT_FAST] = {
            .tries = {.ends = 4, .first = -0.7f, .step = 0.5f, .polish = 0},
            .starts = 1, .rounds = 1, .ls_reach = 1, .lm_reach = 0, .lm_side_reach = 0,
        },
        [EFFORT_NORMAL] = {
            .tries = {.ends = 6, .first = -0.9f, .step = 0.5f, .polish = 1},
            .starts = 1, .rounds = 2, .ls_reach = 1, .lm_reach = 1, .lm_side_reach = 0,
        },
        [EFFORT_BEST] = {
            .tries = {.ends = 16, .first = -1.2f, .step = 0.2f, .polish = 0},
            .starts = 4, .rounds = 3, .ls_reach = 2, .lm_reach = 1, .lm_side_reach = 1,
        },
    },
};

static void encode_q4_k(struct weights in, struct block_q4_k *blocks, int n_blocks,
                        enum effort effort)
{
    struct groups g;
    struct affine_codes c;
    gather(&g, 32, 8, n_blocks, in);
    encode_affine(&g, q4_k_format, effort, &c);
    for (int k = 0; k < n_blocks; k++) {
        struct block_q4_k block = {.d = c.d[k], .dmin = c.dmin[k]};
        pack_scales_mins(block.scales, c.ls + 8 * k, c.lm + 8 * k);
        pack_runs(block.qs, c.q + 256 * k, 32, 4);
        blocks[k] = block;
    }
}

static const struct code_space q4_k_codes = {.group = 32, .q_most = 15};

static void open_q4_k(const struct block_q4_k *block, struct opened *o)
{
    float d = f32_of_f16(block->d), dmin = f32_of_f16(block->dmin);
    uint8_t ls[8], lm[8];
    unpack_scales_mins(block->scales, ls, lm);
    for (int g = 0; g < 8; g++) {
        o->scale[g] = d * ls[g];
        o->offset[g] = -(dmin * lm[g]);
    }
    unpack_runs(block->qs, o->q, 32, 4);
}

static void close_q4_k(struct block_q4_k *block, const struct opened *o)
{
    pack_runs(block->qs, o->q, 32, 4);
}

static void decode_q4_k(const struct block_q4_k *block, float *x)
{
    float d = f32_of_f16(block->d), dmin = f32_of_f16(block->dmin);
    uint8_t ls[8], lm[8], q[256];
    unpack_scales_mins(block->scales, ls, lm);
    unpack_runs(block->qs, q, 32, 4);
    for (int g = 0; g < 8; g++)
        affine_weights(q + 32 * g, 32, d * ls[g], -(dmin * lm[g]), x + 32 * g);
}

static void regain_q4_k(struct block_q4_k *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
    block->dmin = scaled_f16(block->dmin, factor);
}
