/* A block taken apart into what its scales leave open: the codes. Error feedback chooses codes
 * again while the scales stay.
 *
 * Scalar types: weight i = scale[g] * level(q[i]) + offset[g] in group g = i / group.
 *
 * Codebook types: vector v of `dim` weights is scale[g] * (point of code[v] + shift), its sign bits
 * in signs[i / 8]; the shift of IQ1 is subtracted where down[v] is 1. Where vectors share a shift
 * or the parity of their signs, the codes that are put back share it, too.
 *
 * Opening sets the members that a type has: scale, offset and q of scalar types; scale and code of
 * codebook types, signs unless the levels are signed, down if there is a shift.
 */
#pragma once

#include "codec.h"

struct opened {
    float scale[16], offset[16]; /* of each group; codebook types have no offset */
    uint8_t q[MAX_BLOCK];
    uint16_t code[MAX_BLOCK / 4];
    uint8_t signs[MAX_BLOCK / 8], down[MAX_BLOCK / 8];
};

struct codebook;

/* The codes of a type.
 *
 *   group    weights that share a scale
 *   q_most   scalar types: codes are 0 .. q_most
 *   levels   scalar types: the level of each code; NULL where level(q) = q
 *   book     codebook types; else NULL
 */
struct code_space {
    int group, q_most;
    const float *levels;
    const struct codebook *book;
};
