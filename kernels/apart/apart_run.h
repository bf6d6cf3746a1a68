#ifndef KERNELS_APART_APART_RUN_H
#define KERNELS_APART_APART_RUN_H
/*
 * One operator of the device "apart": its arguments with this device's
 * addresses, in a form that can be kept and run later.
 */
#include "kernels/device.h"
#include "kernels/state_cap.h"

#include <stdint.h>

/* Far outside of what x86-64 and arm64 let a program have. */
#define APART_SHIFT (UINT64_C(1) << 62)

static inline void *apart_far(const void *host)
{
    return (void *)((uintptr_t)host + APART_SHIFT);
}

/* NULL stays NULL; an address that is not the device's is a mistake. */
void *apart_near(const void *device);

enum apart_op {
#define DEVICE_OPERATOR(name, type) APART_##name,
    DEVICE_OPERATORS(DEVICE_OPERATOR)
#undef DEVICE_OPERATOR
        APART_READ, /* to host memory */
};

struct apart_read {
    void *to;
    const void *from;
    size_t bytes;
};

union apart_args {
#define DEVICE_OPERATOR(name, type) struct type name;
    DEVICE_OPERATORS(DEVICE_OPERATOR)
#undef DEVICE_OPERATOR
    struct apart_read read;
};

/* The host array that an operator takes along. */
struct apart_array {
    const void **at; /* its pointer in the arguments; NULL: there is none */
    size_t bytes;
};
struct apart_array apart_array(enum apart_op op, union apart_args *args);

/* Zero what lies between and behind the fields, so that bytes can be compared.
 */
void apart_clear_padding(enum apart_op op, union apart_args *args);

/* kv_view, whose arguments are near; what its views name is not. */
void apart_view(const struct backend *backend, const struct kv_view_args *args);

/* All but APART_READ. */
void apart_run(const struct backend *backend, enum apart_op op,
               const union apart_args *args);
#endif
