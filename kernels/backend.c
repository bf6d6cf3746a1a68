#include "kernels/backend.h"

#include "kernels/apart/apart.h"
#include "kernels/cpu/cpu.h"
#include "kernels/device_library.h"
#include "kernels/ref/ref.h"

#include <stdio.h>
#include <string.h>

#define NAMES_SIZE 128
#define CUDA_AT "cuda:" /* and the library's path */

/* Best first. */
static const struct backend *const ALL[] = {
#if defined(GODWIT_AVX512)
    &backend_amx,         &backend_avx512_bf16,
    &backend_avx512_vnni, &backend_avx512,
#endif
#if defined(GODWIT_LANES)
    &backend_avx2,
#endif
    &backend_ref,         NULL,
};

static const struct backend *const DEVICES[] = {&backend_cuda, &backend_apart,
                                                NULL};

const struct backend *const *backend_all(void)
{
    return ALL;
}

const struct backend *const *backend_devices(void)
{
    return DEVICES;
}

static void add_names(const struct backend *const *list, char *names,
                      size_t size)
{
    size_t used = strlen(names);

    for (size_t i = 0; list[i] && used < size; i++)
        used +=
            (size_t)snprintf(names + used, size - used, ", %s", list[i]->name);
}

static enum status not_found(const char *name)
{
    char names[NAMES_SIZE] = "auto";

    add_names(ALL, names, sizeof(names));
    add_names(DEVICES, names, sizeof(names));
    return status_fail(STATUS_NOT_FOUND, "no backend '%s', there are: %s", name,
                       names);
}

static const struct backend *find(const struct backend *const *list,
                                  const char *name)
{
    while (*list && strcmp((*list)->name, name) != 0)
        list++;
    return *list;
}

/* A GPU before any CPU; of the test's device nobody thinks by itself. */
static const struct backend *find_best(void)
{
    size_t i = 0;

    if (backend_cuda.is_supported())
        return &backend_cuda;
    while (!ALL[i]->is_supported())
        i++;
    return ALL[i];
}

enum status backend_find(const char *name, const struct backend **out)
{
    const size_t n_at = strlen(CUDA_AT);
    const struct device_calls *calls;
    const struct backend *found;
    enum status st = STATUS_OK;

    if (strcmp(name, "auto") == 0) {
        *out = find_best();
        return STATUS_OK;
    }
    if (strncmp(name, CUDA_AT, n_at) == 0) {
        st = device_library_load(name + n_at);
        name = backend_cuda.name;
    }
    found = find(ALL, name);
    found = found ? found : find(DEVICES, name);
    if (!found)
        return not_found(name);
    if (!st && found->find_device)
        st = found->find_device(&calls);
    else if (!st && !found->is_supported())
        st = status_fail(STATUS_FAILED_PRECONDITION,
                         "this machine lacks the instructions of backend '%s'",
                         name);
    if (!st)
        *out = found;
    return st;
}

/* What its device needs for an arithmetic. */
static enum status prepare(const struct backend *backend,
                           enum arithmetic arithmetic)
{
    char why[DEVICE_WHY_SIZE];
    const struct device_calls *calls;
    enum status st = backend->find_device(&calls);

    if (st || !calls->prepare)
        return st;
    st = calls->prepare(arithmetic, why);
    return st ? status_fail(st, "backend '%s' with numerics '%s': %s",
                            backend->name, arithmetic_name(arithmetic), why)
              : st;
}

enum status backend_check(const struct backend *backend,
                          enum arithmetic arithmetic)
{
    char names[NAMES_SIZE] = "";
    size_t used = 0;

    if (backend->arithmetics & ARITHMETIC_BIT(arithmetic))
        return backend->find_device ? prepare(backend, arithmetic) : STATUS_OK;
    for (int i = 0; i < N_ARITHMETIC && used < sizeof(names); i++)
        if (backend->arithmetics & ARITHMETIC_BIT(i))
            used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s",
                                     used ? ", " : "",
                                     arithmetic_name((enum arithmetic)i));
    return status_fail(STATUS_FAILED_PRECONDITION,
                       "backend '%s' has no numerics '%s', it has: %s",
                       backend->name, arithmetic_name(arithmetic), names);
}
