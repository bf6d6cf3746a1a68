#include "model/synthetic.h"

#include "kernels/scalar.h"

#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RULES "synthetic-1" /* any change of a value needs a new one */
#define N_BUCKET 4096u
#define QUANTILE_BITS 12u /* of a hash that choose a value */
#define N_QUANTILE (1u << QUANTILE_BITS)
#define ALIGN_BYTES 64u
#define VALUES_PER_HASH 4u
#define THREAD_MAX 32u
#define THREAD_VALUES (1u << 20)     /* that are worth a thread's start */
#define GOLDEN 0x9e3779b97f4a7c15ull /* splitmix64's step */

/* `tensor` is first: callers hold pointers to it. */
struct made {
    struct tensor tensor;
    struct made *next;      /* in its bucket */
    struct made *next_live; /* of those that have bytes */
    bool is_in_block;       /* the bytes are; else they are the tensor's own */
    char name[];
};

struct synthetic {
    uint64_t seed;
    bool has_unit_offset;
    struct made *bucket[N_BUCKET];
    struct made **order; /* [capacity]; owned, as is each made */
    struct made *live;
    /*
     * One block that all tensors of a product fit in is used for each product
     * in turn: fresh pages would cost more than the values in them.
     */
    unsigned char *block; /* [block_bytes] or NULL; owned */
    size_t block_bytes, n_used;
    size_t n_wanted; /* bytes asked for since synthetic_forget() */
    uint32_t n_made, capacity;
};

/* ------------------------------------------------------------------ values */

enum kind { KIND_PRODUCT, KIND_NORM, KIND_OFFSET_NORM, KIND_DECAY, KIND_STEP };

static bool ends_in(const char *text, const char *end)
{
    const size_t n = strlen(text), n_end = strlen(end);

    return n >= n_end && strcmp(text + n - n_end, end) == 0;
}

static enum kind kind_of(const struct synthetic *synthetic, const char *name,
                         uint32_t n_dim)
{
    if (ends_in(name, "A_log"))
        return KIND_DECAY;
    if (ends_in(name, "dt_bias"))
        return KIND_STEP;
    if (n_dim != 1 || !ends_in(name, "norm.weight"))
        return KIND_PRODUCT;
    return synthetic->has_unit_offset &&
                   !ends_in(name, "linear_attn.norm.weight")
               ? KIND_OFFSET_NORM
               : KIND_NORM;
}

/*
 * The value below which the share t of a tensor lies. Decays: A in 1 .. 16 and
 * softplus(dt_bias) in 0.0025 .. 0.13, as Mamba 2 and its heirs start.
 */
static double quantile(enum kind kind, double n_in, double t)
{
    switch (kind) {
    case KIND_NORM:
        return 0.9 + 0.2 * t;
    case KIND_OFFSET_NORM:
        return -0.1 + 0.2 * t;
    case KIND_DECAY:
        return log(1.0 + 15.0 * t);
    case KIND_STEP:
        return -6.0 + 4.0 * t;
    case KIND_PRODUCT:
        break;
    }
    return sqrt(3.0 / n_in) * (2.0 * t - 1.0);
}

