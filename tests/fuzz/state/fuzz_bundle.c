/*
 * Any bytes as a bundle. The first byte says how: as they are, in pieces of a
 * few sizes; or, since digests keep a fuzzer out, as a list of frames (kind,
 * u32 length, payload) that are sealed up with sound digests, so that every
 * check behind them is reached. Whatever comes, a bundle that is taken to its
 * end has tokens of the vocabulary and a manifest that can be read, and one
 * that is not leaves its log empty when it is trimmed.
 */
#include "state/importer.h"

#include "model/model.h"
#include "state/snapshot_value.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

#define must(claim)                                                            \
    do {                                                                       \
        if (!(claim)) {                                                        \
            fprintf(stderr, "not so: %s (%s)\n", #claim, status_reason());     \
            abort();                                                           \
        }                                                                      \
    } while (0)

static struct model *model;
static struct store *store;
static struct snapshots *snapshots;
static const struct uid log = {1, 2};

static void begin(void)
{
    struct model_options options = {0};

    if (model)
        return;
    must(!backend_find("auto", &options.backend));
    must(!model_load("tests/golden/qwen3_5_text", &options, &model));
    must(!store_open_memory(&store));
    must(!snapshots_open(store, model, &snapshots));
}

/* The list becomes frames; what does not parse ends it. */
static void frame_all(const uint8_t *bytes, size_t n_bytes, struct writer *out)
{
    struct reader reader;

    reader_init(&reader, bytes, n_bytes);
    while (reader.left > 5) {
        enum frame_kind kind = (enum frame_kind)reader_u8(&reader);
        uint32_t n = reader_u32(&reader);
        const void *payload;
        size_t at;

        n = n < reader.left ? n : (uint32_t)reader.left;
        payload = reader_bytes(&reader, n);
        at = frame_begin(out, kind, 1);
        writer_bytes(out, payload, n);
        must(!frame_end(out, at));
    }
}

static enum status visit(void *context, const struct turn *turn)
{
    uint64_t *n_token = context;

    must(turn->position + turn->n_input <= *n_token);
    return STATUS_OK;
}

static void check(struct importer *importer)
{
    const struct ids *tokens = importer_tokens(importer);
    uint64_t n_token = tokens->n;
    struct snapshot_entry entry[SNAPSHOT_KEEP_MAX];
    uint32_t n;

    for (size_t i = 0; i < tokens->n; i++)
        must(tokens->id[i] < model_config(model)->n_vocab);
    must(!importer_each_turn(importer, visit, &n_token));
    must(!snapshot_list(snapshots, log, entry, SNAPSHOT_KEEP_MAX, &n));
    must(n == (importer_entry(importer) != NULL));
}

static void import(const uint8_t *bytes, size_t n_bytes, size_t piece,
                   bool skips_state)
{
    struct import_source source = {.snapshots = snapshots,
                                   .n_vocab = model_config(model)->n_vocab,
                                   .n_context = model_n_context(model),
                                   .log = log,
                                   .skips_state = skips_state};
    struct store_scan *scan;
    struct importer *importer;
    const void *key, *value;
    size_t n_key, n_value;
    enum status st;

    must(!importer_create(&source, &importer));
    st = STATUS_OK;
    for (size_t at = 0, n; !st && at < n_bytes; at += n) {
        n = n_bytes - at < piece ? n_bytes - at : piece;
        st = importer_push(importer, bytes + at, n);
    }
    if (!st)
        st = importer_end(importer);
    if (!st)
        check(importer);
    importer_destroy(importer);
    must(!snapshot_trim(snapshots, log, 0));
    must(!store_scan_open(store, &(struct store_range){"a", 1, "z", 1}, false,
                          &scan));
    must(!store_scan_next(scan, &key, &n_key, &value, &n_value));
    store_scan_close(scan);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    static const size_t piece[] = {1u << 20, 4096, 7, 100000};
    struct writer framed;
    uint8_t how;

    begin();
    if (n_bytes == 0)
        return 0;
    how = bytes[0];
    if (how % 2 == 0) {
        import(bytes + 1, n_bytes - 1, piece[how / 2 % 4], how & 8);
        return 0;
    }
    writer_init(&framed, 2 * n_bytes + 64 * n_bytes);
    frame_all(bytes + 1, n_bytes - 1, &framed);
    import(framed.bytes, framed.n, piece[how / 2 % 4], how & 8);
    writer_release(&framed);
    return 0;
}
