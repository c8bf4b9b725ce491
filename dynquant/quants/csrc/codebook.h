/* The codebook types: IQ1, IQ2, IQ3. A code stands for 8 or 4 neighbouring weights: a point of a
 * grid.
 *
 *   w = S * point (+- signs)        S = d * l: d f16 of the super-block, l a small odd integer of
 *                                   the group
 *
 * At a given S the best point of a vector is found exactly, among all points of the grid, for
 * sixteen vectors at a time. The weighted error is a sum over coordinates, so it is the sum of two
 * halves, and a half has few values: 81 (four coordinates of three levels) or 64 (two of eight).
 * All of a half's costs make a table; a point's cost is one entry of each table. Points are walked
 * in chunks of those that share a first half, of which only the second table is looked up:
 *
 *   least cost = min over chunks c of  first[half of c] + min over its points of second
 *
 * which is little more than one `least` a point, without a branch. So a scale is tried by finding
 * the best points for it; nothing is guessed.
 *
 * Signs. Where they are free they are those of the weights. Where their number must be even in each
 * unit of eight weights (IQ2_XXS, IQ2_XS, IQ3_XXS), a unit with an odd number must flip one.
 * Flipping coordinate i costs 4 S w |x| g. The cheapest flip lies in one half or in the other. So
 * each table has a second one beside it that includes the cheapest flip in this half, and the sum
 * takes exactly one of the two halves flipped.
 */
#pragma once

#include <assert.h>
#include <math.h>

#include "fit.h"
#include "grids.h"

#define MAX_HALVES 81
#define MAX_VECTORS 8 /* in a group */
#define UNIT 8        /* weights that share a byte of signs */

struct codebook {
    int dim, n_levels, n_halves; /* 8, 3, 81 or 4, 8, 64 */
    int chunk, n_chunks;         /* grids.h */
    const uint16_t *key, *code, *second;
    const uint8_t *first;
    float levels[8];
    enum { SIGNED_LEVELS, FREE_SIGNS, EVEN_SIGNS } signs;
    float shift; /* IQ1: every level is moved by +shift or -shift; else 0 */
    enum { NO_SHIFT, SHIFT_OF_GROUP, SHIFT_OF_VECTOR } shifted;
};

/* Terms of a group that do not depend on the scale. */
struct codebook_group {
    f32x16 twice[MAX_GROUP];        /* 2 w |x|, or 2 w x for signed levels */
    f32x16 odd[MAX_GROUP / UNIT];   /* 1 where the negative weights of a unit are odd in number */
    f32x16 xx;                      /* sum w x^2 */
};

static ALWAYS_INLINE struct codebook_group prepare(const struct groups *g, int n,
                                                   struct codebook book)
{
    struct codebook_group p = {.xx = splat(0)};
    f32x16 zero = splat(0), one = splat(1);
    for (int i = 0; i < n; i++) {
        f32x16 wx = mul(g->w[i], g->x[i]);
        p.xx = add(p.xx, mul(wx, g->x[i]));
        wx = add(wx, wx);
        p.twice[i] = book.signs == SIGNED_LEVELS ? wx : absolute(wx);
        if (book.signs != EVEN_SIGNS)
            continue;
        f32x16 before = i % UNIT ? p.odd[i / UNIT] : zero;
        p.odd[i / UNIT] = choose(below(g->x[i], zero), sub(one, before), before);
    }
    return p;
}

/* ---- tables of one vector at one scale ------------------------------------------------------- */

struct half_costs { f32x16 plain[MAX_HALVES], flipped[MAX_HALVES]; };
struct vector_costs { struct half_costs first, second; };

/* S * (level + shift) for each level. */
static ALWAYS_INLINE void scale_levels(f32x16 *u, struct codebook book, f32x16 scale, f32x16 shift)
{
    for (int l = 0; l < book.n_levels; l++)
        u[l] = mul(scale, add(splat(book.levels[l]), shift));
}

/* One coordinate or two: the cost of each of their values, and that of its cheapest flip. */
struct part_costs { f32x16 plain[9], flip[9]; };

/* Costs of one coordinate: w u^2 - 2 w x u. Without w x^2, which is the same for all levels. */
static ALWAYS_INLINE void cost_coordinate(struct part_costs *c, struct codebook book,
                                          const f32x16 *u, f32x16 w, f32x16 twice, f32x16 odd)
{
    f32x16 four_odd = mul(odd, add(twice, twice));
    for (int l = 0; l < book.n_levels; l++) {
        c->plain[l] = mul(u[l], sub(mul(u[l], w), twice));
        c->flip[l] = mul(u[l], four_odd);
    }
}

/* Both parts together: n and m values. */
static ALWAYS_INLINE void join_costs(f32x16 *plain, f32x16 *flip, const struct part_costs *a, int n,
                                     const struct part_costs *b, int m, int flips)
{
    for (int j = 0; j < m; j++)
        for (int i = 0; i < n; i++) {
            plain[n * j + i] = add(a->plain[i], b->plain[j]);
            if (flips)
                flip[n * j + i] = least(a->flip[i], b->flip[j]);
        }
}

/* Costs of all values of a half. */
static ALWAYS_INLINE void cost_half(struct half_costs *c, struct codebook book, const f32x16 *u,
                                    const f32x16 *w, const f32x16 *twice, f32x16 odd)
{
    int flips = book.signs == EVEN_SIGNS, n_levels = book.n_levels, n = n_levels;
    struct part_costs coordinate[4], pair[2], *part = coordinate;
    for (int i = 0; i < book.dim / 2; i++)
        cost_coordinate(coordinate + i, book, u, w[i], twice[i], odd);
    if (book.dim == 8) {
        join_costs(pair[0].plain, pair[0].flip, coordinate, n, coordinate + 1, n, flips);
        join_costs(pair[1].plain, pair[1].flip, coordinate + 2, n, coordinate + 3, n, flips);
        part = pair;
        n *= n;
    }
    for (int j = 0; j < n; j++)
        for (int i = 0; i < n; i++) {
            f32x16 plain = add(part[0].plain[i], part[1].plain[j]);
            c->plain[n * j + i] = plain;
            if (flips)
                c->flipped[n * j + i] =
                    add(plain, least(part[0].flip[i], part[1].flip[j]));
        }
}

