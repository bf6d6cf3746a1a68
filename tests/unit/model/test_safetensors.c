/*
 * Files are built here byte by byte, after the format's description, so the
 * reader is judged by a writer that shares nothing with it. Floats are judged
 * by ldexp() over all 65,536 halves. A refusal must name file, tensor, what was
 * found and what was expected.
 */
#include "model/safetensors.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define must(call) cr_assert(eq(int, (call), STATUS_OK), "%s", status_reason())

static char dir[] = "/tmp/godwit-tensors-XXXXXX";

static void make_dir(void)
{
    cr_assert(mkdtemp(dir) != NULL);
}

static void drop_dir(void)
{
    static const char *const NAME[] = {"model.safetensors", "a.safetensors",
                                       "b.safetensors",
                                       "model.safetensors.index.json"};
    char path[128];

    for (size_t i = 0; i < sizeof(NAME) / sizeof(*NAME); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, NAME[i]);
        (void)unlink(path);
    }
    (void)rmdir(dir);
}

TestSuite(safetensors, .init = make_dir, .fini = drop_dir);

static void write_bytes(const char *name, const void *bytes, size_t n)
{
    char path[128];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    (void)unlink(path); /* truncating would wait for the disk */
    file = fopen(path, "wb");
    cr_assert(file != NULL);
    cr_assert(eq(sz, fwrite(bytes, 1, n, file), n));
    cr_assert(fclose(file) == 0);
}

/* Length, header, data. Gives the file's size. */
static size_t build(const char *header, const void *data, size_t n_data,
                    uint8_t *out)
{
    const size_t n = strlen(header);

    for (size_t i = 0; i < 8; i++)
        out[i] = (uint8_t)(n >> 8 * i);
    memcpy(out + 8, header, n);
    memcpy(out + 8 + n, data, n_data);
    return 8 + n + n_data;
}

static void write_tensors(const char *name, const char *header,
                          const void *data, size_t n_data)
{
    uint8_t *file = malloc(8 + strlen(header) + n_data);

    write_bytes(name, file, build(header, data, n_data, file));
    free(file);
}

static void assert_refused(enum status code, const char *words)
{
    struct safetensors *file = (struct safetensors *)dir; /* any pointer */

    cr_assert(eq(int, safetensors_open(dir, &file), code), "%s: %s", words,
              status_reason());
    cr_assert(strstr(status_reason(), words) != NULL, "'%s' lacks '%s'",
              status_reason(), words);
    cr_assert(file == (struct safetensors *)dir);
}

/* Two tensors, "b" lying first: [2, 2] of F32 and [3] of BF16. The header has
 * odd length, so that data is unaligned. */
