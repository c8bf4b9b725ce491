/* Sixteen f32 lanes, the same on every ISA.
 *
 * Block encoders work on sixteen groups of weights at a time, one group a lane (see groups.h).
 * Lanes do not depend on each other: every sum runs down one lane in the order of the weights, so
 * the bytes do not depend on how many lanes a machine register holds. The few sums across lanes are
 * written out, in one order, on sixteen stored floats. The encoders rely on these properties:
 *
 *   - each operation is the IEEE 754 single operation, rounded once, on every lane;
 *   - no multiplication and addition are fused (the build passes -ffp-contract=off);
 *   - `least` and `most` return the second operand where the two are equal.
 *
 * This is the only file with vector extensions. A lane vector is PARTS machine registers. GCC's
 * and Clang's vector types have + - * / for all of them; each ISA defines the other operations.
 */
#pragma once

#include <stdint.h>
#include <string.h>

#define LANES 16

/* 1.5 * 2^23: the sum of it and any |a| < 2^22 has no bits below one. So adding and subtracting it
 * rounds to the nearest integer, ties to even, in two operations on every ISA. */
#define ROUNDER 12582912.0f

#if defined(__AVX512F__)

#include <immintrin.h>

#define PARTS 1
typedef __m512 part;
typedef __mmask16 part_mask;

static inline part part_splat(float a) { return _mm512_set1_ps(a); }
static inline part part_least(part a, part b) { return _mm512_min_ps(a, b); }
static inline part part_most(part a, part b) { return _mm512_max_ps(a, b); }
static inline part_mask part_below(part a, part b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline part part_choose(part_mask m, part a, part b)
{
    return _mm512_mask_blend_ps(m, b, a);
}
static inline part part_absolute(part a) { return _mm512_abs_ps(a); }
static inline part part_clamp_bits(part a, part lo, part hi)
{
    return (part)_mm512_min_epi32(_mm512_max_epi32((__m512i)a, (__m512i)lo), (__m512i)hi);
}
static inline part part_whole(part a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
static inline part part_bytes(const uint8_t *a)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)a)));
}
static inline part part_look_up(const float *table, const uint8_t *a)
{
    __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)a));
    return _mm512_permutexvar_ps(index, _mm512_loadu_ps(table));
}

#elif defined(__AVX2__)

#include <immintrin.h>

#define PARTS 2
typedef __m256 part;
typedef __m256 part_mask;

static inline part part_splat(float a) { return _mm256_set1_ps(a); }
static inline part part_least(part a, part b) { return _mm256_min_ps(a, b); }
static inline part part_most(part a, part b) { return _mm256_max_ps(a, b); }
static inline part_mask part_below(part a, part b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
static inline part part_choose(part_mask m, part a, part b) { return _mm256_blendv_ps(b, a, m); }
static inline part part_absolute(part a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline part part_clamp_bits(part a, part lo, part hi)
{
    return (part)_mm256_min_epi32(_mm256_max_epi32((__m256i)a, (__m256i)lo), (__m256i)hi);
}
static inline part part_whole(part a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT); }
static inline part part_bytes(const uint8_t *a)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)a)));
}
static inline part part_look_up(const float *table, const uint8_t *a)
{
    /* Only the low three bits of an index are used; bit 3, moved to the sign, chooses the half. */
    __m256i index = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)a));
    part low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index);
    part high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), index);
    return _mm256_blendv_ps(low, high, (part)_mm256_slli_epi32(index, 28));
}

#else /* SSE2, NEON and all others with four f32 in a register */

#define PARTS 4
typedef float part __attribute__((vector_size(16)));
typedef int32_t part_mask __attribute__((vector_size(16)));

static inline part part_splat(float a) { return (part){a, a, a, a}; }
static inline part_mask part_below(part a, part b) { return (part_mask)(a < b); }
static inline part part_choose(part_mask m, part a, part b)
{
    return (part)((m & (part_mask)a) | (~m & (part_mask)b));
}
static inline part part_least(part a, part b) { return part_choose(part_below(a, b), a, b); }
static inline part part_most(part a, part b) { return part_choose(part_below(b, a), a, b); }
static inline part part_absolute(part a)
{
    return (part)((part_mask)a & (part_mask){INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX});
}
static inline part part_bytes(const uint8_t *a)
{
    return __builtin_convertvector((part_mask){a[0], a[1], a[2], a[3]}, part);
}
static inline part part_look_up(const float *table, const uint8_t *a)
{
    return (part){table[a[0]], table[a[1]], table[a[2]], table[a[3]]};
}

#endif

#if PARTS <= 2

/* Where lo >= 0: the instruction that rounds, and a comparison of bits. Floats from zero up
 * compare as their bits do; the bits of negative ones are negative integers, and so are those of
 * the NaN that x86 makes of 0 * infinity. Negative levels have another order, so ROUNDER is added
 * before bits are compared.
 *
 * Zen 4 has four 256-bit vector pipes. Two of them add, round and compare floats, and these limit
 * the searches of fit.h; integers are compared in all four. With float comparisons and ROUNDER,
 * Q4_K's encoder takes a quarter more time. */
static inline part part_nearest(part a, float lo, float hi)
{
    if (lo >= 0)
        return part_clamp_bits(part_whole(a), part_splat(lo), part_splat(hi));
    part rounded = part_clamp_bits(a + part_splat(ROUNDER), part_splat(lo + ROUNDER),
                                   part_splat(hi + ROUNDER));
    return rounded - part_splat(ROUNDER);
}

#else

