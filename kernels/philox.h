#ifndef KERNELS_PHILOX_H
#define KERNELS_PHILOX_H
/*
 * Philox 4x32-10 as published (Salmon et al. 2011, "Parallel random numbers:
 * as easy as 1, 2, 3"): four random words from a counter and a key, so that no
 * generator state exists. Whole number arithmetic, the same on every machine.
 */
#include <stdint.h>

#define PHILOX_ROUNDS 10

static inline void philox(const uint32_t counter[4], const uint32_t key[2],
                          uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1];
    uint32_t c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];

    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* A word as a float between 0 and 1, neither of which it reaches. */
static inline float philox_unit(uint32_t word)
{
    return ((float)(word >> 9) + 0.5f) * 0x1p-23f;
}
#endif
