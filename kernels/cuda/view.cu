/*
 * The operator kv_view: what is to be done, said by the host from positions
 * alone (view.cuh), and the launches.
 *
 * The number of views bounds all of it but the candidates of look-ups; these
 * the rope table bounds, which has as many positions as a session may. So what
 * is staged, and the scratch memory, are as large in each replay of a recorded
 * step.
 */
#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/view.cuh"
#include "kernels/cuda/view_mass.cuh"

#include <assert.h>
#include <string.h>

#define ALIGN ((size_t)256)

/* A part on its way to the device, and what the launches want to know. */
struct plan {
    const struct kv_view_args *args;
    bool is_fixed;
    uint32_t n_query_row; /* of all queries */
    uint32_t group_max;   /* look-ups */
    size_t n_score;
    size_t mass_bytes; /* the most that one look-up wants */
    struct view_part part;
};

static uint32_t heads_of(const struct kv_view_args *args)
{
    return args->shape.n_head / args->shape.n_kv_head;
}

/* Candidates of a look-up of a recorded step, at most. */
static size_t block_bound(const struct kv_view_args *args)
{
    return args->table->n_position / KV_BLOCK;
}

/* ------------------------------------------------------------------ the plan
 */

/* It joins the group before it if that is of the same session. */
static void add_group(struct plan *plan, uint32_t at)
{
    struct view_part *part = &plan->part;
    const struct viewed *of = &part->record[part->record[at].query.view].viewed;
    struct view_group *last =
        part->n_group ? &part->record[part->n_group - 1].group : NULL;

    if (last) {
        const struct view_query *before =
            &part->record[last->query + last->n - 1].query;
        const struct kv_view *other = &part->record[before->view].viewed.view;

        if (last->query + last->n == at && last->n < plan->group_max &&
            other->pick == of->view.pick) {
            last->n++;
            if (of->view.first < last->first)
                last->first = of->view.first;
            if (of->view.end > last->end)
                last->end = of->view.end;
            return;
        }
    }
    part->record[part->n_group++].group = {
        .query = at, .n = 1, .first = of->view.first, .end = of->view.end};
}

static void add_query(struct plan *plan, uint32_t at, struct view_look *look)
{
    struct view_part *part = &plan->part;
    const struct kv_view *v = &part->record[at].viewed.view;
    const uint32_t query = part->n_query++;

    look->is_scored = true;
    look->score = plan->n_score;
    part->record[query].query = {
        .view = at, .row = plan->n_query_row, .score = plan->n_score};
    plan->n_query_row += v->index == INDEX_MASS ? v->n_sum : 1;
    plan->n_score +=
        plan->is_fixed ? block_bound(plan->args) : (size_t)(v->end - v->first);
    if (v->index != INDEX_MASS) {
        add_group(plan, query);
        return;
    }
    assert(!plan->is_fixed);
    const size_t bytes = view_mass_bytes(&plan->args->shape, v);
    plan->mass_bytes = bytes > plan->mass_bytes ? bytes : plan->mass_bytes;
}

/* The last look-up so far, if it is of this view's session. */
static struct view_look *look_before(struct view_part *part,
                                     const struct kv_view *v)
{
    struct view_look *last =
        part->n_look ? &part->record[part->n_look - 1].look : NULL;
    const bool is_own =
        last && v->pick && part->record[last->view].viewed.view.pick == v->pick;

    return is_own ? last : NULL;
}

static void add_look(struct plan *plan, uint32_t at)
{
    struct view_part *part = &plan->part;
    const struct kv_view *v = &part->record[at].viewed.view;
    struct view_look *before = look_before(part, v);
    struct view_look *look = &part->record[part->n_look].look;

    assert(v->pick && v->n_choose <= VIEW_PICK_MAX &&
           v->n_choose <= v->end - v->first);
    if (before)
        before->is_last = false;
    *look = {.view = at,
             .first_served = at + 1,
             .end_served = at + 1,
             .is_last = true};
    if (v->n_choose && v->n_choose < v->end - v->first)
        add_query(plan, at, look);
    part->n_look++;
}

/* Where its session's rows begin in this part. */
static void add_viewed(struct view_part *part, uint32_t at,
                       const struct kv_view *v)
{
    struct viewed *to = &part->record[at].viewed;
    const struct viewed *last = at ? &part->record[at - 1].viewed : NULL;

    *to = {.view = *v, .start = v->position, .start_row = v->first_row};
    if (!last || !v->pick || last->view.pick != v->pick)
        return;
    to->start = last->start;
    to->start_row = last->start_row;
    assert(v->position - to->start == v->first_row - to->start_row);
}