/* splitmix64 (Steele, Lea, Flood 2014) of a counter. */
static uint64_t hash(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* Values [first, end) of a tensor; both multiples of VALUES_PER_HASH. */
struct part {
    const uint16_t *table; /* [N_QUANTILE] */
    uint64_t key, first, end;
    uint16_t *bits; /* of the whole tensor */
};

static void *fill_part(void *arg)
{
    const struct part *part = arg;
    const uint16_t *table = part->table;
    uint64_t key = part->key + part->first / VALUES_PER_HASH * GOLDEN;

    for (uint64_t i = part->first; i < part->end; i += VALUES_PER_HASH) {
        const uint64_t h = hash(key += GOLDEN);
        uint16_t *bits = part->bits + i;

        bits[0] = table[h % N_QUANTILE];
        bits[1] = table[(h >> 16) % N_QUANTILE];
        bits[2] = table[(h >> 32) % N_QUANTILE];
        bits[3] = table[(h >> 48) % N_QUANTILE];
    }
    return NULL;
}

static uint32_t choose_threads(uint64_t n)
{
    const long n_cpu = sysconf(_SC_NPROCESSORS_ONLN);
    const uint64_t n_worth = n / THREAD_VALUES + 1;
    const uint64_t most =
        n_cpu > 0 && n_cpu < (long)THREAD_MAX ? (uint64_t)n_cpu : THREAD_MAX;

    return (uint32_t)(n_worth < most ? n_worth : most);
}

/* In parts, since a value depends on nothing but its index; a thread that does
 * not start leaves its part to the caller. bits has room for n rounded up to
 * VALUES_PER_HASH. */
static void fill(enum kind kind, double n_in, uint64_t key, uint64_t n,
                 uint16_t *bits)
{
    uint16_t table[N_QUANTILE];
    const uint64_t n_hash = (n + VALUES_PER_HASH - 1) / VALUES_PER_HASH;
    const uint32_t n_thread = choose_threads(n);
    struct part part[THREAD_MAX];
    pthread_t thread[THREAD_MAX];
    bool is_started[THREAD_MAX];

    for (uint32_t i = 0; i < N_QUANTILE; i++)
        table[i] = scalar_to_bf16(
            (float)quantile(kind, n_in, (i + 0.5) / (double)N_QUANTILE));
    for (uint32_t i = 0; i < n_thread; i++) {
        part[i] =
            (struct part){.table = table,
                          .key = key,
                          .first = n_hash * i / n_thread * VALUES_PER_HASH,
                          .end = n_hash * (i + 1) / n_thread * VALUES_PER_HASH,
                          .bits = bits};
        is_started[i] =
            i > 0 && !pthread_create(&thread[i], NULL, fill_part, &part[i]);
    }
    for (uint32_t i = 0; i < n_thread; i++)
        if (!is_started[i])
            (void)fill_part(&part[i]);
    for (uint32_t i = 0; i < n_thread; i++)
        if (is_started[i])
            (void)pthread_join(thread[i], NULL);
}

static uint16_t *take_room(struct synthetic *synthetic, struct made *made)
{
    const size_t n =
        (made->tensor.n_bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    unsigned char *room;

    if (!synthetic->block && synthetic->block_bytes)
        synthetic->block = aligned_alloc(ALIGN_BYTES, synthetic->block_bytes);
    synthetic->n_wanted += n;
    made->is_in_block =
        synthetic->block && n <= synthetic->block_bytes - synthetic->n_used;
    if (!made->is_in_block)
        return aligned_alloc(ALIGN_BYTES, n);
    room = synthetic->block + synthetic->n_used;
    synthetic->n_used += n;
    return (uint16_t *)(void *)room;
}

static enum status make(struct synthetic *synthetic, struct made *made)
{
    struct tensor *tensor = &made->tensor;
    const uint64_t n = tensor->n_bytes / sizeof(uint16_t);
    const struct digest key =
        digest_chain(digest_bytes(&synthetic->seed, sizeof(synthetic->seed)),
                     made->name, strlen(made->name));
    uint16_t *bits = take_room(synthetic, made);

    if (!bits)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for %zu bytes of tensor '%s'",
                           tensor->n_bytes, made->name);
    fill(kind_of(synthetic, made->name, tensor->n_dim),
         (double)tensor->dim[tensor->n_dim - 1], key.lo, n, bits);
    tensor->data = bits;
    made->next_live = synthetic->live;
    synthetic->live = made;
    return STATUS_OK;
}

/* ----------------------------------------------------------------- records */

static uint32_t bucket_of(const char *name)
{
    return (uint32_t)(digest_64(name, strlen(name)) % N_BUCKET);
}

static struct made *find(const struct synthetic *synthetic, const char *name)
{
    struct made *made = synthetic->bucket[bucket_of(name)];

    while (made && strcmp(made->name, name) != 0)
        made = made->next;
    return made;
}

/* Bytes of the shape; 0 for a shape that no machine holds. */
static size_t shape_bytes(uint32_t n_dim, const uint64_t *dim)
{
    size_t n = sizeof(uint16_t);

    for (uint32_t i = 0; i < n_dim; i++)
        if (__builtin_mul_overflow(n, dim[i], &n) || n > SIZE_MAX / 4)
            return 0;
    return n;
}

static struct made *add(struct synthetic *synthetic, const char *name,
                        uint32_t n_dim, const uint64_t *dim)
{
    const uint32_t bucket = bucket_of(name);
    struct made *made;

    if (synthetic->n_made == synthetic->capacity) {
        const uint32_t capacity =
            synthetic->capacity ? 2 * synthetic->capacity : 256;
        struct made **grown =
            realloc(synthetic->order, capacity * sizeof(struct made *));

        if (!grown)
            return NULL;
        synthetic->order = grown;
        synthetic->capacity = capacity;
    }
    made = calloc(1, sizeof(*made) + strlen(name) + 1);
    if (!made)
        return NULL;
    memcpy(made->name, name, strlen(name) + 1);
    made->tensor = (struct tensor){.name = made->name,
                                   .type = TENSOR_BF16,
                                   .n_dim = n_dim,
                                   .n_bytes = shape_bytes(n_dim, dim)};
    memcpy(made->tensor.dim, dim, n_dim * sizeof(*dim));
    made->next = synthetic->bucket[bucket];
    synthetic->bucket[bucket] = made;
    synthetic->order[synthetic->n_made++] = made;
    return made;
}

enum status synthetic_create(uint64_t seed, bool has_unit_offset,
                             struct synthetic **out)
{
    struct synthetic *it = calloc(1, sizeof(*it));

    if (!it)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for synthetic tensors");
    it->seed = seed;
    it->has_unit_offset = has_unit_offset;
    *out = it;
    return STATUS_OK;
}

void synthetic_destroy(struct synthetic *synthetic)
{
    if (!synthetic)
        return;
    synthetic_forget(synthetic);
    for (uint32_t i = 0; i < synthetic->n_made; i++)
        free(synthetic->order[i]);
    free(synthetic->order);
    free(synthetic->block);
    free(synthetic);
}

enum status synthetic_need(struct synthetic *synthetic, const char *name,
                           uint32_t n_dim, const uint64_t *dim,
                           const struct tensor **out)
{
    struct made *made = find(synthetic, name);
    enum status st = STATUS_OK;

    assert(n_dim && n_dim <= SAFETENSORS_RANK_MAX);
    if (made && (made->tensor.n_dim != n_dim ||
                 memcmp(made->tensor.dim, dim, n_dim * sizeof(*dim)) != 0))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "synthetic tensor '%s' is wanted in two shapes",
                           name);
    if (!made)
        made = add(synthetic, name, n_dim, dim);
    if (!made || !made->tensor.n_bytes)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for synthetic tensor '%s'", name);
    if (!made->tensor.data)
        st = make(synthetic, made);
    if (!st)
        *out = &made->tensor;
    return st;
}

