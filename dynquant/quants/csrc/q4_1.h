/* Q4_1: 32 weights in 20 bytes, 5 bits per weight.
 *
 *   bytes 0..1    d    f16 scale
 *   bytes 2..3    m    f16 min
 *   bytes 4..19   qs   byte i holds weight i in its low half and weight 16 + i in its high half
 *
 *   w[i] = d * q + m,  q in 0..15
 *
 * Source: block_q4_1 in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "opened.h"
#include "packing.h"
#include "scale_and_min.h"
#include "weights.h"

struct block_q4_1 { uint16_t d, m; uint8_t qs[16]; } PACKED;
static_assert(sizeof(struct block_q4_1) == 20, "Q4_1 is 20 bytes a block");

static const struct scale_and_min_format q4_1_format = {
    .q_most = 15,
    .effort = {
        [EFFORT_FAST] = {.ends = 4, .first = -0.6f, .step = 0.5f, .polish = 1},
        [EFFORT_NORMAL] = {.ends = 7, .first = -0.8f, .step = 0.35f, .polish = 1},
        [EFFORT_BEST] = {.ends = 14, .first = -1.2f, .step = 0.25f, .polish = 2},
    },
};

static void encode_q4_1(struct weights in, struct block_q4_1 *blocks, int n_blocks,
                        enum effort effort)
{
    struct groups g;
    struct scale_and_min_codes c;
    gather(&g, 32, 1, n_blocks, in);
    encode_scale_and_min(&g, q4_1_format, effort, &c);
    for (int k = 0; k < n_blocks; k++) {
        blocks[k].d = c.d[k];
        blocks[k].m = c.m[k];
        pack_nibbles(blocks[k].qs, c.q + 32 * k, 16);
    }
}

static const struct code_space q4_1_codes = {.group = 32, .q_most = 15};

static void open_q4_1(const struct block_q4_1 *block, struct opened *o)
{
    o->scale[0] = f32_of_f16(block->d);
    o->offset[0] = f32_of_f16(block->m);
    unpack_nibbles(block->qs, o->q, 16);
}

static void close_q4_1(struct block_q4_1 *block, const struct opened *o)
{
    pack_nibbles(block->qs, o->q, 16);
}

static void decode_q4_1(const struct block_q4_1 *block, float *x)
{
    float d = f32_of_f16(block->d), m = f32_of_f16(block->m);
    uint8_t q[32];
    unpack_nibbles(block->qs, q, 16);
    affine_weights(q, 32, d, m, x);
}

static void regain_q4_1(struct block_q4_1 *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
    block->m = scaled_f16(block->m, factor);
}
