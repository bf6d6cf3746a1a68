#include "kernels/device_library.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PATH_SIZE 1024u
#define N_PLACE 3u

/* The only state of this process here: what it has loaded, once and for all. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const struct device_calls *loaded;

/* Directory of this program, without a slash at its end; "." if unknown. */
static void own_folder(char out[PATH_SIZE])
{
    const ssize_t n = readlink("/proc/self/exe", out, PATH_SIZE - 1);
    char *slash;

    out[n > 0 ? n : 0] = 0;
    slash = strrchr(out, '/');
    if (slash)
        *slash = 0;
    else
        memcpy(out, ".", 2);
}

/* dlsym() gives a function as an object pointer; C has no cast for that. */
static device_symbol *symbol_of(void *handle)
{
    void *object = dlsym(handle, DEVICE_SYMBOL);
    device_symbol *function;

    memcpy(&function, &object, sizeof(function));
    return function;
}

/* One place; `why` is the loader's last complaint. */
static bool try_place(const char *path, char why[DEVICE_WHY_SIZE])
{
    void *handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
    device_symbol *symbol = handle ? symbol_of(handle) : NULL;

    if (!symbol) {
        const char *error = dlerror();

        (void)snprintf(why, DEVICE_WHY_SIZE, "%s", error ? error : path);
    } else {
        loaded = symbol(DEVICE_ABI);
        if (!loaded)
            (void)snprintf(why, DEVICE_WHY_SIZE, "%s is of another version",
                           path);
    }
    if (!loaded && handle)
        (void)dlclose(handle);
    return loaded != NULL;
}

static enum status load(const char *path)
{
    static const char *const PLACE[N_PLACE] = {
        "%s/" DEVICE_LIBRARY_NAME,
        "%s/../lib/godwit/" DEVICE_LIBRARY_NAME,
        DEVICE_LIBRARY_NAME,
    };
    char folder[PATH_SIZE], place[2 * PATH_SIZE], why[DEVICE_WHY_SIZE];

    if (path)
        return try_place(path, why)
                   ? STATUS_OK
                   : status_fail(STATUS_FAILED_PRECONDITION,
                                 "no library for backend 'cuda': %s", why);
    own_folder(folder);
    for (uint32_t i = 0; i < N_PLACE; i++) {
        const char *at = strchr(PLACE[i], '/');

        (void)snprintf(place, sizeof(place), "%s%s", at ? folder : "",
                       at ? at : PLACE[i]);
        if ((!at || access(place, R_OK) == 0) && try_place(place, why))
            return STATUS_OK;
    }
    return status_fail(STATUS_FAILED_PRECONDITION,
                       "no library for backend 'cuda', neither beside this "
                       "program nor on the system: %s",
                       why);
}

enum status device_library_load(const char *path)
{
    enum status st = STATUS_OK;

    pthread_mutex_lock(&lock);
    if (!loaded)
        st = load(path);
    pthread_mutex_unlock(&lock);
    return st;
}

static enum status find_device(const struct device_calls **out)
{
    char why[DEVICE_WHY_SIZE];
    enum status st = device_library_load(NULL);

    if (st)
        return st;
    st = loaded->probe(why);
    if (st)
        return status_fail(st, "backend 'cuda' is not usable here: %s", why);
    *out = loaded;
    return STATUS_OK;
}

static bool is_supported(void)
{
    const struct device_calls *calls;

    return find_device(&calls) == STATUS_OK;
}

const struct backend backend_cuda = {
    .name = "cuda",
    .is_supported = is_supported,
    .arithmetic = ARITHMETIC_MMA,
    .arithmetics =
        ARITHMETIC_BIT(ARITHMETIC_MMA) | ARITHMETIC_BIT(ARITHMETIC_FAST),
    .has_f8 = true,
    .has_kv_int8 = true,
    .find_device = find_device,
    DEVICE_BACKEND_OPERATORS,
};