static void add_view(struct plan *plan, const struct kv_view *v)
{
    struct view_part *part = &plan->part;
    const uint32_t at = part->n_view++;
    struct view_look *look = look_before(part, v);

    add_viewed(part, at, v);
    if (look)
        look->end_served = at + 1;
    else if (v->is_seen)
        part->record[part->n_list++].list = at;
    if (v->queries) {
        const bool is_new =
            part->n_run == 0 ||
            part->record[part->record[part->n_run - 1].run].viewed.view.pick !=
                v->pick;

        part->n_run += is_new;
        part->record[part->n_run - 1].run = at;
    }
    if (v->is_full) {
        assert(v->index == INDEX_KEYS || v->index == INDEX_BOUNDS);
        part->record[part->n_seal++].seal = at;
    }
    if (v->looks_up)
        add_look(plan, at);
}

static bool is_few(const struct plan *plan)
{
    return plan->group_max * heads_of(plan->args) <= VIEW_FEW_ROWS_MAX &&
           plan->args->shape.n_kv_head <= VIEW_FEW_KV_MAX;
}

/*
 * Look-ups that are scored together share what is read; but where they are few,
 * smaller groups make tiles enough for all SMs. In a decode step a session has
 * one or some look-ups, and reading is the bound.
 */
static void choose_group(struct plan *plan, const struct kv_view *view,
                         uint32_t n_view, uint32_t n_sm)
{
    const uint32_t heads = heads_of(plan->args);
    const uint32_t n_few = heads < 4 ? 4 / heads : 1;
    uint32_t run = 0, longest = 0; /* look-ups of one session */
    const uint32_t *pick = NULL;
    uint64_t n = 0; /* candidates */

    for (uint32_t i = 0; i < n_view && !plan->is_fixed; i++) {
        if (!view[i].n_row || !view[i].looks_up)
            continue;
        run = view[i].pick == pick ? run + 1 : 1;
        longest = run > longest ? run : longest;
        pick = view[i].pick;
        n += view[i].end - view[i].first;
    }
    plan->group_max = VIEW_GROUP_MAX;
    while (plan->group_max > 4 && n / plan->group_max < 64ul * n_sm)
        plan->group_max /= 2;
    if (longest <= n_few)
        plan->group_max = n_few;
}

/* Blocks of a tile; wide ones where there are enough of them. */
static uint32_t width_of(const struct plan *plan, enum index_kind kind,
                         uint64_t n_block, uint32_t n_sm)
{
    return is_few(plan) ? view_few_width(plan->args->shape.n_kv_head,
                                         n_block > 512ul * n_sm)
                        : view_width(kind);
}

static void cut_tiles(struct plan *plan, uint32_t n_sm)
{
    struct view_part *part = &plan->part;
    uint64_t n_block = 0;

    for (uint32_t i = 0; i < part->n_group; i++)
        n_block += part->record[i].group.end - part->record[i].group.first;
    for (uint32_t i = 0; i < part->n_group; i++) {
        struct view_group *group = &part->record[i].group;
        const uint32_t view = part->record[group->query].query.view;
        const uint64_t n = group->end - group->first;

        group->width =
            width_of(plan, part->record[view].viewed.view.index, n_block, n_sm);
        group->first_tile = part->n_tile;
        part->n_tile += (uint32_t)((n + group->width - 1) / group->width);
    }
}

/* -------------------------------------------------------------- the launches
 */

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static struct view_frame frame_of(struct gpu *gpu, const struct plan *plan,
                                  uint32_t n_view, const void *part)
{
    const struct kv_view_args *a = plan->args;
    const struct attend_shape shape = a->shape;
    const size_t n_q = (size_t)shape.n_head * shape.d_head;
    const size_t query_bytes =
        aligned((plan->is_fixed ? n_view : plan->n_query_row) * n_q * 4);
    const size_t score_bytes =
        aligned((plan->is_fixed ? n_view * block_bound(a) : plan->n_score) * 4);
    const uint32_t d = shape.d_head;
    struct view_frame f = {
        .part = (const struct view_part *)part,
        .q = a->q,
        .q_stride = a->q_stride,
        .cosine = a->table->cos,
        .sine = a->table->sin,
        .n_pair = a->table->n_rot / 2,
        .n_head = shape.n_head,
        .n_kv_head = shape.n_kv_head,
        .d_head = d,
        .d_padded = d <= 64    ? 64u
                    : d <= 128 ? 128u
                               : 256u,
        .block = a->block,
        .place = a->place,
    };

    f.block_bytes = (size_t)2 * shape.n_kv_head * f.d_padded * KV_BLOCK * 2;
    f.query =
        (float *)gpu_scratch(gpu, query_bytes + score_bytes + plan->mass_bytes);
    f.score = f.query + query_bytes / 4;
    return f;
}

