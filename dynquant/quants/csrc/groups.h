/* Sixteen groups of weights, one a lane, for the searches of fit.h.
 *
 * A group is a number of weights with one scale: 16 or 32 weights of a block or of a super-block.
 * Lanes do not depend on each other, so they can hold blocks of one row and of the next, or one
 * column range of sixteen rows: the blocks are a stride apart (struct weights in codec.h).
 *
 * The weights are normalised: each block is multiplied by the power of two that brings its largest
 * magnitude to 1..2, and its importances likewise, so that no square overflows and none vanishes,
 * whatever the units of the model. Both steps are exact, except for weights so far below the
 * largest of their block that every code for them means zero.
 */
#pragma once

#include <math.h>

#include "codec.h"
#include "floats.h"
#include "lanes.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define MAX_GROUP 32

struct groups {
    f32x16 x[MAX_GROUP], w[MAX_GROUP];
    float unit[LANES]; /* weight = normalised weight * unit, a power of two */
    int is_weighted;   /* 0: all of w are one */
};

/* a times the importance of weight i of each group. is_weighted is a constant of the caller, so
 * that products with one take no time. */
static ALWAYS_INLINE f32x16 times_importance(const struct groups *g, int i, f32x16 a,
                                             int is_weighted)
{
    return is_weighted ? mul(g->w[i], a) : a;
}

/* The least normalised importance, about this share of the largest one of its block: no sum of
 * importances is zero, and a group whose importances are all zero is fitted as if they were equal.
 * 2^-40 of an error changes no f32 sum of others. */
#define LEAST_IMPORTANCE 0x1p-40f

/* The power of two 2^e with 2^e <= a < 2^(e+1), kept where both it and its inverse are normal. */
static inline float power_of_two_below(float a)
{
    uint32_t exponent = bits_of_f32(a) >> 23;
    exponent = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
    return f32_of_bits(exponent << 23);
}

static inline float inverse_of_power(float power)
{
    return f32_of_bits(0x7f000000 - bits_of_f32(power));
}

/* For each block of group_count lanes, a power of two at or below its largest |a|, in all of its
 * lanes. */
static ALWAYS_INLINE void units_of(const float (*a)[LANES], int n, int group_count, float *unit,
                                   float *inverse)
{
    f32x16 lane_most = splat(0);
    for (int i = 0; i < n; i++)
        lane_most = most(lane_most, absolute(load(a[i])));
    float m[LANES];
    store(m, lane_most);
    for (int first = 0; first < LANES; first += group_count) {
        float block_most = 0;
        for (int l = first; l < first + group_count; l++)
            block_most = m[l] > block_most ? m[l] : block_most;
        for (int l = first; l < first + group_count; l++) {
            unit[l] = power_of_two_below(block_most);
            inverse[l] = inverse_of_power(unit[l]);
        }
    }
}

/* to[i][l] = weight i of group l; zero in the lanes beyond n_blocks blocks. Block b's groups begin
 * at x + b * stride. */
static ALWAYS_INLINE void lanes_of_groups(float (*to)[LANES], const float *x, int64_t stride, int n,
                                          int group_count, int n_blocks)
{
    if (n_blocks * group_count == LANES) {
        lanes_of_rows(to, x, n, group_count, stride);
        return;
    }
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < n; i++)
            to[i][l] = l / group_count < n_blocks
                           ? x[l / group_count * stride + l % group_count * n + i]
                           : 0;
}

/* Take n_blocks blocks of group_count groups of n weights, group_count * n_blocks <= 16, to gx, and
 * their importances to gw; the lanes beyond them hold zeros. Each unit_count groups are normalised
 * together: those of a block, or each one where groups share nothing. */
static ALWAYS_INLINE void gather_into(f32x16 *gx, f32x16 *gw, float *unit, int n, int group_count,
                                      int unit_count, int n_blocks, struct weights in)
{
    float inverse[LANES], w_unit[LANES];

    lanes_of_groups((float(*)[LANES])gx, in.x, in.x_stride, n, group_count, n_blocks);
    units_of((const float(*)[LANES])gx, n, unit_count, unit, inverse);
    for (int i = 0; i < n; i++)
        gx[i] = mul(gx[i], load(inverse));
    if (!in.w) {
        for (int i = 0; i < n; i++)
            gw[i] = splat(1);
        return;
    }
    lanes_of_groups((float(*)[LANES])gw, in.w, in.w_stride, n, group_count, n_blocks);
    units_of((const float(*)[LANES])gw, n, unit_count, w_unit, inverse);
    for (int i = 0; i < n; i++)
        gw[i] = most(mul(gw[i], load(inverse)), splat(LEAST_IMPORTANCE));
}

static ALWAYS_INLINE void gather(struct groups *g, int n, int group_count, int n_blocks,
                                 struct weights in)
{
    gather_into(g->x, g->w, g->unit, n, group_count, group_count, n_blocks, in);
    g->is_weighted = in.w != NULL;
}

/* A number of each block of group_count lanes, in all of its lanes. */
static ALWAYS_INLINE f32x16 lanes_of_blocks(const float *a, int group_count)
{
    float lane[LANES];
    for (int l = 0; l < LANES; l++)
        lane[l] = a[l / group_count];
    return load(lane);
}

/* The largest number of each block, at least 0. */
static ALWAYS_INLINE void most_of_blocks(f32x16 a, int group_count, float *block_most)
{
    float lane[LANES];
    store(lane, a);
    for (int k = 0; k < LANES / group_count; k++) {
        block_most[k] = 0;
        for (int l = k * group_count; l < (k + 1) * group_count; l++)
            block_most[k] = lane[l] > block_most[k] ? lane[l] : block_most[k];
    }
}

/* The number of largest magnitude of each block, with its sign. */
static ALWAYS_INLINE void widest_of_blocks(f32x16 a, int group_count, float *widest)
{
    float lane[LANES];
    store(lane, a);
    for (int k = 0; k < LANES / group_count; k++) {
        widest[k] = 0;
        for (int l = k * group_count; l < (k + 1) * group_count; l++)
            widest[k] = fabsf(lane[l]) > fabsf(widest[k]) ? lane[l] : widest[k];
    }
}

/* The sum over each block, in the order of its lanes. */
static ALWAYS_INLINE void sums_of_blocks(f32x16 a, int group_count, float *sum)
{
    float lane[LANES];
    store(lane, a);
    for (int k = 0; k < LANES / group_count; k++) {
        sum[k] = 0;
        for (int l = k * group_count; l < (k + 1) * group_count; l++)
            sum[k] += lane[l];
    }
}

/* The codes of sixteen groups, as bytes in weight order: group l's begin at codes[l * n]. */
static ALWAYS_INLINE void scatter_codes(const f32x16 *q, int n, void *codes)
{
    float words[MAX_GROUP / 4][LANES];
    uint32_t *to = codes;
    for (int i = 0; i < n; i += 4)
        store(words[i / 4], bytes_of(q[i], q[i + 1], q[i + 2], q[i + 3]));
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < n / 4; i++)
            memcpy(to + l * (n / 4) + i, &words[i][l], sizeof *to);
}

/* A scale in the normalised units of a block, as the f16 that the decoder will read: the f16 in
 * *stored and its value in normalised units returned. */
static inline float rounded_scale(float scale, float unit, uint16_t *stored)
{
    *stored = f16_of_f32(scale * unit);
    return f32_of_f16(*stored) * inverse_of_power(unit);
}
