#include "kernels/cpu/amx.h"

#include "kernels/pool.h"

/* LDTILECFG's operand. Intel SDM, volume 1, 18.2. */
struct config {
    uint8_t palette, start_row, zero[14];
    uint16_t row_bytes[16];
    uint8_t n_row[16];
};

/* Rows of this thread's sums; 0: its tiles are released. */
static _Thread_local uint32_t configured;

static void release(void)
{
    _tile_release();
    configured = 0;
}

void amx_configure(uint32_t n_row)
{
    struct config config = {.palette = 1};

    if (configured == n_row)
        return;
    for (uint32_t i = 0; i < 8; i++) {
        config.row_bytes[i] = AMX_LINE;
        config.n_row[i] = (uint8_t)(i < 6 ? n_row : AMX_ROWS);
    }
    /* The whole struct is an operand, or its stores would be dropped. */
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
    configured = n_row;
    pool_at_rest(release);
}
