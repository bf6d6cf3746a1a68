#include "kernels/device.h"

#include "kernels/cpu/cpu.h"
#include "kernels/ref/ref.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HOST_ALIGN 64u

enum status device_create(const struct backend *backend, struct device **out)
{
    const struct device_calls *calls;
    char why[DEVICE_WHY_SIZE];
    enum status st = backend->find_device(&calls);

    if (st)
        return st;
    st = calls->create(out, why);
    return st ? status_fail(st, "backend '%s': %s", backend->name, why) : st;
}

void device_destroy(struct device *device)
{
    if (device)
        device->calls->destroy(device);
}

void device_generation(struct device *device, char out[DEVICE_GENERATION_SIZE])
{
    out[0] = 0;
    if (device)
        device->calls->generation(out);
}

struct device *device_side(struct device *device)
{
    return device ? device->side : NULL;
}

struct device *device_shuttle(struct device *device)
{
    return device ? device->shuttle : NULL;
}

/* Its newest cause becomes ours. */
static enum status fail(struct device *device, enum status st)
{
    char why[DEVICE_WHY_SIZE];

    if (!st)
        return st;
    device->calls->why(device, why);
    return status_fail(st, "%s", why);
}

/* -------------------------------------------------------------------- memory
 */

/* aligned_alloc() wants whole multiples. */
static void *take_host(size_t bytes)
{
    const size_t size = (bytes + HOST_ALIGN) / HOST_ALIGN * HOST_ALIGN;

    return size > bytes ? aligned_alloc(HOST_ALIGN, size) : NULL;
}

enum status device_take(struct device *device, size_t bytes, void **out)
{
    void *memory;

    if (device)
        return fail(device, device->calls->take(device, bytes, out));
    memory = take_host(bytes);
    if (!memory)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu bytes",
                           bytes);
    memset(memory, 0, bytes);
    *out = memory;
    return STATUS_OK;
}

void device_give(struct device *device, void *memory)
{
    if (!device)
        free(memory);
    else if (memory)
        device->calls->give(device, memory);
}

enum status device_take_host(struct device *device, size_t bytes, void **out)
{
    void *memory;

    if (device)
        return fail(device, device->calls->take_host(device, bytes, out));
    memory = take_host(bytes);
    if (!memory)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu bytes",
                           bytes);
    *out = memory;
    return STATUS_OK;
}

void device_give_host(struct device *device, void *memory)
{
    if (!device)
        free(memory);
    else if (memory)
        device->calls->give_host(device, memory);
}

size_t device_available(struct device *device)
{
    if (device)
        return device->calls->available(device);
    return (size_t)sysconf(_SC_AVPHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
}

void device_write(struct device *device, void *to, const void *from,
                  size_t bytes)
{
    if (!bytes)
        return;
    if (device)
        device->calls->write(device, to, from, bytes);
    else
        memcpy(to, from, bytes);
}

void device_read(struct device *device, void *to, const void *from,
                 size_t bytes)
{
    if (!bytes)
        return;
    if (device)
        device->calls->read(device, to, from, bytes);
    else
        memcpy(to, from, bytes);
}

void device_load(struct device *device, void *to, const void *from,
                 size_t bytes)
{
    if (!bytes)
        return;
    if (device)
        device->calls->load(device, to, from, bytes);
    else
        memcpy(to, from, bytes);
}

void device_copy(struct device *device, void *to, const void *from,
                 size_t bytes)
{
    if (!bytes)
        return;
    if (device)
        device->calls->copy(device, to, from, bytes);
    else
        memcpy(to, from, bytes);
}

void device_zero(struct device *device, void *to, size_t bytes)
{
    if (!bytes)
        return;
    if (device)
        device->calls->zero(device, to, bytes);
    else
        memset(to, 0, bytes);
}

/* --------------------------------------------------------------------- order
 */

uint64_t device_mark(struct device *device)
{
    return device->calls->mark(device);
}

enum status device_reached(struct device *device, uint64_t mark, bool *out)
{
    *out = false;
    return fail(device, device->calls->reached(device, mark, out));
}

enum status device_wait(struct device *device)
{
    return device ? fail(device, device->calls->wait(device)) : STATUS_OK;
}

void device_follow(struct device *device, struct device *other)
{
    if (device)
        device->calls->follow(device, other);
}

uint64_t device_owner(struct device *device)
{
    return device ? ++device->n_owner : 0;
}

void device_begin(struct device *device, const struct device_step *step)
{
    if (device)
        device->calls->begin(device, step);
}

enum status device_end(struct device *device, bool *out_again)
{
    *out_again = false;
    return device ? fail(device, device->calls->end(device, out_again))
                  : STATUS_OK;
}

/* ----------------------------------------------------------------- operators
 */

#define DEVICE_OPERATOR(name, type)                                            \
    void device_##name(struct pool *pool, const struct type *args)             \
    {                                                                          \
        struct device *device = pool_device(pool);                             \
                                                                               \
        device->calls->name(device, args);                                     \
    }
DEVICE_OPERATORS(DEVICE_OPERATOR)
#undef DEVICE_OPERATOR

/* The host's best: all of them give the same bits. */
static const struct backend *host(void)
{
#if defined(GODWIT_AVX512)
    if (backend_avx512.is_supported())
        return &backend_avx512;
#endif
#if defined(GODWIT_LANES)
    if (backend_avx2.is_supported())
        return &backend_avx2;
#endif
    return &backend_ref;
}

uint32_t device_draw(const struct draw_args *args)
{
    return host()->draw(args);
}

void device_peaks(const struct peaks_args *args)
{
    host()->peaks(args);
}
