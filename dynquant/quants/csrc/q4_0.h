/* Q4_0: 32 weights in 18 bytes, 4.5 bits per weight.
 *
 *   bytes 0..1    d    f16 scale
 *   bytes 2..17   qs   byte i holds weight i in its low half and weight 16 + i in its high half
 *
 *   w[i] = d * (q - 8),  q in 0..15
 *
 * Source: block_q4_0 in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "exact.h"
#include "one_scale.h"
#include "opened.h"
#include "packing.h"
#include "weights.h"

struct block_q4_0 { uint16_t d; uint8_t qs[16]; } PACKED;
static_assert(sizeof(struct block_q4_0) == 18, "Q4_0 is 18 bytes a block");

static const struct one_scale_format q4_0_format = {
    .levels = {.lo = -8, .hi = 7},
    .effort = {
        [EFFORT_FAST] = {.count = 6, .first = 6.5f, .step = 0.6f, .polish = 0},
        [EFFORT_NORMAL] = {.count = 10, .first = 6, .step = 0.4f, .polish = 1},
        [EFFORT_BEST] = {.count = 40, .first = 5, .step = 0.15f, .polish = 1},
    },
};

static void encode_q4_0(struct weights in, struct block_q4_0 *blocks, int n_blocks,
                        enum effort effort)
{
    struct groups g;
    struct one_scale_codes c;
    gather(&g, 32, 1, n_blocks, in);
    encode_one_scale(&g, q4_0_format, effort, &c);
    float may_lie[LANES];
    store(may_lie, may_lie_on_grid(&g, 8));
    for (int k = 0; k < n_blocks; k++) {
        if (may_lie[k] != 0)
            reproduce(in.x + k * in.x_stride, 32, -8, 7, c.d + k, c.q + 32 * k);
        struct block_q4_0 block = {.d = c.d[k]};
        pack_nibbles(block.qs, c.q + 32 * k, 16);
        blocks[k] = block;
    }
}

static const struct code_space q4_0_codes = {.group = 32, .q_most = 15};

static void open_q4_0(const struct block_q4_0 *block, struct opened *o)
{
    o->scale[0] = f32_of_f16(block->d);
    o->offset[0] = -8 * o->scale[0];
    unpack_nibbles(block->qs, o->q, 16);
}

static void close_q4_0(struct block_q4_0 *block, const struct opened *o)
{
    pack_nibbles(block->qs, o->q, 16);
}

static void decode_q4_0(const struct block_q4_0 *block, float *x)
{
    float d = f32_of_f16(block->d);
    uint8_t q[32];
    unpack_nibbles(block->qs, q, 16);
    scaled_weights(q, 32, d, 8, x);
}

static void regain_q4_0(struct block_q4_0 *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
