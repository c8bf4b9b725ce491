/* Q1_0: 128 weights in 18 bytes, 1.125 bits per weight.
 *
 *   bytes 0..1    d    f16 scale
 *   bytes 2..17   qs   bit i % 8 of byte i / 8 is set where weight i is +d
 *
 *   w[i] = bit ? d : -d
 *
 * There is no zero: a block of zeros has d = 0. Source: block_q1_0 in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "groups.h"
#include "opened.h"
#include "packing.h"
#include "weights.h"

struct block_q1_0 { uint16_t d; uint8_t qs[16]; } PACKED;
static_assert(sizeof(struct block_q1_0) == 18, "Q1_0 is 18 bytes a block");

/* A sum across lanes, halves onto halves, in this order on every ISA. */
static ALWAYS_INLINE float q1_sum(f32x16 a)
{
    float lane[LANES];
    store(lane, a);
    for (int n = LANES / 2; n > 0; n /= 2)
        for (int l = 0; l < n; l++)
            lane[l] += lane[l + n];
    return lane[0];
}

static ALWAYS_INLINE float q1_most(f32x16 a)
{
    float lane[LANES];
    store(lane, a);
    for (int n = LANES / 2; n > 0; n /= 2)
        for (int l = 0; l < n; l++)
            lane[l] = lane[l] > lane[l + n] ? lane[l] : lane[l + n];
    return lane[0];
}

/* The power of two at or below the largest of 128 magnitudes, as in units_of. */
static ALWAYS_INLINE float q1_unit(const float *a)
{
    f32x16 lane_most = splat(0);
    for (int i = 0; i < 128; i += LANES)
        lane_most = most(lane_most, absolute(load(a + i)));
    return power_of_two_below(q1_most(lane_most));
}

/* The f16 scale of a block. Signs are free, and the best scale for them is the weighted mean
 * magnitude: the exact optimum, at every effort. Lanes are sixteen neighbours of one block. Zero if
 * zeros are better: f16 cannot hold the smallest scales well. */
static ALWAYS_INLINE uint16_t fit_q1_0(const float *x, const float *w)
{
    float unit = q1_unit(x);
    f32x16 inverse = splat(inverse_of_power(unit));
    f32x16 w_inverse = splat(w ? inverse_of_power(q1_unit(w)) : 1);
    f32x16 sum_w = splat(0), sum_wx = splat(0), sum_wxx = splat(0);
    for (int i = 0; i < 128; i += LANES) {
        f32x16 magnitude = mul(absolute(load(x + i)), inverse);
        f32x16 weight = w ? most(mul(load(w + i), w_inverse), splat(LEAST_IMPORTANCE)) : splat(1);
        sum_w = add(sum_w, weight);
        f32x16 wx = mul(weight, magnitude);
        sum_wx = add(sum_wx, wx);
        sum_wxx = add(sum_wxx, mul(wx, magnitude));
    }
    float b = q1_sum(sum_w), a = q1_sum(sum_wx), zeros = q1_sum(sum_wxx);
    uint16_t stored;
    float d = rounded_scale(a / b, unit, &stored);
    return zeros - d * (2 * a - d * b) < zeros ? stored : 0;
}

/* A bit for each weight, set where it is not negative. */
static ALWAYS_INLINE void round_q1_0(const float *x, uint8_t *qs)
{
    for (int i = 0; i < 16; i++) {
        uint32_t byte = 0;
        for (int k = 0; k < 8; k++)
            byte |= (bits_of_f32(x[8 * i + k]) >> 31) << k;
        qs[i] = (uint8_t)~byte;
    }
}

static void encode_q1_0(struct weights in, struct block_q1_0 *block, int n_blocks,
                        enum effort effort)
{
    (void)n_blocks, (void)effort;
    block->d = fit_q1_0(in.x, in.w);
    round_q1_0(in.x, block->qs);
}

static const struct code_space q1_0_codes = {.group = 128, .q_most = 1};

static void open_q1_0(const struct block_q1_0 *block, struct opened *o)
{
    float d = f32_of_f16(block->d);
    o->scale[0] = 2 * d;
    o->offset[0] = -d;
    for (int k = 0; k < 16; k++) {
        uint64_t q = bytes_of_bits(block->qs[k]);
        memcpy(o->q + 8 * k, &q, sizeof q);
    }
}

static void close_q1_0(struct block_q1_0 *block, const struct opened *o)
{
    for (int k = 0; k < 16; k++) {
        uint64_t q;
        memcpy(&q, o->q + 8 * k, sizeof q);
        block->qs[k] = bits_of_bytes(q);
    }
}

static void decode_q1_0(const struct block_q1_0 *block, float *x)
{
    float d = f32_of_f16(block->d);
    uint64_t twice[16];
    for (int k = 0; k < 16; k++)
        twice[k] = bytes_of_bits(block->qs[k]) << 1;
    scaled_weights((const uint8_t *)twice, 128, d, 1, x);
}

static void regain_q1_0(struct block_q1_0 *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
