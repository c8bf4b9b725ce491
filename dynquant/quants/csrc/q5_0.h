/* Q5_0: 32 weights in 22 bytes, 5.5 bits per weight.
 *
 *   bytes 0..1    d    f16 scale
 *   bytes 2..5    qh   high bits of the codes: bit i % 8 of byte i / 8 is weight i's
 *   bytes 6..21   qs   low 4 bits: byte i holds weight i in its low half and weight 16 + i in its
 *                      high half
 *
 *   w[i] = d * (q - 16),  q in 0..31
 *
 * Source: block_q5_0 in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "one_scale.h"
#include "opened.h"
#include "packing.h"
#include "weights.h"

struct block_q5_0 { uint16_t d; uint8_t qh[4], qs[16]; } PACKED;
static_assert(sizeof(struct block_q5_0) == 22, "Q5_0 is 22 bytes a block");

static const struct one_scale_format q5_0_format = {
    .levels = {.lo = -16, .hi = 15},
    .effort = {
        [EFFORT_FAST] = {.count = 5, .first = 13, .step = 1, .polish = 0},
        [EFFORT_NORMAL] = {.count = 10, .first = 12.4f, .step = 0.6f, .polish = 0},
        [EFFORT_BEST] = {.count = 40, .first = 9, .step = 0.27f, .polish = 1},
    },
};

static void encode_q5_0(struct weights in, struct block_q5_0 *blocks, int n_blocks,
                        enum effort effort)
{
    struct groups g;
    struct one_scale_codes c;
    gather(&g, 32, 1, n_blocks, in);
    encode_one_scale(&g, q5_0_format, effort, &c);
    for (int k = 0; k < n_blocks; k++) {
        blocks[k].d = c.d[k];
        pack_fives(blocks[k].qs, blocks[k].qh, c.q + 32 * k);
    }
}

static const struct code_space q5_0_codes = {.group = 32, .q_most = 31};

static void open_q5_0(const struct block_q5_0 *block, struct opened *o)
{
    o->scale[0] = f32_of_f16(block->d);
    o->offset[0] = -16 * o->scale[0];
    unpack_fives(block->qs, block->qh, o->q);
}

static void close_q5_0(struct block_q5_0 *block, const struct opened *o)
{
    pack_fives(block->qs, block->qh, o->q);
}

static void decode_q5_0(const struct block_q5_0 *block, float *x)
{
    float d = f32_of_f16(block->d);
    uint8_t q[32];
    unpack_fives(block->qs, block->qh, q);
    scaled_weights(q, 32, d, 16, x);
}

static void regain_q5_0(struct block_q5_0 *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
