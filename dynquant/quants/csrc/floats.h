/* f16, bf16 <-> f32, in integer arithmetic that gives the same bits on every machine. */
#pragma once

#include <stdint.h>
#include <string.h>

static inline uint32_t bits_of_f32(float a)
{
    uint32_t u;
    memcpy(&u, &a, sizeof u);
    return u;
}

static inline float f32_of_bits(uint32_t u)
{
    float a;
    memcpy(&a, &u, sizeof a);
    return a;
}

/* Rounds to nearest, ties to even; numbers that would round to infinity become 65504. */
static inline uint16_t f16_of_f32(float a)
{
    uint32_t u = bits_of_f32(a);
    uint32_t sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;

    /* Below 2^-14 an f16 is in units of 2^-24, which is the last place of a float near one half. */
    uint32_t small = bits_of_f32(f32_of_bits(magnitude) + 0.5f) - 0x3f000000;

    /* Else: exponent bias 127 -> 15, then drop 13 of the 23 fraction bits. */
    uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13;

    uint32_t r = magnitude < 0x38800000 ? small : normal;
    return (uint16_t)(sign | (magnitude < 0x477ff000 ? r : 0x7bff)); /* 0x477ff000 = 65520 */
}

/* The exponent's bias changes from 15 to 127, and the exponent of infinity from 31 to 255. Below
 * 2^-14 a fraction has no leading one: read with the exponent of 2^-14, it is 2^-14 too large. So
 * 2^-14 is subtracted, or zero from all others: without a branch, so that loops become vectors. */
static inline float f32_of_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff;
    uint32_t is_small = magnitude < 0x400 ? UINT32_MAX : 0;
    uint32_t is_infinite = magnitude >= 0x7c00 ? UINT32_MAX : 0;
    uint32_t bits = (magnitude << 13) + 0x38000000;
    bits += (is_small & 0x00800000) + (is_infinite & 0x38000000);
    float a = f32_of_bits(bits) - f32_of_bits(is_small & 0x38800000); /* 2^-14 */
    return f32_of_bits(sign | bits_of_f32(a));
}

static inline float f32_of_bf16(uint16_t h) { return f32_of_bits((uint32_t)h << 16); }

/* Rounds to nearest, ties to even; numbers that would round to infinity become the largest bf16. */
static inline uint16_t bf16_of_f32(float a)
{
    uint32_t u = bits_of_f32(a);
    uint32_t sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    uint32_t r = (magnitude + 0x7fff + (magnitude >> 16 & 1)) >> 16;
    return (uint16_t)(sign | (r < 0x7f80 ? r : 0x7f7f));
}

/* A stored scale times a factor. */
static inline uint16_t scaled_f16(uint16_t h, float factor)
{
    return f16_of_f32(f32_of_f16(h) * factor);
}
