#include "state/journal_record.h"

#include "model/config.h"
#include "state/lineage.h"

#include <assert.h>
#include <stdlib.h>

static enum status bad_field(const char *row)
{
    return status_fail(STATUS_DATA_LOSS, "%s record has a field out of range",
                       row);
}

/* Neither forked nor rewound: such a record has no lineage. */
static bool is_plain(const struct session_meta *meta)
{
    return meta->path.n == 1 && uid_equal(meta->path.piece[0].log, meta->uid) &&
           meta->parent_name[0] == 0;
}

static void put_uid(struct writer *writer, struct uid uid)
{
    writer_u64(writer, uid.hi);
    writer_u64(writer, uid.lo);
}

static struct uid get_uid(struct reader *reader)
{
    struct uid uid = {.hi = reader_u64(reader)};

    uid.lo = reader_u64(reader);
    return uid;
}

static void put_lineage(struct writer *writer, const struct session_meta *meta)
{
    put_uid(writer, meta->parent);
    writer_text(writer, meta->parent_name);
    writer_u64(writer, meta->fork_position);
    writer_u8(writer, (uint8_t)meta->path.n);
    for (uint32_t i = 0; i < meta->path.n; i++) {
        put_uid(writer, meta->path.piece[i].log);
        writer_u64(writer, meta->path.piece[i].end);
    }
}

/* False when a field is out of its range. */
static bool get_lineage(struct reader *reader, struct session_meta *meta)
{
    meta->parent = get_uid(reader);
    reader_text(reader, meta->parent_name, sizeof(meta->parent_name));
    meta->fork_position = reader_u64(reader);
    meta->path.n = reader_u8(reader);
    if (meta->path.n > LOG_PATH_MAX)
        return false;
    for (uint32_t i = 0; i < meta->path.n; i++) {
        meta->path.piece[i].log = get_uid(reader);
        meta->path.piece[i].end = reader_u64(reader);
    }
    return log_path_is_sound(&meta->path) && !is_plain(meta);
}

static bool is_owned(const struct session_meta *meta)
{
    return meta->tenant[0] || meta->is_pinned;
}

static uint16_t version_of(const struct session_meta *meta)
{
    if (meta->policy.kind != POLICY_FULL)
        return RECORD_VERSION_POLICY;
    return is_owned(meta) ? RECORD_VERSION_OWNED : RECORD_VERSION;
}

static void put_policy(struct writer *writer, const struct policy *policy)
{
    char text[POLICY_TEXT_SIZE];

    policy_format(policy, text);
    writer_text(writer, text);
}

/* False when there is no such policy, or it is full, which has no record. */
static bool get_policy(struct reader *reader, struct policy *out)
{
    char text[POLICY_TEXT_SIZE];

    reader_text(reader, text, sizeof(text));
    return !reader->is_failed && !policy_parse(text, out) &&
           out->kind != POLICY_FULL;
}

enum status record_put_session(struct writer *writer,
                               const struct session_meta *meta)
{
    const uint16_t version = version_of(meta);
    size_t begin = frame_begin(writer, FRAME_SESSION, version);

    assert(meta->n_label <= LABEL_MAX && log_path_is_sound(&meta->path));
    if (version >= RECORD_VERSION_OWNED) {
        writer_text(writer, meta->tenant);
        writer_u8(writer, meta->is_pinned);
    }
    if (version >= RECORD_VERSION_POLICY)
        put_policy(writer, &meta->policy);
    put_uid(writer, meta->uid);
    writer_text(writer, meta->name);
    writer_u64(writer, meta->create_ms);
    writer_u64(writer, meta->update_ms);
    writer_u64(writer, meta->expire_ms);
    writer_u8(writer, (uint8_t)meta->durability);
    writer_u8(writer, (uint8_t)meta->n_label);
    for (uint32_t i = 0; i < meta->n_label; i++) {
        writer_text(writer, meta->label[i].key);
        writer_text(writer, meta->label[i].value);
    }
    if (!is_plain(meta))
        put_lineage(writer, meta);
    return frame_end(writer, begin);
}

/* False when a field is out of its range. */
static bool get_owner(struct reader *reader, struct session_meta *meta)
{
    unsigned is_pinned;

    reader_text(reader, meta->tenant, sizeof(meta->tenant));
    is_pinned = reader_u8(reader);
    meta->is_pinned = is_pinned == 1;
    return !reader->is_failed && is_pinned <= 1;
}

/* Of any version; what only the later ones have is read. Such a record is
 * refused when it had no need to be. */
static enum status open_session(const void *bytes, size_t n_bytes,
                                struct reader *out, struct session_meta *meta)
{
    enum status st =
        frame_open(bytes, n_bytes, FRAME_SESSION, RECORD_VERSION, out);

