/* The ternary types: 256 weights, one scale d, w = d * q with q in -1..1; sixteen blocks at a time.
 *
 * For a given set of weights that are not zero the best d is A / B, A = sum w |x|, B = sum w over
 * the set, and it takes A^2 / B off the error. The best codes for a given d are those of the set
 * |x| > d / 2, whatever w: so only the 256 sets of the largest |x| can be optimal, and sorting
 * finds the best of all. This is the exact optimum, so a higher effort finds no better one.
 */
#pragma once

#include <math.h>

#include "sort.h"

#define TERNARY_BLOCK 256

struct ternary_codes {
    uint16_t d[LANES];
    f32x16 q[TERNARY_BLOCK]; /* codes 0..2 for -1..1 */
};

/* Rounds of d = A / B over |x| > d / 2, at effort fast. From the mean magnitude of all weights the
 * set only shrinks, until d no longer changes. */
#define FAST_ROUNDS 5

static ALWAYS_INLINE f32x16 fit_ternary_fast(const f32x16 *x, const f32x16 *w)
{
    f32x16 zero = splat(0), half_d = splat(-1), d = zero;
    for (int round = 0; round <= FAST_ROUNDS; round++) {
        f32x16 a = zero, b = zero;
        for (int i = 0; i < TERNARY_BLOCK; i++) {
            f32x16 magnitude = absolute(x[i]);
            f32x16 taken = choose(below(half_d, magnitude), w[i], zero);
            a = add(a, mul(taken, magnitude));
            b = add(b, taken);
        }
        d = quotient_or_zero(a, b);
        half_d = mul(d, splat(0.5f));
    }
    return d;
}

static ALWAYS_INLINE f32x16 fit_ternary(const f32x16 *x, const f32x16 *w, int has_importance)
{
    f32x16 key[TERNARY_BLOCK], key_w[TERNARY_BLOCK];
    for (int i = 0; i < TERNARY_BLOCK; i++) {
        key[i] = absolute(x[i]);
        if (has_importance)
            key_w[i] = w[i];
    }
    sort_falling(key, has_importance ? key_w : NULL, TERNARY_BLOCK);
    f32x16 a = splat(0), b = splat(0), best_a = splat(0), best_b = splat(1);
    for (int i = 0; i < TERNARY_BLOCK; i++) {
        f32x16 wi = has_importance ? key_w[i] : splat(1);
        a = add(a, mul(wi, key[i]));
        b = add(b, wi);
        /* a^2 / b against the best, without a division */
        mask16 better = below(mul(mul(best_a, best_a), b), mul(mul(a, a), best_b));
        best_a = choose(better, a, best_a);
        best_b = choose(better, b, best_b);
    }
    return quotient(best_a, best_b);
}

/* Codes 0..2 for -1..1: the sign of each weight above half a scale. A scale of zero gives zeros. */
static ALWAYS_INLINE void round_ternary(const f32x16 *x, f32x16 d, f32x16 *q)
{
    f32x16 half_d = mul(d, splat(0.5f));
    half_d = choose(below(splat(0), half_d), half_d, splat(INFINITY));
    f32x16 minus_half_d = sub(splat(0), half_d);
    for (int i = 0; i < TERNARY_BLOCK; i++)
        q[i] = choose(below(half_d, x[i]), splat(2),
                      choose(below(x[i], minus_half_d), splat(0), splat(1)));
}

static ALWAYS_INLINE void encode_ternary(struct weights in, int n_blocks, enum effort effort,
                                         struct ternary_codes *out)
{
    f32x16 gx[TERNARY_BLOCK], gw[TERNARY_BLOCK];
    float unit[LANES], d[LANES];
    gather_into(gx, gw, unit, TERNARY_BLOCK, 1, 1, n_blocks, in);
    store(d, effort == EFFORT_FAST ? fit_ternary_fast(gx, gw)
             : in.w                ? fit_ternary(gx, gw, 1)
                                   : fit_ternary(gx, gw, 0));
    for (int l = 0; l < LANES; l++)
        d[l] = rounded_scale(d[l], unit[l], &out->d[l]);
    round_ternary(gx, load(d), out->q);
}
