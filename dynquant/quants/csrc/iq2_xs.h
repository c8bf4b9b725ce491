/* IQ2_XS: 256 weights in 74 bytes, 2.3125 bits per weight.
 *
 *   bytes  0..1    d       f16 scale of the scales
 *   bytes  2..65   qs      a 16-bit word for each 8 weights: bits 0..8 the code, 9..15 seven signs
 *   bytes 66..73   scales  4-bit scale s of each 16 weights, two in a byte, the first lowest
 *
 *   w = d * (s + 1/2) / 4 * level,  levels 8, 25, 43: 512 points of eight, signs even in number
 *
 * Source: block_iq2_xs in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "codebook_k.h"

struct block_iq2_xs { uint16_t d, qs[32]; uint8_t scales[8]; } PACKED;
static_assert(sizeof(struct block_iq2_xs) == 74, "IQ2_XS is 74 bytes a block");

/* (s + 1/2) / 4 = (2 s + 1) / 8: levels are an eighth, as in iq2_xxs.h. */
static const struct codebook_format iq2_xs_format = {
    .book = {
        .dim = 8, .n_levels = 3, .n_halves = 81,
        .chunk = IQ2_XS_CHUNK, .n_chunks = IQ2_XS_CHUNKS,
        .key = iq2_xs_key, .code = iq2_xs_code, .second = iq2_xs_second, .first = iq2_xs_first,
        .levels = {1, 3.125f, 5.375f}, .signs = EVEN_SIGNS, .shifted = NO_SHIFT,
    },
    .n = 16, .group_count = 16, .l_most = 31,
    .effort = {
        [EFFORT_FAST] = {.tries = 8, .first = 0.5f, .step = 0.1f,
                         .scales = 2, .scans = 0, .scan_scales = 0},
        [EFFORT_NORMAL] = {.tries = 8, .first = 0.5f, .step = 0.1f,
                           .scales = 6, .scans = 2, .scan_scales = 1},
        [EFFORT_BEST] = {.tries = 16, .first = 0.4f, .step = 0.05f,
                         .scales = 6, .scans = 4, .scan_scales = 3},
    },
};

static const struct code_space iq2_xs_codes = {.group = 16, .book = &iq2_xs_format.book};

static void open_iq2_xs(const struct block_iq2_xs *block, struct opened *o)
{
    float d = f32_of_f16(block->d);
    for (int j = 0; j < 16; j++)
        o->scale[j] = scale_on_lattice(d, scale_4bit(block->scales, j));
    for (int v = 0; v < 32; v++) {
        o->code[v] = block->qs[v] & 511;
        o->signs[v] = even_signs(block->qs[v] >> 9);
    }
}

static void close_iq2_xs(struct block_iq2_xs *block, const struct opened *o)
{
    for (int v = 0; v < 32; v++)
        block->qs[v] = (uint16_t)(o->code[v] | (o->signs[v] & 127) << 9);
}

static void encode_iq2_xs(struct weights in, struct block_iq2_xs *block, int n_blocks,
                          enum effort effort)
{
    struct groups g;
    struct codebook_blocks c;
    struct opened o;
    gather(&g, 16, 16, n_blocks, in);
    encode_codebook(&g, iq2_xs_format, effort, &c);
    block->d = c.d[0];
    pack_scales_4bit(block->scales, c.l, 16);
    codes_of_block(&c.codes, iq2_xs_format, 0, &o);
    close_iq2_xs(block, &o);
}

static void decode_iq2_xs(const struct block_iq2_xs *block, float *x)
{
    float d = f32_of_f16(block->d);
    for (int j = 0; j < 32; j++) {
        float scale = scale_on_lattice(d, scale_4bit(block->scales, j / 2));
        decode_point(iq2_xs_format.book, block->qs[j] & 511, 0, scale,
                     even_signs(block->qs[j] >> 9), x + 8 * j);
    }
}

static void regain_iq2_xs(struct block_iq2_xs *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
