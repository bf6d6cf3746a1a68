/*
 * Products of every arithmetic and type of weights: each backend against ref,
 * by bits, over shapes on both sides of every place where a kernel changes its
 * ways, whole and row by row, on any number of threads.
 */
#include "tests/unit/kernels/product_check.h"

#include "tests/unit/kernels/fixture.h"

Test(product, every_backend_gives_refs_bits_in_every_arithmetic)
{
    const struct backend *ref = backend_ref_found();
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (const struct backend *const *b = backend_all(); *b; b++)
        if (!(*b)->is_supported())
            printf("this machine lacks %s: not tested\n", (*b)->name);
        else if (*b != ref)
            cr_expect(eq(sz, product_check_all(*b, ref, pools, N_POOL), 0),
                      "%s", (*b)->name);
    pools_destroy(pools);
}
