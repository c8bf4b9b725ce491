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

/* The inverse, for bytes of 0 or 1: the product adds each of them at the place of its bit. */
static inline uint8_t bits_of_bytes(uint64_t bytes)
{
    return (uint8_t)(bytes * 0x0102040810204080u >> 56);
}

/* Four pairs of bits as four bytes: byte i is bits 2 i, 2 i + 1. */
static inline uint32_t bytes_of_pairs(uint32_t pairs)
{
    return (pairs | pairs << 6 | pairs << 12 | pairs << 18) & 0x03030303u;
}

/* The inverse, for bytes of 0..3. */
static inline uint8_t pairs_of_bytes(uint32_t bytes)
{
    return (uint8_t)(bytes | bytes >> 6 | bytes >> 12 | bytes >> 18);
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

/* Runs of 2 n codes, each as above. */
static inline void pack_runs(uint8_t *packed, const uint8_t *q, int n, int n_runs)
{
    for (int r = 0; r < n_runs; r++)
        pack_nibbles(packed + n * r, q + 2 * n * r, n);
}

static inline void unpack_runs(const uint8_t *packed, uint8_t *q, int n, int n_runs)
{
    for (int r = 0; r < n_runs; r++)
        unpack_nibbles(packed + n * r, q + 2 * n * r, n);
}

/* Bit 4 of 32 codes in 4 bytes: code i's is bit i % 8 of byte i / 8. */
static inline void pack_fifth_bits(uint8_t *packed, const uint8_t *q)
{
    for (int k = 0; k < 4; k++) {
        uint64_t codes;
        memcpy(&codes, q + 8 * k, sizeof codes);
        packed[k] = bits_of_bytes(codes >> 4 & 0x0101010101010101u);
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

/* 32 codes of 5 bits: the low four, and the fifths. */
static inline void pack_fives(uint8_t *nibbles, uint8_t *fifths, const uint8_t *q)
{
    pack_nibbles(nibbles, q, 16);
    pack_fifth_bits(fifths, q);
}

static inline void unpack_fives(const uint8_t *nibbles, const uint8_t *fifths, uint8_t *q)
{
    unpack_nibbles(nibbles, q, 16);
    add_fifth_bits(fifths, q);
}

/* Two bits of 256 codes, those from `shift` on, in 64 bytes: code 128 h + 32 k + i's are bits 2 k,
 * 2 k + 1 of byte 32 h + i. */
static inline void pack_pairs(uint8_t *packed, const uint8_t *q, int shift)
{
    for (int h = 0; h < 2; h++, packed += 32, q += 128)
        for (int i = 0; i < 32; i++)
            packed[i] = (uint8_t)((q[i] >> shift & 3) | (q[32 + i] >> shift & 3) << 2 |
                                  (q[64 + i] >> shift & 3) << 4 | (q[96 + i] >> shift & 3) << 6);
}

static inline void add_pairs(const uint8_t *packed, uint8_t *q, int shift)
{
    for (int h = 0; h < 2; h++, packed += 32, q += 128)
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < 32; i++)
                q[32 * k + i] |= (uint8_t)((packed[i] >> 2 * k & 3) << shift);
}

/* The same for codes of two bits only. */
static inline void unpack_pairs(const uint8_t *packed, uint8_t *q)
{
    memset(q, 0, 256);
    add_pairs(packed, q, 0);
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
