/* Q2_0: 64 weights in 18 bytes, 2.25 bits per weight.
 *
 *   bytes 0..1    d    f16 scale, of either sign
 *   bytes 2..17   qs   bits 2 k, 2 k + 1 of byte i are the code of weight 4 i + k
 *
 *   w[i] = d * (q - 1),  q in 0..3
 *
 * Source: block_q2_0 in ggml-common.h. Little-endian.
 *
 * Search: the exact optimum, as for the ternary types. Take d > 0. The best code of a weight is its
 * sign where |x| > d / 2, and 2 where x / 3 > d / 2 also. So it climbs in two steps, which add
 * (w |x|, w) and (w x, 3 w) to A = sum w x q and B = sum w q^2, as a ternary weight |x| would, and
 * one of x / 3 with three times the importance. Sort the steps of all weights: one of the sets of
 * the largest steps takes most off the error, A^2 / B. For d < 0 the second steps are those of the
 * negative weights.
 */
#include <assert.h>

#include "opened.h"
#include "packing.h"
#include "sort.h"
#include "weights.h"

struct block_q2_0 { uint16_t d; uint8_t qs[16]; } PACKED;
static_assert(sizeof(struct block_q2_0) == 18, "Q2_0 is 18 bytes a block");

#define Q2_BLOCK 64

/* Scales of one sign: the sums over the steps so far, and the best ones. */
struct q2_walk { f32x16 a, b, best_a, best_b; };

static ALWAYS_INLINE void q2_step(struct q2_walk *t, f32x16 key, f32x16 w)
{
    t->a = add(t->a, mul(w, key));
    t->b = add(t->b, w);
    /* a^2 / b against the best, without a division */
    mask16 better = below(mul(mul(t->best_a, t->best_a), t->b), mul(mul(t->a, t->a), t->best_b));
    t->best_a = choose(better, t->a, t->best_a);
    t->best_b = choose(better, t->b, t->best_b);
}

static ALWAYS_INLINE f32x16 fit_q2_0(const f32x16 *x, const f32x16 *w)
{
    /* The importance that each step has for d > 0, and for d < 0. */
    f32x16 key[2 * Q2_BLOCK], up[2 * Q2_BLOCK], down[2 * Q2_BLOCK], zero = splat(0);
    for (int i = 0; i < Q2_BLOCK; i++) {
        key[i] = absolute(x[i]);
        up[i] = choose(below(x[i], zero), sub(zero, w[i]), w[i]);
    }
    sort_falling(key, up, Q2_BLOCK);
    for (int i = 0; i < Q2_BLOCK; i++) {
        f32x16 signed_w = up[i];
        key[Q2_BLOCK + i] = mul(key[i], splat(1.0f / 3));
        up[Q2_BLOCK + i] = mul(most(signed_w, zero), splat(3));
        down[Q2_BLOCK + i] = mul(most(sub(zero, signed_w), zero), splat(3));
        up[i] = down[i] = absolute(signed_w);
    }
    merge_falling(key, up, down, 2 * Q2_BLOCK, Q2_BLOCK);

    struct q2_walk p = {zero, zero, zero, splat(1)}, m = p;
    for (int i = 0; i < 2 * Q2_BLOCK; i++) {
        q2_step(&p, key[i], up[i]);
        q2_step(&m, key[i], down[i]);
    }
    f32x16 d = quotient(p.best_a, p.best_b), minus_d = quotient(m.best_a, m.best_b);
    mask16 minus_is_better = below(mul(d, p.best_a), mul(minus_d, m.best_a));
    return choose(minus_is_better, sub(zero, minus_d), d);
}

/* d, or the scale with which the extreme weight is 1, 2 or -2 where that one gives every weight
 * without an error and d does not: in models that are trained for ternary weights. Few blocks of
 * others pass the first eight weights. */
static ALWAYS_INLINE f32x16 exact_q2_0(const f32x16 *x, f32x16 widest, f32x16 d)
{
    f32x16 zero = splat(0), found = d;
    for (int c = 3; c >= 0; c--) {
        f32x16 s = c == 0 ? d : mul(widest, splat(c == 1 ? 1.0f : c == 2 ? 0.5f : -0.5f));
        f32x16 inverse = quotient_or_zero(splat(1), s), fits = widest;
        for (int i = 0; i < Q2_BLOCK; i++) {
            f32x16 e = sub(x[i], mul(nearest(mul(x[i], inverse), -1, 2), s));
            fits = choose(below(zero, absolute(e)), zero, fits);
            if (i == 7) {
                float fit[LANES], any = 0;
                store(fit, fits);
                for (int l = 0; l < LANES; l++)
                    any = fit[l] > any ? fit[l] : any;
                if (any == 0)
                    break;
            }
        }
        found = choose(below(zero, fits), s, found);
    }
    return found;
}

