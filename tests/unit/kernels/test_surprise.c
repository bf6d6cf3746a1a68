/*
 * How much tokens surprise: a log of a softmax in double, then every backend
 * against ref by bits, whatever the rows beside them and the threads.
 */
#include "tests/unit/kernels/fixture.h"

enum { N_ROW = 7 };

/* Flat to steep; behind each row lies one float that is not its own. */
static float *logits(uint32_t n, uint64_t seed)
{
    float *x = filled((size_t)N_ROW * (n + 1), seed);

    for (uint32_t r = 0; r < N_ROW; r++) {
        for (uint32_t i = 0; i < n; i++)
            x[r * (n + 1) + i] *= (float)(1u << (2 * r)) / 4;
        if (r + 1 < N_ROW)
            x[r * (n + 1) + n] = NAN;
    }
    return x;
}

static double surprise(const float *x, uint32_t n, uint32_t token)
{
    double sum = 0.0, max = (double)x[0];

    for (uint32_t i = 0; i < n; i++)
        max = fmax(max, (double)x[i]);
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)x[i] - max);
    return log(sum) - ((double)x[token] - max);
}

Test(surprise, is_minus_the_log_of_a_softmax)
{
    static const uint32_t N[] = {1, 15, 16, 17, 33, 1000, 4097};

    for (size_t c = 0; c < COUNT(N); c++) {
        float *x = logits(N[c], c + 1), got[N_ROW];
        double want[N_ROW];
        uint32_t token[N_ROW];

        for (uint32_t r = 0; r < N_ROW; r++) {
            token[r] = (uint32_t)(mix(r) % N[c]);
            want[r] = surprise(x + r * (N[c] + 1), N[c], token[r]);
        }
        backend_ref_found()->surprise(
            NULL, &(struct surprise_args){.surprise = got,
                                          .token = token,
                                          .logit = x,
                                          .logit_stride = N[c] + 1,
                                          .n_row = N_ROW,
                                          .n = N[c]});
        for (uint32_t r = 0; r < N_ROW; r++)
            cr_assert_float_eq((double)got[r], want[r],
                               2e-6 * fmax(1.0, want[r]), "n %u: %g, not %g",
                               N[c], (double)got[r], want[r]);
        drop(x);
    }
}

Test(surprise, every_backend_has_the_same_bits_whatever_is_beside_a_row)
{
    static const uint32_t N[] = {1, 15, 16, 17, 100, 1000, 4097};
    struct pool *pools[N_POOL];

    pools_create(pools);
    for (size_t c = 0; c < COUNT(N); c++) {
        float *x = logits(N[c], 31 + c), *want = room(N_ROW),
              *got = room(N_ROW);
        uint32_t token[N_ROW];
        struct surprise_args args = {.surprise = want,
                                     .token = token,
                                     .logit = x,
                                     .logit_stride = N[c] + 1,
                                     .n_row = N_ROW,
                                     .n = N[c]};

        for (uint32_t r = 0; r < N_ROW; r++)
            token[r] = (uint32_t)(mix(c + r) % N[c]);
        backend_ref_found()->surprise(NULL, &args);
        EACH_BACKEND(backend)
        for (size_t p = 0; p < N_POOL; p++) {
            args.surprise = got;
            args.token = token;
            args.logit = x;
            args.n_row = N_ROW;
            memset(got, 0, N_ROW * sizeof(*got));
            backend->surprise(pools[p], &args);
            assert_same(got, want, N_ROW, backend->name);
            args.n_row = 1;
            for (uint32_t r = 0; r < N_ROW; r++) {
                args.surprise = got + r;
                args.token = token + r;
                args.logit = x + r * (N[c] + 1);
                got[r] = 0.0f;
                backend->surprise(pools[p], &args);
            }
            assert_same(got, want, N_ROW, backend->name);
        }
        drop(x);
        drop(want);
        drop(got);
    }
    pools_destroy(pools);
}
