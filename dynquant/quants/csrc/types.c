/* Every quant type, compiled once per ISA (-DISA=name): one table and one way in. */
#include <assert.h>
#include <math.h>
#include <stddef.h>

#include "codec.h"
#include "floats.h"

#include "iq4_nl.h"
#include "plain.h"
#include "q4_0.h"
#include "q4_k.h"
#include "q5_k.h"
#include "q6_k.h"
#include "q8_0.h"

static const struct quant_type types[] = {
    {"F32", 1, 4, encode_f32, decode_f32},
    {"F16", 1, 2, encode_f16, decode_f16},
    {"BF16", 1, 2, encode_bf16, decode_bf16},
    {"Q8_0", 32, 34, encode_q8_0, decode_q8_0},
    {"Q6_K", 256, 210, encode_q6_k, decode_q6_k},
    {"Q5_K", 256, 176, encode_q5_k, decode_q5_k},
    {"Q4_K", 256, 144, encode_q4_k, decode_q4_k},
    {"IQ4_NL", 32, 18, encode_iq4_nl, decode_iq4_nl},
    {"Q4_0", 32, 18, encode_q4_0, decode_q4_0},
};

/* Weights converted and encoded at a time: a multiple of every block size, and what two vectors of
 * sixteen super-blocks' groups need; 2 x 8 KiB of stack, well inside the L1 cache. */
#define BATCH 2048

/* Stored numbers as f32. Returns whether all of them are finite. */
static int weights_of_stored(enum stored_type stored, const uint8_t *from, int64_t n, float *x)
{
    uint32_t not_finite = 0;
    if (stored == STORED_F32)
        memcpy(x, from, (size_t)n * sizeof *x);
    else
        for (int64_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, from + 2 * i, sizeof h);
            x[i] = stored == STORED_BF16 ? f32_of_bf16(h) : f32_of_f16(h);
        }
    for (int64_t i = 0; i < n; i++)
        not_finite |= (bits_of_f32(x[i]) & 0x7f800000) == 0x7f800000;
    return !not_finite;
}

static int64_t first_not_finite(const float *x)
{
    int64_t i = 0;
    while ((bits_of_f32(x[i]) & 0x7f800000) != 0x7f800000)
        i++;
    return i;
}

/* The importances of n weights from position `at` of a run of rows. */
static void importance_of_run(const float *importance, int64_t n_per_row, int64_t at, int64_t n,
                              float *w)
{
    for (int64_t column = at % n_per_row; n > 0; column = 0) {
        int64_t m = n_per_row - column < n ? n_per_row - column : n;
        memcpy(w, importance + column, (size_t)m * sizeof *w);
        w += m;
        n -= m;
    }
}

static int64_t encode(const struct quant_type *type, enum stored_type stored, const void *rows,
                      int64_t n_rows, int64_t n_per_row, const float *importance, uint8_t *blocks)
{
    int64_t total = n_rows * n_per_row, stored_size = stored == STORED_F32 ? 4 : 2;
    for (int64_t at = 0; at < total; at += BATCH) {
        int64_t n = total - at < BATCH ? total - at : BATCH;
        float x[BATCH], w[BATCH];
        if (!weights_of_stored(stored, (const uint8_t *)rows + at * stored_size, n, x))
            return (at + first_not_finite(x)) / n_per_row;
        if (importance)
            importance_of_run(importance, n_per_row, at, n, w);
        type->encode(x, importance ? w : NULL, blocks, n / type->block_size);
        blocks += n / type->block_size * type->type_size;
    }
    return -1;
}

#define NAME_(prefix, isa) prefix##isa
#define NAME(prefix, isa) NAME_(prefix, isa)
#define TEXT_(isa) #isa
#define TEXT(isa) TEXT_(isa)

const struct codec NAME(codec_, ISA) = {
    .isa = TEXT(ISA),
    .n_types = sizeof types / sizeof *types,
    .types = types,
    .encode = encode,
};
