/*
 * What the sampler asks of a vocabulary. Judges: the vectors published with
 * Random123, and ref for every backend.
 */
#include "kernels/philox.h"
#include "kernels/ref/ref.h"
#include "tests/unit/kernels/fixture.h"

Test(draw, philox_gives_the_published_vectors)
{
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } known[] = {
        {{0, 0, 0, 0},
         {0, 0},
         {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    uint32_t out[4];

    for (size_t i = 0; i < COUNT(known); i++) {
        philox(known[i].counter, known[i].key, out);
        for (int w = 0; w < 4; w++)
            cr_assert(eq(u32, out[w], known[i].out[w]), "vector %zu", i);
    }
}

Test(draw, every_backend_lets_the_same_token_win)
{
    static const uint32_t N[] = {1, 3, 15, 64, 65, 100, 128, 1000, 4096};
    uint32_t n_none = 0;

    EACH_BACKEND(backend)
    for (size_t c = 0; c < COUNT(N); c++)
        for (uint32_t round = 0; round < 40; round++) {
            float *x = filled(N[c], 11 * c + round);
            struct draw_args args = {.x = x,
                                     .n = N[c],
                                     .temperature = round % 2 ? 1.0f : 0.05f,
                                     .seed = mix(round),
                                     .position = mix(c) >> (round % 40)};

            for (uint32_t i = 0; i < N[c]; i++) {
                x[i] *= (float)(1u << round % 8); /* flat to steep */
                if (round % 5 == 1 && i % 2)
                    x[i] = i % 4 == 1 ? NAN : -INFINITY;
                if (round == 39)
                    x[i] = -INFINITY;
                if (x[i] > args.max || i == 0)
                    args.max = x[i];
            }
            uint32_t want = ref_draw(&args), got = backend->draw(&args);
            cr_assert(eq(u32, got, want), "%s n %u round %u", backend->name,
                      N[c], round);
            n_none += got == DRAW_NONE;
            drop(x);
        }
    cr_assert(gt(u32, n_none, 0));
}

/* Equal values: nothing but g decides, and every token wins at times. */
Test(draw, equal_tokens_win_equally_often)
{
    const struct backend *backend = NULL;
    float x[8] = {0};
    uint32_t n_win[8] = {0};

    must(backend_find("auto", &backend));
    for (uint64_t p = 0; p < 8000; p++)
        n_win[backend->draw(&(struct draw_args){
            .x = x, .n = 8, .temperature = 1, .seed = 3, .position = p})]++;
    for (int i = 0; i < 8; i++) /* six standard deviations */
        cr_assert(n_win[i] > 820 && n_win[i] < 1180, "%d: %u", i, n_win[i]);
}

Test(draw, every_backend_finds_each_block_s_largest)
{
    static const uint32_t N[] = {1, 15, 16, 17, 63, 64, 65, 128, 1000};

    EACH_BACKEND(backend)
    for (size_t c = 0; c < COUNT(N); c++)
        for (uint32_t kind = 0; kind < 3; kind++) {
            uint32_t n = N[c], n_block = (n + PEAK_BLOCK - 1) / PEAK_BLOCK;
            float *x = filled(n, 7 + c), *peak = room(n_block);

            for (uint32_t i = 0; i < n; i++) { /* all negative; some NaN */
                x[i] -= 2;
                if (kind == 1 && i % 3 == 0)
                    x[i] = NAN;
                if (kind == 2)
                    x[i] = i % 2 ? NAN : -INFINITY;
            }
            backend->peaks(&(struct peaks_args){.peak = peak, .x = x, .n = n});
            for (uint32_t b = 0; b < n_block; b++) {
                float most = -INFINITY;

                for (uint32_t i = b * PEAK_BLOCK; i < n; i++)
                    if (i < (b + 1) * PEAK_BLOCK && x[i] > most)
                        most = x[i];
                cr_assert(peak[b] == most, "%s block %u of %u: %g, not %g",
                          backend->name, b, n, (double)peak[b], (double)most);
            }
            drop(x);
            drop(peak);
        }
}