static ALWAYS_INLINE void cost_vector(struct vector_costs *c, const struct groups *g,
                                      const struct codebook_group *p, struct codebook book,
                                      const f32x16 *u, int at)
{
    f32x16 odd = book.signs == EVEN_SIGNS ? p->odd[at / UNIT] : splat(0);
    int half = book.dim / 2;
    cost_half(&c->first, book, u, g->w + at, p->twice + at, odd);
    cost_half(&c->second, book, u, g->w + at + half, p->twice + at + half, odd);
}

/* The least costs of a vector over all points: with its signs as they are, and with one flip. */
struct least_costs { f32x16 plain, flipped; };

static_assert(sizeof(f32x16) == 64, "the grids' second halves are places in bytes");

static ALWAYS_INLINE f32x16 cost_at(const f32x16 *costs, uint16_t place)
{
    return *(const f32x16 *)((const char *)costs + place);
}

/* The least costs of one chunk. */
static ALWAYS_INLINE struct least_costs least_of_chunk(const struct vector_costs *c,
                                                       struct codebook book, int chunk)
{
    const uint16_t *second = book.second + chunk * book.chunk;
    int first = book.first[chunk];
    struct least_costs r = {cost_at(c->second.plain, second[0]),
                            cost_at(c->second.flipped, second[0])};
    for (int k = 1; k < book.chunk; k++)
        r.plain = least(r.plain, cost_at(c->second.plain, second[k]));
    if (book.signs == EVEN_SIGNS) {
        for (int k = 1; k < book.chunk; k++)
            r.flipped = least(r.flipped, cost_at(c->second.flipped, second[k]));
        r.flipped = least(add(c->first.plain[first], r.flipped),
                          add(c->first.flipped[first], r.plain));
    }
    r.plain = add(c->first.plain[first], r.plain);
    return r;
}

static ALWAYS_INLINE struct least_costs least_of_points(const struct vector_costs *c,
                                                        struct codebook book)
{
    struct least_costs r = {splat(INFINITY), splat(INFINITY)};
    for (int chunk = 0; chunk < book.n_chunks; chunk++) {
        struct least_costs of_chunk = least_of_chunk(c, book, chunk);
        r.plain = least(r.plain, of_chunk.plain);
        if (book.signs == EVEN_SIGNS)
            r.flipped = least(r.flipped, of_chunk.flipped);
    }
    return r;
}

/* ---- shifts ---------------------------------------------------------------------------------- */

/* The cost of a vector at its scale and shift if every coordinate could take any level. */
static ALWAYS_INLINE f32x16 cost_of_free_levels(const struct groups *g,
                                                const struct codebook_group *p,
                                                struct codebook book, f32x16 scale, f32x16 shift,
                                                int at, int n)
{
    f32x16 u[8], sum = splat(0);
    scale_levels(u, book, scale, shift);
    for (int i = at; i < at + n; i++) {
        f32x16 lowest = mul(u[0], sub(mul(u[0], g->w[i]), p->twice[i]));
        for (int l = 1; l < book.n_levels; l++)
            lowest = least(lowest, mul(u[l], sub(mul(u[l], g->w[i]), p->twice[i])));
        sum = add(sum, lowest);
    }
    return sum;
}

/* The shift of weights at .. at + n: up or down, whichever costs less with free levels. It is the
 * worse one only where the two hardly differ, and half of the searches of the grid are saved. */
static ALWAYS_INLINE f32x16 shift_of(const struct groups *g, const struct codebook_group *p,
                                     struct codebook book, f32x16 scale, int at, int n)
{
    if (book.shifted == NO_SHIFT)
        return splat(0);
    f32x16 up = splat(book.shift), down = splat(-book.shift);
    return choose(below(cost_of_free_levels(g, p, book, scale, down, at, n),
                        cost_of_free_levels(g, p, book, scale, up, at, n)),
                  down, up);
}

/* The weights that share a shift. */
static ALWAYS_INLINE int shift_length(struct codebook book, int n)
{
    return book.shifted == SHIFT_OF_VECTOR ? book.dim : n;
}

/* sum w (x - S point)^2 of each group at its scale, every vector at its best point. */
static ALWAYS_INLINE f32x16 error_of_codebook(const struct groups *g, int n,
                                              const struct codebook_group *p,
                                              struct codebook book, f32x16 scale)
{
    f32x16 total = p->xx, u[8];
    for (int at = 0; at < n; at += book.dim) {
        struct vector_costs c;
        int shared = shift_length(book, n);
        if (at % shared == 0)
            scale_levels(u, book, scale, shift_of(g, p, book, scale, at, shared));
        cost_vector(&c, g, p, book, u, at);
        struct least_costs r = least_of_points(&c, book);
        if (book.signs == EVEN_SIGNS && book.dim < UNIT) {
            /* Two vectors share the parity of their signs: the flip is in one of them. */
            at += book.dim;
            cost_vector(&c, g, p, book, u, at);
            struct least_costs other = least_of_points(&c, book);
            r.flipped = least(add(r.flipped, other.plain), add(r.plain, other.flipped));
        }
        total = add(total, book.signs == EVEN_SIGNS ? r.flipped : r.plain);
    }
    return total;
}
