/* The sixteen levels of IQ4_NL and IQ4_XS, denser around zero. Source: kvalues_iq4nl in
 * ggml-common.h. */
#pragma once

static const float iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                     1,    13,   25,  38,  53,  69,  89,  113};
