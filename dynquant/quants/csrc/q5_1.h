/* Q5_1: 32 weights in 24 bytes, 6 bits per weight.
 *
 *   bytes 0..1    d    f16 scale
 *   bytes 2..3    m    f16 min
 *   bytes 4..7    qh   high bits of the codes: bit i % 8 of byte i / 8 is weight i's
 *   bytes 8..23   qs   low 4 bits: byte i holds weight i in its low half and weight 16 + i in its
 *                      high half
 *
 *   w[i] = d * q + m,  q in 0..31
 *
 * Source: block_q5_1 in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "opened.h"
#include "packing.h"
#include "scale_and_min.h"
#include "weights.h"

struct block_q5_1 { uint16_t d, m; uint8_t qh[4], qs[16]; } PACKED;
static_assert(sizeof(struct block_q5_1) == 24, "Q5_1 is 24 bytes a block");

static const struct scale_and_min_format q5_1_format = {
    .q_most = 31,
    .effort = {
        [EFFORT_FAST] = {.ends = 4, .first = -1, .step = 0.6f, .polish = 1},
        [EFFORT_NORMAL] = {.ends = 7, .first = -2, .step = 0.6f, .polish = 1},
        [EFFORT_BEST] = {.ends = 16, .first = -3, .step = 0.32f, .polish = 2},
    },
};

static void encode_q5_1(struct weights in, struct block_q5_1 *blocks, int n_blocks,
                        enum effort effort)
{
    struct groups g;
    struct scale_and_min_codes c;
    gather(&g, 32, 1, n_blocks, in);
    encode_scale_and_min(&g, q5_1_format, effort, &c);
    for (int k = 0; k < n_blocks; k++) {
        blocks[k].d = c.d[k];
        blocks[k].m = c.m[k];
        pack_fives(blocks[k].qs, blocks[k].qh, c.q + 32 * k);
    }
}

static const struct code_space q5_1_codes = {.group = 32, .q_most = 31};

static void open_q5_1(const struct block_q5_1 *block, struct opened *o)
{
    o->scale[0] = f32_of_f16(block->d);
    o->offset[0] = f32_of_f16(block->m);
    unpack_fives(block->qs, block->qh, o->q);
}

static void close_q5_1(struct block_q5_1 *block, const struct opened *o)
{
    pack_fives(block->qs, block->qh, o->q);
}

static void decode_q5_1(const struct block_q5_1 *block, float *x)
{
    float d = f32_of_f16(block->d), m = f32_of_f16(block->m);
    uint8_t q[32];
    unpack_fives(block->qs, block->qh, q);
    affine_weights(q, 32, d, m, x);
}

static void regain_q5_1(struct block_q5_1 *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
    block->m = scaled_f16(block->m, factor);
}