static const char HEADER[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"a\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[16,22]},"
    "\"b\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}";
static const uint8_t DATA[22] = {0,    0,    0x80, 0x3f, 0, 0,   0, 0xc0,
                                 0,    0,    0x40, 0,    0, 0,   0, 0x3f,
                                 0x80, 0x3f, 0x20, 0xc1, 0, 0x80};

Test(safetensors, a_file_reads_as_it_was_written)
{
    const uint64_t two[2] = {2, 2}, three[1] = {3};
    const struct tensor *a, *b;
    struct safetensors *file;
    float value[4];

    write_tensors("model.safetensors", HEADER, DATA, sizeof(DATA));
    must(safetensors_open(dir, &file));
    cr_assert(eq(u32, safetensors_count(file), 2));
    cr_assert(eq(str, (char *)safetensors_at(file, 0)->name, "a"));
    cr_assert(eq(str, (char *)safetensors_at(file, 1)->name, "b"));
    must(safetensors_need(file, "a", 1, three, &a));
    must(safetensors_need(file, "b", 2, two, &b));
    cr_assert(a == safetensors_find(file, "a"));
    cr_assert(safetensors_find(file, "c") == NULL);
    cr_assert(safetensors_find(file, "__metadata__") == NULL);
    cr_assert(eq(int, a->type, TENSOR_BF16));
    cr_assert(eq(sz, a->n_bytes, 6));
    cr_assert(eq(u32, b->n_dim, 2));
    cr_assert(memcmp(b->data, DATA, 16) == 0);

    tensor_read_f32(b, 0, 4, value);
    cr_assert(eq(flt, value[0], 1.0f));
    cr_assert(eq(flt, value[1], -2.0f));
    cr_assert(value[2] == 0x1p-127f); /* bits 0x00400000 */
    cr_assert(eq(flt, value[3], 0.5f));
    tensor_read_f32(a, 1, 2, value);
    cr_assert(eq(flt, value[0], -10.0f));
    cr_assert(value[1] == 0.0f && signbit(value[1]));
    tensor_read_f32(a, 3, 0, value);
    safetensors_close(file);

    /* The same by the file's own path. */
    {
        char path[128];

        snprintf(path, sizeof(path), "%s/model.safetensors", dir);
        must(safetensors_open(path, &file));
        cr_assert(eq(u32, safetensors_count(file), 2));
        safetensors_close(file);
    }
}

Test(safetensors, hugging_faces_files_open)
{
    const uint64_t shape[2] = {512, 64};
    const struct tensor *tensor;
    struct safetensors *file;

    must(safetensors_open("tests/golden/llama", &file));
    cr_assert(eq(u32, safetensors_count(file), 30));
    must(
        safetensors_need(file, "model.embed_tokens.weight", 2, shape, &tensor));
    cr_assert(eq(int, tensor->type, TENSOR_F32));
    safetensors_close(file);
    must(safetensors_open("tests/golden/llama/golden.safetensors", &file));
    cr_assert(safetensors_find(file, "input_ids") != NULL);
    safetensors_close(file);
}

Test(safetensors, what_is_needed_is_named)
{
    const uint64_t four[2] = {4, 4}, three[1] = {3}, one[1] = {1};
    const struct tensor *out = NULL;
    struct safetensors *file;

    write_tensors("model.safetensors",
                  "{\"i\":{\"dtype\":\"I64\",\"shape\":[1],"
                  "\"data_offsets\":[0,8]},"
                  "\"a\":{\"dtype\":\"F16\",\"shape\":[3],"
                  "\"data_offsets\":[8,14]}}",
                  DATA, 14);
    must(safetensors_open(dir, &file));
    cr_assert(
        eq(int, safetensors_need(file, "x", 2, four, &out), STATUS_NOT_FOUND));
    cr_assert(eq(str, (char *)status_reason(),
                 "model.safetensors: no tensor 'x', expected [4, 4]"));
    cr_assert(eq(int, safetensors_need(file, "a", 2, four, &out),
                 STATUS_INVALID_ARGUMENT));
    cr_assert(eq(str, (char *)status_reason(),
                 "model.safetensors: tensor 'a' is F16 [3], expected F32, F16 "
                 "or BF16 [4, 4]"));
    cr_assert(eq(int, safetensors_need(file, "a", 1, one, &out),
                 STATUS_INVALID_ARGUMENT));
    cr_assert(eq(int, safetensors_need(file, "i", 1, one, &out),
                 STATUS_INVALID_ARGUMENT));
    cr_assert(strstr(status_reason(), "'i' is I64 [1]") != NULL);
    cr_assert(out == NULL);
    must(safetensors_need(file, "a", 1, three, &out));
    safetensors_close(file);
}

/* A half by the definition of IEEE 754, without a bit trick. */
static double half_value(unsigned bits)
{
    const double sign = bits >> 15 ? -1.0 : 1.0;
    const int exponent = (int)(bits >> 10 & 31);
    const double mantissa = bits & 1023;

    if (exponent == 31)
        return mantissa != 0.0 ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0)
        return sign * ldexp(mantissa, -24);
    return sign * ldexp(1024.0 + mantissa, exponent - 25);
}

static double bf16_value(unsigned bits)
{
    const double sign = bits >> 15 ? -1.0 : 1.0;
    const int exponent = (int)(bits >> 7 & 255);
    const double mantissa = bits & 127;

    if (exponent == 255)
        return mantissa != 0.0 ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0)
        return sign * ldexp(mantissa, -133);
    return sign * ldexp(128.0 + mantissa, exponent - 134);
}

/* q [130, 200] behind its scales [2, 2], of which (1, 0) is 0.5. */
#define F8_SCALES                                                              \
    "\"w_scale_inv\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[0," \
    "8]},"
#define F8_WEIGHTS                                                             \
    "\"w\":{\"dtype\":\"F8_E4M3\",\"shape\":[130,200],"                        \
    "\"data_offsets\":[8,26008]}}"

