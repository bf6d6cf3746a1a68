/*
 * What the sampler asks of a vocabulary. Judges: the vectors published with
 * Random123, and ref for every backend.
 */
#include "kernels/philox.h"
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

Test(draw, every_backend_draws_the_words_of_philox)
{
    static const uint32_t N_GROUP[] = {0, 1, 3, 15, 16, 17, 33, 1024};
    const uint64_t seed = 0x1234567890abcdefu, position = 0x500000007u;
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};

    EACH_BACKEND(backend)
    for (size_t c = 0; c < COUNT(N_GROUP); c++) {
        uint32_t n = N_GROUP[c], first = 5 + (uint32_t)c;
        uint32_t *word = (uint32_t *)(void *)room(4 * (size_t)n);

        backend->draw(&(struct draw_args){.word = word,
                                          .seed = seed,
                                          .position = position,
                                          .first = first,
                                          .n_group = n});
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t counter[4] = {
                (uint32_t)position, (uint32_t)(position >> 32), first + i, 0};
            uint32_t want[4];

            philox(counter, key, want);
            for (uint32_t j = 0; j < 4; j++)
                cr_assert(eq(u32, word[4 * i + j], want[j]), "%s %u of %u",
                          backend->name, i, n);
        }
        drop((float *)(void *)word);
    }
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
