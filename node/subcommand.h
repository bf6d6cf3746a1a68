#ifndef NODE_SUBCOMMAND_H
#define NODE_SUBCOMMAND_H
/*
 * What every subcommand does at its edges: read its table of settings, answer
 * --help, and say on stderr, once, why it failed.
 */
#include "base/settings.h"
#include "kernels/pool.h"
#include "model/model.h"
#include "model/state_cap.h"

#include <stdbool.h>

#define SUBCOMMAND_DONE 0
#define SUBCOMMAND_FAILED 1
#define SUBCOMMAND_BAD_INPUT 2
#define SYNTHETIC_SEED 1u /* of models without files */

/*
 * Fill values from the table. False when the command is over: after --help
 * (code 0) or a bad command line (code 2, with its message written).
 */
bool subcommand_read(const struct settings *settings, int argc, char **argv,
                     void *values, struct settings_store **out_store,
                     int *out_code);

/* Write "program: reason" of this thread's cause to stderr; returns code. */
int subcommand_fail(const struct settings *settings, int code);

/* A loaded model and the threads to run it with. */
struct engine_parts {
    struct model *model;
    struct pool *pool;
};

/* n_thread 0: as many as CPUs this process may use. */
uint32_t subcommand_threads(uint64_t n_thread);

/* The settings of a struct model_choice, at `offset` in the values. */
#define SUBCOMMAND_MODEL_ROWS(place)                                           \
    {.name = "backend",                                                        \
     .kind = SETTING_TEXT,                                                     \
     .preset = "auto",                                                         \
     .unit = "NAME",                                                           \
     .help = "kernels to use: auto, or the name of a backend",                 \
     .offset = (place) + offsetof(struct model_choice, backend)},              \
        {.name = "numerics",                                                   \
         .kind = SETTING_CHOICE,                                               \
         .preset = "auto",                                                     \
         .choices = "auto|fp32|bf16-pair|bf16-tile|bf16-mma|bf16-mma-fast",    \
         .unit = "",                                                           \
         .help = "arithmetic of products; auto: the backend's fastest",        \
         .offset = (place) + offsetof(struct model_choice, numerics)},         \
        {.name = "weight-format",                                              \
         .kind = SETTING_CHOICE,                                               \
         .preset = "auto",                                                     \
         .choices = "auto|bf16|w8|w8a8|f8",                                    \
         .unit = "",                                                           \
         .help = "of products in memory; auto: as in the file",                \
         .offset = (place) + offsetof(struct model_choice, weight_format)},    \
        {.name = "kv-format",                                                  \
         .kind = SETTING_CHOICE,                                               \
         .preset = "auto",                                                     \
         .choices = "auto|int8",                                               \
         .unit = "",                                                           \
         .help = "of keys and values in memory; auto: bf16, or float in fp32", \
         .offset = (place) + offsetof(struct model_choice, kv_format)},        \
    {                                                                          \
        .name = "state-cap", .kind = SETTING_REAL, .preset = "0",              \
        .max = STATE_CAP_MAX, .unit = "RMS",                                   \
        .help = "scale a head's recurrent state down to this root mean "       \
                "square, every 1024 tokens; 0: never",                         \
        .offset = (place) + offsetof(struct model_choice, state_cap)           \
    }

/*
 * Find the backend, load the model, start the threads.
 *   as model_options_find(), model_load() and pool_create()
 */
MUST_CHECK enum status engine_parts_init(const char *dir,
                                         const struct model_choice *choice,
                                         uint64_t n_thread,
                                         struct engine_parts *out);
void engine_parts_release(struct engine_parts *parts);
#endif