Test(safetensors, eights_are_their_blocks_scale_times_what_they_stand_for)
{
    static const uint16_t SCALE[4] = {0x3f80, 0x4000, 0x3f00, 0xc080};
    static const float IS[4] = {1.0f, 2.0f, 0.5f, -4.0f};
    const uint64_t dim[2] = {130, 200};
    uint8_t *data = calloc(1, 26008);
    const struct tensor *w;
    struct safetensors *file;
    float value[200];

    memcpy(data, SCALE, sizeof(SCALE));
    for (size_t i = 0; i < 26000; i++)
        data[8 + i] = (uint8_t)(i % 3 == 0 ? 0x38 : i % 3 == 1 ? 0xba : 0x01);
    data[8 + 199] = 0xff;
    write_tensors("model.safetensors", "{" F8_SCALES F8_WEIGHTS, data, 26008);
    must(safetensors_open(dir, &file));
    must(safetensors_need(file, "w", 2, dim, &w));
    for (size_t r = 0; r < 130; r++) {
        tensor_read_f32(w, r * 200, 200, value);
        for (size_t c = r == 0 ? 1 : 0; c < (r == 0 ? 199 : 200); c++) {
            const size_t i = (r * 200 + c) % 3;
            const float q = i == 0 ? 1.0f : i == 1 ? -1.25f : 0x1p-9f;

            cr_assert(eq(flt, value[c], q * IS[r / 128 * 2 + c / 128]));
        }
    }
    tensor_read_f32(w, 199, 1, value);
    cr_assert(isnan(value[0]));
    tensor_read_f32(w, 127, 2, value); /* over the edge of a block */
    cr_assert(eq(flt, value[1], 2.0f * (128 % 3 == 2 ? 0x1p-9f : 0.0f)));
    cr_assert(tensor_is_scale("w_scale_inv") && !tensor_is_scale("w"));
    safetensors_close(file);
    free(data);
}

Test(safetensors, eights_without_their_scales_are_refused)
{
    static const char *const SCALES[] = {
        "",
        "\"w_scale_inv\":{\"dtype\":\"BF16\",\"shape\":[4],"
        "\"data_offsets\":[0,8]},",
        "\"w_scale_inv\":{\"dtype\":\"I32\",\"shape\":[2],"
        "\"data_offsets\":[0,8]},"};
    const uint64_t dim[2] = {130, 200};
    uint8_t *data = calloc(1, 26008);

    for (size_t i = 0; i < 3; i++) {
        const struct tensor *w;
        struct safetensors *file;
        char header[512];

        snprintf(header, sizeof(header), "{%s%s", SCALES[i],
                 i ? F8_WEIGHTS
                   : "\"w\":{\"dtype\":\"F8_E4M3\",\"shape\":[130,200],"
                     "\"data_offsets\":[0,26000]}}");
        write_tensors("model.safetensors", header, data, i ? 26008 : 26000);
        must(safetensors_open(dir, &file));
        cr_assert(eq(int, safetensors_need(file, "w", 2, dim, &w),
                     STATUS_INVALID_ARGUMENT));
        cr_assert(eq(str, (char *)status_reason(),
                     "model.safetensors: tensor 'w' is F8_E4M3 without a "
                     "tensor 'w_scale_inv' of one float for each 128 by 128 "
                     "of it"));
        safetensors_close(file);
    }
    free(data);
}

Test(safetensors, every_half_becomes_its_float)
{
    static uint8_t data[131072];
    static float value[65536];

    for (unsigned i = 0; i < 65536; i++) {
        data[2 * i] = (uint8_t)i;
        data[2 * i + 1] = (uint8_t)(i >> 8);
    }
    for (int is_bf16 = 0; is_bf16 < 2; is_bf16++) {
        const struct tensor tensor = {
            .type = is_bf16 ? TENSOR_BF16 : TENSOR_F16,
            .data = data,
            .n_bytes = sizeof(data),
        };

        tensor_read_f32(&tensor, 0, 65536, value);
        for (unsigned i = 0; i < 65536; i++) {
            const double want = is_bf16 ? bf16_value(i) : half_value(i);

            if (isnan(want))
                cr_assert(isnan(value[i]), "bits %04x", i);
            else
                cr_assert(value[i] == (float)want &&
                              !signbit(value[i]) == !signbit(want),
                          "bits %04x", i);
        }
    }
}

