/*
 * Any bytes as a stored row. The first byte chooses the kind, the rest is the
 * payload of a frame with a sound digest. What is accepted must keep every
 * limit, and written again it must be the same bytes.
 */
#include "state/journal_record.h"
#include "state/snapshot_value.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

static void must(bool is_true)
{
    if (!is_true)
        abort();
}

static void check_again(struct writer *again, enum status st,
                        const struct writer *first)
{
    must(!st && again->n == first->n &&
         memcmp(again->bytes, first->bytes, first->n) == 0);
}

static void read_session(const struct writer *row, struct writer *again)
{
    struct session_meta meta;

    if (record_get_session(row->bytes, row->n, &meta))
        return;
    must(meta.n_label <= LABEL_MAX);
    must(memchr(meta.name, 0, sizeof(meta.name)) != NULL);
    check_again(again, record_put_session(again, &meta), row);
}

static void read_tokens(const struct writer *row, struct writer *again)
{
    struct record_tokens tokens;
    uint32_t *copy;

    if (record_get_tokens(row->bytes, row->n, &tokens))
        return;
    copy = malloc(tokens.n_token * sizeof(*copy));
    must(copy != NULL);
    memcpy(copy, tokens.token, tokens.n_token * sizeof(*copy));
    check_again(again,
                record_put_tokens(again, copy, tokens.n_token, tokens.chain),
                row);
    free(copy);
}

static void read_turn(const struct writer *row, struct writer *again)
{
    static struct turn turn;

    if (record_get_turn(row->bytes, row->n, &turn))
        return;
    must(turn.sampling.n_stop <= STOP_MAX);
    must(turn.sampling.n_bias <= LOGIT_BIAS_MAX);
    check_again(again, record_put_turn(again, &turn), row);
}

static void read_manifest(const struct writer *row, struct writer *again)
{
    struct manifest manifest;

    if (manifest_get(row->bytes, row->n, &manifest))
        return;
    must(manifest.n <= SNAPSHOT_KEEP_MAX);
    check_again(again, manifest_put(again, &manifest), row);
}

static void read_value(const struct writer *row, enum frame_kind kind,
                       struct writer *again)
{
    struct value_head head;
    const void *data;
    size_t n_bytes;

    if (value_get(row->bytes, row->n, kind, &head, &data, &n_bytes))
        return;
    check_again(again, value_put(again, kind, &head, data, n_bytes), row);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    enum frame_kind kind;
    uint16_t version;
    struct writer row, again;
    size_t begin;

    if (n_bytes == 0)
        return 0;
    kind = (enum frame_kind)(1 + bytes[0] % 7);
    version = bytes[0] & 64 ? RECORD_VERSION_OWNED : RECORD_VERSION;
    writer_init(&row, 1u << 20);
    writer_init(&again, 1u << 20);
    begin = frame_begin(&row, kind, version);
    writer_bytes(&row, bytes + 1, n_bytes - 1);
    if (!frame_end(&row, begin)) {
        read_session(&row, &again);
        read_tokens(&row, &again);
        read_turn(&row, &again);
        read_manifest(&row, &again);
        if (kind >= FRAME_STATE)
            read_value(&row, kind, &again);
    }
    writer_release(&row);
    writer_release(&again);
    return 0;
}
