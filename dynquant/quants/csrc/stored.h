/* How checkpoints store weights that are quantized already: numbers of eight bits or fewer, and
 * scales for rectangles of them. Rows of these become f32, with one rounding a weight:
 *
 *   w[r, c] = (number(code[r, c]) - zero[i, j]) * scale[i, j]
 *
 * Codes are stored along their row (FP8, INT8, FP4, packed integers), low bits first: code c of a
 * row is bits c * bits .. of its bytes. Or they are stored in a transposed matrix (GPTQ, AWQ),
 * whose 32-bit words run along the outputs:
 *
 *   PACKED_DOWN    input i of output r is bits i * bits .. of the column r of words
 *   PACKED_ACROSS  output r of input i is four bits of word [i, r / 8], in the order `across`
 *
 * Sources: OCP 8-bit floating point (E4M3, E5M2), OCP Microscaling Formats (E8M0, E2M1),
 * pack_quantized in compressed-tensors, qlinear in GPTQModel, packing_utils in AutoAWQ.
 */
#pragma once

#include "codec.h"
#include "floats.h"
#include "fp4.h"

/* Floats of eight bits, without branches, so that loops of them become vectors. A subnormal has no
 * leading one: it is made with one, in the next exponent, and that one is subtracted, exactly.
 *
 * E4M3: bias 7, no infinity, both codes of magnitude 127 are not a number. */
static ALWAYS_INLINE float f32_of_e4m3(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80) << 24, magnitude = code & 0x7f;
    uint32_t is_small = (magnitude - 8) >> 31, is_nan = (magnitude + 1) >> 7;
    uint32_t bits = (magnitude << 20) + ((120 + is_small) << 23); /* bias 7 -> 127 */
    float r = f32_of_bits(bits) - f32_of_bits(is_small * 0x3c800000); /* 2^-6 */
    return f32_of_bits(sign | bits_of_f32(r) | is_nan * 0x7fc00000);
}

/* E5M2: bias 15; infinity and NaN from magnitude 124 on, as in f16. */
static ALWAYS_INLINE float f32_of_e5m2(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80) << 24, magnitude = code & 0x7f;
    uint32_t is_small = (magnitude - 4) >> 31, is_special = (magnitude + 4) >> 7;
    uint32_t bits = (magnitude << 21) + ((112 + is_small + 112 * is_special) << 23);
    float r = f32_of_bits(bits) - f32_of_bits(is_small * 0x38800000); /* 2^-14 */
    return f32_of_bits(sign | bits_of_f32(r));
}

/* E8M0: 2^(code - 127). 0 is subnormal in f32, half of 2^-126; 255 is not a number. */
static ALWAYS_INLINE float f32_of_e8m0(uint8_t code)
{
    uint32_t exponent = code, is_zero = (exponent - 1) >> 31, is_nan = (exponent + 1) >> 8;
    return f32_of_bits(exponent << 23 | (is_zero | is_nan) << 22);
}

