#include "model/mixer.h"

#include <string.h>

/* How the tokens of a ring's chunk lie in its bytes. */
struct ring {
    size_t n_outer, n_inner; /* before and behind their dimension; bytes */
    size_t n_side;           /* tokens that lie side by side, by element */
    size_t element_bytes;
};

static struct ring ring_of(const struct mixer_field *field)
{
    const uint32_t axis = field->ring_axis;
    struct ring ring = {.n_outer = 1,
                        .n_side = GRID / field->dim[axis],
                        .element_bytes = field_element_bytes(field->type)};

    ring.n_inner = ring.element_bytes;
    for (uint32_t d = 0; d < field->n_dim; d++) {
        if (d < axis)
            ring.n_outer *= field->dim[d];
        if (d > axis)
            ring.n_inner *= field->dim[d];
    }
    return ring;
}

static void clear_ring(struct ring ring, size_t n_live, char *bytes)
{
    const size_t stride = ring.n_side * ring.element_bytes;

    for (size_t o = 0; o < ring.n_outer; o++)
        for (size_t t = n_live; t < GRID; t++) {
            char *row = bytes + (o * GRID / ring.n_side + t / ring.n_side) *
                                    ring.n_inner;

            for (size_t at = t % ring.n_side * ring.element_bytes;
                 at < ring.n_inner; at += stride)
                memset(row + at, 0, ring.element_bytes);
        }
}

/* Where the next field begins, or the state ends. */
static size_t field_end(const struct mixer_plan *plan, uint32_t i)
{
    return i + 1 < plan->n_field ? plan->field[i + 1].offset
                                 : plan->state_bytes;
}

uint32_t mixer_live(const struct mixer_plan *plan, uint64_t position,
                    struct mixer_part out[MIXER_FIELD_MAX])
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < plan->n_field; i++) {
        const size_t begin = plan->field[i].offset, end = field_end(plan, i);

        if (position % GRID == 0 && plan->field[i].ring_axis)
            continue;
        if (n > 0 && out[n - 1].offset + out[n - 1].bytes == begin)
            out[n - 1].bytes += end - begin;
        else
            out[n++] = (struct mixer_part){begin, end - begin};
    }
    return n;
}

size_t mixer_live_bytes(const struct mixer_plan *plan, uint64_t position)
{
    struct mixer_part part[MIXER_FIELD_MAX];
    const uint32_t n_part = mixer_live(plan, position, part);
    size_t bytes = 0;

    for (uint32_t i = 0; i < n_part; i++)
        bytes += part[i].bytes;
    return bytes;
}

void mixer_clear_moot(const struct mixer_plan *plan, uint64_t position,
                      void *state)
{
    for (uint32_t i = 0; i < plan->n_field; i++) {
        const struct mixer_field *field = &plan->field[i];

        if (field->ring_axis)
            clear_ring(ring_of(field), position % GRID,
                       (char *)state + field->offset);
    }
}
