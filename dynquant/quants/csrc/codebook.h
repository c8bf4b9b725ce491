/* The codebook types: IQ1, IQ2, IQ3. The codes of 8 or 4 neighbouring weights are a point of a grid.
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
 * which is little more than one `least` a point, without a branch. That is cheap enough to try a
 * scale by finding the best points for it, with no need to guess them.
 *
 * Signs. Where they are free they are those of the weights. Where their number must be even in each
 * unit of eight weights (IQ2_XXS, IQ2_XS, IQ3_XXS), a unit with an odd number must flip one; flipping
 * coordinate i costs 4 S w |x| g. The cheapest flip lies in one half or in the other, so each table
 * has a second one beside it with the cheapest flip in this half included, and the sum takes exactly
 * one of the two halves flipped.
 */
#pragma once

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

/* What a group gives to the search, whatever the scale. */
struct codebook_group {
    f32x16 twice[MAX_GROUP];        /* 2 w |x|, or 2 w x for signed levels */
    f32x16 odd[MAX_GROUP / UNIT];   /* 1 where a unit has an odd number of negative weights, else 0 */
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

/* ---- tables of one vector at one scale --------------------------------------------------------- */

struct half_costs { f32x16 plain[MAX_HALVES], flipped[MAX_HALVES]; };
struct vector_costs { struct half_costs first, second; };

/* S * (level + shift) for each level. */
static ALWAYS_INLINE void scale_levels(f32x16 *u, struct codebook book, f32x16 scale, f32x16 shift)
{
    for (int l = 0; l < book.n_levels; l++)
        u[l] = mul(scale, add(splat(book.levels[l]), shift));
}

/* One coordinate or two: what each of their values costs, and what its cheapest flip would add. */
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
    struct least_costs r = {cost_at(c->second.plain, second[0]), cost_at(c->second.flipped, second[0])};
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

/* ---- shifts -------------------------------------------------------------------------------------- */

/* What a vector would cost at its scale and shift if every coordinate could take any level. */
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

/* The shift of weights at .. at + n: up or down, whichever costs less with free levels. That decides
 * wrongly only where the two hardly differ, and saves every other search of the grid. */
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

/* ---- the points themselves --------------------------------------------------------------------- */

/* The codes of sixteen groups at their scales, and the decoded points. */
struct codebook_codes {
    uint16_t code[MAX_VECTORS][LANES];
    uint8_t signs[MAX_GROUP / UNIT][LANES]; /* bit i: weight i of the unit is negative */
    uint8_t shifted_down[MAX_VECTORS][LANES]; /* IQ1: the shift is subtracted; where it is shared,
                                                 the first vector says so for all */
};

/* A best point of one vector in each lane. */
struct pick { float cost[LANES]; uint16_t code[LANES]; };

static inline float lane_of(const f32x16 *a, int l)
{
    float r;
    memcpy(&r, (const char *)a + (size_t)l * sizeof r, sizeof r);
    return r;
}

/* Find the points that least_of_points prices: the best chunk in each lane is tracked, and its few
 * points are then looked through, lane by lane. */
static ALWAYS_INLINE struct pick pick_points(const struct vector_costs *c, struct codebook book,
                                             int flip)
{
    f32x16 best = splat(INFINITY), best_chunk = splat(0);
    for (int chunk = 0; chunk < book.n_chunks; chunk++) {
        struct least_costs of_chunk = least_of_chunk(c, book, chunk);
        f32x16 cost = flip ? of_chunk.flipped : of_chunk.plain;
        mask16 better = below(cost, best);
        best = choose(better, cost, best);
        best_chunk = choose(better, splat((float)chunk), best_chunk);
    }
    struct pick r;
    float chunks[LANES];
    store(chunks, best_chunk);
    store(r.cost, best);
    for (int l = 0; l < LANES; l++) {
        int h = book.first[(int)chunks[l]];
        float lowest = INFINITY;
        r.code[l] = 0;
        for (int k = (int)chunks[l] * book.chunk; k < ((int)chunks[l] + 1) * book.chunk; k++) {
            int s = book.second[k] / (int)sizeof(f32x16);
            float plain = lane_of(c->second.plain + s, l);
            float cost = lane_of(c->first.plain + h, l) + plain;
            if (flip) {
                float in_first = lane_of(c->first.flipped + h, l) + plain;
                float in_second = lane_of(c->first.plain + h, l) +
                                  lane_of(c->second.flipped + s, l);
                cost = in_first < in_second ? in_first : in_second;
            }
            if (cost < lowest) {
                lowest = cost;
                r.code[l] = book.code[k];
            }
        }
    }
    return r;
}

/* The levels of a point, as numbers 0 .. n_levels - 1. */
static ALWAYS_INLINE void levels_of_code(struct codebook book, uint16_t code, uint8_t *levels)
{
    int halves[2] = {book.key[code] / book.n_halves, book.key[code] % book.n_halves};
    for (int i = 0; i < book.dim; i++) {
        int *half = &halves[i / (book.dim / 2)];
        levels[i] = (uint8_t)(*half % book.n_levels);
        *half /= book.n_levels;
    }
}

/* Write down lane l's point of a vector; flip: one sign must change, the cheapest. */
static ALWAYS_INLINE void put_point(struct codebook_codes *out, const struct groups *g,
                                    const struct codebook_group *p, struct codebook book, int at,
                                    int l, uint16_t code, int flip)
{
    uint8_t levels[8];
    levels_of_code(book, code, levels);
    out->code[at / book.dim][l] = code;
    if (book.signs == SIGNED_LEVELS)
        return;
    int flipped = -1;
    float cheapest = INFINITY;
    for (int i = 0; flip && i < book.dim; i++) {
        float cost = lane_of(p->twice + at + i, l) * book.levels[levels[i]];
        if (cost < cheapest) {
            cheapest = cost;
            flipped = i;
        }
    }
    for (int i = 0; i < book.dim; i++) {
        int negative = (lane_of(g->x + at + i, l) < 0) ^ (i == flipped);
        out->signs[(at + i) / UNIT][l] |= (uint8_t)(negative << (at + i) % UNIT);
    }
}

/* The best points of each group at its scale: what error_of_codebook prices. */
static ALWAYS_INLINE void choose_codes(const struct groups *g, int n,
                                       const struct codebook_group *p, struct codebook book,
                                       f32x16 scale, struct codebook_codes *out)
{
    struct pick plain[MAX_VECTORS], flipped[MAX_VECTORS];
    int n_vectors = n / book.dim;
    f32x16 u[8];
    for (int v = 0; v < n_vectors; v++) {
        struct vector_costs c;
        int at = v * book.dim, shared = shift_length(book, n);
        if (at % shared == 0) {
            float shift[LANES];
            f32x16 shifts = shift_of(g, p, book, scale, at, shared);
            scale_levels(u, book, scale, shifts);
            store(shift, shifts);
            for (int l = 0; l < LANES; l++)
                out->shifted_down[v][l] = shift[l] < 0;
        }
        cost_vector(&c, g, p, book, u, at);
        if (book.signs != EVEN_SIGNS || book.dim < UNIT)
            plain[v] = pick_points(&c, book, 0);
        if (book.signs == EVEN_SIGNS)
            flipped[v] = pick_points(&c, book, 1);
    }
    memset(out->signs, 0, sizeof out->signs);
    for (int l = 0; l < LANES; l++)
        for (int v = 0; v < n_vectors; v++) {
            int at = v * book.dim, flip = 0;
            if (book.signs == EVEN_SIGNS) {
                flip = lane_of(p->odd + at / UNIT, l) != 0;
                if (flip && book.dim < UNIT) {
                    int a = v & ~1, b = a + 1; /* the unit's two vectors */
                    int in_first = flipped[a].cost[l] + plain[b].cost[l] <
                                   plain[a].cost[l] + flipped[b].cost[l];
                    flip = in_first == (v == a);
                }
            }
            int from_flipped = book.signs == EVEN_SIGNS && (flip || book.dim == UNIT);
            uint16_t code = from_flipped ? flipped[v].code[l] : plain[v].code[l];
            put_point(out, g, p, book, at, l, code, flip);
        }
}
