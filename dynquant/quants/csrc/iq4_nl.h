/* IQ4_NL: 32 weights in 18 bytes, 4.5 bits per weight.
 *
 *   bytes 0..1    d    f16 scale
 *   bytes 2..17   qs   byte i holds weight i in its low half and weight 16 + i in its high half
 *
 *   w[i] = d * level[q],  q in 0..15: the sixteen levels of iq4_levels.h
 *
 * Source: block_iq4_nl in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "iq4_levels.h"
#include "one_scale.h"
#include "opened.h"
#include "packing.h"
#include "weights.h"

struct block_iq4_nl { uint16_t d; uint8_t qs[16]; } PACKED;
static_assert(sizeof(struct block_iq4_nl) == 18, "IQ4_NL is 18 bytes a block");

static const struct one_scale_format iq4_nl_format = {
    .levels = {.lo = -127, .hi = 113, .table = iq4_levels},
    .effort = {
        [EFFORT_FAST] = {.count = 6, .first = 80, .step = 12, .polish = 0},
        [EFFORT_NORMAL] = {.count = 16, .first = 80, .step = 4.5f, .polish = 1},
        [EFFORT_BEST] = {.count = 40, .first = 64, .step = 2.9f, .polish = 1},
    },
};

static void encode_iq4_nl(struct weights in, struct block_iq4_nl *blocks, int n_blocks,
                        enum effort effort)
{
    struct groups g;
    struct one_scale_codes c;
    gather(&g, 32, 1, n_blocks, in);
    encode_one_scale(&g, iq4_nl_format, effort, &c);
    for (int k = 0; k < n_blocks; k++) {
        struct block_iq4_nl block = {.d = c.d[k]};
        pack_nibbles(block.qs, c.q + 32 * k, 16);
        blocks[k] = block;
    }
}

static const struct code_space iq4_nl_codes = {.group = 32, .q_most = 15, .levels = iq4_levels};

static void open_iq4_nl(const struct block_iq4_nl *block, struct opened *o)
{
    o->scale[0] = f32_of_f16(block->d);
    o->offset[0] = 0;
    unpack_nibbles(block->qs, o->q, 16);
}

static void close_iq4_nl(struct block_iq4_nl *block, const struct opened *o)
{
    pack_nibbles(block->qs, o->q, 16);
}

static void decode_iq4_nl(const struct block_iq4_nl *block, float *x)
{
    float d = f32_of_f16(block->d);
    uint8_t q[32];
    unpack_nibbles(block->qs, q, 16);
    level_weights(q, 32, d, iq4_levels, x);
}

static void regain_iq4_nl(struct block_iq4_nl *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
