#ifndef KERNELS_FLUSH_H
#define KERNELS_FLUSH_H
/*
 * The flush modes of a thread: between flush_begin() and flush_end() a
 * subnormal operand counts as zero and a subnormal result becomes zero, as the
 * bf16 dot products of x86 always do it. Every operator runs under them
 * (pool_run() sees to it): states that fade and weights that are nearly nothing
 * end as subnormals, and Intel's processors take a hundred cycles for one; the
 * delta rule was five times slower for it. The compiler knows nothing of these
 * modes: what must run under them is a call that it cannot see through.
 */
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>

#define FLUSH_MODES 0x8040u /* flush to zero, denormals are zero */

static inline uint32_t flush_begin(void)
{
    const uint32_t before = _mm_getcsr();

    _mm_setcsr(before | FLUSH_MODES);
    return before;
}

static inline void flush_end(uint32_t before)
{
    /* Exceptions that were raised meanwhile do not matter to anyone. */
    _mm_setcsr(before);
}
#else
#error "the arithmetic needs this machine's flush modes"
#endif
#endif
