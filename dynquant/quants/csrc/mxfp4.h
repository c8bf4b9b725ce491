/* MXFP4: 32 weights in 17 bytes, 4.25 bits per weight.
 *
 *   byte  0       e    E8M0 scale: the power of two 2^(e - 127)
 *   bytes 1..16   qs   byte i holds weight i in its low half and weight 16 + i in its high half
 *
 *   w[i] = 2^(e - 127) * level[q],  q in 0..15: FP4 (fp4.h)
 *
 * e = 255 is not a number. Above 252 the largest level overflows, so it is the highest written.
 * Source: block_mxfp4 in ggml-common.h; OCP Microscaling Formats 1.0.
 */
#include <assert.h>
#include <math.h>

#include "fp4.h"
#include "opened.h"

struct block_mxfp4 { uint8_t e, qs[16]; } PACKED;
static_assert(sizeof(struct block_mxfp4) == 17, "MXFP4 is 17 bytes a block");

/* How many exponents are tried, downwards from that of 1/2 in normalised weights, which are below
 * 2. Higher ones can be left out: up to 2 s the levels of s are among those of s / 2. Two of them
 * bring the largest weight to 2..8. Each further one clips it to half, which reduces the error
 * where that weight has little importance. */
static const int mxfp4_exponents[N_EFFORTS] = {
    [EFFORT_FAST] = 2, [EFFORT_NORMAL] = 3, [EFFORT_BEST] = 8,
};

/* The exponents of sixteen blocks, and their scales in normalised units; zeros where zeros are
 * better. */
struct mxfp4_scales { float e[LANES]; f32x16 s; };

static ALWAYS_INLINE struct mxfp4_scales fit_mxfp4(const struct groups *g, enum effort effort)
{
    float unit_exponent[LANES];
    for (int l = 0; l < LANES; l++)
        unit_exponent[l] = (float)(int32_t)(bits_of_f32(g->unit[l]) >> 23);

    /* The unit's exponent is 1..253, so that -1 gives one of 0..252; others stop at 0. */
    f32x16 best_e = splat(0), best_s = splat(0), best_error = error_of_zeros(sum_group(g, 32).xx);
    for (int c = 1; c <= mxfp4_exponents[effort]; c++) {
        float s = 1.0f / (float)(1 << c);
        f32x16 e = sub(load(unit_exponent), splat((float)c));
        f32x16 error = error_of_fp4(g, 32, splat(s), splat((float)(1 << c)));
        error = choose(below(e, splat(0)), splat(INFINITY), error);
        mask16 better = below(error, best_error);
        best_error = choose(better, error, best_error);
        best_e = choose(better, e, best_e);
        best_s = choose(better, splat(s), best_s);
    }
    struct mxfp4_scales r = {.s = best_s};
    store(r.e, best_e);
    return r;
}

static void encode_mxfp4(struct weights in, struct block_mxfp4 *blocks, int n_blocks,
                         enum effort effort)
{
    struct groups g;
    gather(&g, 32, 1, n_blocks, in);
    struct mxfp4_scales scales = fit_mxfp4(&g, effort);
    f32x16 q[32];
    _Alignas(4) uint8_t qs[LANES * 16];
    round_fp4(&g, 32, scales.s, q);
    pack_fp4(q, 32, qs);
    for (int k = 0; k < n_blocks; k++) {
        blocks[k].e = (uint8_t)scales.e[k];
        memcpy(blocks[k].qs, qs + 16 * k, 16);
    }
}

/* 2^(e - 128): subnormal for e < 2. */
static inline float half_scale_of_mxfp4(const struct block_mxfp4 *block)
{
    uint32_t e = block->e;
    return f32_of_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}

static const struct code_space mxfp4_codes = {.group = 32, .q_most = 15, .levels = fp4_doubled};

static void open_mxfp4(const struct block_mxfp4 *block, struct opened *o)
{
    o->scale[0] = half_scale_of_mxfp4(block);
    o->offset[0] = 0;
    unpack_nibbles(block->qs, o->q, 16);
}

static void close_mxfp4(struct block_mxfp4 *block, const struct opened *o)
{
    pack_nibbles(block->qs, o->q, 16);
}

static void decode_mxfp4(const struct block_mxfp4 *block, float *x)
{
    uint8_t q[32];
    unpack_nibbles(block->qs, q, 16);
    level_weights(q, 32, half_scale_of_mxfp4(block), fp4_doubled, x);
}
