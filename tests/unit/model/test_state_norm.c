/* Norms of states against sums that are known without computing any. */
#include "model/state_norm.h"

#include <criterion/criterion.h>
#include <math.h>

#define N_HEAD 3u
#define D_K 5u
#define D_V 7u /* no multiple of what is summed side by side */
#define N_EACH ((size_t)D_K * D_V)

static const struct mixer_plan plan = {.state_bytes = 512,
                                       .n_field = 1,
                                       .field = {{.name = "s",
                                                  .type = FIELD_F32,
                                                  .n_dim = 3,
                                                  .dim = {N_HEAD, D_K, D_V}}}};
static float state[N_HEAD * N_EACH];

/* Head h has numbers of magnitude 1, 3, 2, of both signs. */
static void fill(void)
{
    static const float size[N_HEAD] = {1, 3, 2};

    for (size_t i = 0; i < N_HEAD * N_EACH; i++)
        state[i] = i % 2 ? size[i / N_EACH] : -size[i / N_EACH];
}

Test(state_norm, finds_the_largest_head)
{
    struct state_norm norm;

    fill();
    norm = state_norm_of(&plan, state);
    cr_assert_eq(norm.n_head, N_HEAD);
    cr_assert_eq(norm.head, 1);
    cr_assert_eq(norm.head_rms, 3.0f);
    cr_assert_eq(norm.rms, (float)sqrt((1.0 + 9.0 + 4.0) / 3.0));
    cr_assert_eq(norm.max, 3.0f);
    state[2 * N_EACH + N_EACH - 1] = -100; /* alone, and the last one */
    norm = state_norm_of(&plan, state);
    cr_assert_eq(norm.head, 2);
    cr_assert_eq(norm.head_rms,
                 (float)sqrt((4.0 * (N_EACH - 1) + 10000.0) / N_EACH));
    cr_assert_eq(norm.max, 100.0f);
}

Test(state_norm, of_what_is_no_number_is_infinite)
{
    const float bad[] = {NAN, INFINITY, -INFINITY};

    for (size_t b = 0; b < 3; b++)
        for (size_t at = 0; at < N_HEAD * N_EACH; at += N_EACH + 3) {
            struct state_norm norm;

            fill();
            state[at] = bad[b];
            norm = state_norm_of(&plan, state);
            cr_assert_eq(norm.head, at / N_EACH);
            cr_assert(isinf(norm.head_rms) && isinf(norm.rms) &&
                      isinf(norm.max));
        }
}

Test(state_norm, squares_of_the_largest_floats_have_room)
{
    fill();
    for (size_t i = 0; i < N_EACH; i++)
        state[i] = 3e38f;
    cr_assert_float_eq(state_norm_of(&plan, state).head_rms, 3e38f, 1e32f);
}

Test(state_norm, of_an_empty_state_and_of_none)
{
    const struct mixer_plan none = {.block_bytes = 64};

    for (size_t i = 0; i < N_HEAD * N_EACH; i++)
        state[i] = 0;
    cr_assert_eq(state_norm_of(&plan, state).n_head, N_HEAD);
    cr_assert_eq(state_norm_of(&plan, state).head_rms, 0);
    cr_assert_eq(state_norm_of(&none, NULL).n_head, 0);
}
