/* Which backends there are and how one is chosen. */
#include "kernels/device.h"
#include "tests/unit/kernels/fixture.h"

Test(backend, ref_is_always_there_and_last)
{
    const struct backend *const *all = backend_all();
    size_t n = 0;

    while (all[n])
        n++;
    cr_assert(ge(sz, n, 1));
    cr_assert(eq(str, (char *)all[n - 1]->name, "ref"));
    cr_assert(all[n - 1]->is_supported());
}

Test(backend, auto_is_the_first_that_this_machine_supports)
{
    const struct backend *found = NULL;

    must(backend_find("auto", &found));
    EACH_BACKEND(backend)
    {
        cr_assert(eq(ptr, (void *)found, (void *)backend));
        break;
    }
}

Test(backend, each_is_found_by_its_name_or_says_what_is_missing)
{
    for (const struct backend *const *b = backend_all(); *b; b++) {
        const struct backend *found = NULL;
        enum status st = backend_find((*b)->name, &found);
        if ((*b)->is_supported()) {
            cr_assert(eq(int, st, STATUS_OK));
            cr_assert(eq(ptr, (void *)found, (void *)*b));
        } else {
            cr_assert(eq(int, st, STATUS_FAILED_PRECONDITION));
            cr_assert(eq(ptr, (void *)found, NULL));
        }
    }
}

Test(backend, an_unknown_name_is_answered_with_the_list)
{
    const struct backend *found = NULL;

    cr_assert(eq(int, backend_find("abacus", &found), STATUS_NOT_FOUND));
    cr_assert(eq(ptr, (void *)found, NULL));
    cr_assert(strstr(status_reason(), "abacus") != NULL);
    for (const struct backend *const *b = backend_all(); *b; b++)
        cr_assert(strstr(status_reason(), (*b)->name) != NULL);
}

Test(backend, no_operator_is_missing)
{
    for (const struct backend *const *each = backend_all(); *each; each++) {
        const struct backend *b = *each;
        cr_assert(b->linear && b->linear_add && b->rms_norm && b->gated_norm &&
                  b->swiglu && b->ffn && b->ffn_add && b->embed && b->rope &&
                  b->kv_append && b->attend && b->conv && b->delta_gate &&
                  b->delta && b->route && b->expert && b->combine && b->draw &&
                  b->peaks);
    }
}

Test(backend, one_of_a_gpu_works_or_says_what_is_missing)
{
    static const char *const MISSING[] = {"no library", "no NVIDIA driver",
                                          "no GPU", "compute capability",
                                          "driver for CUDA"};
    const struct backend *found = NULL;
    enum status st = backend_find("cuda", &found);
    size_t n = 0;

    if (st == STATUS_OK) {
        cr_assert(eq(str, (char *)found->name, "cuda"));
        return;
    }
    cr_assert(eq(int, st, STATUS_FAILED_PRECONDITION));
    for (size_t i = 0; i < COUNT(MISSING); i++)
        n += strstr(status_reason(), MISSING[i]) != NULL;
    cr_assert(eq(sz, n, 1), "%s", status_reason());
    cr_assert(eq(ptr, (void *)found, NULL));
}

Test(backend, a_library_that_is_named_and_not_there_is_said)
{
    const struct backend *found = NULL;

    cr_assert(eq(int, backend_find("cuda:/nowhere/lib.so", &found),
                 STATUS_FAILED_PRECONDITION));
    cr_assert(strstr(status_reason(), "/nowhere/lib.so") != NULL);
    cr_assert(
        eq(int, backend_find("cuda:", &found), STATUS_FAILED_PRECONDITION));
    cr_assert(eq(ptr, (void *)found, NULL));
}

Test(backend, what_it_can_multiply_is_asked)
{
    EACH_BACKEND(backend)
    {
        for (int i = 0; i < N_CPU_ARITHMETIC; i++)
            must(backend_check(backend, (enum arithmetic)i));
        cr_assert(eq(int, backend_check(backend, ARITHMETIC_MMA),
                     STATUS_FAILED_PRECONDITION));
        cr_assert(strstr(status_reason(), backend->name) != NULL);
        cr_assert(strstr(status_reason(), "bf16-tile") != NULL);
        cr_assert(eq(int, backend_check(backend, ARITHMETIC_FAST),
                     STATUS_FAILED_PRECONDITION));
        cr_assert(strstr(status_reason(), "'bf16-mma-fast'") != NULL);
    }
}

/* A device that wants something beside itself. */
static enum arithmetic prepared;

static enum status prepare(enum arithmetic arithmetic,
                           char out_why[DEVICE_WHY_SIZE])
{
    prepared = arithmetic;
    if (arithmetic != ARITHMETIC_FAST)
        return STATUS_OK;
    (void)snprintf(out_why, DEVICE_WHY_SIZE, "install libsomething");
    return STATUS_FAILED_PRECONDITION;
}

static enum status find_wanting(const struct device_calls **out)
{
    static const struct device_calls calls = {.prepare = prepare};

    *out = &calls;
    return STATUS_OK;
}

Test(backend, what_an_arithmetic_needs_is_asked_for_and_said)
{
    const struct backend wanting = {.name = "wanting",
                                    .arithmetics =
                                        ARITHMETIC_BIT(ARITHMETIC_MMA) |
                                        ARITHMETIC_BIT(ARITHMETIC_FAST),
                                    .find_device = find_wanting};

    must(backend_check(&wanting, ARITHMETIC_MMA));
    cr_assert(eq(int, (int)prepared, ARITHMETIC_MMA));
    cr_assert(eq(int, backend_check(&wanting, ARITHMETIC_FAST),
                 STATUS_FAILED_PRECONDITION));
    cr_assert(strstr(status_reason(), "'wanting'") != NULL);
    cr_assert(strstr(status_reason(), "'bf16-mma-fast'") != NULL);
    cr_assert(strstr(status_reason(), "install libsomething") != NULL);
    cr_assert(eq(int, backend_check(&wanting, ARITHMETIC_PAIR),
                 STATUS_FAILED_PRECONDITION));
    cr_assert(strstr(status_reason(), "bf16-mma, bf16-mma-fast") != NULL);
}
