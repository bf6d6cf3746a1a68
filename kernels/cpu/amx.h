#ifndef KERNELS_CPU_AMX_H
#define KERNELS_CPU_AMX_H
/*
 * The discipline of tiles that all AMX kernels share: tiles 0 to 3 are sums, 4
 * and 5 rows of bf16 or bytes, 6 and 7 words of two or four steps by 16
 * outputs. Whoever uses them configures them first. They stay so until the
 * thread has no more tasks of its job, because to configure and release them
 * takes as long as 15 products of tiles, and many calls have no more.
 */
#include <immintrin.h>
#include <stdint.h>

#define AMX_ROWS 16u
#define AMX_LINE 64u /* bytes of a tile's row */

/* The compiler knows of no memory that tiles read or write. */
#define AMX_MEMORY_BARRIER() __asm__ volatile("" ::: "memory")

/* Sums and rows get n_row rows; what they hold is undefined. */
void amx_configure(uint32_t n_row);

static inline void amx_clear_sums(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}
#endif
