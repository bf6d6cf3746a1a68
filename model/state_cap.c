#include "model/state_cap.h"

#include "kernels/device.h"
#include "model/graph.h"

#include <assert.h>

static_assert(STATE_CAP_GRID % GRID == 0, "rings are empty there");

uint32_t state_cap_due(struct delta_span *span, uint32_t n_span)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < n_span; i++)
        if ((span[i].position + span[i].n_row) % STATE_CAP_GRID == 0)
            span[n++] = span[i];
    return n;
}

enum status state_cap_count_init(const struct model *model,
                                 struct state_cap_count *out)
{
    struct device *device = model->device;
    struct state_cap_count it;
    void *n, *taken;
    enum status st;

    if (model->state_cap <= 0)
        return STATUS_OK;
    st = device_take(device, sizeof(*it.n), &n);
    if (st)
        return st;
    it.n = it.taken = n;
    if (device && (st = device_take_host(device, sizeof(*it.taken), &taken))) {
        device_give(device, n);
        return st;
    }
    if (device) {
        it.taken = taken;
        *it.taken = 0;
    }
    *out = it;
    return STATUS_OK;
}

void state_cap_count_release(struct device *device,
                             struct state_cap_count *count)
{
    device_give(device, count->n);
    if (device)
        device_give_host(device, count->taken);
    *count = (struct state_cap_count){0};
}

void state_cap_count_read(struct device *device,
                          const struct state_cap_count *count)
{
    device_read(device, count->taken, count->n, sizeof(*count->n));
}

bool state_cap_is_due(const struct state_cap_count *count,
                      const struct batch *batch)
{
    for (uint32_t i = 0; count->n && i < batch->n_span; i++) {
        const struct span *span = &batch->span[i];

        if (span->position % STATE_CAP_GRID + span->n_row >= STATE_CAP_GRID)
            return true;
    }
    return false;
}

struct state_cap_part state_cap_part(uint64_t position, uint32_t n_row,
                                     uint32_t n)
{
    const uint64_t to_grid = STATE_CAP_GRID - position % STATE_CAP_GRID;
    const uint64_t first =
        n == 0 ? 0 : to_grid + (uint64_t)(n - 1) * STATE_CAP_GRID;
    const uint64_t end = to_grid + (uint64_t)n * STATE_CAP_GRID;

    return (struct state_cap_part){.first =
                                       first < n_row ? (uint32_t)first : n_row,
                                   .end = end < n_row ? (uint32_t)end : n_row};
}
