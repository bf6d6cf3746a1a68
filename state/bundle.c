#include "state/bundle.h"

#include "state/snapshot_check.h"

enum status bundle_put_head(struct writer *writer,
                            const struct bundle_head *head)
{
    size_t begin = frame_begin(writer, FRAME_BUNDLE, BUNDLE_VERSION);

    writer_digest(writer, head->numerics.fingerprint);
    writer_digest(writer, head->numerics.id);
    writer_u64(writer, head->n_token);
    writer_digest(writer, head->chain);
    writer_u64(writer, head->snapshot);
    return frame_end(writer, begin);
}

enum status bundle_put_end(struct writer *writer, uint64_t n_frame,
                           struct digest digest)
{
    size_t begin = frame_begin(writer, FRAME_BUNDLE_END, BUNDLE_VERSION);

    writer_u64(writer, n_frame);
    writer_digest(writer, digest);
    return frame_end(writer, begin);
}

enum status bundle_get_head(const void *bytes, size_t n_bytes,
                            struct bundle_head *out)
{
    struct bundle_head head;
    struct reader reader;
    enum status st =
        frame_open(bytes, n_bytes, FRAME_BUNDLE, BUNDLE_VERSION, &reader);

    if (st)
        return st;
    head.numerics.fingerprint = reader_digest(&reader);
    head.numerics.id = reader_digest(&reader);
    head.n_token = reader_u64(&reader);
    head.chain = reader_digest(&reader);
    head.snapshot = reader_u64(&reader);
    if (!reader_is_done(&reader) || head.snapshot > head.n_token)
        return status_fail(STATUS_DATA_LOSS,
                           "bundle's head has a field out of range");
    *out = head;
    return STATUS_OK;
}

enum status bundle_get_end(const void *bytes, size_t n_bytes,
                           uint64_t *out_n_frame, struct digest *out_digest)
{
    struct digest digest;
    struct reader reader;
    uint64_t n_frame;
    enum status st =
        frame_open(bytes, n_bytes, FRAME_BUNDLE_END, BUNDLE_VERSION, &reader);

    if (st)
        return st;
    n_frame = reader_u64(&reader);
    digest = reader_digest(&reader);
    if (!reader_is_done(&reader))
        return status_fail(STATUS_DATA_LOSS, "bundle's end has another length");
    *out_n_frame = n_frame;
    *out_digest = digest;
    return STATUS_OK;
}

/* Behind the last layer: the next block, or the next kind. */
static struct bundle_place turn_over(struct bundle_place at, uint64_t n_block)
{
    if (at.letter == 's')
        return (struct bundle_place){.letter = 'o'};
    if (at.letter == 'o' && n_block > 0)
        return (struct bundle_place){.letter = 'b'};
    if (at.letter == 'b' && at.block + 1 < n_block)
        return (struct bundle_place){.letter = 'b', .block = at.block + 1};
    return (struct bundle_place){0};
}

/* `at`, or the first place behind it where there is a value. */
static struct bundle_place settle(const struct snapshots *snapshots,
                                  const struct policy *policy,
                                  uint64_t snapshot, struct bundle_place at)
{
    while (at.letter) {
        const struct value_place place = {.letter = at.letter,
                                          .place = at.letter == 'b' ? at.block
                                                                    : snapshot,
                                          .layer = at.layer,
                                          .policy = policy};

        if (at.layer == snapshots->n_layer)
            at = turn_over(at, snapshot / KV_BLOCK);
        else if (value_bytes(snapshots, &place) > 0)
            break;
        else
            at.layer++;
    }
    return at;
}

struct bundle_place bundle_first(const struct snapshots *snapshots,
                                 const struct policy *policy, uint64_t snapshot)
{
    if (snapshot == 0)
        return (struct bundle_place){0};
    return settle(snapshots, policy, snapshot,
                  (struct bundle_place){.letter = 's'});
}

struct bundle_place bundle_next(const struct snapshots *snapshots,
                                const struct policy *policy, uint64_t snapshot,
                                struct bundle_place at)
{
    at.layer++;
    return settle(snapshots, policy, snapshot, at);
}
