/* How the factor of correlations is computed: from its last row block to the first, tile by tile,
 * in double precision. The sums of one tile are added in the order of the columns, so that any
 * number of threads gives the same bits.
 */
#pragma once

#include <math.h>
#include <string.h>

#include "factor.h"
#include "floats.h"

/* C of row block b from its correlations, F16 [n (n - 1) / 2]: row i holds those with the channels
 * i + 1 .. n - 1. Fills the row block of `upper` and of `diagonal`. */
static void place_correlations(int64_t n, const uint16_t *correlations, double damping, int64_t b,
                               float *upper, float *diagonal)
{
    int64_t first = b * TILE, rows = rows_of_tile(n, b);
    for (int64_t k = 0; k < rows; k++) {
        int64_t i = first + k;
        const uint16_t *row = correlations + i * (2 * n - i - 1) / 2 - i - 1;
        for (int64_t c = i; c < n; c++) {
            float value = c == i ? (float)(1 + damping) : f32_of_f16(row[c]);
            upper_panel(upper, n, b, c)[k * PANEL + c % PANEL] = value;
            if (c < first + rows) {
                diagonal_panel(diagonal, n, b, c)[k * PANEL + c % PANEL] = value;
                diagonal_panel(diagonal, n, b, i)[(c - first) * PANEL + i % PANEL] = value;
            }
        }
        for (int64_t c = first; c < i; c++)
            upper_panel(upper, n, b, c)[k * PANEL + c % PANEL] = 0;
    }
}

typedef double f64x8 __attribute__((vector_size(64)));

static inline f64x8 load_f64(const double *a)
{
    f64x8 r;
    memcpy(&r, a, sizeof r);
    return r;
}

/* t[i][j] -= sum over the 16 columns of a panel of a[i][c] * b[j][c], four rows at a time. */
static void subtract_panel(double *t, const float *a, int64_t n_a, const float *b, int64_t n_b)
{
    double across[PANEL * TILE];
    for (int64_t j = 0; j < n_b; j++)
        for (int c = 0; c < PANEL; c++)
            across[c * TILE + j] = b[j * PANEL + c];
    for (int64_t i = 0; i < n_a; i += 4)
        for (int64_t j = 0; j < n_b; j += 16) {
            f64x8 sum[4][2];
            for (int r = 0; r < 4; r++)
                for (int k = 0; k < 2; k++)
                    sum[r][k] = load_f64(t + (i + r) * TILE + j + 8 * k);
            for (int c = 0; c < PANEL; c++)
                for (int r = 0; r < 4; r++)
                    for (int k = 0; k < 2; k++)
                        sum[r][k] -= (double)a[(i + r) * PANEL + c] *
                                     load_f64(across + c * TILE + j + 8 * k);
            for (int r = 0; r < 4; r++)
                for (int k = 0; k < 2; k++)
                    memcpy(t + (i + r) * TILE + j + 8 * k, &sum[r][k], sizeof sum[r][k]);
        }
}

/* t = u u', u upper triangular, in place; below the diagonal zero. A pivot of C is at least the
 * damping, unless correlations were rounded: it is made so. */
static void factor_tile(double *t, int64_t rows, double least)
{
    for (int64_t j = rows - 1; j >= 0; j--) {
        double pivot = t[j * TILE + j];
        pivot = sqrt(pivot > least ? pivot : least);
        t[j * TILE + j] = pivot;
        double column[TILE];
        for (int64_t i = 0; i < j; i++)
            column[i] = t[i * TILE + j] /= pivot;
        for (int64_t i = 0; i < j; i++)
            for (int64_t k = i; k < j; k++)
                t[i * TILE + k] -= column[i] * column[k];
        for (int64_t k = 0; k < j; k++)
            t[j * TILE + k] = 0;
    }
}

/* x u' = t, in place of t. across: u's columns as rows. */
static void divide_tile(double *t, int64_t n_a, const double *across, int64_t n_b)
{
    for (int64_t i = 0; i < n_a; i++) {
        double *x = t + i * TILE;
        for (int64_t j = n_b - 1; j >= 0; j--) {
            x[j] /= across[j * TILE + j];
            for (int64_t k = 0; k < j; k++)
                x[k] -= x[j] * across[j * TILE + k];
        }
    }
}

#define LEAST_PIVOT 1e-6

/* Tiles first .. last - 1 of column block b, where those of all later column blocks are done, and
 * tile b before the others. scratch: 2 * TILE * TILE doubles. */
static void factor_tiles(int64_t n, float *upper, double damping, int64_t b, int64_t first,
                         int64_t last, double *scratch)
{
    double *t = scratch, *across = scratch + TILE * TILE;
    int64_t n_b = rows_of_tile(n, b), at = b * TILE;
    if (first < b)
        for (int64_t j = 0; j < n_b; j++)
            for (int64_t k = 0; k < n_b; k++)
                across[k * TILE + j] =
                    upper_panel(upper, n, b, at + k)[j * PANEL + k % PANEL];
    for (int64_t a = first; a < last; a++) {
        int64_t n_a = rows_of_tile(n, a);
        for (int64_t i = 0; i < n_a; i++)
            for (int64_t j = 0; j < n_b; j++)
                t[i * TILE + j] = upper_panel(upper, n, a, at + j)[i * PANEL + j % PANEL];
        for (int64_t c = at + n_b; c < n; c += PANEL)
            subtract_panel(t, upper_panel(upper, n, a, c), n_a, upper_panel(upper, n, b, c), n_b);
        if (a == b)
            factor_tile(t, n_a, damping > LEAST_PIVOT ? damping : LEAST_PIVOT);
        else
            divide_tile(t, n_a, across, n_b);
        for (int64_t i = 0; i < n_a; i++)
            for (int64_t j = 0; j < n_b; j++)
                upper_panel(upper, n, a, at + j)[i * PANEL + j % PANEL] = (float)t[i * TILE + j];
    }
}

/* l l' of a square of n rows and columns; l and the result in panels whose rows are as many as
 * given. */
static void multiply_by_transpose(const float *l, int64_t l_rows, int64_t n, float *product,
                                  int64_t rows)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++) {
            double sum = 0;
            for (int64_t c = i; c < n; c++) {
                const float *panel = l + c / PANEL * PANEL * l_rows + c % PANEL;
                sum += (double)panel[i * PANEL] * panel[j * PANEL];
            }
            product[j / PANEL * PANEL * rows + i * PANEL + j % PANEL] = (float)sum;
            product[i / PANEL * PANEL * rows + j * PANEL + i % PANEL] = (float)sum;
        }
}

/* L L' of row block b's square. */
static void place_schur(int64_t n, const float *upper, int64_t b, float *schur)
{
    int64_t rows = rows_of_tile(n, b), at = b * TILE;
    multiply_by_transpose(upper_panel((float *)upper, n, b, at), rows, rows,
                          diagonal_panel(schur, n, b, at), rows);
}
