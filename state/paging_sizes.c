#include "state/paging_parts.h"

size_t paging_index_bytes(const struct mixer_plan *plan,
                          const struct policy *policy)
{
    return plan->short_bytes && !policy_looks_at_positions(policy)
               ? plan->short_bytes
               : plan->index_bytes;
}

struct extent_of_blocks paging_measure(const struct model *model,
                                       const struct policy *policy)
{
    struct extent_of_blocks it = {0};

    for (uint32_t i = 0; i < model_config(model)->n_layer; i++) {
        const struct mixer_plan *plan = model_plan_for(model, i, policy->index);

        if (plan->block_bytes == 0)
            continue;
        it.n_paged++;
        it.index_bytes += paging_index_bytes(plan, policy);
        if (plan->block_bytes > it.room)
            it.room = plan->block_bytes;
    }
    it.page_bytes = page_size(it.room);
    return it;
}

uint64_t paging_n_seen(const struct policy *policy)
{
    return (uint64_t)policy_kept(policy) + policy->n_pick + 1;
}

size_t paging_least(const struct model *model, const struct policy *policy)
{
    const struct extent_of_blocks it = paging_measure(model, policy);

    return it.n_paged * (paging_n_seen(policy) + BLOCKS_AHEAD) * it.page_bytes;
}

uint64_t paging_most(const struct model *model, const struct policy *policy,
                     size_t max_bytes)
{
    const struct extent_of_blocks it = paging_measure(model, policy);

    return it.n_paged
               ? max_bytes / it.page_bytes / it.n_paged - paging_n_seen(policy)
               : UINT32_MAX;
}

uint64_t paging_capacity(uint64_t n_block)
{
    uint64_t capacity = TABLE_FIRST;

    while (capacity < n_block)
        capacity *= 2;
    return capacity;
}

uint64_t paging_n_run(uint64_t n_block)
{
    return (n_block + INDEX_RUN - 1) / INDEX_RUN;
}

/* But for the pages. */
static size_t bytes_beside(const struct extent_of_blocks *it, size_t max_page,
                           uint32_t n_layer, uint64_t n_block)
{
    const size_t table = it->n_paged * paging_capacity(n_block) *
                         (2 * sizeof(void *) + sizeof(struct place));

    return sizeof(struct paging) + n_layer * sizeof(struct paged_layer) +
           max_page * sizeof(struct seat) +
           it->n_paged * max_page * sizeof(uint64_t) + table +
           paging_n_run(n_block) * (INDEX_RUN * it->index_bytes +
                                    it->n_paged * sizeof(struct index_run));
}

size_t paging_bytes(const struct model *model, const struct policy *policy,
                    size_t max_bytes, uint64_t n_block)
{
    const struct extent_of_blocks it = paging_measure(model, policy);
    const size_t max_page = max_bytes / it.page_bytes;
    const uint64_t n_page = it.n_paged * n_block;

    return bytes_beside(&it, max_page, model_config(model)->n_layer, n_block) +
           (n_page < max_page ? n_page : max_page) * it.page_bytes;
}

/* With n_page pages. */
static size_t bytes_of(const struct paging *paging, uint64_t n_block,
                       uint64_t n_page)
{
    const struct extent_of_blocks it =
        paging_measure(paging->model, &paging->policy);

    return bytes_beside(&it, paging->max_page, paging->n_layer, n_block) +
           n_page * it.page_bytes;
}

size_t paging_grown_bytes(const struct paging *paging, uint64_t n_block)
{
    const uint64_t n = paging->n_paged * n_block;

    return bytes_of(paging, n_block, n < paging->n_page ? n : paging->n_page);
}

size_t paging_held_bytes(const struct paging *paging)
{
    return bytes_of(paging, paging->n_block, paging->n_seat);
}

size_t paging_shared_bytes(const struct paging *paging)
{
    return paging->n_shared * page_size(paging->page_room) +
           paging->shared_runs;
}

void paging_count_shared(struct paging *paging)
{
    paging->n_shared = 0;
    for (uint32_t i = 0; i < paging->n_seat; i++) {
        struct seat *seat = &paging->seat[i];

        seat->is_shared = seat->page && page_is_shared(seat->page);
        paging->n_shared += seat->is_shared;
    }
}
