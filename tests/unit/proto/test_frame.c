/*
 * The oracle for a frame's bytes is xxhash called directly on a layout written
 * here by hand; for the reader, the bytes themselves. Then damage: every byte
 * flipped, every length cut, and every read past the end.
 */
#include "proto/frame.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define MAX (1u << 16)
#define KIND FRAME_TURN
#define OTHER_KIND FRAME_MANIFEST
#define VERSION 3

static void make(struct writer *writer, const void *payload, size_t n)
{
    size_t begin;

    writer_init(writer, MAX);
    begin = frame_begin(writer, KIND, VERSION);
    writer_bytes(writer, payload, n);
    cr_assert_eq(frame_end(writer, begin), STATUS_OK);
}

Test(frame, has_the_bytes_that_the_header_says)
{
    static const char payload[] = "some payload";
    unsigned char expected[32 + sizeof(payload)] = {
        'G', 'W', 'f', '1', KIND, 0, VERSION, 0, sizeof(payload)};
    unsigned char hashed[16 + sizeof(payload)];
    struct writer writer;
    XXH128_hash_t hash;

    memcpy(expected + 32, payload, sizeof(payload));
    memcpy(hashed, expected, 16);
    memcpy(hashed + 16, payload, sizeof(payload));
    hash = XXH3_128bits(hashed, sizeof(hashed));
    memcpy(expected + 16, &hash.low64, 8);
    memcpy(expected + 24, &hash.high64, 8);
    make(&writer, payload, sizeof(payload));
    cr_assert_eq(writer.n, sizeof(expected));
    cr_assert_arr_eq(writer.bytes, expected, sizeof(expected));
    writer_release(&writer);
}

Test(frame, gives_back_every_type_it_took)
{
    struct digest digest = {0x0123456789abcdef, 0xfedcba9876543210}, back;
    struct writer writer;
    struct reader reader;
    size_t begin;
    float minus_zero;
    char text[8];

    writer_init(&writer, MAX);
    writer_u8(&writer, 9); /* a frame may begin anywhere */
    begin = frame_begin(&writer, KIND, VERSION);
    writer_u8(&writer, 0xfe);
    writer_u16(&writer, 0xfedc);
    writer_u32(&writer, 0xfedcba98);
    writer_u64(&writer, 0xfedcba9876543210);
    writer_f32(&writer, -0.0f);
    writer_digest(&writer, digest);
    writer_text(&writer, "seven77");
    writer_text(&writer, "");
    writer_bytes(&writer, "xyz", 3);
    cr_assert_eq(frame_end(&writer, begin), STATUS_OK);
    cr_assert_eq(
        frame_open(writer.bytes + 1, writer.n - 1, KIND, VERSION, &reader),
        STATUS_OK);
    cr_assert_eq(memcmp(reader.at, "\xfe\xdc\xfe\x98\xba\xdc\xfe", 7), 0);
    cr_assert_eq(reader_u8(&reader), 0xfe);
    cr_assert_eq(reader_u16(&reader), 0xfedc);
    cr_assert_eq(reader_u32(&reader), 0xfedcba98);
    cr_assert_eq(reader_u64(&reader), 0xfedcba9876543210);
    minus_zero = reader_f32(&reader);
    cr_assert_eq(memcmp(&minus_zero, "\0\0\0\x80", 4), 0);
    back = reader_digest(&reader);
    cr_assert(digest_equal(back, digest));
    reader_text(&reader, text, sizeof(text));
    cr_assert_str_eq(text, "seven77");
    reader_text(&reader, text, sizeof(text));
    cr_assert_str_eq(text, "");
    cr_assert_not(reader_is_done(&reader));
    cr_assert_eq(memcmp(reader_bytes(&reader, 3), "xyz", 3), 0);
    cr_assert(reader_is_done(&reader));
    writer_release(&writer);
}

Test(frame, refuses_every_flipped_bit)
{
    struct writer writer;
    struct reader reader = {.left = 77};

    make(&writer, "0123456789", 10);
    for (size_t i = 0; i < writer.n * 8; i++) {
        enum status st;

        writer.bytes[i / 8] ^= (unsigned char)(1u << i % 8);
        st = frame_open(writer.bytes, writer.n, KIND, VERSION, &reader);
        cr_assert_eq(st, STATUS_DATA_LOSS, "bit %zu", i);
        writer.bytes[i / 8] ^= (unsigned char)(1u << i % 8);
    }
    cr_assert_eq(reader.left, 77, "untouched on failure");
    writer_release(&writer);
}

Test(frame, refuses_every_cut_and_what_is_behind)
{
    struct writer writer;
    struct reader reader;

    make(&writer, "0123456789", 10);
    for (size_t n = 0; n < writer.n; n++) {
        /* An exact copy, so that ASan sees a read behind it. */
        unsigned char *copy = malloc(n + 1);

        memcpy(copy + 1, writer.bytes, n);
        cr_assert_eq(frame_open(copy + 1, n, KIND, VERSION, &reader),
                     STATUS_DATA_LOSS, "%zu bytes", n);
        free(copy);
    }
    writer_u8(&writer, 0);
    cr_assert_eq(frame_open(writer.bytes, writer.n, KIND, VERSION, &reader),
                 STATUS_DATA_LOSS);
    writer_release(&writer);
}

