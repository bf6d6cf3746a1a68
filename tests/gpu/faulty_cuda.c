/*
 * libgodwit_faulty.so: libgodwit_cuda.so beside it, on a real GPU, with the
 * faults of kernels/apart/fault.h. A node takes it like the other one:
 *
 *   GODWIT_FAULT=full@1:16 godwitd --backend cuda:build/libgodwit_faulty.so
 *
 * Memory is really taken, so that it is the driver who says that there is none,
 * and an operator really writes where nothing is, so that it is the hardware
 * who finds out.
 */
#include "kernels/apart/fault.h"
#include "kernels/device_library.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#define PIECE_MAX ((size_t)1 << 32)
#define PIECE_MIN ((size_t)1 << 20)

/* It is the device's until the process ends. */
static void fill(const struct device_calls *real, struct device *device,
                 size_t leave)
{
    for (size_t piece = PIECE_MAX; piece >= PIECE_MIN; piece /= 2) {
        void *memory;

        while (real->available(device) >= leave + piece &&
               !real->take(device, piece, &memory))
            ;
    }
}

static void stray(const struct device_calls *real, struct device *device)
{
    float *const nowhere = (float *)4096;

    real->swiglu(device, &(struct swiglu_args){.y = nowhere,
                                               .y_stride = 64,
                                               .x = nowhere,
                                               .x_stride = 128,
                                               .n_row = 1,
                                               .n_ff = 64});
}

/* The real library; the loader looks where this one is (tests.cmake). */
static device_symbol *find_real(void)
{
    void *handle = dlopen(DEVICE_LIBRARY_NAME, RTLD_NOW | RTLD_LOCAL);
    void *object = handle ? dlsym(handle, DEVICE_SYMBOL) : NULL;
    device_symbol *function = NULL;

    if (object)
        memcpy(&function, &object, sizeof(function));
    else
        (void)fprintf(stderr, "libgodwit_faulty.so: %s\n", dlerror());
    return function;
}

__attribute__((visibility("default"))) device_symbol godwit_device;

const struct device_calls *godwit_device(uint32_t abi)
{
    const struct fault_ways ways = {.fill = fill, .stray = stray};
    device_symbol *symbol = find_real();
    const struct device_calls *calls = symbol ? symbol(abi) : NULL;

    if (calls && fault_around(calls, &ways, &calls)) {
        (void)fprintf(stderr, "libgodwit_faulty.so: %s\n", status_reason());
        return NULL;
    }
    return calls;
}
