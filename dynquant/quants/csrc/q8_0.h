/* Q8_0: 32 weights in 34 bytes, 8.5 bits per weight.
 *
 *   bytes 0..1    d    f16 scale
 *   bytes 2..33   qs   32 signed codes, in weight order
 *
 *   w[i] = d * qs[i],  qs[i] in -127..127
 *
 * Source: block_q8_0 in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "one_scale.h"
#include "opened.h"

struct block_q8_0 { uint16_t d; int8_t qs[32]; } PACKED;
static_assert(sizeof(struct block_q8_0) == 34, "Q8_0 is 34 bytes a block");

static const struct one_scale_format q8_0_format = {
    .levels = {.lo = -127, .hi = 127},
    .effort = {
        [EFFORT_FAST] = {.count = 2, .first = 126, .step = 1, .polish = 0},
        [EFFORT_NORMAL] = {.count = 6, .first = 122, .step = 1, .polish = 0},
        [EFFORT_BEST] = {.count = 40, .first = 88, .step = 1, .polish = 1},
    },
};

/* The largest magnitude of a block; magnitudes compare as their bits do. */
static inline float widest_q8_0(const float *x)
{
    uint32_t widest = 0;
    for (int i = 0; i < 32; i++) {
        uint32_t magnitude = bits_of_f32(x[i]) & 0x7fffffff;
        widest = magnitude > widest ? magnitude : widest;
    }
    return f32_of_bits(widest);
}

/* The scale that maps the largest magnitude to 127, and the nearest codes for the f16 of it. If
 * all weights have the same importance, a search reduces the error by 4 % only, at a tenth of the
 * speed. If a few matter most, the scale that is best for them reduces it by a third.
 *
 * The scales of sixteen blocks are computed together, because quotients take longest. */
static void encode_q8_0_evenly(struct weights in, struct block_q8_0 *blocks, int n_blocks)
{
    float widest[LANES] = {0}, inverse[LANES];
    uint16_t stored[LANES];
    for (int k = 0; k < n_blocks; k++)
        widest[k] = widest_q8_0(in.x + k * in.x_stride);
    for (int k = 0; k < LANES; k++) {
        stored[k] = f16_of_f32(widest[k] / 127);
        float d = f32_of_f16(stored[k]);
        inverse[k] = d > 0 ? 1 / d : 0;
    }
    for (int k = 0; k < n_blocks; k++) {
        const float *x = in.x + k * in.x_stride;
        int32_t q[32];
        for (int i = 0; i < 32; i++) {
            float a = x[i] * inverse[k];
            a = a < -127 ? -127 : a;
            a = a > 127 ? 127 : a;
            q[i] = (int32_t)bits_of_f32(a + ROUNDER);
        }
        blocks[k].d = stored[k];
        for (int i = 0; i < 32; i++)
            blocks[k].qs[i] = (int8_t)q[i];
    }
}

static inline void pack_q8_0(struct block_q8_0 *block, const uint8_t *q)
{
    for (int i = 0; i < 32; i++)
        block->qs[i] = (int8_t)(q[i] - 127);
}

static void encode_q8_0(struct weights in, struct block_q8_0 *blocks, int n_blocks,
                        enum effort effort)
{
    if (!in.w && effort != EFFORT_BEST) {
        encode_q8_0_evenly(in, blocks, n_blocks);
        return;
    }
    struct groups g;
    struct one_scale_codes c;
    gather(&g, 32, 1, n_blocks, in);
    encode_one_scale(&g, q8_0_format, effort, &c);
    for (int k = 0; k < n_blocks; k++) {
        blocks[k].d = c.d[k];
        pack_q8_0(blocks + k, c.q + 32 * k);
    }
}

static const struct code_space q8_0_codes = {.group = 32, .q_most = 254};

/* -128, which no encoder of ours writes, opens as -127. */
static void open_q8_0(const struct block_q8_0 *block, struct opened *o)
{
    o->scale[0] = f32_of_f16(block->d);
    o->offset[0] = -127 * o->scale[0];
    for (int i = 0; i < 32; i++) {
        int q = block->qs[i] + 127;
        o->q[i] = (uint8_t)(q < 0 ? 0 : q);
    }
}

static void close_q8_0(struct block_q8_0 *block, const struct opened *o)
{
    pack_q8_0(block, o->q);
}

static void decode_q8_0(const struct block_q8_0 *block, float *x)
{
    float d = f32_of_f16(block->d);
    for (int i = 0; i < 32; i++)
        x[i] = d * block->qs[i];
}

static void regain_q8_0(struct block_q8_0 *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
