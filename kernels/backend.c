#include "kernels/backend.h"

#include "kernels/cpu/cpu.h"
#include "kernels/ref/ref.h"

#include <stdio.h>
#include <string.h>

#define NAMES_SIZE 128

/* Best first. */
static const struct backend *const ALL[] = {
#if defined(GODWIT_LANES)
    &backend_amx,    &backend_avx512_bf16,
    &backend_avx512, &backend_avx2,
#endif
    &backend_ref,    NULL,
};

const struct backend *const *backend_all(void)
{
    return ALL;
}

static enum status not_found(const char *name)
{
    char names[NAMES_SIZE] = "auto";
    size_t used = strlen(names);

    for (size_t i = 0; ALL[i] && used < sizeof(names); i++)
        used += (size_t)snprintf(names + used, sizeof(names) - used, ", %s",
                                 ALL[i]->name);
    return status_fail(STATUS_NOT_FOUND, "no backend '%s', there are: %s", name,
                       names);
}

enum status backend_find(const char *name, const struct backend **out)
{
    bool is_auto = strcmp(name, "auto") == 0;

    for (size_t i = 0; ALL[i]; i++) {
        if (!is_auto && strcmp(name, ALL[i]->name) != 0)
            continue;
        if (ALL[i]->is_supported()) {
            *out = ALL[i];
            return STATUS_OK;
        }
        if (!is_auto)
            return status_fail(STATUS_FAILED_PRECONDITION,
                               "this machine lacks the instructions of "
                               "backend '%s'",
                               name);
    }
    return not_found(name);
}
