/* IQ2_XXS: 256 weights in 66 bytes, 2.0625 bits per weight.
 *
 *   bytes  0..1    d    f16 scale of the scales
 *   bytes  2..65   qs   eight bytes for each group of 32 weights: two 32-bit words,
 *                         a   four 8-bit codes, one for each 8 weights, the first lowest
 *                         b   four times 7 signs, the first lowest; bits 28..31 the scale s
 *
 *   w = d * (s + 1/2) / 4 * level,  levels 8, 25, 43: 256 points of eight, signs even in number
 *
 * Source: block_iq2_xxs in ggml-common.h. Little-endian.
 */
#include <assert.h>

#include "codebook_k.h"

struct block_iq2_xxs { uint16_t d, qs[32]; } PACKED;
static_assert(sizeof(struct block_iq2_xxs) == 66, "IQ2_XXS is 66 bytes a block");

/* d * l here is d / 8 * l in the file: (s + 1/2) / 4 = (2 s + 1) / 8, so levels are an eighth. */
static const struct codebook_format iq2_xxs_format = {
    .book = {
        .dim = 8, .n_levels = 3, .n_halves = 81,
        .chunk = IQ2_XXS_CHUNK, .n_chunks = IQ2_XXS_CHUNKS,
        .key = iq2_xxs_key, .code = iq2_xxs_code, .second = iq2_xxs_second, .first = iq2_xxs_first,
        .levels = {1, 3.125f, 5.375f}, .signs = EVEN_SIGNS, .shifted = NO_SHIFT,
    },
    .n = 32, .group_count = 8, .l_most = 31,
    .effort = {
        [EFFORT_FAST] = {.tries = 8, .first = 0.5f, .step = 0.1f,
                         .scales = 2, .scans = 0, .scan_scales = 0},
        [EFFORT_NORMAL] = {.tries = 8, .first = 0.5f, .step = 0.1f,
                           .scales = 6, .scans = 1, .scan_scales = 1},
        [EFFORT_BEST] = {.tries = 16, .first = 0.4f, .step = 0.05f,
                         .scales = 6, .scans = 4, .scan_scales = 3},
    },
};

static const struct code_space iq2_xxs_codes = {.group = 32, .book = &iq2_xxs_format.book};

static void open_iq2_xxs(const struct block_iq2_xxs *block, struct opened *o)
{
    float d = f32_of_f16(block->d);
    for (int j = 0; j < 8; j++) {
        uint32_t words[2];
        memcpy(words, block->qs + 4 * j, sizeof words);
        o->scale[j] = scale_on_lattice(d, (int)(words[1] >> 28));
        for (int v = 0; v < 4; v++) {
            o->code[4 * j + v] = words[0] >> 8 * v & 255;
            o->signs[4 * j + v] = even_signs(words[1] >> 7 * v & 127);
        }
    }
}

static void close_iq2_xxs(struct block_iq2_xxs *block, const struct opened *o)
{
    for (int j = 0; j < 8; j++) {
        uint32_t words[2];
        memcpy(words, block->qs + 4 * j, sizeof words);
        words[0] = 0;
        words[1] &= 15u << 28;
        for (int v = 0; v < 4; v++) {
            words[0] |= (uint32_t)o->code[4 * j + v] << 8 * v;
            words[1] |= (uint32_t)(o->signs[4 * j + v] & 127) << 7 * v;
        }
        memcpy(block->qs + 4 * j, words, sizeof words);
    }
}

static void encode_iq2_xxs(struct weights in, struct block_iq2_xxs *blocks,
                           int n_blocks, enum effort effort)
{
    struct groups g;
    struct codebook_blocks c;
    struct opened o;
    gather(&g, 32, 8, n_blocks, in);
    encode_codebook(&g, iq2_xxs_format, effort, &c);
    for (int k = 0; k < n_blocks; k++) {
        blocks[k].d = c.d[k];
        for (int j = 0; j < 8; j++) {
            uint32_t words[2] = {0, (uint32_t)(c.l[8 * k + j] / 2) << 28};
            memcpy(blocks[k].qs + 4 * j, words, sizeof words);
        }
        codes_of_block(&c.codes, iq2_xxs_format, k, &o);
        close_iq2_xxs(blocks + k, &o);
    }
}

static void decode_iq2_xxs(const struct block_iq2_xxs *block, float *x)
{
    float d = f32_of_f16(block->d);
    for (int j = 0; j < 8; j++) {
        uint32_t words[2];
        memcpy(words, block->qs + 4 * j, sizeof words);
        float scale = scale_on_lattice(d, (int)(words[1] >> 28));
        for (int v = 0; v < 4; v++)
            decode_point(iq2_xxs_format.book, words[0] >> 8 * v & 255, 0, scale,
                         even_signs(words[1] >> 7 * v & 127), x + 32 * j + 8 * v);
    }
}

static void regain_iq2_xxs(struct block_iq2_xxs *block, float factor)
{
    block->d = scaled_f16(block->d, factor);
}
