#ifndef NODE_PEAK_H
#define NODE_PEAK_H
/*
 * What this machine can do at most, measured, for `bench` to set beside what
 * the model reaches. The loops do nothing else, so that a bound is a bound:
 * the best of several short runs.
 */
#include "kernels/linear.h"
#include "kernels/pool.h"

#include <stddef.h>
#include <stdint.h>

/* The instruction that a loop of multiply-adds can be made of. */
enum peak_kind {
    PEAK_SCALAR,
    PEAK_AVX2,   /* fma, 8 floats */
    PEAK_AVX512, /* fma, 16 floats */
    PEAK_PAIR,   /* vdpbf16ps */
    PEAK_TILE,   /* tdpbf16ps */
    PEAK_BYTES,  /* of W8A8 by AVX2: vpmaddubsw and what belongs to it */
    PEAK_VNNI,   /* vpdpbusd */
    PEAK_TILE8,  /* tdpbssd */
    N_PEAK_KIND
};

/* What a backend of this name has for products of these weights in an
 * arithmetic, of which W8A8 knows none. */
enum peak_kind peak_kind_of(const char *backend, enum arithmetic arithmetic,
                            enum linear_type type);
const char *peak_name(enum peak_kind kind); /* "fma avx512" */

#define PEAK_RUNS 25u /* find a quiet moment, as a rule */

/*
 * Operations per second (an fma is two, a product of bytes as well), over all
 * threads of the pool. The machine must have the instruction, and for PEAK_TILE
 * the process the permission, which the backend's is_supported() asks for. The
 * best of n_run measurements, some hundredths of a second each.
 */
double peak_flops(struct pool *pool, enum peak_kind kind, uint32_t n_run);

/*
 * Bytes that all threads together read again and again, as a decode step reads
 * its weights: from the cache that holds them, or memory. No more than 1 GiB is
 * taken: behind every cache the size makes no difference.
 */
struct peak_reader {
    struct pool *pool;
    uint64_t *word; /* [n_thread][n_word]; owned */
    size_t n_word;
    uint32_t n_round;
};

/* RESOURCE_EXHAUSTED  no memory */
MUST_CHECK enum status peak_reader_init(struct pool *pool, size_t n_bytes,
                                        struct peak_reader *out);
void peak_reader_release(struct peak_reader *reader);
/* Bytes per second, the best of 2 n_run times. */
double peak_reader_rate(const struct peak_reader *reader, uint32_t n_run);

/* All of that at once.  as peak_reader_init() */
MUST_CHECK enum status peak_read_bytes(struct pool *pool, size_t n_bytes,
                                       double *out);
#endif
