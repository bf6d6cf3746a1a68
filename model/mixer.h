#ifndef MODEL_MIXER_H
#define MODEL_MIXER_H
/*
 * A sequence mixer: the part of a layer that looks at other tokens. One file
 * per mixer (mixer_softmax.c, mixer_delta.c), plus its kernels. A mixer never
 * owns a session's memory: it says once how large that is and what lies where
 * (mixer_plan), and gets pointers with every call. Whoever stores, ships or
 * checks that memory needs no other knowledge.
 *
 * There is one call for rows, not one for prefill and one for decode: by the
 * one arithmetic (docs/NUMERICS.md) a row is the same bits whichever call
 * brings it, so a second entry could only differ by mistake (E2, E3). All-zero
 * bytes are the empty state of every mixer.
 */
#include "base/status.h"
#include "kernels/backend.h"
#include "model/config.h"
#include "model/policy.h"

#include <stdbool.h>
#include <stddef.h>

#define MIXER_FIELD_MAX 8u

enum field_type { FIELD_BF16, FIELD_F32, FIELD_F64, FIELD_U32, N_FIELD_TYPE };

/* Bytes of one element. */
static inline size_t field_element_bytes(enum field_type type)
{
    return type == FIELD_U32 ? 4 : (size_t)2 << type;
}

/* One array inside a session's state for one layer. */
struct mixer_field {
    const char *name; /* "s", "ring_k", "conv" */
    enum field_type type;
    uint32_t n_dim, dim[4];
    uint32_t ring_axis; /* which dimension are the GRID tokens of a ring, or
                           half as many where two lie side by side in the last;
                           0: it is no ring */
    size_t offset;      /* bytes from the state's start; multiple of 64 */
};

/* What of the numerics decides how memory lies. */
struct mixer_numerics {
    enum arithmetic arithmetic;
    enum kv_format kv;
};

struct mixer_plan {
    size_t state_bytes; /* fixed part per session; 0: none */
    size_t copy_bytes;  /* what a CPU's steps keep of it in another form, zero
                           at first; made from it, so never stored; 0: none */
    size_t block_bytes; /* per KV_BLOCK tokens; 0: none */
    size_t index_bytes; /* of these, at the end, what look-ups read; 0: none */
    size_t short_bytes; /* of that in RAM, where keys are not rotated for it:
                           view_shorten(); 0: the same */
    struct attend_shape shape; /* of its blocks, with an index */
    uint32_t n_field;
    struct mixer_field field[MIXER_FIELD_MAX]; /* cover state_bytes */
    size_t row_floats; /* workspace that rows() needs per row */
    double row_flops;  /* of one row: projections and recurrence, on average */
    double past_flops; /* of one row per token of its past; 0: none */
};

/*
 * A ring keeps what an earlier chunk of tokens left in the places behind
 * `position`: bytes that are never read, and that depend on how the tokens came
 * to be computed. Zero them, so that two states can be compared.
 */
void mixer_clear_moot(const struct mixer_plan *plan, uint64_t position,
                      void *state);

/*
 * The parts of a state that are read behind `position`: on the grid of chunks
 * its rings hold no token, elsewhere it is the whole.
 */
struct mixer_part {
    size_t offset, bytes;
};
uint32_t mixer_live(const struct mixer_plan *plan, uint64_t position,
                    struct mixer_part out[MIXER_FIELD_MAX]);
size_t mixer_live_bytes(const struct mixer_plan *plan, uint64_t position);

/* What one layer remembers of one session. Owned by state/memory.h. */
struct layer_memory {
    void *state;        /* [state_bytes], 64-byte aligned, or NULL */
    void *copy;         /* [copy_bytes], the same; or NULL, then none is kept */
    void *const *block; /* KV blocks of the tokens so far, or NULL */
    void *const *index; /* their indices, or NULL */
    bool is_short;      /* the indices are: view_shorten() */
};

/*
 * Where the blocks of a session are that need not be in RAM (state/paging.h).
 * What is held of a layer stays there until that layer is released; it may be
 * touched when is_ready() has said so.
 */
struct block_source {
    /* NULL: no room for one more before others are released. */
    void *(*hold)(struct block_source *source, uint32_t layer, uint64_t block);
    bool (*is_ready)(struct block_source *source, uint32_t layer);
    void (*wait)(struct block_source *source, uint32_t layer); /* until it is */
    void (*release)(struct block_source *source, uint32_t layer);
};

