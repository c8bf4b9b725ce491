/* Sixteen sorts side by side: Batcher's merge exchange, a network of compare-and-swaps whose
 * pattern does not depend on the values. Every lane sorts its own column; a network of 256 keys has
 * 3839 exchanges, 15 a weight, without a branch or a table.
 *
 * Keys may carry up to two numbers each (u, v; NULL if absent). Equal keys keep any
 * order, the same on every ISA. Source: Knuth, The Art of Computer Programming, 5.2.2, algorithm
 * M.
 */
#pragma once

#include "groups.h"

static ALWAYS_INLINE void swap_where(mask16 swap, f32x16 *u, int i, int j)
{
    f32x16 a = u[i], b = u[j];
    u[i] = choose(swap, b, a);
    u[j] = choose(swap, a, b);
}

/* Put the larger of two keys first. */
static ALWAYS_INLINE void exchange(f32x16 *key, f32x16 *u, f32x16 *v, int i, int j)
{
    f32x16 a = key[i], b = key[j];
    if (u)
        swap_where(below(a, b), u, i, j);
    if (v)
        swap_where(below(a, b), v, i, j);
    key[i] = most(a, b);
    key[j] = least(a, b);
}

/* Each run of 2 p of n keys is two halves that fall; make the run fall. */
static ALWAYS_INLINE void merge_falling(f32x16 *key, f32x16 *u, f32x16 *v, int n, int p)
{
    for (int k = p; k > 0; k /= 2)
        for (int run = 0; run < n; run += 2 * p)
            for (int j = run + k % p; j + k < run + 2 * p; j += 2 * k)
                for (int i = j; i < j + k; i++)
                    exchange(key, u, v, i, i + k);
}

/* Sort n keys of each lane, largest first; n a power of two. */
static ALWAYS_INLINE void sort_falling(f32x16 *key, f32x16 *u, int n)
{
    for (int p = 1; p < n; p *= 2)
        merge_falling(key, u, NULL, n, p);
}
