/* Codes at fixed scales, for sixteen groups at a time: the second half of an encoder.
 *
 * The first half chooses scales (fit.h and the fit_* functions of the families). A caller that has
 * its scales from elsewhere, or changes weights after the scales were chosen, needs only this half.
 * Scales and offsets are in the normalised units of the groups (groups.h).
 */
#pragma once

#include "groups.h"

/* ---- x ~ s * q + b, q = 0..q_most ------------------------------------------------------------ */

/* A scale and an offset for each group. */
struct affine { f32x16 s, b; };

/* The code of each weight, nearest to (x - b) / s; 0 where s is zero. */
static ALWAYS_INLINE void round_affine(const struct groups *g, int n, float q_most, struct affine a,
                                       f32x16 *q)
{
    f32x16 inverse = quotient_or_zero(splat(1), a.s);
    for (int i = 0; i < n; i++)
        q[i] = nearest(mul(sub(g->x[i], a.b), inverse), 0, q_most);
}

/* ---- x ~ s * level, one of a fixed set of levels --------------------------------------------- */

/* The levels that a code can stand for: the whole numbers lo..hi, or a table of sixteen levels in
 * rising order, with lo and hi the first and the last. */
struct levels { float lo, hi; const float *table; };

/* The level nearest to a. In a table: one level up for every midpoint below a. */
static ALWAYS_INLINE f32x16 nearest_level(f32x16 a, struct levels v)
{
    if (!v.table)
        return nearest(a, v.lo, v.hi);
    f32x16 level = splat(v.table[0]);
    for (int k = 1; k < 16; k++) {
        f32x16 midpoint = splat(0.5f * (v.table[k - 1] + v.table[k]));
        level = choose(below(midpoint, a), splat(v.table[k]), level);
    }
    return level;
}

/* The code of that level: its place among the levels, from 0. */
static ALWAYS_INLINE f32x16 nearest_code(f32x16 a, struct levels v)
{
    if (!v.table)
        return sub(nearest(a, v.lo, v.hi), splat(v.lo));
    f32x16 code = splat(0);
    for (int k = 1; k < 16; k++) {
        f32x16 midpoint = splat(0.5f * (v.table[k - 1] + v.table[k]));
        code = add(code, choose(below(midpoint, a), splat(1), splat(0)));
    }
    return code;
}

/* The code of each weight, nearest to x / s; the code nearest to 0 where s is zero. */
static ALWAYS_INLINE void round_scaled(const struct groups *g, int n, struct levels v, f32x16 s,
                                       f32x16 *q)
{
    f32x16 inverse = quotient_or_zero(splat(1), s);
    for (int i = 0; i < n; i++)
        q[i] = nearest_code(mul(g->x[i], inverse), v);
}
