/* NVFP4: 64 weights in 36 bytes, 4.5 bits per weight.
 *
 *   bytes 0..3    d    four UE4M3 scales, one per 16 weights
 *   bytes 4..35   qs   eight bytes a group: byte i of group g holds weight 16 g + i in its low half
 *                      and weight 16 g + 8 + i in its high half
 *
 *   w[16 g + i] = d[g] * level[q],  q in 0..15: FP4 (fp4.h)
 *
 * UE4M3: bits 0..2 a fraction, bits 3..6 an exponent of bias 7: 2^-9 (subnormal) to 448. 127 is not
 * a number and decodes to zero; a decoder does not look at bit 7. The lattice is fixed: weights
 * around 0.01, such as models have, use its subnormal end, where a scale is one of a few.
 * Source: block_nvfp4 in ggml-common.h.
 */
#include <assert.h>

#include "fp4.h"
#include "opened.h"

struct block_nvfp4 { uint8_t d[4], qs[32]; } PACKED;
static_assert(sizeof(struct block_nvfp4) == 36, "NVFP4 is 36 bytes a block");

#define UE4M3_MOST 126

static inline float f32_of_ue4m3(int32_t d)
{
    float normal = f32_of_bits(((uint32_t)d << 20) + (120u << 23)); /* exponent bias 7 -> 127 */
    return d < 8 ? (float)d * 0x1p-9f : normal;
}

/* The largest scale that is not above a >= 0. */
static inline int32_t ue4m3_below(float a)
{
    if (a < 0x1p-6f)
        return (int32_t)(a * 512);
    return a < 448 ? (int32_t)((bits_of_f32(a) - (120u << 23)) >> 20) : UE4M3_MOST;
}

/* The scales tried: `tries` neighbours on the lattice, the first `below` steps below the one that
 * maps the group's largest weight to 6; eight steps double a scale. Effort best tries all 126 of
 * them: the optimum. Measured on Gaussian and Student-t weights, normal's error is less than 1e-4
 * above it. */
static const struct { int below, tries; } nvfp4_search[N_EFFORTS] = {
    [EFFORT_FAST] = {.below = 2, .tries = 6},
    [EFFORT_NORMAL] = {.below = 4, .tries = 14},
    [EFFORT_BEST] = {.below = 126, .tries = 126},
};

/* A scale of each lane, in normalised weights, the step to the next one, and the power of two from
 * which on the step is twice as wide. */
struct ue4m3_walk { f32x16 scale, step, wider; };

static ALWAYS_INLINE struct ue4m3_walk ue4m3_walk_from(const int32_t *d, const float *inverse_unit)
{
    float scale[LANES], step[LANES], wider[LANES];
    for (int l = 0; l < LANES; l++) {
        scale[l] = f32_of_ue4m3(d[l]) * inverse_unit[l];
        int32_t octave = d[l] < 8 ? 1 : d[l] / 8;
        step[l] = f32_of_bits((uint32_t)(octave + 117) << 23) * inverse_unit[l];
        wider[l] = 16 * step[l];
    }
    return (struct ue4m3_walk){load(scale), load(step), load(wider)};
}

static ALWAYS_INLINE void ue4m3_next(struct ue4m3_walk *walk)
{
    walk->scale = add(walk->scale, walk->step);
    mask16 same = below(walk->scale, walk->wider);
    walk->step = choose(same, walk->step, add(walk->step, walk->step));
    walk->wider = choose(same, walk->wider, add(walk->wider, walk->wider));
}

/* The scale of each group in normalised units; zero where zeros are better. */
static ALWAYS_INLINE f32x16 fit_nvfp4(const struct groups *g, enum effort effort)
{
    f32x16 widest = splat(0);
    for (int i = 0; i < 16; i++)
        widest = most(widest, absolute(g->x[i]));
    int32_t first[LANES];
    float start[LANES], inverse_unit[LANES];
    store(start, mul(widest, splat(1.0f / 6)));
    for (int l = 0; l < LANES; l++) {
        first[l] = ue4m3_below(start[l] * g->unit[l]) - nvfp4_search[effort].below;
        first[l] = first[l] < 1 ? 1 : first[l];
        inverse_unit[l] = inverse_of_power(g->unit[l]);
    }

    struct ue4m3_walk walk = ue4m3_walk_from(first, inverse_unit);
    f32x16 best_s = splat(0), best_error = error_of_zeros(sum_group(g, 16).xx);
    f32x16 highest = mul(splat(448), load(inverse_unit));
    for (int c = 0; c < nvfp4_search[effort].tries; c++) {
        f32x16 s = least(walk.scale, highest);
        f32x16 error = error_of_fp4(g, 16, s, quotient(splat(1), s));
        mask16 better = below(error, best_error);
        best_error = choose(better, error, best_error);
        best_s = choose(better, s, best_s);
        ue4m3_next(&walk);
    }
    return best_s;
}

static void encode_nvfp4(struct weights in, struct block_nvfp4 *blocks, int n_blocks,
                         enum effort effort)
{
    struct groups g;
    gather_into(g.x, g.w, g.unit, 16, 4, 1, n_blocks, in); /* groups share nothing */
    g.is_weighted = in.w != NULL;
    f32x16 scale = fit_nvfp4(&g, effort), q[16];
    float s[LANES];
    _Alignas(4) uint8_t qs[LANES * 8];
    store(s, scale);
    round_fp4(&g, 16, scale, q);
    pack_fp4(q, 16, qs);
    for (int k = 0; k < n_blocks; k++) {
        for (int j = 0; j < 4; j++)
            blocks[k].d[j] = (uint8_t)ue4m3_below(s[4 * k + j] * g.unit[4 * k + j]);
        memcpy(blocks[k].qs, qs + 32 * k, 32);
    }
}

static inline float half_scale_of_nvfp4(const struct block_nvfp4 *block, int j)
{
    return block->d[j] == 127 ? 0 : 0.5f * f32_of_ue4m3(block->d[j] & 127);
}

static const struct code_space nvfp4_codes = {.group = 16, .q_most = 15, .levels = fp4_doubled};

static void open_nvfp4(const struct block_nvfp4 *block, struct opened *o)
{
    for (int j = 0; j < 4; j++) {
        o->scale[j] = half_scale_of_nvfp4(block, j);
        o->offset[j] = 0;
    }
    unpack_runs(block->qs, o->q, 8, 4);
}

static void close_nvfp4(struct block_nvfp4 *block, const struct opened *o)
{
    pack_runs(block->qs, o->q, 8, 4);
}

static void decode_nvfp4(const struct block_nvfp4 *block, float *x)
{
    uint8_t q[64];
    unpack_runs(block->qs, q, 8, 4);
    for (int j = 0; j < 4; j++)
        level_weights(q + 16 * j, 16, half_scale_of_nvfp4(block, j), fp4_doubled, x + 16 * j);
}
