/* IQ4_XS: 256 weights in 136 bytes, 4.25 bits per weight.
 *
 *   bytes 0..1    d         f16 scale of the scales
 *   bytes 2..3    scales_h  bits 2 g, 2 g + 1: high bits of the 6-bit scale of group g, g = 0..7
 *   bytes 4..7    scales_l  low 4 bits: group 2 j's in the low half of byte j, group 2 j + 1's in
 *                           its high half
 *   bytes 8..135  qs        byte 16 g + i holds weight 32 g + i in its low half and weight
 *                           32 g + 16 + i in its high half
 *
 *   w[32 g + i] = d * (scale[g] - 32) * level[q],  q in 0..15: the sixteen levels of iq4_levels.h
 *
 * Source: block_iq4_xs in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "iq4_levels.h"
#include "opened.h"
#include "packing.h"
#include "scaled_k.h"
#include "weights.h"

struct block_iq4_xs { uint16_t d, scales_h; uint8_t scales_l[4], qs[128]; } PACKED;
static_assert(sizeof(struct block_iq4_xs) == 136, "IQ4_XS is 136 bytes a block");

static const struct scaled_format iq4_xs_format = {
    .n = 32, .group_count = 8, .levels = {.lo = -127, .hi = 113, .table = iq4_levels},
    .l_least = -32, .l_most = 31,
    .effort = {
        [EFFORT_FAST] = {
            .tries = {.count = 6, .first = 80, .step = 12, .polish = 0},
            .starts = 1, .rounds = 0, .reach = 1,
        },
        [EFFORT_NORMAL] = {
            .tries = {.count = 16, .first = 80, .step = 4.5f, .polish = 0},
            .starts = 2, .rounds = 1, .reach = 1,
        },
        [EFFORT_BEST] = {
            .tries = {.count = 40, .first = 64, .step = 2.9f, .polish = 0},
            .starts = 8, .rounds = 4, .reach = 1,
        },
    },
};

static inline int iq4_xs_scale(const struct block_iq4_xs *block, int j)
{
    int low = block->scales_l[j / 2] >> 4 * (j % 2) & 15, high = block->scales_h >> 2 * j & 3;
    return (low | high << 4) - 32;
}

static void encode_iq4_xs(struct weights in, struct block_iq4_xs *blocks,
                          int n_blocks, enum effort effort)
{
    struct groups g;
    struct scaled_codes c;
    gather(&g, 32, 8, n_blocks, in);
    encode_scaled(&g, iq4_xs_format, effort, &c);
    for (int k = 0; k < n_blocks; k++) {
        struct block_iq4_xs block = {.d = c.d[k]};
        for (int j = 0; j < 8; j++) {
            unsigned scale = (unsigned)(c.ls[8 * k + j] + 32);
            block.scales_l[j / 2] |= (uint8_t)((scale & 15) << 4 * (j % 2));
            block.scales_h |= (uint16_t)(scale >> 4 << 2 * j);
        }
        pack_runs(block.qs, c.q + 256 * k, 16, 8);
        blocks[k] = block;
    }
}

static const struct code_space iq4_xs_codes = {.group = 32, .q_most = 15, .levels = iq4_levels};

static void open_iq4_xs(const struct block_iq4_xs *block, struct opened *o)
{
    float d = f32_of_f16(block->d);
    for (int j = 0; j < 8; j++) {
        o->scale[j] = d * (float)iq4_xs_scale(block, j);
        o->offset[j] = 0;
    }
    unpack_runs(block->qs, o->q, 16, 8);
}

static void close_iq4_xs(struct block_iq4_xs *block, const struct opened *o)
{
    pack_runs(block->qs, o->q, 16, 8);
}

static void decode_iq4_xs(const struct block_iq4_xs *block, float *x)
{
    float d = f32_of_f16(block->d);
    for (int j = 0; j < 8; j++) {
        uint8_t q[32];
        unpack_nibbles(block->qs + 16 * j, q, 16);
        level_weights(q, 32, d * (float)iq4_xs_scale(block, j), iq4_levels, x + 32 * j);
    }
}

static void regain_iq4_xs(struct block_iq4_xs *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
