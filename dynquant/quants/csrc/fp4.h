/* FP4 (E2M1): a sign, and one of the magnitudes 0, 1/2, 1, 3/2, 2, 3, 4, 6. Groups share a scale
 * from a coarse lattice, so that every scale that may be the best is tried, with its true error.
 *
 * The search works on magnitudes: signs are free, and zero is always a level, so no choice of scale
 * is worse than zeros. Zero is written as code 0, never as code 8, minus zero.
 */
#pragma once

#include "fit.h"
#include "packing.h"
#include "weights.h"

/* The magnitude nearest to a >= 0. Levels are 1/2 apart up to 2, then 1, then 2: numbers of 2^22 to
 * 2^25 have just these last places, so adding one of them and taking it away rounds (ROUNDER). */
static ALWAYS_INLINE f32x16 nearest_fp4(f32x16 a)
{
    f32x16 rounder = choose(below(a, splat(4)), splat(ROUNDER), splat(2 * ROUNDER));
    rounder = choose(below(a, splat(2)), splat(ROUNDER / 2), rounder);
    return least(sub(add(a, rounder), rounder), splat(6));
}

/* sum w (|x| - s * level)^2; inverse is 1 / s. */
static ALWAYS_INLINE f32x16 error_of_fp4(const struct groups *g, int n, f32x16 s, f32x16 inverse)
{
    f32x16 error = splat(0);
    for (int i = 0; i < n; i++) {
        f32x16 a = absolute(g->x[i]);
        f32x16 e = sub(a, mul(nearest_fp4(mul(a, inverse)), s));
        error = add(error, mul(mul(g->w[i], e), e));
    }
    return error;
}

/* The code of each weight, nearest to x / s; 0 where s is zero. */
static ALWAYS_INLINE void round_fp4(const struct groups *g, int n, f32x16 s, f32x16 *q)
{
    f32x16 inverse = quotient_or_zero(splat(1), s);
    for (int i = 0; i < n; i++) {
        f32x16 level = nearest_fp4(mul(absolute(g->x[i]), inverse));
        /* 0, 1/2, 1, 3/2, 2, 3, 4, 6 are codes 0..7: twice the level up to 2, then 2 more than the
         * level, but 7 for the last; the smallest of the three is the code. */
        f32x16 code = least(least(mul(level, splat(2)), add(level, splat(2))), splat(7));
        f32x16 negative = choose(below(g->x[i], splat(0)), splat(8), splat(0));
        q[i] = add(code, choose(below(splat(0), level), negative, splat(0)));
    }
}

/* The codes of n weights, two to a byte as pack_nibbles places them. Group l's bytes begin at
 * bytes[l * n / 2]. */
static ALWAYS_INLINE void pack_fp4(const f32x16 *q, int n, uint8_t *bytes)
{
    f32x16 pairs[MAX_GROUP / 2];
    for (int i = 0; i < n / 2; i++)
        pairs[i] = add(q[i], mul(q[n / 2 + i], splat(16)));
    scatter_codes(pairs, n / 2, bytes);
}

/* Twice the value of each code: with half the scale, the numbers that a decoder multiplies. Code 8
 * opens as 8, another zero, and closes as it was. */
static const float fp4_doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
