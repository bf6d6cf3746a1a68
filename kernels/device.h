#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H
/*
 * A device with memory of its own, on which a backend's operators run. Bulk
 * data (rows, weights, states, blocks, workspaces) lie in its memory, and no
 * host code reads or writes there: addresses go in and out of the functions
 * below. Small arrays that the host builds for one call (spans, positions,
 * tokens) stay host memory; operators take them along.
 *
 * A device is a queue: what is asked of it happens later, in the order of
 * asking. Only device_wait() and device_end() wait. A struct device belongs to
 * one thread; its `side` is a second queue on the same memory for another
 * thread, so that loading and saving sessions never stops the engine. A third
 * one, the `shuttle`, is the engine's as well: it carries sessions between the
 * device and the host while steps go on, and nobody waits for it; it is asked
 * how far it has come. What one queue shall see of another is said by
 * device_follow().
 *
 * Every function also takes a device of NULL, which stands for the host: its
 * memory is malloc's, and everything has happened when the call returns. So
 * code that owns memory has one text for both.
 */
#include "kernels/backend.h"

#define DEVICE_ALIGN 256u
#define DEVICE_WHY_SIZE 256u
#define DEVICE_GENERATION_SIZE 16u
#define DEVICE_ABI 9u /* of what lies behind the library's one symbol */

/* Operators of struct backend that run on the device, with their arguments. */
#define DEVICE_OPERATORS(X)                                                    \
    X(linear, linear_args)                                                     \
    X(attend, attend_args)                                                     \
    X(delta, delta_args) DEVICE_OTHER_OPERATORS(X)
#define DEVICE_OTHER_OPERATORS(X)                                              \
    X(linear_add, linear_args)                                                 \
    X(ffn, ffn_args)                                                           \
    X(ffn_add, ffn_args)                                                       \
    X(rms_norm, norm_args)                                                     \
    X(gated_norm, gated_norm_args)                                             \
    X(swiglu, swiglu_args)                                                     \
    X(embed, embed_args)                                                       \
    X(rope, rope_args)                                                         \
    X(kv_append, kv_append_args)                                               \
    X(kv_view, kv_view_args)                                                   \
    X(kv_match, kv_match_args)                                                 \
    X(conv, conv_args)                                                         \
    X(delta_gate, delta_gate_args)                                             \
    X(state_cap, state_cap_args)                                               \
    X(route, route_args)                                                       \
    X(expert, expert_args)                                                     \
    X(experts, experts_args)                                                   \
    X(combine, combine_args)                                                   \
    X(tops, tops_args)

/*
 * What a step's operators will be. Two steps with equal fields and
 * is_repeatable ask for the same operators with the same arguments in the same
 * order, but for the contents of host arrays; so a device may record the first
 * and run the others from the record.
 */
struct device_step {
    uint64_t owner; /* whose it is: of device_owner() */
    uint32_t n_row;
    uint64_t n_block; /* KV blocks of the longest span, or that it sees; may be
                         taken as more */
    bool has_views;   /* kv_view is asked for: some rows see a part */
    bool is_repeatable;
};

/*
 * What a device's library implements. Codes come without a cause; why() tells
 * the newest one. A device that failed once stays failed.
 */
struct device_calls {
    /* FAILED_PRECONDITION  no driver, no device, or one that is too old */
    enum status (*probe)(char out_why[DEVICE_WHY_SIZE]);
    /* What an arithmetic needs beside the device; again and again.
     * FAILED_PRECONDITION  it is not there: what to install.  NULL: nothing */
    enum status (*prepare)(enum arithmetic arithmetic,
                           char out_why[DEVICE_WHY_SIZE]);
    /* As device_generation(), of a device that there is. */
    void (*generation)(char out[DEVICE_GENERATION_SIZE]);
    /* A device, its side and its shuttle.  as probe(); RESOURCE_EXHAUSTED */
    enum status (*create)(struct device **out, char out_why[DEVICE_WHY_SIZE]);
    void (*destroy)(struct device *device);
    void (*why)(struct device *device, char out[DEVICE_WHY_SIZE]);

    /* As the functions below. */
    enum status (*take)(struct device *device, size_t bytes, void **out);
    void (*give)(struct device *device, void *memory);
    enum status (*take_host)(struct device *device, size_t bytes, void **out);
    void (*give_host)(struct device *device, void *memory);
    size_t (*available)(struct device *device);
    void (*write)(struct device *device, void *to, const void *from,
                  size_t bytes);
    void (*read)(struct device *device, void *to, const void *from,
                 size_t bytes);
    void (*load)(struct device *device, void *to, const void *from,
                 size_t bytes);
    void (*copy)(struct device *device, void *to, const void *from,
                 size_t bytes);
    void (*zero)(struct device *device, void *to, size_t bytes);
    uint64_t (*mark)(struct device *device);
    enum status (*reached)(struct device *device, uint64_t mark, bool *out);
    enum status (*wait)(struct device *device);
    void (*follow)(struct device *device, struct device *other);
    void (*begin)(struct device *device, const struct device_step *step);
    enum status (*end)(struct device *device, bool *out_again);

#define DEVICE_OPERATOR(name, type)                                            \
    void (*name)(struct device * device, const struct type *args);
    DEVICE_OPERATORS(DEVICE_OPERATOR)
#undef DEVICE_OPERATOR
};