void synthetic_forget(struct synthetic *synthetic)
{
    for (struct made *made = synthetic->live; made; made = made->next_live) {
        if (!made->is_in_block)
            free((void *)made->tensor.data);
        made->tensor.data = NULL;
    }
    synthetic->live = NULL;
    if (synthetic->n_wanted > synthetic->block_bytes) {
        free(synthetic->block);
        synthetic->block = NULL; /* made anew when it is needed */
        synthetic->block_bytes = synthetic->n_wanted;
    }
    synthetic->n_used = synthetic->n_wanted = 0;
}

uint32_t synthetic_count(const struct synthetic *synthetic)
{
    return synthetic->n_made;
}

const struct tensor *synthetic_at(const struct synthetic *synthetic, uint32_t i)
{
    assert(i < synthetic->n_made);
    return &synthetic->order[i]->tensor;
}

const struct tensor *synthetic_find(const struct synthetic *synthetic,
                                    const char *name)
{
    const struct made *made = find(synthetic, name);

    return made ? &made->tensor : NULL;
}

struct digest synthetic_digest(const struct synthetic *synthetic)
{
    struct digest digest = digest_bytes(RULES, sizeof(RULES));

    digest = digest_chain(digest, &synthetic->seed, sizeof(synthetic->seed));
    digest = digest_chain(digest, &synthetic->has_unit_offset,
                          sizeof(synthetic->has_unit_offset));
    for (uint32_t i = 0; i < synthetic->n_made; i++) {
        const struct made *made = synthetic->order[i];

        digest = digest_chain(digest, made->name, strlen(made->name) + 1);
        digest = digest_chain(digest, made->tensor.dim,
                              made->tensor.n_dim * sizeof(made->tensor.dim[0]));
    }
    return digest;
}
