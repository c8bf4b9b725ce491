/* IQ1_M: 256 weights in 56 bytes, 1.75 bits per weight.
 *
 *   bytes  0..31   qs      low 8 bits of the code of each 8 weights
 *   bytes 32..47   qh      four bits for each 8 weights, two in a byte, the first lowest: high 3
 *                          bits of the code; bit 3 set: the shift is subtracted
 *   bytes 48..55   scales  four 16-bit words: 3-bit scales s of four groups of 16 weights, the
 *                          first lowest; bits 12..15 four bits of the f16 scale d, the first word
 *                          lowest
 *
 *   w = d * (2 s + 1) * (level +- 1/8),  levels -1, 0, 1: 2048 points of eight
 *
 * Source: block_iq1_m in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "codebook_k.h"

struct block_iq1_m { uint8_t qs[32], qh[16]; uint16_t scales[4]; } PACKED;
static_assert(sizeof(struct block_iq1_m) == 56, "IQ1_M is 56 bytes a block");

static const struct codebook_format iq1_m_format = {
    .book = {
        .dim = 8, .n_levels = 3, .n_halves = 81,
        .chunk = IQ1_CHUNK, .n_chunks = IQ1_CHUNKS,
        .key = iq1_key, .code = iq1_code, .second = iq1_second, .first = iq1_first,
        .levels = {-1, 0, 1}, .signs = SIGNED_LEVELS, .shift = 0.125f, .shifted = SHIFT_OF_VECTOR,
    },
    .n = 16, .group_count = 16, .l_most = 15,
    .effort = {
        [EFFORT_FAST] = {.tries = 10, .first = 0.3f, .step = 0.05f,
                         .scales = 1, .scans = 0, .scan_scales = 0},
        [EFFORT_NORMAL] = {.tries = 10, .first = 0.3f, .step = 0.05f,
                           .scales = 2, .scans = 0, .scan_scales = 0},
        [EFFORT_BEST] = {.tries = 20, .first = 0.25f, .step = 0.03f,
                         .scales = 6, .scans = 4, .scan_scales = 3},
    },
};

static uint16_t iq1_m_scale(const struct block_iq1_m *block)
{
    int d = 0;
    for (int k = 0; k < 4; k++)
        d |= block->scales[k] >> 12 << 4 * k;
    return (uint16_t)d;
}

static void set_iq1_m_scale(struct block_iq1_m *block, uint16_t d)
{
    for (int k = 0; k < 4; k++)
        block->scales[k] = (uint16_t)((block->scales[k] & 0xfff) | (d >> 4 * k & 15) << 12);
}

static inline int iq1_m_group_scale(const struct block_iq1_m *block, int g)
{
    return block->scales[g / 4] >> 3 * (g % 4) & 7;
}

/* The 11 bits of a code, and bit 11 set where its shift is subtracted. */
static inline int iq1_m_bits(const struct block_iq1_m *block, int v)
{
    return block->qs[v] | (block->qh[v / 2] >> 4 * (v % 2) & 15) << 8;
}

static const struct code_space iq1_m_codes = {.group = 16, .book = &iq1_m_format.book};

static void open_iq1_m(const struct block_iq1_m *block, struct opened *o)
{
    float d = f32_of_f16(iq1_m_scale(block));
    for (int j = 0; j < 16; j++)
        o->scale[j] = scale_on_lattice(d, iq1_m_group_scale(block, j));
    for (int v = 0; v < 32; v++) {
        int bits = iq1_m_bits(block, v);
        o->code[v] = bits & 2047;
        o->down[v] = (uint8_t)(bits >> 11);
    }
}

static void close_iq1_m(struct block_iq1_m *block, const struct opened *o)
{
    memset(block->qh, 0, sizeof block->qh);
    for (int v = 0; v < 32; v++) {
        block->qs[v] = (uint8_t)o->code[v];
        block->qh[v / 2] |= (uint8_t)((o->code[v] >> 8 | o->down[v] << 3) << 4 * (v % 2));
    }
}

static void encode_iq1_m(struct weights in, struct block_iq1_m *block, int n_blocks,
                         enum effort effort)
{
    struct groups g;
    struct codebook_blocks c;
    struct opened o;
    gather(&g, 16, 16, n_blocks, in);
    encode_codebook(&g, iq1_m_format, effort, &c);
    memset(block->scales, 0, sizeof block->scales);
    for (int j = 0; j < 16; j++)
        block->scales[j / 4] |= (uint16_t)(c.l[j] / 2 << 3 * (j % 4));
    set_iq1_m_scale(block, c.d[0]);
    codes_of_block(&c.codes, iq1_m_format, 0, &o);
    close_iq1_m(block, &o);
}

static void decode_iq1_m(const struct block_iq1_m *block, float *x)
{
    float d = f32_of_f16(iq1_m_scale(block));
    for (int j = 0; j < 16; j++) {
        float scale = scale_on_lattice(d, iq1_m_group_scale(block, j));
        for (int v = 2 * j; v < 2 * j + 2; v++) {
            int bits = iq1_m_bits(block, v);
            decode_point(iq1_m_format.book, bits & 2047, bits >> 11 ? -0.125f : 0.125f, scale, 0,
                         x + 8 * v);
        }
    }
}

static void regain_iq1_m(struct block_iq1_m *block, float factor)
{
    set_iq1_m_scale(block, scaled_f16(iq1_m_scale(block), factor));
}