    if (st != STATUS_FAILED_PRECONDITION)
        return st;
    st = frame_open(bytes, n_bytes, FRAME_SESSION, RECORD_VERSION_OWNED, out);
    if (!st)
        return get_owner(out, meta) && is_owned(meta) ? STATUS_OK
                                                      : bad_field("session");
    if (st != STATUS_FAILED_PRECONDITION)
        return st;
    st = frame_open(bytes, n_bytes, FRAME_SESSION, RECORD_VERSION_POLICY, out);
    if (!st && !(get_owner(out, meta) && get_policy(out, &meta->policy)))
        st = bad_field("session");
    return st;
}

enum status record_get_session(const void *bytes, size_t n_bytes,
                               struct session_meta *out)
{
    struct session_meta meta = {0};
    struct reader reader;
    unsigned durability;
    enum status st = open_session(bytes, n_bytes, &reader, &meta);

    if (st)
        return st;
    meta.uid = get_uid(&reader);
    meta.path = log_path_alone(meta.uid);
    reader_text(&reader, meta.name, sizeof(meta.name));
    meta.create_ms = reader_u64(&reader);
    meta.update_ms = reader_u64(&reader);
    meta.expire_ms = reader_u64(&reader);
    durability = reader_u8(&reader);
    meta.n_label = reader_u8(&reader);
    if (durability > DURABILITY_LOCAL || meta.n_label > LABEL_MAX)
        return bad_field("session");
    meta.durability = (enum durability)durability;
    for (uint32_t i = 0; i < meta.n_label; i++) {
        reader_text(&reader, meta.label[i].key, sizeof(meta.label[i].key));
        reader_text(&reader, meta.label[i].value, sizeof(meta.label[i].value));
    }
    if (!reader_is_done(&reader) && !get_lineage(&reader, &meta))
        return bad_field("session");
    if (!reader_is_done(&reader) || meta.name[0] == 0)
        return bad_field("session");
    *out = meta;
    return STATUS_OK;
}

enum status record_put_tokens(struct writer *writer, const uint32_t *token,
                              uint32_t n_token, struct digest chain)
{
    size_t begin = frame_begin(writer, FRAME_TOKENS, RECORD_VERSION);

    assert(n_token > 0 && n_token <= RECORD_TOKEN_MAX);
    writer_digest(writer, chain);
    writer_u32(writer, n_token);
    writer_bytes(writer, token, n_token * sizeof(*token));
    return frame_end(writer, begin);
}

enum status record_get_tokens(const void *bytes, size_t n_bytes,
                              struct record_tokens *out)
{
    struct record_tokens tokens;
    struct reader reader;
    enum status st =
        frame_open(bytes, n_bytes, FRAME_TOKENS, RECORD_VERSION, &reader);

    if (st)
        return st;
    tokens.chain = reader_digest(&reader);
    tokens.n_token = reader_u32(&reader);
    if (tokens.n_token == 0 || tokens.n_token > RECORD_TOKEN_MAX)
        return bad_field("token");
    tokens.token = reader_bytes(&reader, tokens.n_token * sizeof(uint32_t));
    if (!reader_is_done(&reader))
        return bad_field("token");
    *out = tokens;
    return STATUS_OK;
}

static void put_sampling(struct writer *writer, const struct sampling *sampling)
{
    assert(sampling->n_stop <= STOP_MAX && sampling->n_stop_id <= STOP_ID_MAX &&
           sampling->n_bias <= LOGIT_BIAS_MAX);
    writer_f32(writer, sampling->temperature);
    writer_f32(writer, sampling->top_p);
    writer_f32(writer, sampling->min_p);
    writer_u32(writer, (uint32_t)sampling->top_k);
    writer_f32(writer, sampling->repetition_penalty);
    writer_f32(writer, sampling->presence_penalty);
    writer_f32(writer, sampling->frequency_penalty);
    writer_u32(writer, sampling->max_tokens);
    writer_u32(writer, sampling->min_tokens);
    writer_u64(writer, sampling->seed);
    writer_u32(writer, (uint32_t)sampling->n_logprob);
    writer_u8(writer, sampling->ignore_eos);
    writer_u8(writer, sampling->skip_special);
    writer_u16(writer, (uint16_t)sampling->n_stop);
    writer_u16(writer, (uint16_t)sampling->n_stop_id);
    writer_u16(writer, (uint16_t)sampling->n_bias);
    for (uint32_t i = 0; i < sampling->n_stop; i++)
        writer_text(writer, sampling->stop[i]);
    for (uint32_t i = 0; i < sampling->n_stop_id; i++)
        writer_u32(writer, sampling->stop_id[i]);
    for (uint32_t i = 0; i < sampling->n_bias; i++) {
        writer_u32(writer, sampling->bias[i].token);
        writer_f32(writer, sampling->bias[i].bias);
    }
}

