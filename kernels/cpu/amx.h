#ifndef KERNELS_CPU_AMX_H
#define KERNELS_CPU_AMX_H
/*
 * The discipline of tiles that all AMX kernels share: tiles 0 to 3 are sums, 4
 * and 5 rows of bf16, 6 and 7 words of two steps by 16 outputs. Who configures
 * releases them again before it returns.
 */
#include <immintrin.h>
#include <stdint.h>

#define AMX_ROWS 16u
#define AMX_LINE 64u /* bytes of a tile's row */

/* LDTILECFG's operand. Intel SDM, volume 1, 18.2. */
struct amx_config {
    uint8_t palette, start_row, zero[14];
    uint16_t row_bytes[16];
    uint8_t n_row[16];
};

/* The compiler knows of no memory that tiles read or write. */
#define AMX_MEMORY_BARRIER() __asm__ volatile("" ::: "memory")

/* Sums and rows get n_row rows. */
static inline void amx_configure(uint32_t n_row)
{
    struct amx_config config = {.palette = 1};

    for (uint32_t i = 0; i < 8; i++) {
        config.row_bytes[i] = AMX_LINE;
        config.n_row[i] = (uint8_t)(i < 6 ? n_row : AMX_ROWS);
    }
    /* The whole struct is an operand, or its stores would be dropped. */
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

static inline void amx_clear_sums(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}
#endif
