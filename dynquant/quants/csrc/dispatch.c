/* Which builds of types.c exist, and which of them this CPU runs. */
#include "codec.h"

extern const struct codec codec_portable;
#if defined(__x86_64__)
extern const struct codec codec_v3, codec_v4;
#endif

const struct codec *const codecs[N_ISAS] = {
    &codec_portable,
#if defined(__x86_64__)
    &codec_v3,
    &codec_v4,
#endif
};

int codec_runs(int i)
{
    switch (i) {
    case 0:
        return 1;
#if defined(__x86_64__)
    /* The levels of the x86-64 psABI; __builtin_cpu_supports also asks whether the operating
     * system saves the registers. */
    case 1:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
               __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
    case 2:
        return codec_runs(1) && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    default:
        return 0;
    }
}
