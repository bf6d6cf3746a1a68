/*
 * The ledger against an array that is searched from end to end.
 */
#include "state/ledger.h"

#include <criterion/criterion.h>

#define N_LOG 200u

Test(ledger, sums_are_those_of_a_plain_list)
{
    struct ledger ledger = {0};
    size_t bytes[N_LOG] = {0};
    uint64_t x = 1;

    for (uint32_t step = 0; step < 5000; step++) {
        size_t total = 0, n = 0;
        uint32_t i;

        x = x * 6364136223846793005u + 1442695040888963407u;
        i = (uint32_t)(x >> 33) % N_LOG;
        bytes[i] = x >> 62 ? (size_t)(x >> 40) : 0;
        cr_assert_eq(ledger_set(&ledger, (struct uid){i % 7, i}, bytes[i]),
                     STATUS_OK);
        for (uint32_t j = 0; j < N_LOG; j++) {
            total += bytes[j];
            n += bytes[j] > 0;
            if (step % 50 == 0)
                cr_assert_eq(ledger_get(&ledger, (struct uid){j % 7, j}),
                             bytes[j]);
        }
        cr_assert_eq(ledger.total, total);
        cr_assert_eq(ledger.n, n);
    }
    ledger_release(&ledger);
    cr_assert_eq(ledger.total, 0);
}