/* Effort fast: scales that map the extreme weight to these multiples of d, and to those of -d, each
 * with the error of its codes. Measured on Gaussian and Student-t weights. */
static const float q2_fast_levels[4] = {1.8f, 2.3f, 2.8f, 3.4f};

static ALWAYS_INLINE f32x16 fit_q2_0_fast(const f32x16 *x, const f32x16 *w)
{
    f32x16 widest = splat(0), best_d = splat(0), best_gain = splat(0);
    for (int i = 0; i < Q2_BLOCK; i++)
        widest = most(widest, absolute(x[i]));
    f32x16 per_widest = quotient_or_zero(splat(1), widest);
    for (int c = 0; c < 8; c++) {
        float level = q2_fast_levels[c / 2];
        f32x16 inverse = mul(per_widest, splat(c % 2 ? -level : level));
        f32x16 a = splat(0), b = splat(0);
        for (int i = 0; i < Q2_BLOCK; i++) {
            f32x16 q = nearest(mul(x[i], inverse), -1, 2), wq = mul(w[i], q);
            a = add(a, mul(wq, x[i]));
            b = add(b, mul(wq, q));
        }
        f32x16 d = quotient_or_zero(a, b), gain = mul(d, a);
        mask16 better = below(best_gain, gain);
        best_gain = choose(better, gain, best_gain);
        best_d = choose(better, d, best_d);
    }
    return exact_q2_0(x, widest, best_d);
}

/* The code of each weight, nearest to x / d + 1; 1 where d is zero. */
static ALWAYS_INLINE void round_q2_0(const f32x16 *x, f32x16 d, f32x16 *q)
{
    f32x16 inverse = quotient_or_zero(splat(1), d);
    for (int i = 0; i < Q2_BLOCK; i++)
        q[i] = add(nearest(mul(x[i], inverse), -1, 2), splat(1));
}

static void encode_q2_0(struct weights in, struct block_q2_0 *blocks, int n_blocks,
                        enum effort effort)
{
    f32x16 gx[Q2_BLOCK], gw[Q2_BLOCK], q[Q2_BLOCK], bytes[Q2_BLOCK / 4];
    float unit[LANES], d[LANES];
    gather_into(gx, gw, unit, Q2_BLOCK, 1, 1, n_blocks, in);
    store(d, effort == EFFORT_FAST ? fit_q2_0_fast(gx, gw) : fit_q2_0(gx, gw));
    uint16_t stored[LANES];
    for (int l = 0; l < LANES; l++)
        d[l] = rounded_scale(d[l], unit[l], &stored[l]);

    round_q2_0(gx, load(d), q);
    for (int i = 0; i < Q2_BLOCK / 4; i++) {
        bytes[i] = q[4 * i + 3];
        for (int k = 2; k >= 0; k--)
            bytes[i] = add(mul(bytes[i], splat(4)), q[4 * i + k]);
    }
    _Alignas(4) uint8_t qs[LANES * 16];
    scatter_codes(bytes, 16, qs);
    for (int k = 0; k < n_blocks; k++) {
        blocks[k].d = stored[k];
        memcpy(blocks[k].qs, qs + 16 * k, 16);
    }
}

static const struct code_space q2_0_codes = {.group = Q2_BLOCK, .q_most = 3};

static void open_q2_0(const struct block_q2_0 *block, struct opened *o)
{
    o->scale[0] = f32_of_f16(block->d);
    o->offset[0] = -o->scale[0];
    for (int k = 0; k < Q2_BLOCK / 4; k++) {
        uint32_t q = bytes_of_pairs(block->qs[k]);
        memcpy(o->q + 4 * k, &q, sizeof q);
    }
}

static void close_q2_0(struct block_q2_0 *block, const struct opened *o)
{
    for (int k = 0; k < Q2_BLOCK / 4; k++) {
        uint32_t q;
        memcpy(&q, o->q + 4 * k, sizeof q);
        block->qs[k] = pairs_of_bytes(q);
    }
}

static void decode_q2_0(const struct block_q2_0 *block, float *x)
{
    float d = f32_of_f16(block->d);
    uint32_t q[Q2_BLOCK / 4];
    for (int k = 0; k < Q2_BLOCK / 4; k++)
        q[k] = bytes_of_pairs(block->qs[k]);
    scaled_weights((const uint8_t *)q, Q2_BLOCK, d, 1, x);
}

static void regain_q2_0(struct block_q2_0 *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