static inline part part_nearest(part a, float lo, float hi)
{
    part rounded = part_most(a + part_splat(ROUNDER), part_splat(lo + ROUNDER));
    return part_least(rounded, part_splat(hi + ROUNDER)) - part_splat(ROUNDER);
}

#endif

typedef struct { part p[PARTS]; } f32x16;
typedef struct { part_mask p[PARTS]; } mask16;

#define EACH_PART(type, expression)                                                                \
    type r;                                                                                        \
    for (int k = 0; k < PARTS; k++)                                                                \
        r.p[k] = (expression);                                                                     \
    return r

static inline f32x16 splat(float a) { EACH_PART(f32x16, part_splat(a)); }
static inline f32x16 add(f32x16 a, f32x16 b) { EACH_PART(f32x16, a.p[k] + b.p[k]); }
static inline f32x16 sub(f32x16 a, f32x16 b) { EACH_PART(f32x16, a.p[k] - b.p[k]); }
static inline f32x16 mul(f32x16 a, f32x16 b) { EACH_PART(f32x16, a.p[k] * b.p[k]); }
static inline f32x16 quotient(f32x16 a, f32x16 b) { EACH_PART(f32x16, a.p[k] / b.p[k]); }
static inline f32x16 least(f32x16 a, f32x16 b) { EACH_PART(f32x16, part_least(a.p[k], b.p[k])); }
static inline f32x16 most(f32x16 a, f32x16 b) { EACH_PART(f32x16, part_most(a.p[k], b.p[k])); }
static inline f32x16 absolute(f32x16 a) { EACH_PART(f32x16, part_absolute(a.p[k])); }
static inline mask16 below(f32x16 a, f32x16 b) { EACH_PART(mask16, part_below(a.p[k], b.p[k])); }

/* Lane by lane: a where the mask holds, else b. */
static inline f32x16 choose(mask16 m, f32x16 a, f32x16 b)
{
    EACH_PART(f32x16, part_choose(m.p[k], a.p[k], b.p[k]));
}

static inline f32x16 load(const float *a)
{
    f32x16 r;
    memcpy(&r, a, sizeof r);
    return r;
}

static inline void store(float *a, f32x16 r) { memcpy(a, &r, sizeof r); }

/* Sixteen bytes as numbers 0..255; the numbers of a table of sixteen at places 0..15. */
static inline f32x16 load_bytes(const uint8_t *a)
{
    EACH_PART(f32x16, part_bytes(a + k * (LANES / PARTS)));
}

static inline f32x16 look_up(const float *table, const uint8_t *a)
{
    EACH_PART(f32x16, part_look_up(table, a + k * (LANES / PARTS)));
}

/* a / b, or zero where b is zero. */
static inline f32x16 quotient_or_zero(f32x16 a, f32x16 b)
{
    f32x16 zero = splat(0);
    return choose(below(zero, absolute(b)), quotient(a, b), zero);
}

/* The integer nearest to a, clamped to lo..hi, whole numbers below 2^22; lo where a is a NaN.
 * Larger |a| lose bits in the sum with ROUNDER but keep their order, and are clamped. */
static inline f32x16 nearest(f32x16 a, float lo, float hi)
{
    EACH_PART(f32x16, part_nearest(a.p[k], lo, hi));
}

/* ---- between weight order and lane order ----------------------------------------------------- */

typedef float f32x4 __attribute__((vector_size(16)));

#if defined(__clang__)
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t i32x4 __attribute__((vector_size(16)));
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (i32x4){i, j, k, l})
#endif

/* to[i][l] = weight i of group l, i < n, l < 16; n a multiple of 4. Block b's groups stand one
 * after another from `from + b * stride`, `per_block` of them. Four-by-four tiles of 32-bit words:
 * bits are moved, not computed with, so that words of packed codes may travel as floats. */
static inline void lanes_of_rows(float (*to)[LANES], const float *from, int n, int per_block,
                                 int64_t stride)
{
    for (int i = 0; i < n; i += 4)
        for (int l = 0; l < LANES; l += 4) {
            f32x4 r[4];
            for (int k = 0; k < 4; k++) {
                int b = (l + k) / per_block, group = (l + k) % per_block;
                memcpy(&r[k], from + b * stride + group * n + i, sizeof r[k]);
            }
            f32x4 low01 = PICK(r[0], r[1], 0, 4, 1, 5), high01 = PICK(r[0], r[1], 2, 6, 3, 7);
            f32x4 low23 = PICK(r[2], r[3], 0, 4, 1, 5), high23 = PICK(r[2], r[3], 2, 6, 3, 7);
            f32x4 column[4] = {PICK(low01, low23, 0, 1, 4, 5), PICK(low01, low23, 2, 3, 6, 7),
                               PICK(high01, high23, 0, 1, 4, 5), PICK(high01, high23, 2, 3, 6, 7)};
            for (int k = 0; k < 4; k++)
                memcpy(to[i + k] + l, &column[k], sizeof column[k]);
        }
}

typedef uint32_t part_bits __attribute__((vector_size(sizeof(part))));

/* The low byte of a whole number a, |a| < 2^22, at bits 0..7: ROUNDER leaves it in the fraction. */
static inline part_bits part_byte(part a) { return (part_bits)(a + part_splat(ROUNDER)) & 0xff; }

/* Four codes of each lane, whole numbers -128..255, as four bytes of a word, the first lowest. */
static inline f32x16 bytes_of(f32x16 a, f32x16 b, f32x16 c, f32x16 d)
{
    EACH_PART(f32x16, (part)(part_byte(a.p[k]) | part_byte(b.p[k]) << 8 | part_byte(c.p[k]) << 16 |
                             part_byte(d.p[k]) << 24));
}