static void weigh(struct gpu *gpu, const struct plan *plan,
                  const struct view_frame *f)
{
    const size_t n_q = (size_t)f->n_head * f->d_head;
    const struct view_record *record = plan->part.record;

    for (uint32_t i = 0; i < plan->part.n_query; i++) {
        const struct view_query *query = &record[i].query;
        const struct kv_view *v = &record[query->view].viewed.view;
        const struct view_mass_call call = {
            .args = plan->args,
            .view = v,
            .queries = f->query + query->row * n_q,
            .score = f->score + query->score,
            .scratch = f->score + aligned(plan->n_score * 4) / 4};

        if (v->index == INDEX_MASS)
            view_mass(gpu, &call);
    }
}

static void score(struct gpu *gpu, const struct plan *plan,
                  const struct view_frame *f)
{
    const uint32_t n_sm = (uint32_t)gpu_n_sm(gpu);

    if (is_few(plan))
        view_score_few(gpu_stream(gpu), f,
                       plan->group_max * heads_of(plan->args), n_sm);
    else
        view_score(gpu_stream(gpu), f, n_sm);
}

/* A recorded step has the launches for whatever its replays may bring. */
static void launch(struct gpu *gpu, const struct plan *plan,
                   const struct view_frame *f, uint32_t n_view)
{
    const struct view_part *part = &plan->part;
    const uint32_t n_sm = (uint32_t)gpu_n_sm(gpu);
    const uint32_t sum_ctas = view_sum_ctas(f->n_head * f->d_head);
    cudaStream_t stream = gpu_stream(gpu);
    uint32_t n_prepare =
        part->n_seal * f->n_kv_head + part->n_query * f->n_head + part->n_list;
    uint32_t n_choose = part->n_look + part->n_run * sum_ctas;

    if (plan->is_fixed) {
        n_prepare = n_view * (f->n_kv_head + f->n_head + 1);
        n_choose = n_view * (1 + sum_ctas);
        n_prepare = n_prepare < 4 * n_sm ? n_prepare : 4 * n_sm;
        n_choose = n_choose < 4 * n_sm ? n_choose : 4 * n_sm;
    }
    if (n_prepare)
        view_prepare(stream, f, n_prepare);
    if (plan->is_fixed || part->n_group)
        score(gpu, plan, f);
    weigh(gpu, plan, f);
    if (n_choose)
        view_choose(stream, f, n_choose);
}

static void carry_out(struct gpu *gpu, const struct kv_view_args *args,
                      const struct kv_view *view, uint32_t n_view)
{
    const size_t bytes = offsetof(struct view_part, record) +
                         n_view * sizeof(struct view_record);
    struct plan plan;

    memset(&plan, 0, offsetof(struct plan, part) + bytes);
    plan.args = args;
    plan.is_fixed = gpu_is_recording(gpu) || gpu_is_replaying(gpu);
    choose_group(&plan, view, n_view, (uint32_t)gpu_n_sm(gpu));
    for (uint32_t i = 0; i < n_view; i++)
        if (view[i].n_row)
            add_view(&plan, &view[i]);
    cut_tiles(&plan, (uint32_t)gpu_n_sm(gpu));
    const void *part = gpu_stage(gpu, &plan.part, bytes);
    if (gpu_is_replaying(gpu) || (!plan.is_fixed && plan.part.n_view == 0))
        return;
    const struct view_frame frame = frame_of(gpu, &plan, n_view, part);
    launch(gpu, &plan, &frame, n_view);
}

void cuda_kv_view(struct gpu *gpu, const struct kv_view_args *args)
{
    assert(args->shape.d_head % 8 == 0 && args->shape.d_head <= VIEW_DIM_MAX);
    assert(args->shape.kv == KV_WIDE);
    for (uint32_t i = 0; i < args->n_view; i += VIEW_MAX) {
        const uint32_t left = args->n_view - i;

        carry_out(gpu, args, args->view + i, left < VIEW_MAX ? left : VIEW_MAX);
    }
}
