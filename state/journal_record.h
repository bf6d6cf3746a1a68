#ifndef STATE_JOURNAL_RECORD_H
#define STATE_JOURNAL_RECORD_H
/*
 * The journal's rows as bytes: what stands in a frame (proto/frame.h). All
 * numbers of a row are checked when it is read, so that a struct that comes
 * out of here keeps every limit of state/session.h. Any thread.
 */
#include "proto/frame.h"
#include "state/session.h"

#define RECORD_VERSION 1u
#define RECORD_VERSION_OWNED 2u   /* of a session with a tenant, or pinned */
#define RECORD_VERSION_POLICY 3u  /* ... or not, of another policy than full */
#define RECORD_VERSION_EXCERPT 2u /* of a turn that answers from an excerpt */
#define RECORD_BYTES_MAX (128u << 20) /* a row of 2^24 tokens and its head */
#define RECORD_TOKEN_MAX (1u << 24)

/* Tokens of one row, borrowed from the row's bytes (maybe unaligned). */
struct record_tokens {
    struct digest chain; /* of everything up to and including these */
    uint32_t n_token;    /* 1 to RECORD_TOKEN_MAX */
    const void *token;   /* [n_token] uint32_t */
};

/* Append one frame to the writer.  RESOURCE_EXHAUSTED  as frame_end() */
MUST_CHECK enum status record_put_session(struct writer *writer,
                                          const struct session_meta *meta);
MUST_CHECK enum status record_put_tokens(struct writer *writer,
                                         const uint32_t *token,
                                         uint32_t n_token, struct digest chain);
MUST_CHECK enum status record_put_turn(struct writer *writer,
                                       const struct turn *turn);

/*
 * Read one row; *out is untouched on failure.
 *   DATA_LOSS            as frame_open(), or a field is out of its limits
 *   FAILED_PRECONDITION  a row of another version
 */
MUST_CHECK enum status record_get_session(const void *bytes, size_t n_bytes,
                                          struct session_meta *out);
MUST_CHECK enum status record_get_tokens(const void *bytes, size_t n_bytes,
                                         struct record_tokens *out);
MUST_CHECK enum status record_get_turn(const void *bytes, size_t n_bytes,
                                       struct turn *out);
#endif
