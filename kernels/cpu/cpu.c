#include "kernels/cpu/cpu.h"

#if defined(GODWIT_LANES)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Intel SDM, CPUID leaf 7. */
#define CPUID_AMX_BF16 (1u << 22)
#define CPUID_AMX_TILE (1u << 24)
#define CPUID_AMX_INT8 (1u << 25)
/* Linux gives a process the tiles only when it asks. */
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

bool cpu_has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool cpu_has_avx512(void)
{
    __builtin_cpu_init();
    return cpu_has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}

bool cpu_has_avx512_vnni(void)
{
    return cpu_has_avx512() && __builtin_cpu_supports("avx512vnni");
}

/* Permutations of bytes widen W8; only Cooper Lake has one without the other.
 */
bool cpu_has_avx512_bf16(void)
{
    return cpu_has_avx512_vnni() && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512vbmi");
}

bool cpu_has_amx(void)
{
    uint32_t a, b, c, d;

    if (!cpu_has_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) ||
        !(d & CPUID_AMX_TILE) || !(d & CPUID_AMX_BF16) || !(d & CPUID_AMX_INT8))
        return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) ==
           0;
}
#else
typedef int no_vector_backend; /* ISO C wants something in a file */
#endif