static const float fp4_levels[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                     -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

/* Code c of a row of codes of 1..8 bits. The second byte is read only where the code reaches it. */
static ALWAYS_INLINE uint32_t code_at(const uint8_t *row, int bits, int64_t c)
{
    int64_t at = c * bits;
    int shift = (int)(at & 7);
    uint32_t code = (uint32_t)row[at >> 3] >> shift;
    if (shift + bits > 8)
        code |= (uint32_t)row[(at >> 3) + 1] << (8 - shift);
    return code & ((1u << bits) - 1);
}

static ALWAYS_INLINE float number_at(enum number number, const uint8_t *row, int bits, int64_t c)
{
    switch (number) {
    case NUMBER_E4M3:
        return f32_of_e4m3(row[c]);
    case NUMBER_E5M2:
        return f32_of_e5m2(row[c]);
    case NUMBER_E8M0:
        return f32_of_e8m0(row[c]);
    case NUMBER_I8:
        return (float)(int8_t)row[c];
    case NUMBER_FP4:
        return fp4_levels[row[c >> 1] >> (c & 1) * 4 & 15];
    default:
        return (float)code_at(row, bits, c);
    }
}

/* Rows of one kind of number; the kind is a constant in each copy, so that its loop
 * becomes vectors. */
static ALWAYS_INLINE void rows_of(enum number number, int bits, const uint8_t *restrict codes,
                                  int64_t row_bytes, int64_t n_rows, int64_t n_per_row,
                                  const struct scales *s, float *restrict x)
{
    for (int64_t r = 0; r < n_rows; r++, codes += row_bytes, x += n_per_row) {
        int64_t at = (s->first + r) / s->block_rows * s->n_columns;
        const float *scale = s->scale + at, *zero = s->zero ? s->zero + at : NULL;
        if (s->groups) {
            for (int64_t c = 0; c < n_per_row; c++) {
                int32_t g = s->groups[c];
                float z = zero ? zero[g] : s->zero_of_all;
                x[c] = (number_at(number, codes, bits, c) - z) * scale[g];
            }
            continue;
        }
        for (int64_t from = 0, j = 0; from < n_per_row; from += s->block_columns, j++) {
            int64_t rest = n_per_row - from;
            int64_t to = from + (rest < s->block_columns ? rest : s->block_columns);
            float z = zero ? zero[j] : s->zero_of_all, d = scale[j];
            for (int64_t c = from; c < to; c++)
                x[c] = (number_at(number, codes, bits, c) - z) * d;
        }
    }
}

static void decode_rows(enum number number, int bits, const uint8_t *codes, int64_t row_bytes,
                        int64_t n_rows, int64_t n_per_row, const struct scales *s, float *x)
{
#define CASE(kind, width)                                                                          \
    case kind:                                                                                     \
        rows_of(kind, width, codes, row_bytes, n_rows, n_per_row, s, x);                           \
        break;
    switch (number) {
        CASE(NUMBER_E4M3, 8)
        CASE(NUMBER_E5M2, 8)
        CASE(NUMBER_E8M0, 8)
        CASE(NUMBER_I8, 8)
        CASE(NUMBER_FP4, 4)
    default:
        if (bits == 4) /* by far the most frequent */
            rows_of(NUMBER_BITS, 4, codes, row_bytes, n_rows, n_per_row, s, x);
        else
            rows_of(NUMBER_BITS, bits, codes, row_bytes, n_rows, n_per_row, s, x);
    }
#undef CASE
}

/* Nibble of a word that holds output 8 k + j: the inverse of the order 0, 2, 4, 6, 1, 3, 5, 7. */
static const int across[8] = {0, 4, 1, 5, 2, 6, 3, 7};

static ALWAYS_INLINE uint32_t word_at(const uint8_t *words, int64_t i)
{
    uint32_t word;
    memcpy(&word, words + 4 * i, sizeof word);
    return word;
}

/* The code of output r, input i in words [n_per_row * bits / 32, width] or [n_per_row, width /
 * 8]. */
static ALWAYS_INLINE uint32_t transposed_code(enum packing packing, const uint8_t *words,
                                              int64_t width, int bits, int64_t r, int64_t i)
{
    if (packing == PACKED_ACROSS)
        return word_at(words, i * (width / 8) + r / 8) >> 4 * across[r % 8] & 15;
    int64_t at = i * bits, row = at >> 5;
    int shift = (int)(at & 31);
    uint32_t code = word_at(words, row * width + r) >> shift;
    if (shift + bits > 32)
        code |= word_at(words, (row + 1) * width + r) << (32 - shift);
    return code & ((1u << bits) - 1);
}

/* Outputs and inputs decoded at a time: 16 words side by side are a cache line, 32 codes of any
 * width are whole words. */
#define TILE_ROWS 16
#define TILE_COLUMNS 32

static ALWAYS_INLINE void transposed_of(enum packing packing, int bits, const uint8_t *words,
                                        int64_t width, int64_t first, int64_t n_rows,
                                        int64_t n_per_row, const struct scales *s, float *x)
{
    for (int64_t r0 = 0; r0 < n_rows; r0 += TILE_ROWS)
        for (int64_t c0 = 0; c0 < n_per_row; c0 += TILE_COLUMNS) {
            int rows = n_rows - r0 < TILE_ROWS ? (int)(n_rows - r0) : TILE_ROWS;
            int columns = n_per_row - c0 < TILE_COLUMNS ? (int)(n_per_row - c0) : TILE_COLUMNS;
            float tile[TILE_COLUMNS][TILE_ROWS];
            for (int c = 0; c < columns; c++) {
                int64_t at = s ? s->groups[c0 + c] * width : 0;
                for (int r = 0; r < rows; r++) {
                    int64_t output = first + r0 + r;
                    float q = (float)transposed_code(packing, words, width, bits, output, c0 + c);
                    tile[c][r] = s ? (q - s->zero[at + output]) * s->scale[at + output] : q;
                }
            }
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < columns; c++)
                    x[(r0 + r) * n_per_row + c0 + c] = tile[c][r];
        }
}

static void decode_transposed(enum packing packing, int bits, const uint8_t *words, int64_t width,
                              int64_t first, int64_t n_rows, int64_t n_per_row,
                              const struct scales *s, float *x)
{
    if (packing == PACKED_ACROSS)
        transposed_of(PACKED_ACROSS, 4, words, width, first, n_rows, n_per_row, s, x);
    else if (bits == 4)
        transposed_of(PACKED_DOWN, 4, words, width, first, n_rows, n_per_row, s, x);
    else
        transposed_of(PACKED_DOWN, bits, words, width, first, n_rows, n_per_row, s, x);
}

/* Blocks of MXFP4 from its codes in order, two to a byte with the first in the low half, and its
 * scales: only nibbles move. */
static void mxfp4_of_codes(const uint8_t *codes, const uint8_t *scales, int64_t n_blocks,
                           uint8_t *blocks)
{
    for (int64_t b = 0; b < n_blocks; b++, codes += 16, blocks += 17) {
        blocks[0] = scales[b];
        for (int i = 0; i < 8; i++) {
            /* Codes 2 i, 2 i + 1 are byte i; 16 on from them is byte 8 + i. */
            uint8_t near = codes[i], far = codes[8 + i];
            blocks[1 + 2 * i] = (uint8_t)((near & 15) | far << 4);
            blocks[2 + 2 * i] = (uint8_t)(near >> 4 | (far & 0xf0));
        }
    }
}
