#include "kernels/apart/fault.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The calls of a device get no context, so there is one for the process. */
static struct fault {
    const struct device_calls *real;
    struct fault_ways ways;
    struct device_calls calls;
    char kind[8];
    uint64_t at, n_step, leave_mib;
    int is_lost; /* by atomic operations: the side's thread asks, too */
} fault;

static bool is(const char *kind)
{
    return strcmp(fault.kind, kind) == 0;
}

static bool is_lost(void)
{
    return __atomic_load_n(&fault.is_lost, __ATOMIC_ACQUIRE);
}

static enum status after(enum status st)
{
    return is_lost() ? STATUS_UNAVAILABLE : st;
}

/* -------------------------------------------------------------- its own calls
 */

static enum status create(struct device **out, char out_why[DEVICE_WHY_SIZE])
{
    const enum status st = fault.real->create(out, out_why);

    if (st)
        return st;
    fault.n_step = 0;
    __atomic_store_n(&fault.is_lost, 0, __ATOMIC_RELEASE);
    (*out)->calls = &fault.calls;
    (*out)->side->calls = &fault.calls;
    (*out)->shuttle->calls = &fault.calls;
    return STATUS_OK;
}

static void why(struct device *device, char out[DEVICE_WHY_SIZE])
{
    if (is_lost())
        (void)snprintf(out, DEVICE_WHY_SIZE, "lost at step %" PRIu64 " by %s",
                       fault.at, FAULT_VARIABLE);
    else
        fault.real->why(device, out);
}

static void begin(struct device *device, const struct device_step *step)
{
    if (++fault.n_step == fault.at) {
        if (is("full"))
            fault.ways.fill(fault.real, device, (size_t)fault.leave_mib << 20);
        else if (is("scratch"))
            fault.ways.squeeze(device, (size_t)fault.leave_mib << 20);
        else if (is("wild"))
            fault.ways.stray(fault.real, device);
        else
            __atomic_store_n(&fault.is_lost, 1, __ATOMIC_RELEASE);
    }
    fault.real->begin(device, step);
}

/* What was begun comes to its end all the same: the device is whole. */
static enum status end(struct device *device, bool *out_again)
{
    const enum status st = after(fault.real->end(device, out_again));

    *out_again = *out_again && !st;
    return st;
}

static enum status wait(struct device *device)
{
    return after(fault.real->wait(device));
}

static enum status reached(struct device *device, uint64_t mark, bool *out)
{
    return after(fault.real->reached(device, mark, out));
}

static enum status take(struct device *device, size_t bytes, void **out)
{
    return is_lost() ? STATUS_UNAVAILABLE
                     : fault.real->take(device, bytes, out);
}

static enum status take_host(struct device *device, size_t bytes, void **out)
{
    return is_lost() ? STATUS_UNAVAILABLE
                     : fault.real->take_host(device, bytes, out);
}

/* ------------------------------------------------------------------- settings
 */

static bool read_variable(const char *text)
{
    char kind[8] = "", rest = 0;
    uint64_t at = 0, mib = 0;
    const int n = sscanf(text, "%7[a-z]@%" SCNu64 ":%" SCNu64 "%c", kind, &at,
                         &mib, &rest);

    if (n < 2 || n > 3 || at == 0)
        return false;
    memcpy(fault.kind, kind, sizeof(kind));
    fault.at = at;
    fault.leave_mib = mib;
    return is("full") || is("scratch") ? n == 3
                                       : n == 2 && (is("lost") || is("wild"));
}

enum status fault_around(const struct device_calls *real,
                         const struct fault_ways *ways,
                         const struct device_calls **out)
{
    const char *text = getenv(FAULT_VARIABLE);

    *out = real;
    if (!text || !*text)
        return STATUS_OK;
    if (!read_variable(text) || (is("wild") && !ways->stray) ||
        (is("scratch") && !ways->squeeze))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           FAULT_VARIABLE "=%s is nothing that this device "
                                          "does: lost@N, full@N:MIB%s%s",
                           text, ways->stray ? ", wild@N" : "",
                           ways->squeeze ? ", scratch@N:MIB" : "");
    fault.real = real;
    fault.ways = *ways;
    fault.calls = *real;
    fault.calls.create = create;
    fault.calls.why = why;
    fault.calls.begin = begin;
    fault.calls.end = end;
    fault.calls.wait = wait;
    fault.calls.reached = reached;
    fault.calls.take = take;
    fault.calls.take_host = take_host;
    *out = &fault.calls;
    return STATUS_OK;
}