static const struct {
    const char *header;
    size_t n_data;
    const char *words;
} REFUSED[] = {
    {"", 0, "header is no JSON object"},
    {" {}", 0, "header is no JSON object, expected '{' at byte 8"},
    {"[]", 0, "header is no JSON object"},
    {"{\"a\":", 0, "model.safetensors line 1"},
    {"{\"a\":{},\"a\":{}}", 0, "duplicate"},
    {"{\"a\":{}}", 0, "dtype of 'a' is 'missing'"},
    {"{\"a\":7}", 0, "dtype of 'a' is 'missing'"},
    {"{\"a\":{\"dtype\":\"F99\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     "dtype of 'a' is 'F99', expected F32"},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "shape of 'a'"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],"
     "\"data_offsets\":[0,4]}}",
     4, "shape of 'a' has 9 dimensions, expected a list of 0 to 8"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4,
     "shape of 'a' has an entry that is no size"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4,
     "shape of 'a' has an entry that is no size"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],"
     "\"data_offsets\":[0,0]}}",
     0, "shape of 'a' overflows"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1152921504606846976],"
     "\"data_offsets\":[0,0]}}",
     0, "shape of 'a' overflows"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],"
     "\"data_offsets\":[0,4]}}",
     4, "model.safetensors line 1"},
    {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1,
     "ends inside a byte"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4,
     "data_offsets of 'a' are no range"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4,
     "data_offsets of 'a' are no range"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4,
     "data_offsets of 'a' are no range"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4,
     "data_offsets of 'a' are no range"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 4,
     "'a' ends at byte 8, expected at most the file's 4 bytes"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],"
     "\"data_offsets\":[9223372036854775803,9223372036854775807]}}",
     4, "'a' ends at byte 9223372036854775807"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4,
     "'a' has 4 bytes, expected 8 by shape and type"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
     "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[2,6]}}",
     6, "'b' begins at byte 2 and overlaps another tensor, expected 4"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
     "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
     4, "overlaps another tensor"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8,
     "'a' begins at byte 4 and leaves a hole, expected 0"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 5,
     "data has 5 bytes, expected 4"},
};

Test(safetensors, every_hostile_header_is_refused)
{
    for (size_t i = 0; i < sizeof(REFUSED) / sizeof(*REFUSED); i++) {
        write_tensors("model.safetensors", REFUSED[i].header, DATA,
                      REFUSED[i].n_data);
        assert_refused(STATUS_INVALID_ARGUMENT, REFUSED[i].words);
        cr_assert(strstr(status_reason(), "model.safetensors") != NULL);
    }
}

Test(safetensors, empty_tensors_and_empty_files_of_tensors_open)
{
    struct safetensors *file;

    write_tensors("model.safetensors",
                  "{\"a\":{\"dtype\":\"F32\",\"shape\":[0,7],"
                  "\"data_offsets\":[0,0]},"
                  "\"s\":{\"dtype\":\"F32\",\"shape\":[],"
                  "\"data_offsets\":[0,4]}}   ",
                  DATA, 4);
    must(safetensors_open(dir, &file));
    cr_assert(eq(u32, safetensors_count(file), 2));
    cr_assert(eq(sz, safetensors_find(file, "a")->n_bytes, 0));
    cr_assert(eq(u32, safetensors_find(file, "s")->n_dim, 0));
    safetensors_close(file);
    write_tensors("model.safetensors", "{}", DATA, 0);
    must(safetensors_open(dir, &file));
    cr_assert(eq(u32, safetensors_count(file), 0));
    cr_assert(safetensors_find(file, "a") == NULL);
    (void)safetensors_digest(file);
    safetensors_close(file);
    safetensors_close(NULL);
}

Test(safetensors, a_false_header_length_is_refused)
{
    uint8_t bytes[512] = {0};

    bytes[3] = 0x20; /* 512 MiB */
    write_bytes("model.safetensors", bytes, 64);
    assert_refused(STATUS_INVALID_ARGUMENT,
                   "header has 536870912 bytes, limit 104857600");
    memset(bytes, 0xff, 8);
    write_bytes("model.safetensors", bytes, 64);
    assert_refused(STATUS_INVALID_ARGUMENT, "limit 104857600");
    memset(bytes, 0, 8);
    bytes[0] = 57;
    write_bytes("model.safetensors", bytes, 64);
    assert_refused(STATUS_INVALID_ARGUMENT,
                   "header has 57 bytes, the file 64, expected at least 65");
}