/* False when a count passes its limit; the reader remembers short bytes. */
static bool get_sampling(struct reader *reader, struct sampling *out)
{
    unsigned ignore_eos, skip_special;

    out->temperature = reader_f32(reader);
    out->top_p = reader_f32(reader);
    out->min_p = reader_f32(reader);
    out->top_k = (int32_t)reader_u32(reader);
    out->repetition_penalty = reader_f32(reader);
    out->presence_penalty = reader_f32(reader);
    out->frequency_penalty = reader_f32(reader);
    out->max_tokens = reader_u32(reader);
    out->min_tokens = reader_u32(reader);
    out->seed = reader_u64(reader);
    out->n_logprob = (int32_t)reader_u32(reader);
    ignore_eos = reader_u8(reader);
    skip_special = reader_u8(reader);
    out->n_stop = reader_u16(reader);
    out->n_stop_id = reader_u16(reader);
    out->n_bias = reader_u16(reader);
    if (ignore_eos > 1 || skip_special > 1 || out->n_logprob < -1 ||
        out->n_logprob > (int32_t)LOGPROBS_MAX || out->n_stop > STOP_MAX ||
        out->n_stop_id > STOP_ID_MAX || out->n_bias > LOGIT_BIAS_MAX)
        return false;
    out->ignore_eos = ignore_eos;
    out->skip_special = skip_special;
    for (uint32_t i = 0; i < out->n_stop; i++)
        reader_text(reader, out->stop[i], sizeof(out->stop[i]));
    for (uint32_t i = 0; i < out->n_stop_id; i++)
        out->stop_id[i] = reader_u32(reader);
    for (uint32_t i = 0; i < out->n_bias; i++) {
        out->bias[i].token = reader_u32(reader);
        out->bias[i].bias = reader_f32(reader);
    }
    return true;
}

enum status record_put_turn(struct writer *writer, const struct turn *turn)
{
    const bool has_excerpt = turn->excerpt.n_keep > 0;
    size_t begin =
        frame_begin(writer, FRAME_TURN,
                    has_excerpt ? RECORD_VERSION_EXCERPT : RECORD_VERSION);

    if (has_excerpt) {
        writer_u32(writer, turn->excerpt.n_keep);
        writer_u32(writer, turn->excerpt.layer);
        writer_u32(writer, turn->excerpt.n_pool);
    }
    writer_u64(writer, turn->position);
    writer_u64(writer, turn->n_input);
    writer_text(writer, turn->request_id);
    writer_digest(writer, turn->input);
    writer_u8(writer, (uint8_t)turn->finish);
    writer_u8(writer, turn->is_append);
    put_sampling(writer, &turn->sampling);
    return frame_end(writer, begin);
}

/* Of either version. */
static enum status open_turn(const void *bytes, size_t n_bytes,
                             struct reader *out, struct excerpt *excerpt)
{
    enum status st =
        frame_open(bytes, n_bytes, FRAME_TURN, RECORD_VERSION, out);

    if (st != STATUS_FAILED_PRECONDITION)
        return st;
    st = frame_open(bytes, n_bytes, FRAME_TURN, RECORD_VERSION_EXCERPT, out);
    if (st)
        return st;
    excerpt->n_keep = reader_u32(out);
    excerpt->layer = reader_u32(out);
    excerpt->n_pool = reader_u32(out);
    return excerpt->n_keep > 0 && excerpt->layer < CONFIG_LAYER_MAX &&
                   excerpt->n_pool % 2 && excerpt->n_pool <= EXCERPT_POOL_MAX
               ? STATUS_OK
               : bad_field("turn");
}

enum status record_get_turn(const void *bytes, size_t n_bytes, struct turn *out)
{
    struct turn turn = {0};
    struct reader reader;
    unsigned finish, is_append;
    enum status st = open_turn(bytes, n_bytes, &reader, &turn.excerpt);

    if (st)
        return st;
    turn.position = reader_u64(&reader);
    turn.n_input = reader_u64(&reader);
    reader_text(&reader, turn.request_id, sizeof(turn.request_id));
    turn.input = reader_digest(&reader);
    finish = reader_u8(&reader);
    is_append = reader_u8(&reader);
    if (finish > FINISH_ERROR || is_append > 1 ||
        turn.n_input > UINT64_MAX - turn.position)
        return bad_field("turn");
    turn.finish = (enum finish_reason)finish;
    turn.is_append = is_append;
    if (!get_sampling(&reader, &turn.sampling) || !reader_is_done(&reader))
        return bad_field("turn");
    *out = turn;
    return STATUS_OK;
}
