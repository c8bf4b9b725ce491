/* Scales that reproduce weights that lie on the grid of a type: x = d * q, q one of few integers.
 *
 * Models that are trained for such a type, or dequantized from one, have these weights. A search
 * for the least error does not always find their d. Checkpoints store d * q rounded to bf16, so
 * that least squares is off by a few last places of f16; and a block whose largest |q| is in the
 * middle of the range is not among the tries. So a block that may lie on the grid is searched once
 * more, for a scale whose products, rounded as the weights are, are the weights. All other blocks
 * stay as they are.
 */
#pragma once

#include <math.h>

#include "fit.h"

/* Weights of each block that the first look takes. Four of a block of other weights fit one of
 * eight scales in about one of ten thousand blocks. */
#define FIRST_LOOK 4

/* Two weights that were rounded to bf16, by at most 2^-8 of each. */
#define ROUNDED_RATIO 0x1.1p-7f

/* Not zero where the first weights of a block are near whole multiples of its largest magnitude
 * divided by 1, 2 .. most_level. Zero for blocks of zeros. */
static ALWAYS_INLINE f32x16 may_lie_on_grid(const struct groups *g, int most_level)
{
    f32x16 per_extreme = quotient_or_zero(splat(1), extreme(g, 32)), zero = splat(0), any = zero;
    for (int level = 1; level <= most_level; level++) {
        f32x16 fits = absolute(per_extreme), inverse = mul(per_extreme, splat((float)level));
        for (int i = 0; i < FIRST_LOOK; i++) {
            f32x16 y = mul(g->x[i], inverse);
            f32x16 e = absolute(sub(y, nearest(y, (float)-most_level, (float)most_level)));
            fits = choose(below(mul(absolute(y), splat(ROUNDED_RATIO)), e), zero, fits);
        }
        any = most(any, fits);
    }
    return any;
}

/* The format that all weights of a block have: of their bits, or of a checkpoint that was widened
 * to f32. */
enum precision { PRECISION_BF16, PRECISION_F16, PRECISION_F32 };

static enum precision precision_of(const float *x, int n)
{
    uint32_t low = 0;
    int is_f16 = 1;
    for (int i = 0; i < n; i++) {
        low |= bits_of_f32(x[i]) & 0xffff;
        is_f16 &= f32_of_f16(f16_of_f32(x[i])) == x[i];
    }
    return low == 0 ? PRECISION_BF16 : is_f16 ? PRECISION_F16 : PRECISION_F32;
}

static inline float rounded_to(enum precision p, float a)
{
    return p == PRECISION_BF16  ? f32_of_bf16(bf16_of_f32(a))
           : p == PRECISION_F16 ? f32_of_f16(f16_of_f32(a))
                                : a;
}

/* Half of the distance from |x| to the next larger number of a precision: 8, 11 or 24 bits. */
static inline double half_step(enum precision p, float x)
{
    int exponent = (int)(bits_of_f32(x) >> 23 & 0xff);
    int bits = p == PRECISION_BF16 ? 8 : p == PRECISION_F16 ? 11 : 24;
    if (p == PRECISION_F16 && exponent < 113)
        exponent = 113; /* 2^-14: below it, f16 has steps of 2^-24 */
    return ldexp(1, (exponent < 1 ? 1 : exponent) - 127 - bits);
}

/* Whether d * level, rounded, is each weight; codes are levels from lo on. */
static int reproduces(const float *x, int n, enum precision p, float d, const uint8_t *q, int lo)
{
    int all = 1;
    for (int i = 0; i < n; i++)
        all &= rounded_to(p, d * (float)(q[i] + lo)) == x[i];
    return all;
}

/* Codes for the weight of largest magnitude at one level, and an f16 scale between the bounds that
 * every weight sets; 0 if there are none. The level is tried with either sign, as levels are not
 * symmetric. */
static int scale_at_level(const float *x, int n, enum precision p, float widest, int level, int lo,
                          int hi, uint16_t *d, uint8_t *q)
{
    float inverse = (float)level / widest, least_q = 0, most_q = 0, whole[MAX_GROUP];
    double low = 0, high = INFINITY;
    if (isinf(inverse))
        return 0; /* f16 holds no scale that small */
    for (int i = 0; i < n; i++) {
        float level_of_x = (x[i] * inverse + ROUNDER) - ROUNDER;
        double a = fabs((double)x[i]), h = half_step(p, x[i]), count = fabs((double)level_of_x);
        whole[i] = level_of_x;
        least_q = level_of_x < least_q ? level_of_x : least_q;
        most_q = level_of_x > most_q ? level_of_x : most_q;
        if (level_of_x == 0 && x[i] != 0)
            return 0;
        if (level_of_x == 0)
            continue;
        int is_power = (bits_of_f32(x[i]) & 0x7fffff) == 0; /* steps below it are half as wide */
        low = fmax(low, (a - (is_power ? h / 2 : h)) / count);
        high = fmin(high, (a + h) / count);
    }
    int sign = most_q <= (float)hi && least_q >= (float)lo    ? 1
               : -least_q <= (float)hi && -most_q >= (float)lo ? -1
                                                               : 0;
    if (sign == 0 || low > high)
        return 0;
    for (int i = 0; i < n; i++)
        q[i] = (uint8_t)((int)whole[i] * sign - lo);
    /* The scale between the bounds that bf16 holds, as most checkpoints have it, or the middle. */
    float middle = (float)((low + high) / 2), factor = (widest < 0) == (sign < 0) ? 1 : -1;
    float scales[2] = {f32_of_bf16(bf16_of_f32(middle)), middle};
    for (int i = 0; i < 2; i++) {
        *d = f16_of_f32(factor * scales[i]);
        if (reproduces(x, n, p, f32_of_f16(*d), q, lo))
            return 1;
    }
    return 0;
}

/* Replace a block's scale and codes by those that reproduce its weights in a precision, if there
 * are such; returns whether there are. */
static int reproduce_in(const float *x, int n, enum precision p, float widest, int lo, int hi,
                        uint16_t *d, uint8_t *q)
{
    for (int level = 1; level <= -lo; level++) {
        uint16_t found;
        uint8_t codes[MAX_GROUP];
        if (!scale_at_level(x, n, p, widest, level, lo, hi, &found, codes))
            continue;
        *d = found;
        memcpy(q, codes, (size_t)n);
        return 1;
    }
    return 0;
}

/* The same for the weights as they are, unless the block reproduces them, or else as they were
 * rounded. Levels are lo..hi, lo the one of largest magnitude. */
static __attribute__((noinline)) void reproduce(const float *x, int n, int lo, int hi, uint16_t *d,
                                                uint8_t *q)
{
    if (reproduces(x, n, PRECISION_F32, f32_of_f16(*d), q, lo))
        return;
    float widest = 0;
    for (int i = 0; i < n; i++)
        widest = fabsf(x[i]) > fabsf(widest) ? x[i] : widest;
    if (!reproduce_in(x, n, PRECISION_F32, widest, lo, hi, d, q))
        reproduce_in(x, n, precision_of(x, n), widest, lo, hi, d, q);
}
