/*
 * The goldens were made by Python's xxhash 4.1.0 (its own copy of XXH3), which
 * also followed the chain by packing each link: stored digests must stay
 * readable by another build. The laws hold any cut against the whole.
 */
#include "base/digest.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <string.h>

static void assert_text(struct digest d, const char *want)
{
    char text[DIGEST_TEXT_SIZE];

    digest_format(d, text);
    cr_assert_str_eq(text, want);
}

Test(digest, bytes_agree_with_another_program)
{
    unsigned char ramp[1024];

    for (size_t i = 0; i < sizeof(ramp); i++)
        ramp[i] = (unsigned char)i;
    assert_text(digest_bytes("", 0), "99aa06d3014798d86001c324468d497f");
    assert_text(digest_bytes("a", 1), "a96faf705af16834e6c632b61e964e1f");
    assert_text(digest_bytes("godwit", 6), "4e742747b6e58c2bf7f5faee46ed2d56");
    assert_text(digest_bytes(ramp, 1024), "83885e853bb6640ca870f92984398d22");
    cr_assert(eq(u64, digest_64("", 0), 0x2d06800538d394c2));
    cr_assert(eq(u64, digest_64("godwit", 6), 0x0ecd38f13fe90fda));
    cr_assert(eq(u64, digest_64(ramp, 1024), 0xa870f92984398d22));
}

Test(digest, chains_agree_with_another_program)
{
    const uint32_t token[] = {0, 1, 4095, UINT32_MAX};
    static const char *const WANT[] = {
        "04ee436e0ebbb533bcfba3fcf40ae9bd", "44e2ac8f28cea21e3f05435192524b09",
        "d91bf653c6524b3f46bd8f1f3afdf7d1", "ecd69106c8a1c88633a6f651f7a395d4",
        "58f43388da57f58d7996ed867ceaa49f",
    };
    struct digest model = digest_bytes("model", 5);

    for (size_t n = 0; n <= 4; n++)
        assert_text(digest_tokens(model, token, n), WANT[n]);
    assert_text(digest_chain(model, "weights of layer 0", 18),
                "831ce2a2d146b31122afabb5a007cdad");
}

Test(digest, a_token_log_may_be_cut_anywhere)
{
    enum { N = 65 };
    uint32_t token[N];
    struct digest start = digest_bytes("m", 1), whole;

    for (uint32_t i = 0; i < N; i++)
        token[i] = i * 2654435761u;
    whole = digest_tokens(start, token, N);
    for (size_t cut = 0; cut <= N; cut++) {
        struct digest head = digest_tokens(start, token, cut);

        cr_assert(
            digest_equal(digest_tokens(head, token + cut, N - cut), whole));
    }
}

Test(digest, a_link_depends_on_all_that_came_before)
{
    struct digest d = digest_bytes("x", 1), lo = d, hi = d;

    lo.lo ^= 1;
    hi.hi ^= 1;
    cr_assert(
        not(digest_equal(digest_chain(d, "a", 1), digest_chain(lo, "a", 1))));
    cr_assert(
        not(digest_equal(digest_chain(d, "a", 1), digest_chain(hi, "a", 1))));
    cr_assert(
        not(digest_equal(digest_chain(d, "a", 1), digest_chain(d, "b", 1))));
    cr_assert(not(digest_equal(digest_chain(d, "", 0), d)));
}

Test(digest, equal_looks_at_both_halves)
{
    const struct digest d = {1, 2};

    cr_assert(digest_equal(d, (struct digest){1, 2}));
    cr_assert(not(digest_equal(d, (struct digest){1, 3})));
    cr_assert(not(digest_equal(d, (struct digest){3, 2})));
}

Test(digest, text_is_read_back)
{
    struct digest d = {.lo = 0x0123456789abcdef, .hi = 0xfedcba9876543210};
    struct digest got;

    assert_text(d, "fedcba98765432100123456789abcdef");
    cr_assert(digest_parse("fedcba98765432100123456789abcdef", &got));
    cr_assert(digest_equal(got, d));
    cr_assert(digest_parse("FEDCBA98765432100123456789ABCDEF", &got));
    cr_assert(digest_equal(got, d));
}

Test(digest, other_text_is_refused_and_changes_nothing)
{
    static const char *const BAD[] = {
        "",
        "0",
        "fedcba98765432100123456789abcde",
        "fedcba98765432100123456789abcdef0",
        "fedcba9876543210 123456789abcdef",
        "0xdcba98765432100123456789abcdef",
        "gedcba98765432100123456789abcdef",
        "fedcba98765432100123456789abcde/",
    };
    struct digest got = {7, 8};

    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++)
        cr_assert(not(digest_parse(BAD[i], &got)), "%s", BAD[i]);
    cr_assert(digest_equal(got, (struct digest){7, 8}));
}