Test(frame, refuses_a_length_that_lies_under_a_sound_digest)
{
    unsigned char hashed[16 + 10];
    struct writer writer;
    struct reader reader;
    XXH128_hash_t hash;

    make(&writer, "0123456789", 10);
    writer.bytes[8] = 9;
    memcpy(hashed, writer.bytes, 16);
    memcpy(hashed + 16, "0123456789", 10);
    hash = XXH3_128bits(hashed, sizeof(hashed));
    memcpy(writer.bytes + 16, &hash.low64, 8);
    memcpy(writer.bytes + 24, &hash.high64, 8);
    cr_assert_eq(frame_open(writer.bytes, writer.n, KIND, VERSION, &reader),
                 STATUS_DATA_LOSS);
    writer_release(&writer);
}

Test(frame, of_another_kind_or_version_is_refused_by_name)
{
    struct writer writer;
    struct reader reader;

    make(&writer, "x", 1);
    cr_assert_eq(
        frame_open(writer.bytes, writer.n, OTHER_KIND, VERSION, &reader),
        STATUS_DATA_LOSS);
    cr_assert(strstr(status_reason(), "kind 3, expected 4"));
    cr_assert_eq(frame_open(writer.bytes, writer.n, KIND, VERSION - 1, &reader),
                 STATUS_FAILED_PRECONDITION);
    cr_assert(strstr(status_reason(), "version 3"));
    cr_assert(strstr(status_reason(), "version 2"));
    writer_release(&writer);
}

Test(reader, past_the_end_gives_zeros_and_stays_failed)
{
    for (int type = 0; type < 6; type++) {
        static const size_t size[] = {1, 2, 4, 8, 4, 16};

        for (size_t n = 0; n < size[type]; n++) {
            unsigned char *bytes = malloc(n + 1);
            struct reader reader;
            struct digest zero = {0};

            memset(bytes, 0xff, n + 1);
            reader_init(&reader, bytes + 1, n);
            switch (type) {
            case 0:
                cr_assert_eq(reader_u8(&reader), 0);
                break;
            case 1:
                cr_assert_eq(reader_u16(&reader), 0);
                break;
            case 2:
                cr_assert_eq(reader_u32(&reader), 0);
                break;
            case 3:
                cr_assert_eq(reader_u64(&reader), 0);
                break;
            case 4:
                cr_assert_eq(reader_f32(&reader), 0);
                break;
            case 5:
                zero = reader_digest(&reader);
                cr_assert_eq(zero.hi, 0);
                break;
            }
            cr_assert(reader.is_failed);
            cr_assert_eq(reader_u8(&reader), 0, "nothing more after that");
            cr_assert_null(reader_bytes(&reader, 0));
            cr_assert_not(reader_is_done(&reader));
            free(bytes);
        }
    }
}

Test(reader, refuses_huge_lengths_and_bad_texts)
{
    static const unsigned char too_long[] = {4, 0, 'a', 'b', 'c', 'd'};
    static const unsigned char lies[] = {3, 0, 'a', 'b'};
    static const unsigned char has_nul[] = {3, 0, 'a', 0, 'c'};
    struct reader reader;
    char text[4];

    reader_init(&reader, too_long, sizeof(too_long));
    cr_assert_null(reader_bytes(&reader, SIZE_MAX));
    reader_init(&reader, too_long, sizeof(too_long));
    reader_text(&reader, text, sizeof(text));
    cr_assert(reader.is_failed);
    cr_assert_str_eq(text, "");
    reader_init(&reader, lies, sizeof(lies));
    reader_text(&reader, text, sizeof(text));
    cr_assert(reader.is_failed);
    cr_assert_str_eq(text, "");
    reader_init(&reader, has_nul, sizeof(has_nul));
    reader_text(&reader, text, sizeof(text));
    cr_assert(reader.is_failed);
    cr_assert_str_eq(text, "");
}

Test(writer, stops_at_its_maximum_and_says_so_once)
{
    struct writer writer;
    size_t begin;

    writer_init(&writer, FRAME_HEAD_BYTES + 4);
    begin = frame_begin(&writer, KIND, VERSION);
    writer_u32(&writer, 1);
    cr_assert_eq(frame_end(&writer, begin), STATUS_OK);
    writer_u8(&writer, 1);
    cr_assert(writer.is_failed);
    cr_assert_eq(writer.n, FRAME_HEAD_BYTES + 4);
    cr_assert_eq(frame_end(&writer, begin), STATUS_RESOURCE_EXHAUSTED);
    writer_clear(&writer);
    cr_assert_eq(writer.n, 0);
    begin = frame_begin(&writer, KIND, VERSION);
    cr_assert_eq(frame_end(&writer, begin), STATUS_OK);
    writer_release(&writer);

    writer_init(&writer, 0);
    writer_u8(&writer, 1);
    cr_assert(writer.is_failed);
    writer_release(&writer);
    writer_release(&writer); /* accepts zero */
}
