/*
 * Sealed streams against someone who knows everything but the key, and can make
 * frames with sound digests. That the bytes are AES-256-GCM under HKDF-SHA256
 * is judged by another implementation in tests/e2e/test_stored.py.
 */
#include "state/seal.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_MAX 8u

struct sealed {
    struct writer frame[PIECE_MAX + 1]; /* head, pieces */
    uint32_t n;
};

static struct seal_key key_of(unsigned char seed)
{
    struct seal_key key;

    memset(key.bytes, seed, sizeof(key.bytes));
    return key;
}

static void make(struct sealed *out, const struct seal_key *key,
                 const size_t *n_bytes, uint32_t n)
{
    struct sealer *sealer;
    unsigned char text[SEAL_PIECE_BYTES];

    memset(out, 0, sizeof(*out));
    for (uint32_t i = 0; i <= n; i++)
        writer_init(&out->frame[i], 1u << 20);
    cr_assert_eq(sealer_create(key, &out->frame[0], &sealer), STATUS_OK);
    for (uint32_t i = 0; i < n; i++) {
        memset(text, 'a' + (int)i, n_bytes[i]);
        cr_assert_eq(sealer_put(sealer, text, n_bytes[i], i + 1 == n,
                                &out->frame[i + 1]),
                     STATUS_OK);
    }
    sealer_destroy(sealer);
    out->n = n;
}

static void release(struct sealed *sealed)
{
    for (uint32_t i = 0; i <= sealed->n; i++)
        writer_release(&sealed->frame[i]);
}

/* Open the pieces in this order; what the first failure was. */
static enum status open_in(const struct sealed *sealed,
                           const struct seal_key *key, const uint32_t *order,
                           uint32_t n, bool *out_is_done)
{
    struct writer plain;
    struct opener *opener;
    enum status st =
        opener_create(key, sealed->frame[0].bytes, sealed->frame[0].n, &opener);

    if (st)
        return st;
    writer_init(&plain, 1u << 20);
    for (uint32_t i = 0; !st && i < n; i++)
        st = opener_take(opener, sealed->frame[order[i]].bytes,
                         sealed->frame[order[i]].n, &plain);
    *out_is_done = opener_is_done(opener);
    writer_release(&plain);
    opener_destroy(opener);
    return st;
}

Test(seal, what_is_sealed_opens)
{
    static const size_t size[] = {0, 1, 15, 16, 17, 4096, SEAL_PIECE_BYTES, 0};
    const struct seal_key key = key_of(1);
    struct sealed sealed;
    struct writer plain;
    struct opener *opener;
    size_t at = 0;

    make(&sealed, &key, size, 8);
    writer_init(&plain, 1u << 20);
    cr_assert_eq(
        opener_create(&key, sealed.frame[0].bytes, sealed.frame[0].n, &opener),
        STATUS_OK);
    for (uint32_t i = 0; i < 8; i++) {
        cr_assert(!opener_is_done(opener));
        cr_assert_eq(opener_take(opener, sealed.frame[i + 1].bytes,
                                 sealed.frame[i + 1].n, &plain),
                     STATUS_OK);
        for (size_t j = 0; j < size[i]; j++)
            cr_assert_eq(plain.bytes[at++], 'a' + (int)i);
    }
    cr_assert_eq(at, plain.n);
    cr_assert(opener_is_done(opener));
    opener_destroy(opener);
    writer_release(&plain);
    release(&sealed);
}

Test(seal, pieces_open_in_their_order_and_to_the_last)
{
    static const size_t size[] = {10, 10, 10, 10};
    static const uint32_t right[] = {1, 2, 3, 4}, swapped[] = {1, 3, 2, 4},
                          twice[] = {1, 2, 2, 3}, skipped[] = {1, 3, 4, 4},
                          more[] = {1, 2, 3, 4, 4};
    const struct seal_key key = key_of(1);
    struct sealed sealed;
    bool is_done;

    make(&sealed, &key, size, 4);
    cr_assert_eq(open_in(&sealed, &key, right, 4, &is_done), STATUS_OK);
    cr_assert(is_done);
    cr_assert_eq(open_in(&sealed, &key, right, 3, &is_done), STATUS_OK);
    cr_assert(!is_done, "the last piece is missing");
    cr_assert_eq(open_in(&sealed, &key, swapped, 4, &is_done),
                 STATUS_DATA_LOSS);
    cr_assert_eq(open_in(&sealed, &key, twice, 4, &is_done), STATUS_DATA_LOSS);
    cr_assert_eq(open_in(&sealed, &key, skipped, 4, &is_done),
                 STATUS_DATA_LOSS);
    cr_assert_eq(open_in(&sealed, &key, more, 5, &is_done), STATUS_DATA_LOSS);
    release(&sealed);
}

