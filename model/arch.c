#include "model/arch.h"

#include <stdio.h>
#include <string.h>

static const struct arch *const ALL[] = {
    &arch_qwen3_5, &arch_qwen3_5_moe, &arch_qwen3_next,
    &arch_qwen3,   &arch_qwen3_moe,   &arch_llama,
};
#define N_ARCH (sizeof(ALL) / sizeof(ALL[0]))

enum status arch_find(const struct config *config, const struct arch **out)
{
    char known[256] = "";

    for (size_t i = 0; i < N_ARCH; i++) {
        const size_t n = strlen(known);

        if (strcmp(ALL[i]->model_type, config->model_type) == 0) {
            *out = ALL[i];
            return STATUS_OK;
        }
        (void)snprintf(known + n, sizeof(known) - n, "%s%s", n ? ", " : "",
                       ALL[i]->model_type);
    }
    return status_fail(STATUS_UNIMPLEMENTED,
                       "config.json: model_type is '%s', known: %s",
                       config->model_type, known);
}

const char *arch_prefix(const struct arch *arch, const struct config *config)
{
    return config->is_nested && arch->nested_prefix ? arch->nested_prefix
                                                    : arch->prefix;
}
