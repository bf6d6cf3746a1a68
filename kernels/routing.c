#include "kernels/routing.h"

#include <assert.h>
#include <string.h>

/*
 * Insert expert e into the best so far, best first. Only a larger weight goes
 * before an older one, so that of equals the lower index stays in front.
 */
static void insert(float *weight, uint32_t *expert, uint32_t n, float w,
                   uint32_t e)
{
    while (n > 0 && w > weight[n - 1]) {
        weight[n] = weight[n - 1];
        expert[n] = expert[n - 1];
        n--;
    }
    weight[n] = w;
    expert[n] = e;
}

static void sort_by_expert(float *weight, uint32_t *expert, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        const float w = weight[i];
        const uint32_t e = expert[i];
        uint32_t at = i;

        for (; at > 0 && expert[at - 1] > e; at--) {
            weight[at] = weight[at - 1];
            expert[at] = expert[at - 1];
        }
        weight[at] = w;
        expert[at] = e;
    }
}

void routing_choose(const struct route_args *args, uint32_t row,
                    const float *weight)
{
    const struct routing *to = &args->to;
    const uint32_t n = to->n_chosen;
    uint32_t *expert = to->expert + (size_t)row * n;
    float *best = to->weight + (size_t)row * n, sum = 0.0f;

    assert(n >= 1 && n <= to->n_expert);
    for (uint32_t e = 0; e < to->n_expert; e++)
        if (e < n)
            insert(best, expert, e, weight[e], e);
        else if (weight[e] > best[n - 1])
            insert(best, expert, n - 1, weight[e], e);
    sort_by_expert(best, expert, n);
    if (!args->is_renormalised)
        return;
    for (uint32_t i = 0; i < n; i++)
        sum += best[i];
    for (uint32_t i = 0; i < n; i++)
        best[i] /= sum;
}

void routing_group(const struct routing *routing)
{
    const size_t n = (size_t)routing->n_row * routing->n_chosen;
    uint32_t *first = routing->first, at = 0;

    memset(first, 0, (routing->n_expert + 1) * sizeof(*first));
    for (size_t i = 0; i < n; i++)
        first[routing->expert[i]]++;
    for (uint32_t e = 0; e <= routing->n_expert; e++) {
        const uint32_t n_place = first[e];

        first[e] = at;
        at += n_place;
    }
    /* Handing out places moves each start to the next one's... */
    for (size_t i = 0; i < n; i++) {
        const uint32_t place = first[routing->expert[i]]++;

        routing->place[i] = place;
        routing->row[place] = (uint32_t)(i / routing->n_chosen);
    }
    /* ... so each expert's start is now its predecessor's. */
    for (uint32_t e = routing->n_expert; e > 0; e--)
        first[e] = first[e - 1];
    first[0] = 0;
}