Test(safetensors, every_shorter_file_is_refused)
{
    uint8_t bytes[512];
    const size_t n = build(HEADER, DATA, sizeof(DATA), bytes);

    for (size_t length = 0; length < n; length++) {
        write_bytes("model.safetensors", bytes, length);
        assert_refused(STATUS_INVALID_ARGUMENT, "model.safetensors");
    }
}

/* What opens in spite of flipped bits must still lie inside the file. */
Test(safetensors, flipped_bits_never_reach_outside_the_file)
{
    uint8_t bytes[512], bad[512];
    const size_t n = build(HEADER, DATA, sizeof(DATA), bytes);
    uint32_t seed = 20261122, n_open = 0;

    for (unsigned round = 0; round < 3000; round++) {
        struct safetensors *file;

        memcpy(bad, bytes, n);
        for (unsigned flip = 0; flip <= round % 3; flip++) {
            seed = seed * 1664525u + 1013904223u;
            bad[(seed >> 8) % (n - sizeof(DATA))] ^=
                (uint8_t)(1u << (seed >> 4 & 7));
        }
        write_bytes("model.safetensors", bad, n);
        if (safetensors_open(dir, &file))
            continue;
        n_open++;
        for (uint32_t i = 0; i < safetensors_count(file); i++) {
            const struct tensor *tensor = safetensors_at(file, i);
            float value[64];

            cr_assert(tensor->n_bytes <= sizeof(DATA));
            if (tensor->type <= TENSOR_BF16)
                tensor_read_f32(tensor, 0,
                                tensor->n_bytes /
                                    (tensor->type == TENSOR_F32 ? 4 : 2),
                                value);
        }
        (void)safetensors_digest(file);
        safetensors_close(file);
    }
    cr_assert(n_open > 0); /* some flips only rename */
}

#define ONE(name, begin, end)                                                  \
    "\"" name "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[" begin   \
    "," end "]}"

static void write_shards(const char *map)
{
    char index[512];

    write_tensors("a.safetensors", "{" ONE("x", "0", "4") "}", "1234", 4);
    write_tensors("b.safetensors",
                  "{" ONE("y", "0", "4") "," ONE("w", "4", "8") "}", "5678abcd",
                  8);
    snprintf(index, sizeof(index), "{\"metadata\":{},\"weight_map\":%s}", map);
    write_bytes("model.safetensors.index.json", index, strlen(index));
}

#define MAP                                                                    \
    "{\"x\":\"a.safetensors\",\"y\":\"b.safetensors\","                        \
    "\"w\":\"b.safetensors\"}"

Test(safetensors, shards_are_one_model)
{
    struct safetensors *shards, *single;

    write_shards(MAP);
    must(safetensors_open(dir, &shards));
    cr_assert(eq(u32, safetensors_count(shards), 3));
    cr_assert(memcmp(safetensors_find(shards, "x")->data, "1234", 4) == 0);
    cr_assert(memcmp(safetensors_find(shards, "w")->data, "abcd", 4) == 0);
    cr_assert(memcmp(safetensors_find(shards, "y")->data, "5678", 4) == 0);

    write_tensors("model.safetensors",
                  "{" ONE("y", "8", "12") "," ONE("x", "0", "4") "," ONE(
                      "w", "4", "8") "}",
                  "1234abcd5678", 12);
    must(safetensors_open(dir, &single));
    cr_assert(
        digest_equal(safetensors_digest(shards), safetensors_digest(single)));
    safetensors_close(single);
    safetensors_close(shards);
}