/* The same frame with one byte of its payload changed, and a right digest. */
static void forge(struct writer *frame, size_t at, unsigned char with)
{
    struct writer forged;
    size_t begin;

    writer_init(&forged, 1u << 20);
    frame->bytes[FRAME_HEAD_BYTES + at] ^= with;
    begin = frame_begin(&forged, FRAME_SEALED, 1);
    writer_bytes(&forged, frame->bytes + FRAME_HEAD_BYTES,
                 frame->n - FRAME_HEAD_BYTES);
    cr_assert_eq(frame_end(&forged, begin), STATUS_OK);
    writer_release(frame);
    *frame = forged;
}

Test(seal, no_byte_of_a_piece_can_be_changed)
{
    static const size_t size[] = {20, 20};
    static const uint32_t order[] = {1, 2};
    const struct seal_key key = key_of(1);
    bool is_done;

    for (size_t at = 0; at < 8 + 1 + 4 + 20 + 16; at++)
        for (uint32_t piece = 1; piece <= 2; piece++) {
            struct sealed sealed;

            make(&sealed, &key, size, 2);
            forge(&sealed.frame[piece], at, 1);
            cr_assert_eq(open_in(&sealed, &key, order, 2, &is_done),
                         STATUS_DATA_LOSS, "byte %zu of piece %u", at, piece);
            cr_assert_str_eq(status_cause()->reason, "BUNDLE_DAMAGED");
            release(&sealed);
        }
}

/* A piece that is renumbered, or said to be the last, in both places that a
 * forger can reach, fails its tag. */
Test(seal, an_early_end_cannot_be_forged)
{
    static const size_t size[] = {20, 20, 20};
    static const uint32_t order[] = {1, 2};
    const struct seal_key key = key_of(1);
    struct sealed sealed;
    bool is_done;

    make(&sealed, &key, size, 3);
    forge(&sealed.frame[2], 8, 1); /* is last */
    cr_assert_eq(open_in(&sealed, &key, order, 2, &is_done), STATUS_DATA_LOSS);
    forge(&sealed.frame[2], 8, 1);
    forge(&sealed.frame[3], 0, 3); /* number 2 becomes 1 */
    cr_assert_eq(open_in(&sealed, &key, (uint32_t[]){1, 3}, 2, &is_done),
                 STATUS_DATA_LOSS);
    release(&sealed);
}

Test(seal, pieces_of_two_streams_do_not_mix)
{
    static const size_t size[] = {20, 20};
    const struct seal_key key = key_of(1);
    struct sealed a, b;
    struct writer piece;
    bool is_done;

    make(&a, &key, size, 2);
    make(&b, &key, size, 2);
    cr_assert_neq(memcmp(a.frame[1].bytes, b.frame[1].bytes, a.frame[1].n), 0);
    piece = a.frame[2];
    a.frame[2] = b.frame[2];
    b.frame[2] = piece;
    cr_assert_eq(open_in(&a, &key, (uint32_t[]){1, 2}, 2, &is_done),
                 STATUS_DATA_LOSS);
    release(&a);
    release(&b);
}

Test(seal, another_key_is_named_and_opens_nothing)
{
    static const size_t size[] = {20};
    const struct seal_key key = key_of(1), other = key_of(2);
    struct sealed sealed;
    bool is_done;

    make(&sealed, &key, size, 1);
    cr_assert_eq(open_in(&sealed, &other, (uint32_t[]){1}, 1, &is_done),
                 STATUS_FAILED_PRECONDITION);
    cr_assert_str_eq(status_cause()->reason, "KEY_MISMATCH");
    sealed.frame[0].bytes[FRAME_HEAD_BYTES + 30] ^= 1;
    cr_assert_eq(open_in(&sealed, &key, (uint32_t[]){1}, 1, &is_done),
                 STATUS_DATA_LOSS);
    release(&sealed);
}

Test(seal, a_keyring_finds_keys_by_tenant)
{
    static const char text[] =
        "# keys\n\n"
        "ann 00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF\n"
        "- ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    struct keyring *keyring;

    cr_assert_eq(keyring_parse(text, &keyring), STATUS_OK);
    cr_assert_eq(keyring_find(keyring, "ann")->bytes[31], 0xff);
    cr_assert_eq(keyring_find(keyring, "")->bytes[0], 0xff);
    cr_assert_null(keyring_find(keyring, "bob"));
    cr_assert_null(keyring_find(NULL, "ann"));
    keyring_destroy(keyring);
    cr_assert_eq(keyring_parse("", &keyring), STATUS_OK);
    cr_assert_null(keyring_find(keyring, ""));
    keyring_destroy(keyring);
}

Test(seal, a_bad_line_of_keys_is_named)
{
#define KEY "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
    static const char *const bad[] = {
        "ann\n",
        "ann 0011\n",
        "ann " KEY "0\n",
        "ann  " KEY "\n",
        " " KEY "\n",
        "ann " KEY " \n",
        "ann "
        "g0112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n",
        "ann " KEY "\nann " KEY "\n",
        "1234567890123456789012345678901234567890123456789012345678901234 " KEY
        "\n",
    };
    struct keyring *keyring;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        cr_assert_eq(keyring_parse(bad[i], &keyring), STATUS_INVALID_ARGUMENT,
                     "%s", bad[i]);
        cr_assert(strstr(status_reason(), "line "), "%s", status_reason());
    }
}
