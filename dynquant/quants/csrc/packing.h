/* How block formats pack codes of a few bits into bytes. */
#pragma once

#include <stdint.h>
#include <string.h>

/* Eight bits as eight bytes: byte i is bit i. */
static inline uint64_t bytes_of_bits(uint8_t bits)
{
    uint64_t in_place = bits * 0x0101010101010101u & 0x8040201008040201u; /* byte i: only bit i */
    return (in_place + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
}

/* Four pairs of bits as four bytes: byte i is bits 2 i, 2 i + 1. */
static inline uint32_t bytes_of_pairs(uint32_t pairs)
{
    return (pairs | pairs << 6 | pairs << 12 | pairs << 18) & 0x03030303u;
}

/* The low 4 bits of 2 n codes in n bytes: code i in the low half of byte i, n + i in the high. */
static inline void pack_nibbles(uint8_t *packed, const uint8_t *q, int n)
{
    for (int i = 0; i < n; i++)
        packed[i] = (uint8_t)((q[i] & 15) | q[n + i] << 4);
}

/* The inverse; n is a multiple of 8. In words, since compilers would unpack sixteen bytes one by
 * one. */
static inline void unpack_nibbles(const uint8_t *packed, uint8_t *q, int n)
{
    for (int i = 0; i < n; i += 8) {
        uint64_t both, low, high;
        memcpy(&both, packed + i, sizeof both);
        low = both & 0x0f0f0f0f0f0f0f0fu;
        high = both >> 4 & 0x0f0f0f0f0f0f0f0fu;
        memcpy(q + i, &low, sizeof low);
        memcpy(q + n + i, &high, sizeof high);
    }
}

/* Bit 4 of 32 codes in 4 bytes: code i's is bit i % 8 of byte i / 8. */
static inline void pack_fifth_bits(uint8_t *packed, const uint8_t *q)
{
    for (int k = 0; k < 4; k++) {
        uint8_t bits = 0;
        for (int i = 0; i < 8; i++)
            bits |= (uint8_t)(q[8 * k + i] >> 4 << i);
        packed[k] = bits;
    }
}

static inline void add_fifth_bits(const uint8_t *packed, uint8_t *q)
{
    for (int k = 0; k < 4; k++) {
        uint64_t codes;
        memcpy(&codes, q + 8 * k, sizeof codes);
        codes |= bytes_of_bits(packed[k]) << 4;
        memcpy(q + 8 * k, &codes, sizeof codes);
    }
}

/* Two bits of 128 codes, those from `shift` on, in 32 bytes: code 32 k + i's are bits 2 k, 2 k + 1
 * of byte i. */
static inline void pack_pairs(uint8_t *packed, const uint8_t *q, int shift)
{
    for (int i = 0; i < 32; i++)
        packed[i] = (uint8_t)((q[i] >> shift & 3) | (q[32 + i] >> shift & 3) << 2 |
                              (q[64 + i] >> shift & 3) << 4 | (q[96 + i] >> shift & 3) << 6);
}

static inline void add_pairs(const uint8_t *packed, uint8_t *q, int shift)
{
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 32; i++)
            q[32 * k + i] |= (uint8_t)((packed[i] >> 2 * k & 3) << shift);
}

/* One bit of 256 codes, that at `shift`, in 32 bytes: code 32 k + i's is bit k of byte i. */
static inline void pack_planes(uint8_t *packed, const uint8_t *q, int shift)
{
    for (int i = 0; i < 32; i++)
        packed[i] = 0;
    for (int k = 0; k < 8; k++)
        for (int i = 0; i < 32; i++)
            packed[i] |= (uint8_t)((q[32 * k + i] >> shift & 1) << k);
}

static inline void add_planes(const uint8_t *packed, uint8_t *q, int shift)
{
    for (int k = 0; k < 8; k++)
        for (int i = 0; i < 32; i++)
            q[32 * k + i] |= (uint8_t)((packed[i] >> k & 1) << shift);
}
