/* The correlations of a matrix's input channels, and their factor: what error feedback multiplies
 * errors by.
 *
 * C = L L', L upper triangular, C the correlations with 1 + damping on their diagonal. Numbers lie
 * where sixteen columns are computed at a time: row blocks of TILE rows, from their first column
 * on; in each, panels of 16 columns, row after row.
 *
 *   upper     L; n (n + TILE) / 2 floats if n is a multiple of TILE
 *   diagonal  the square blocks of C on its diagonal, each likewise
 *   schur     L L' of the square blocks of L on its diagonal: what C is for a block if the columns
 *             that follow can take any errors back
 */
#pragma once

#include <stdint.h>

#define TILE 256
#define PANEL 16

static inline int64_t rows_of_tile(int64_t n, int64_t b)
{
    return n - b * TILE < TILE ? n - b * TILE : TILE;
}

/* Floats before row block b of `upper`. */
static inline int64_t upper_at(int64_t n, int64_t b)
{
    return TILE * b * n - (int64_t)TILE * TILE * (b * (b - 1) / 2);
}

static inline int64_t factor_size(int64_t n)
{
    int64_t last = (n - 1) / TILE, rows = rows_of_tile(n, last);
    return upper_at(n, last) + rows * rows;
}

static inline int64_t diagonal_size(int64_t n)
{
    int64_t last = (n - 1) / TILE, rows = rows_of_tile(n, last);
    return last * TILE * TILE + rows * rows;
}

/* The panel of row block b that holds column c >= TILE * b; its rows are PANEL floats each. */
static inline float *upper_panel(float *upper, int64_t n, int64_t b, int64_t c)
{
    return upper + upper_at(n, b) + (c - b * TILE) / PANEL * PANEL * rows_of_tile(n, b);
}

static inline float *diagonal_panel(float *diagonal, int64_t n, int64_t b, int64_t c)
{
    return diagonal + b * TILE * TILE + (c - b * TILE) / PANEL * PANEL * rows_of_tile(n, b);
}
