/* Codes at fixed scales: the best point of the codebook for each vector.
 *
 * codebook.h finds the costs of the best points; the points themselves are found once, for the
 * scales that were chosen.
 */
#pragma once

#include <math.h>

#include "codebook.h"

/* The codes of sixteen groups at their scales, and the decoded points. */
struct codebook_codes {
    uint16_t code[MAX_VECTORS][LANES];
    uint8_t signs[MAX_GROUP / UNIT][LANES]; /* bit i: weight i of the unit is negative */
    uint8_t shifted_down[MAX_VECTORS][LANES]; /* IQ1: the shift is subtracted; where a group shares
                                                 a shift, only the first vector's is set */
};

/* A best point of one vector in each lane. */
struct pick { float cost[LANES]; uint16_t code[LANES]; };

static inline float lane_of(const f32x16 *a, int l)
{
    float r;
    memcpy(&r, (const char *)a + (size_t)l * sizeof r, sizeof r);
    return r;
}

/* Find the points that least_of_points has the costs of: the best chunk in each lane, and then the
 * best of its few points, lane by lane. */
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

/* The best points of each group at its scale: those that error_of_codebook has the cost of. given:
 * the shift of each group; NULL chooses it. */
static ALWAYS_INLINE void round_codebook(const struct groups *g, int n,
                                         const struct codebook_group *p, struct codebook book,
                                         f32x16 scale, const f32x16 *given,
                                         struct codebook_codes *out)
{
    struct pick plain[MAX_VECTORS], flipped[MAX_VECTORS];
    int n_vectors = n / book.dim;
    f32x16 u[8];
    for (int v = 0; v < n_vectors; v++) {
        struct vector_costs c;
        int at = v * book.dim, shared = shift_length(book, n);
        if (at % shared == 0) {
            float shift[LANES];
            f32x16 shifts = given ? *given : shift_of(g, p, book, scale, at, shared);
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
