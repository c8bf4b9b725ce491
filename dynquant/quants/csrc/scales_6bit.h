/* The 12 bytes of Q4_K and Q5_K that hold eight 6-bit scales and eight 6-bit mins.
 *
 *   bytes 0..3    bits 0..5 scale j    bits 6..7 high bits of scale j + 4      j = 0..3
 *   bytes 4..7    bits 0..5 min j      bits 6..7 high bits of min j + 4
 *   bytes 8..11   bits 0..3 low bits of scale j + 4, bits 4..7 low bits of min j + 4
 *
 * Source: get_scale_min_k4 in ggml-quants.c, as `gguf.quants.Q4_K.get_scale_min` reads it.
 */
#pragma once

#include <stdint.h>


static inline void pack_scales_mins(uint8_t *packed, const uint8_t *ls, const uint8_t *lm)
{
    for (int j = 0; j < 4; j++) {
        packed[j] = (uint8_t)(ls[j] | (ls[j + 4] >> 4) << 6);
        packed[j + 4] = (uint8_t)(lm[j] | (lm[j + 4] >> 4) << 6);
        packed[j + 8] = (uint8_t)((ls[j + 4] & 15) | (lm[j + 4] & 15) << 4);
    }
}

static inline void unpack_scales_mins(const uint8_t *packed, uint8_t *ls, uint8_t *lm)
{
    for (int j = 0; j < 4; j++) {
        ls[j] = packed[j] & 63;
        lm[j] = packed[j + 4] & 63;
        ls[j + 4] = (uint8_t)((packed[j + 8] & 15) | packed[j] >> 6 << 4);
        lm[j + 4] = (uint8_t)(packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4);
    }
}
