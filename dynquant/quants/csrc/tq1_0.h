/* TQ1_0: 256 ternary weights in 54 bytes, 1.6875 bits per weight.
 *
 *   bytes  0..47   qs   five codes to a byte
 *   bytes 48..51   qh   four codes to a byte
 *   bytes 52..53   d    f16 scale
 *
 * Codes of a byte are the digits of a number in base 3, the first weight's the highest; four codes
 * have a fifth digit of 0. The weights of digit k = 0..4:
 *
 *   qs[m], m < 32          32 k + m
 *   qs[32 + m], m < 16     160 + 16 k + m
 *   qh[m], m < 4           240 + 4 k + m, k < 4
 *
 * The byte is the five-digit number v as the fraction v / 243 of 256, rounded up, so that digit k
 * is the carry out of the low eight bits of (byte * 3^k) when those are tripled.
 *
 *   w[i] = d * (digit - 1)
 *
 * Source: block_tq1_0 in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "opened.h"
#include "ternary.h"

struct block_tq1_0 { uint8_t qs[48], qh[4]; uint16_t d; } PACKED;
static_assert(sizeof(struct block_tq1_0) == 54, "TQ1_0 is 54 bytes a block");

/* A run of bytes and its weights: the first one, and the distance from digit to digit. */
struct tq1_run { int first_byte, n_bytes, first_weight, stride, digits; };
static const struct tq1_run tq1_runs[3] = {
    {.first_byte = 0, .n_bytes = 32, .first_weight = 0, .stride = 32, .digits = 5},
    {.first_byte = 32, .n_bytes = 16, .first_weight = 160, .stride = 16, .digits = 5},
    {.first_byte = 48, .n_bytes = 4, .first_weight = 240, .stride = 4, .digits = 4},
};

/* The byte of five digits, the first weight's at q[0], the others `stride` on. */
static ALWAYS_INLINE f32x16 tq1_byte(const f32x16 *q, int stride, int digits)
{
    f32x16 v = splat(0);
    for (int k = 0; k < 5; k++) {
        v = mul(v, splat(3));
        v = k < digits ? add(v, q[k * stride]) : v;
    }
    /* ceil(256 v / 243) = floor((256 v + 242) / 243). Half a unit more in the numerator and half
     * off the quotient make that a rounding to nearest with a margin of 1/486 on both sides. */
    v = add(mul(v, splat(256)), splat(242.5f));
    return nearest(sub(mul(v, splat(1.0f / 243)), splat(0.5f)), 0, 255);
}

static inline int tq1_digit(uint8_t byte, int k)
{
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    uint8_t fraction = (uint8_t)(byte * powers[k]);
    return fraction * 3 >> 8;
}

static void encode_tq1_0(struct weights in, struct block_tq1_0 *blocks, int n_blocks,
                         enum effort effort)
{
    struct ternary_codes c;
    encode_ternary(in, n_blocks, effort, &c);
    for (int k = 0; k < n_blocks; k++)
        blocks[k].d = c.d[k];
    for (int r = 0; r < 3; r++) {
        struct tq1_run run = tq1_runs[r];
        f32x16 bytes[32];
        _Alignas(4) uint8_t qs[LANES * 32];
        for (int m = 0; m < run.n_bytes; m++)
            bytes[m] = tq1_byte(c.q + run.first_weight + m, run.stride, run.digits);
        scatter_codes(bytes, run.n_bytes, qs);
        for (int k = 0; k < n_blocks; k++)
            memcpy((uint8_t *)(blocks + k) + run.first_byte, qs + run.n_bytes * k,
                   (size_t)run.n_bytes);
    }
}

static const struct code_space tq1_0_codes = {.group = 256, .q_most = 2};

static void open_tq1_0(const struct block_tq1_0 *block, struct opened *o)
{
    o->scale[0] = f32_of_f16(block->d);
    o->offset[0] = -o->scale[0];
    for (int r = 0; r < 3; r++) {
        struct tq1_run run = tq1_runs[r];
        const uint8_t *bytes = (const uint8_t *)block + run.first_byte;
        for (int k = 0; k < run.digits; k++)
            for (int m = 0; m < run.n_bytes; m++)
                o->q[run.first_weight + k * run.stride + m] = (uint8_t)tq1_digit(bytes[m], k);
    }
}

/* A lane is a byte. Bytes that no encoder of ours writes become those with the same digits. */
static void close_tq1_0(struct block_tq1_0 *block, const struct opened *o)
{
    for (int r = 0; r < 3; r++) {
        struct tq1_run run = tq1_runs[r];
        uint8_t *bytes = (uint8_t *)block + run.first_byte;
        for (int m = 0; m < run.n_bytes; m += LANES) {
            int n = run.n_bytes - m < LANES ? run.n_bytes - m : LANES;
            f32x16 digits[5];
            for (int k = 0; k < 5; k++) {
                uint8_t q[LANES] = {0};
                if (k < run.digits)
                    memcpy(q, o->q + run.first_weight + k * run.stride + m, (size_t)n);
                digits[k] = load_bytes(q);
            }
            float lanes[LANES];
            store(lanes, tq1_byte(digits, 1, 5));
            for (int i = 0; i < n; i++)
                bytes[m + i] = (uint8_t)lanes[i];
        }
    }
}

static void decode_tq1_0(const struct block_tq1_0 *block, float *x)
{
    float d = f32_of_f16(block->d);
    for (int r = 0; r < 3; r++) {
        struct tq1_run run = tq1_runs[r];
        const uint8_t *bytes = (const uint8_t *)block + run.first_byte;
        for (int k = 0; k < run.digits; k++)
            for (int m = 0; m < run.n_bytes; m++)
                x[run.first_weight + k * run.stride + m] = d * (float)(tq1_digit(bytes[m], k) - 1);
    }
}

static void regain_tq1_0(struct block_tq1_0 *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