Test(safetensors, a_wrong_index_is_refused)
{
    static const struct {
        const char *map, *words;
        enum status code;
    } ROW[] = {
        {"[]", "weight_map is missing", STATUS_INVALID_ARGUMENT},
        {"{\"x\":\"/dev/zero\"}", "file of 'x' is '/dev/zero', expected the",
         STATUS_INVALID_ARGUMENT},
        {"{\"x\":\"../a.safetensors\"}", "file of 'x'",
         STATUS_INVALID_ARGUMENT},
        {"{\"x\":\"\"}", "file of 'x'", STATUS_INVALID_ARGUMENT},
        {"{\"x\":1}", "file of 'x' is 'no string'", STATUS_INVALID_ARGUMENT},
        {"{\"x\":\"..\"}", "is no regular file", STATUS_INVALID_ARGUMENT},
        {"{\"x\":\"c.safetensors\"}", "c.safetensors", STATUS_NOT_FOUND},
        {"{\"x\":\"b.safetensors\"}",
         "tensor 'x' is not in b.safetensors, expected there",
         STATUS_INVALID_ARGUMENT},
        {"{\"x\":\"b.safetensors\",\"y\":\"a.safetensors\"}", "is not in",
         STATUS_INVALID_ARGUMENT},
    };

    for (size_t i = 0; i < sizeof(ROW) / sizeof(*ROW); i++) {
        write_shards(ROW[i].map);
        assert_refused(ROW[i].code, ROW[i].words);
    }
    write_shards(MAP);
    write_tensors("a.safetensors", "{" ONE("y", "0", "4") "}", "1234", 4);
    assert_refused(STATUS_INVALID_ARGUMENT, "tensor 'y' is also in");
    write_shards(MAP);
    write_bytes("b.safetensors", "12345678{", 9);
    assert_refused(STATUS_INVALID_ARGUMENT, "b.safetensors");
    write_bytes("model.safetensors.index.json", "{", 1);
    assert_refused(STATUS_INVALID_ARGUMENT, "index.json line 1");
}

Test(safetensors, too_many_shards_are_refused)
{
    const size_t room = 64u * (SAFETENSORS_SHARD_MAX + 2);
    char *map = malloc(room), *index = malloc(room + 64);
    size_t n = 1;

    strcpy(map, "{");
    for (unsigned i = 0; i <= SAFETENSORS_SHARD_MAX; i++)
        n += (size_t)snprintf(map + n, room - n, "%s\"t%u\":\"%u.st\"",
                              i ? "," : "", i, i);
    strcpy(map + n, "}");
    snprintf(index, room + 64, "{\"weight_map\":%s}", map);
    write_bytes("model.safetensors.index.json", index, strlen(index));
    assert_refused(STATUS_INVALID_ARGUMENT, "more than 1024 files, limit 1024");
    free(map);
    free(index);
}

Test(safetensors, what_is_not_there_is_not_found)
{
    struct safetensors *file = NULL;
    char path[128];

    assert_refused(STATUS_NOT_FOUND, "neither model.safetensors nor");
    cr_assert(eq(int, safetensors_open("/nonexistent/x.safetensors", &file),
                 STATUS_NOT_FOUND));
    cr_assert(
        eq(int, safetensors_open("/nonexistent", &file), STATUS_NOT_FOUND));
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    cr_assert(mkdir(path, 0700) == 0);
    assert_refused(STATUS_INVALID_ARGUMENT, "no regular file");
    cr_assert(rmdir(path) == 0);
    if (geteuid() == 0)
        return; /* root may read everything */
    write_bytes("model.safetensors", "x", 1);
    cr_assert(chmod(path, 0) == 0);
    assert_refused(STATUS_PERMISSION_DENIED, "may not be read");
}

static struct digest digest_of(const char *header, const char *data, size_t n)
{
    struct safetensors *file;
    struct digest digest;

    write_tensors("model.safetensors", header, data, n);
    must(safetensors_open(dir, &file));
    digest = safetensors_digest(file);
    safetensors_close(file);
    return digest;
}

#define HALF(name, type, shape)                                                \
    "{\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape                   \
    ",\"data_offsets\":[0,4]}}"

Test(safetensors, the_digest_sees_names_types_shapes_and_bytes)
{
    const struct digest is = digest_of(HALF("a", "F16", "[2]"), "1234", 4);

    cr_assert(
        digest_equal(is, digest_of(HALF("a", "F16", "[2]") "   ", "1234", 4)));
    cr_assert(
        not(digest_equal(is, digest_of(HALF("b", "F16", "[2]"), "1234", 4))));
    cr_assert(
        not(digest_equal(is, digest_of(HALF("a", "BF16", "[2]"), "1234", 4))));
    cr_assert(
        not(digest_equal(is, digest_of(HALF("a", "F16", "[1,2]"), "1234", 4))));
    cr_assert(
        not(digest_equal(is, digest_of(HALF("a", "F16", "[2]"), "1235", 4))));
    /* Two types that our enum cannot tell apart. */
    cr_assert(not(digest_equal(digest_of(HALF("a", "I8", "[4]"), "1234", 4),
                               digest_of(HALF("a", "U8", "[4]"), "1234", 4))));
}
