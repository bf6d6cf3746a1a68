/* The cap of recurrent states against a sum in long double, and the cuts at its
 * grid against the grid's own definition. Whole models: unit.state.capped. */
#include "model/state_cap.h"

#include "kernels/pool.h"
#include "kernels/state_cap.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#define N_HEAD 3u
#define D_K 5u
#define D_V 7u
#define N_EACH ((size_t)D_K * D_V)
#define N_SPAN 4u

static const struct delta_shape SHAPE = {
    .n_k_head = 1, .n_v_head = N_HEAD, .d_k = D_K, .d_v = D_V};
/* Where the spans end: on the grid, one off it on either side, on it again. */
static const uint64_t END[N_SPAN] = {1024, 1023, 4097, 5 * 1024};

static float state[N_SPAN][N_HEAD * N_EACH];
static uint64_t made_of[N_SPAN][N_HEAD];
static struct delta_span span[N_SPAN];

/* Head h of each span has a root mean square near h + 1. */
static void fill(void)
{
    for (uint32_t i = 0; i < N_SPAN; i++) {
        for (size_t k = 0; k < N_HEAD * N_EACH; k++) {
            const size_t head = k / N_EACH;

            state[i][k] = (float)(head + 1) * sinf((float)(k + i)) * sqrtf(2);
        }
        for (uint32_t h = 0; h < N_HEAD; h++)
            made_of[i][h] = 9;
        span[i] = (struct delta_span){
            .n_row = 1 + i,
            .position = END[i] - (1 + i),
            .state = {.s = state[i], .made_of = made_of[i]}};
    }
}

static long double rms_of(const float *s)
{
    long double sum = 0;

    for (size_t k = N_EACH; k-- > 0;)
        sum += (long double)s[k] * (long double)s[k];
    return sqrtl(sum / N_EACH);
}

/* Of a head. */
static bool same_bits(const void *a, const void *b)
{
    return memcmp(a, b, N_EACH * sizeof(float)) == 0;
}

/* To those of the first n_span spans that are on the grid; how many heads were
 * scaled. */
static uint64_t apply(struct pool *pool, uint32_t n_span, float cap)
{
    struct delta_span due[N_SPAN];
    uint64_t n_scaled = 5;

    memcpy(due, span, sizeof(due));
    state_cap(pool,
              &(struct state_cap_args){.shape = SHAPE,
                                       .span = due,
                                       .n_span = state_cap_due(due, n_span),
                                       .cap = cap,
                                       .n_scaled = &n_scaled});
    return n_scaled - 5;
}

static void check(struct pool *pool)
{
    const float cap = 1.5f; /* between heads 0 and 1 */
    float before[N_SPAN][N_HEAD * N_EACH];
    uint64_t n;

    fill();
    memcpy(before, state, sizeof(state));
    n = apply(pool, N_SPAN, cap);
    cr_assert_eq(n, 2 * 2, "two heads of two spans");
    for (uint32_t i = 0; i < N_SPAN; i++)
        for (uint32_t h = 0; h < N_HEAD; h++) {
            const float *was = before[i] + h * N_EACH;
            const float *is = state[i] + h * N_EACH;
            const long double rms = rms_of(was);

            cr_assert_float_eq((double)rms, h + 1.0, 0.3);
            if (i == 1 || i == 2 || h == 0) {
                cr_assert(same_bits(was, is));
                cr_assert_eq(made_of[i][h], 9);
                continue;
            }
            cr_assert_eq(made_of[i][h], 0, "its copy is out of date");
            cr_assert_float_eq((double)rms_of(is), (double)cap, 1e-6);
            for (size_t k = 0; k < N_EACH; k++)
                cr_assert_float_eq((double)is[k],
                                   (double)((long double)was[k] * cap / rms),
                                   2e-7 * fabs((double)was[k]));
        }
}

Test(state_cap, scales_heads_above_it_where_a_span_comes_to_the_grid)
{
    struct pool *pool;

    check(NULL);
    cr_assert_eq(pool_create(3, &pool), STATUS_OK);
    check(pool);
    pool_destroy(pool);
}

Test(state_cap, a_head_at_the_cap_is_not_above_it)
{
    fill();
    for (size_t k = 0; k < N_HEAD * N_EACH; k++)
        state[0][k] = k % 2 ? 2.0f : -2.0f;
    cr_assert_eq(apply(NULL, 1, 2.0f), 0);
    state[0][N_EACH] = nextafterf(-2.0f, -3.0f);
    cr_assert_eq(apply(NULL, 1, 2.0f), 1);
}

Test(state_cap, a_head_with_what_is_no_number_is_left_for_the_watch)
{
    const float bad[] = {NAN, INFINITY, -INFINITY};

    for (size_t b = 0; b < 3; b++) {
        float before[N_EACH];

        fill();
        state[0][2 * N_EACH + 3] = bad[b];
        memcpy(before, state[0] + 2 * N_EACH, sizeof(before));
        cr_assert_eq(apply(NULL, 1, 1.5f), 1, "head 1 alone");
        cr_assert(same_bits(before, state[0] + 2 * N_EACH));
    }
}

/* Every begin around the grid, every length up to three points of it. */
Test(state_cap, parts_tile_a_span_and_end_at_the_grid)
{
    static const uint64_t from[] = {0,    1,    63,   1000, 1023,
                                    1024, 1025, 2047, 4096, 1048576 - 1};

    for (size_t f = 0; f < sizeof(from) / sizeof(from[0]); f++)
        for (uint32_t n_row = 1; n_row < 3200; n_row += n_row < 70 ? 1 : 61) {
            uint32_t done = 0, n = 0;

            for (; done < n_row; n++) {
                const struct state_cap_part part =
                    state_cap_part(from[f], n_row, n);

                cr_assert_eq(part.first, done);
                cr_assert_gt(part.end, done);
                for (uint32_t t = part.first; t + 1 < part.end; t++)
                    cr_assert_neq((from[f] + t + 1) % 1024, 0);
                cr_assert(part.end == n_row ||
                          (from[f] + part.end) % 1024 == 0);
                done = part.end;
            }
            cr_assert_eq(state_cap_part(from[f], n_row, n).first,
                         state_cap_part(from[f], n_row, n).end);
        }
}
