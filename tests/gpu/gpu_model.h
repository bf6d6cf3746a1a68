#ifndef TESTS_GPU_GPU_MODEL_H
#define TESTS_GPU_GPU_MODEL_H
/*
 * Whole models on a GPU, in one program that needs nothing but the driver:
 *
 *   gpu_model check --model DIR --golden DIR --backend cuda   as godwitd check
 *   gpu_model eval --model DIR --backend cuda ...         as godwitd eval
 *   gpu_model exact BACKEND DIR OPTIONS...  laws over random schedules:
 *       --schedules N (100)  --seconds S (0: no limit)  --seed K (1)
 *       --first I (0)        --weights FORMAT           --kv KV
 *       --policy POLICY of all sessions but the first; any: drawn for each
 *   gpu_model time BACKEND CONFIG
 *       [all|decode|prefill|swap [FORMAT [KV [NUMERICS]]]]
 *                                         steps of a shape beside their bounds
 *   gpu_model prefill BACKEND CONFIG N... a prompt's 8,192 rows behind N tokens
 * FORMAT is that of the weights, bf16 or f8; KV that of keys and values, auto
 * or int8.
 *
 * Exit status 0: all held; 1: something did not; 2: it could not be tried.
 */
#include "base/status.h"
#include "model/model.h"

#include <stdint.h>

/* Print the thread's cause; the status to exit with. */
int gpu_fail(const char *what);

struct gpu_exact_what {
    struct model_choice choice;
    uint32_t n_schedule;
    uint64_t seconds; /* after which no other is begun; 0: no limit */
    uint64_t seed, first;
    const char *policies; /* one, "any", or NULL: full */
};
int gpu_exact(const char *dir, const struct gpu_exact_what *what);

struct gpu_time_what {
    const char *part; /* "decode", "prefill", "swap"; else the first two */
    const char *format, *kv, *numerics;
};
int gpu_time(const char *backend, const char *config,
             const struct gpu_time_what *what);
int gpu_prefill(const char *backend, const char *config, char **depth,
                uint32_t n_depth);
#endif