/* How well keys match a row's query in one softmax layer: for an excerpt. */
struct key_match {
    uint32_t layer;
    uint64_t position; /* of the row, which may come in this pass or later */
    float *match;      /* [position + 1] filled in when that pass is done */
    float *far;        /* the same in a device's memory; or NULL */
};

/* A run of consecutive rows of one session. */
struct span {
    uint32_t first_row, n_row;
    uint64_t position;                /* of the first row, in the session */
    const struct layer_memory *layer; /* [n_layer] */
    const struct policy *policy;      /* of softmax layers; NULL: full */
    struct block_source *source;      /* of their blocks; NULL: all are there.
                                         Not with full */
    const struct key_match *match;    /* NULL: nobody wants to know */
};

struct view_room;

struct mixer_batch {
    const struct backend *backend;
    struct pool *pool;
    const struct rope_table *rope;
    uint32_t layer, n_row;
    const uint64_t *position; /* [n_row] */
    const struct span *span;
    uint32_t n_span;
    const float *x;            /* [n_row, hidden] normed input */
    const uint16_t *x_rounded; /* the same for products that round, or NULL */
    float *residual;           /* [n_row, hidden] the output is added here */
    float *work;               /* [n_row, row_floats], 64-byte aligned */
    void *span_work; /* room for n_span of the mixer's own span structs */
    struct view_room *views;
    float state_cap;    /* model/state_cap.h; 0: none */
    uint64_t *n_capped; /* heads that it scaled are added here, where the
                           states lie */
    uint64_t max_fma;   /* see rows(); UINT64_MAX: no limit */
};

/* How far a mixer has come with a batch: its own matter, all zero at first. */
struct mixer_cursor {
    uint32_t stage;
    uint32_t row, end; /* rows under way */
    uint64_t block;    /* their next */
    bool is_open;      /* what they see is known */
    bool is_waiting;   /* for blocks: to be called again when they are there */
};
#define MIXER_SPAN_WORK_BYTES 128u /* per span */
#define MIXER_ROWS 64u

struct weight_source;
struct mixer_layer; /* a layer's weights as the mixer packs them */

struct mixer {
    const char *name; /* "softmax", "delta" */

    /* Products of activations with states and keys are of the arithmetic, too,
     * which decides how those are kept, blocks beside the format. A session's
     * policy decides the index.
     */
    void (*plan)(const struct config *config, struct mixer_numerics numerics,
                 enum index_kind index, struct mixer_plan *out);

    /*
     * Find, check and pack the layer's weights; prefix is "model.layers.3.".
     *   NOT_FOUND, INVALID_ARGUMENT  as safetensors_need()
     *   RESOURCE_EXHAUSTED           no memory
     */
    enum status (*bind)(const struct config *config,
                        const struct weight_source *weights, const char *prefix,
                        struct mixer_layer **out);
    void (*release)(struct mixer_layer *layer); /* accepts NULL */
    size_t (*bytes)(const struct mixer_layer *layer);

    /*
     * Advance every span's memory by its rows and add the output. True when
     * that is done; otherwise the caller goes on with the same batch, cursor
     * and work, in which only max_fma and pool may have changed. Who calls
     * chooses n_row to bound what a row costs by itself; what grows with its
     * past comes in calls of about max_fma multiply-adds, but of one block of
     * keys for MIXER_ROWS rows at least. A call that finds the cursor waiting
     * when it returns has done nothing that would have to wait.
     */
    bool (*rows)(const struct mixer_layer *layer,
                 const struct mixer_batch *batch, struct mixer_cursor *cursor);
};

/* Floats from row to row in workspace: rows start on cache lines. */
static inline size_t row_stride(size_t n_float)
{
    return (n_float + 15) / 16 * 16;
}

/* May what is made for this product be rounded rows? */
static inline bool mixer_rounds(const struct mixer_batch *batch,
                                const struct linear *w)
{
    return batch->backend->has_rounded_rows && linear_rounds(w) &&
           w->n_in % LINEAR_TILE == 0;
}

extern const struct mixer mixer_softmax;
extern const struct mixer mixer_delta;
#endif
