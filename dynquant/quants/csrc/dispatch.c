/* Which builds of types.c exist, and which of them this CPU supports. */
#include "codec.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

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

#if defined(__x86_64__)

/* The features of the levels x86-64-v2, -v3 and -v4 of the x86-64 psABI: compilers may use all of
 * them, and a hypervisor may hide any of them.
 *
 * __builtin_cpu_supports also asks whether the operating system saves the registers. GCC 12 and
 * Clang 18 know the levels by name ("x86-64-v3"); GCC 10 and Clang 14 know the names of some
 * features only, and those here are among them. The other features have bits of CPUID (Intel's and
 * AMD's manuals), in ecx of leaf 1 and of leaf 0x80000001. */
#define SUPPORTS __builtin_cpu_supports

#define LEAF_1_CX16 (1u << 13)
#define LEAF_1_MOVBE (1u << 22)
#define LEAF_1_OSXSAVE (1u << 27)
#define LEAF_1_F16C (1u << 29)
#define EXTENDED_LAHF (1u << 0)
#define EXTENDED_LZCNT (1u << 5)

static int has_bits(unsigned leaf, unsigned bits)
{
    unsigned a, b, c, d;
    return __get_cpuid(leaf, &a, &b, &c, &d) && (c & bits) == bits;
}

static int supports_v2(void)
{
    return SUPPORTS("popcnt") && SUPPORTS("sse3") && SUPPORTS("ssse3") && SUPPORTS("sse4.1") &&
           SUPPORTS("sse4.2") && has_bits(1, LEAF_1_CX16) && has_bits(0x80000001, EXTENDED_LAHF);
}

static int supports_v3(void)
{
    return supports_v2() && SUPPORTS("avx") && SUPPORTS("avx2") && SUPPORTS("bmi") &&
           SUPPORTS("bmi2") && SUPPORTS("fma") &&
           has_bits(1, LEAF_1_MOVBE | LEAF_1_OSXSAVE | LEAF_1_F16C) &&
           has_bits(0x80000001, EXTENDED_LZCNT);
}

static int supports_v4(void)
{
    return SUPPORTS("avx512f") && SUPPORTS("avx512bw") && SUPPORTS("avx512cd") &&
           SUPPORTS("avx512dq") && SUPPORTS("avx512vl");
}

#endif

/* CPUID takes tens of microseconds under a hypervisor, so it is asked once. */
static int runs[N_ISAS] = {1};

void codecs_detect(void)
{
#if defined(__x86_64__)
    runs[1] = supports_v3();
    runs[2] = runs[1] && supports_v4();
#endif
}

int codec_runs(int i) { return i >= 0 && i < N_ISAS && runs[i]; }