/* What begins every device; the library knows the rest. */
struct device {
    const struct device_calls *calls;
    struct device *side; /* NULL in the others, as is their shuttle */
    struct device *shuttle;
    uint64_t n_owner; /* of device_owner(); a library sets it to 0 */
};

/*
 * The device of a backend, with its side.
 *   FAILED_PRECONDITION  it is not usable here: says what is missing
 *   RESOURCE_EXHAUSTED   no memory on it
 */
MUST_CHECK enum status device_create(const struct backend *backend,
                                     struct device **out);
void device_destroy(struct device *device); /* accepts NULL */

/* What stands behind the arithmetic's id where this device may make other bits
 * than others that have the arithmetic; "" of the host. */
void device_generation(struct device *device, char out[DEVICE_GENERATION_SIZE]);

/* The queue for another thread, and the one for sessions that leave the device
 * and come back; NULL of the host. */
struct device *device_side(struct device *device);
struct device *device_shuttle(struct device *device);

/*
 * Zeroed memory, aligned to 64 bytes on the host and to DEVICE_ALIGN on a
 * device. give accepts NULL; what was asked for before it still finds the
 * memory.
 *   RESOURCE_EXHAUSTED  no memory
 *   UNAVAILABLE         the device has failed
 */
MUST_CHECK enum status device_take(struct device *device, size_t bytes,
                                   void **out);
void device_give(struct device *device, void *memory);

/* Host memory that the device reaches: what read and write are quick with.
 * Errors as above, contents undefined. */
MUST_CHECK enum status device_take_host(struct device *device, size_t bytes,
                                        void **out);
void device_give_host(struct device *device, void *memory);

/* Bytes that could be taken now, as far as one can know. */
size_t device_available(struct device *device);

/*
 * write: from host memory, which is free again on return. read: to memory of
 * device_take_host(), there after a wait. load: from such memory, which stays
 * as it is until that has happened. copy and zero: within the device.
 * An error is told by the next wait.
 */
void device_write(struct device *device, void *to, const void *from,
                  size_t bytes);
void device_read(struct device *device, void *to, const void *from,
                 size_t bytes);
void device_load(struct device *device, void *to, const void *from,
                 size_t bytes);
void device_copy(struct device *device, void *to, const void *from,
                 size_t bytes);
void device_zero(struct device *device, void *to, size_t bytes);

/*
 * Without waiting: a number for all that was asked of this queue up to now, and
 * whether all of that has happened; then every queue sees it. At most
 * DEVICE_MARK_MAX marks may be under way. Not of the host.
 *   UNAVAILABLE  as device_wait()
 */
#define DEVICE_MARK_MAX 8u
uint64_t device_mark(struct device *device);
MUST_CHECK enum status device_reached(struct device *device, uint64_t mark,
                                      bool *out);

/*
 * Until everything that was asked of this queue has happened.
 *   UNAVAILABLE  the device failed, now or before; what it holds is lost
 */
MUST_CHECK enum status device_wait(struct device *device);

/* What is asked of `device` from now on sees what was asked of `other` before.
 * Called by the thread of `other`. */
void device_follow(struct device *device, struct device *other);

/*
 * A number for who asks for steps with the same arguments each time, as long as
 * they live. The device gives none twice: an address may come again, with other
 * memory behind it, and a record of before would run on what is gone. 0 of the
 * host.
 */
uint64_t device_owner(struct device *device);

/*
 * Around the operators of a step. What these need in between is taken when they
 * come to it, and of a step that had no room only a part has happened: whoever
 * asked for it gives up what it was to write. The device is whole.
 *   RESOURCE_EXHAUSTED  no memory for what a step needs in between
 * end waits as device_wait(); true in
 * *out_again: nothing has happened yet, ask for the same once more from begin
 * on (at most DEVICE_AGAIN_MAX times).
 */
#define DEVICE_AGAIN_MAX 2u
void device_begin(struct device *device, const struct device_step *step);
MUST_CHECK enum status device_end(struct device *device, bool *out_again);

/*
 * The operators of struct backend for backends with a device: they find it in
 * their pool (pool_create_device()). What the sampler calls runs on the host.
 */
#define DEVICE_OPERATOR(name, type)                                            \
    void device_##name(struct pool *pool, const struct type *args);
DEVICE_OPERATORS(DEVICE_OPERATOR)
#undef DEVICE_OPERATOR
uint32_t device_draw(const struct draw_args *args);
void device_peaks(const struct peaks_args *args);

#define DEVICE_BACKEND_OPERATORS                                               \
    .linear = device_linear, .linear_add = device_linear_add,                  \
    .ffn = device_ffn, .ffn_add = device_ffn_add, .rms_norm = device_rms_norm, \
    .gated_norm = device_gated_norm, .swiglu = device_swiglu,                  \
    .embed = device_embed, .rope = device_rope, .kv_append = device_kv_append, \
    .kv_view = device_kv_view, .kv_match = device_kv_match,                    \
    .attend = device_attend, .conv = device_conv,                              \
    .delta_gate = device_delta_gate, .has_rounded_rows = true,                 \
    .delta = device_delta, .state_cap = device_state_cap,                      \
    .route = device_route, .expert = device_expert, .experts = device_experts, \
    .combine = device_combine, .tops = device_tops, .draw = device_draw,       \
    .peaks = device_peaks

/* The one symbol of a device's library: NULL when `abi` is not its own. */
#define DEVICE_SYMBOL "godwit_device"
typedef const struct device_calls *device_symbol(uint32_t abi);
#endif
