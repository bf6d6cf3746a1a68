#ifndef TESTS_GPU_GPU_MODEL_H
#define TESTS_GPU_GPU_MODEL_H
/*
 * Whole models on a GPU, in one program that needs nothing but the driver:
 *
 *   gpu_model check --model DIR --golden DIR --backend cuda   as godwitd check
 *   gpu_model eval --model DIR --backend cuda ...         as godwitd eval
 *   gpu_model ops BACKEND                 small operators against ref
 *   gpu_model exact BACKEND DIR N SEED    laws over N random schedules
 *   gpu_model time BACKEND CONFIG         steps of a shape beside their bounds
 *   gpu_model prefill BACKEND CONFIG N... a prompt's 8,192 rows behind N tokens
 *
 * Exit status 0: all held; 1: something did not; 2: it could not be tried.
 */
#include "base/status.h"

#include <stdint.h>

/* Print the thread's cause; the status to exit with. */
int gpu_fail(const char *what);

int gpu_ops(const char *backend);
int gpu_exact(const char *backend, const char *dir, uint32_t n_schedule,
              uint64_t seed);
int gpu_time(const char *backend, const char *config, const char *part);
int gpu_prefill(const char *backend, const char *config, char **depth,
                uint32_t n_depth);
#endif
