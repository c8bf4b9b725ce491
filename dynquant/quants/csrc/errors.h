/* How far the weights of one quant type are from those of another: the sums that the figures of a
 * manifest are computed from. x is the original weight, y the decoded one, w the importance.
 *
 * Sums are made of w (x - y)^2, w x^2 and w x (x - y), and the others follow (see all_errors):
 *
 *   w x y = w x^2 - w x (x - y)        w y^2 = w x^2 - 2 w x (x - y) + w (x - y)^2
 *
 * What f32 rounds off is then small beside the difference, which may be a thousandth of x; in sums
 * of x y and y^2 made apart, the angle between x and y would be lost in it.
 *
 * A lane sums in f32 over its 64 weights of a batch, and in f64 from batch to batch; the lanes are
 * added in their order at the end. Very large or very small weights and importances of a batch are
 * normalised by powers of two, as in groups.h: no square overflows and none vanishes, whatever the
 * units of the model.
 */
#pragma once

#include "groups.h"

/* Weights compared at a time: a multiple of every block size and of LANES; 3 x 4 KiB of stack. */
#define ERROR_BATCH 1024

/* Sums of w (x - y)^2, w x^2, w x (x - y), lane by lane; and the largest |x - y|. */
struct lane_errors {
    double difference[LANES], original[LANES], product[LANES];
    float largest;
};

static inline float largest_lane(f32x16 a)
{
    float lane[LANES], largest;
    store(lane, a);
    largest = lane[0];
    for (int l = 1; l < LANES; l++)
        largest = lane[l] > largest ? lane[l] : largest;
    return largest;
}

static inline void add_lanes(double *total, f32x16 a, double unit)
{
    float lane[LANES];
    store(lane, a);
    for (int l = 0; l < LANES; l++)
        total[l] += (double)lane[l] * unit;
}

/* Sums of one batch, lane by lane, and the largest magnitudes that they are made of. */
struct batch_errors { f32x16 difference, original, product, most_x, most_d, most_w; };

/* The sums of a batch whose weights and importances are multiplied by powers of two. is_scaled 0:
 * both are one; has_importance 0: all importances are one. */
static ALWAYS_INLINE struct batch_errors sum_batch(const f32x16 *x, const f32x16 *y,
                                                   const f32x16 *w, int has_importance, int n,
                                                   int is_scaled, f32x16 scale, f32x16 w_scale)
{
    f32x16 zero = splat(0);
    struct batch_errors t = {zero, zero, zero, zero, zero, splat(has_importance ? 0 : 1)};
    for (int i = 0; i < n; i++) {
        f32x16 a = x[i], d = sub(x[i], y[i]);
        t.most_x = most(absolute(a), t.most_x);
        t.most_d = most(absolute(d), t.most_d);
        if (is_scaled) {
            a = mul(a, scale);
            d = mul(d, scale);
        }
        f32x16 wa = a, wd = d;
        if (has_importance) {
            t.most_w = most(w[i], t.most_w);
            f32x16 weight = is_scaled ? mul(w[i], w_scale) : w[i];
            wa = mul(weight, a);
            wd = mul(weight, d);
        }
        t.difference = add(t.difference, mul(wd, d));
        t.original = add(t.original, mul(wa, a));
        t.product = add(t.product, mul(wa, d));
    }
    return t;
}

/* Whether f32 has room for sums of squares without a scale. */
static inline int is_moderate(float unit) { return unit >= 0x1p-16f && unit <= 0x1p16f; }

/* Add a batch of n times LANES weights. Most weights are moderate, and one pass is enough. */
static ALWAYS_INLINE void add_batch(struct lane_errors *total, const f32x16 *x, const f32x16 *y,
                                    const f32x16 *w, int has_importance, int n)
{
    f32x16 one = splat(1);
    struct batch_errors t = sum_batch(x, y, w, has_importance, n, 0, one, one);
    float unit = power_of_two_below(largest_lane(most(t.most_x, t.most_d)));
    float w_unit = power_of_two_below(largest_lane(t.most_w));
    double square = 1;
    if (!is_moderate(unit) || !is_moderate(w_unit)) {
        t = sum_batch(x, y, w, has_importance, n, 1, splat(inverse_of_power(unit)),
                      splat(inverse_of_power(w_unit)));
        square = (double)unit * unit * w_unit;
    }
    add_lanes(total->difference, t.difference, square);
    add_lanes(total->original, t.original, square);
    add_lanes(total->product, t.product, square);
    float largest = largest_lane(t.most_d);
    total->largest = largest > total->largest ? largest : total->largest;
}

static inline double sum_of_lanes(const double *lane)
{
    double sum = 0;
    for (int l = 0; l < LANES; l++)
        sum += lane[l];
    return sum;
}

/* The sums of codec.h, from all lanes. */
static inline struct errors all_errors(const struct lane_errors *total)
{
    double difference = sum_of_lanes(total->difference), original = sum_of_lanes(total->original);
    double product = sum_of_lanes(total->product);
    return (struct errors){difference, original, original - product,
                           original - 2 * product + difference, total->largest};
}
