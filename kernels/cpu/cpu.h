#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H
/*
 * The vector backends. Both are compiled from the same *.lanes.c files over
 * the 16-float vector of lanes.h: one 512-bit register or two of 256 bits.
 */
#include "kernels/backend.h"

/* Does this machine have the instructions? Compiled without them. */
bool cpu_has_avx2(void);
bool cpu_has_avx512(void);

extern const struct backend backend_avx2, backend_avx512;
#endif
