#include "scheduler/fair.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct tenant {
    char name[FAIR_NAME_SIZE];
    bool is_known;
    uint32_t n_request, n_wanting;
    uint64_t counter;
    uint64_t left; /* fair->time when its last request left */
};

struct fair {
    uint64_t time;      /* of fair_leave() calls */
    uint64_t last_left; /* of the last tenant that ceased to want */
    uint32_t n_place;
    struct tenant place[];
};

enum status fair_create(uint32_t n_tenant, struct fair **out)
{
    uint32_t n_place = 2 * n_tenant;
    struct fair *fair =
        calloc(1, sizeof(*fair) + n_place * sizeof(struct tenant));

    if (!fair)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for counters of %u tenants", n_tenant);
    fair->n_place = n_place;
    *out = fair;
    return STATUS_OK;
}

void fair_destroy(struct fair *fair)
{
    free(fair);
}

/* Smallest counter of those that want; with none, where the last one ended. */
static uint64_t floor_of(const struct fair *fair)
{
    uint64_t least = UINT64_MAX;

    for (uint32_t i = 0; i < fair->n_place; i++)
        if (fair->place[i].n_wanting && fair->place[i].counter < least)
            least = fair->place[i].counter;
    return least == UINT64_MAX ? fair->last_left : least;
}

/* Its place, or that of the one that has been away for longest. */
static struct tenant *find(struct fair *fair, const char *name)
{
    struct tenant *oldest = NULL;

    for (uint32_t i = 0; i < fair->n_place; i++) {
        struct tenant *t = &fair->place[i];
        if (t->is_known && strncmp(t->name, name, FAIR_NAME_SIZE - 1) == 0)
            return t;
        if (!t->n_request &&
            (!oldest || (oldest->is_known && !t->is_known) ||
             (oldest->is_known == t->is_known && t->left < oldest->left)))
            oldest = t;
    }
    assert(oldest);
    *oldest = (struct tenant){.is_known = true};
    memcpy(oldest->name, name, strnlen(name, FAIR_NAME_SIZE - 1));
    return oldest;
}

uint32_t fair_enter(struct fair *fair, const char *name)
{
    struct tenant *tenant = find(fair, name);

    tenant->n_request++;
    return (uint32_t)(tenant - fair->place);
}

void fair_leave(struct fair *fair, uint32_t tenant)
{
    struct tenant *t = &fair->place[tenant];

    assert(tenant < fair->n_place && t->n_request > 0);
    if (--t->n_request == 0)
        t->left = ++fair->time;
    assert(t->n_wanting <= t->n_request);
}

void fair_want(struct fair *fair, uint32_t tenant)
{
    struct tenant *t = &fair->place[tenant];

    assert(tenant < fair->n_place && t->n_wanting < t->n_request);
    if (t->n_wanting == 0) {
        uint64_t least = floor_of(fair);
        if (t->counter < least)
            t->counter = least;
    }
    t->n_wanting++;
}

void fair_satisfy(struct fair *fair, uint32_t tenant)
{
    struct tenant *t = &fair->place[tenant];

    assert(tenant < fair->n_place && t->n_wanting > 0);
    if (--t->n_wanting == 0)
        fair->last_left = t->counter;
}

void fair_charge(struct fair *fair, uint32_t tenant, uint64_t n_prompt,
                 uint64_t n_output)
{
    assert(tenant < fair->n_place);
    fair->place[tenant].counter +=
        FAIR_PROMPT * n_prompt + FAIR_OUTPUT * n_output;
}

uint64_t fair_counter(const struct fair *fair, uint32_t tenant)
{
    assert(tenant < fair->n_place);
    return fair->place[tenant].counter;
}

uint32_t fair_places(const struct fair *fair)
{
    return fair->n_place;
}
