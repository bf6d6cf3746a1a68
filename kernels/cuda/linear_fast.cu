#include "kernels/cuda/linear_fast.h"

#include "kernels/cuda/ops.h"

#include <dlfcn.h>
#include <mutex>
#include <stdio.h>
#include <string.h>

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>

/* Fewer rows are bound by reading weights, where the exact kernels lose
 * nothing. */
#define FAST_ROWS 65u
#define FAST_ROOM ((size_t)32 << 20) /* what cuBLASLt asks for on Hopper */
#define N_CHOICE 256u

#define FAST_LIBRARY "libcublasLt.so.13"
#define FAST_CALLS(X)                                                          \
    X(cublasLtCreate)                                                          \
    X(cublasLtMatmul)                                                          \
    X(cublasLtMatmulAlgoGetHeuristic)                                          \
    X(cublasLtMatmulDescCreate)                                                \
    X(cublasLtMatmulDescDestroy)                                               \
    X(cublasLtMatmulDescSetAttribute)                                          \
    X(cublasLtMatmulPreferenceCreate)                                          \
    X(cublasLtMatmulPreferenceDestroy)                                         \
    X(cublasLtMatmulPreferenceSetAttribute)                                    \
    X(cublasLtMatrixLayoutCreate)                                              \
    X(cublasLtMatrixLayoutDestroy)

/* What a choice of a kernel depends on; compared as bytes. */
struct fast_key {
    uint64_t n_in, n_out, n_row, w_stride, x_stride, y_stride;
    uint64_t w_align, x_align, y_align;
    uint64_t is_add;
};

struct fast_choice {
    struct fast_key key;
    cublasLtMatmulAlgo_t algo;
    bool is_known; /* false: cuBLASLt has none */
};

/* The library of this process, loaded once and for all, and its choices. */
static struct fast {
    std::mutex lock;
    cublasLtHandle_t handle;
    uint32_t n_choice; /* ever made; the oldest give way */
    struct fast_choice choice[N_CHOICE];
#define CALL(name) decltype(&::name) name;
    FAST_CALLS(CALL)
#undef CALL
} fast;

/* ----------------------------------------------------------------- library */

static bool find_calls(void *library)
{
    bool is_whole = true;

#define CALL(name)                                                             \
    fast.name = (decltype(&::name))dlsym(library, #name);                      \
    is_whole = is_whole && fast.name;
    FAST_CALLS(CALL)
#undef CALL
    return is_whole;
}

extern "C" enum status cuda_fast_prepare(char out_why[DEVICE_WHY_SIZE])
{
    const std::lock_guard<std::mutex> guard(fast.lock);
    void *library = fast.handle ? NULL : dlopen(FAST_LIBRARY, RTLD_NOW);

    if (fast.handle)
        return STATUS_OK;
    if (!library || !find_calls(library))
        (void)snprintf(out_why, DEVICE_WHY_SIZE,
                       "it needs " FAST_LIBRARY
                       ", of CUDA 13 (package libcublas-13-0), where the "
                       "loader finds it: %.100s",
                       library ? "one is there, of another kind" : dlerror());
    else if (fast.cublasLtCreate(&fast.handle) != CUBLAS_STATUS_SUCCESS)
        (void)snprintf(out_why, DEVICE_WHY_SIZE,
                       FAST_LIBRARY " does not begin on this GPU");
    return fast.handle ? STATUS_OK : STATUS_FAILED_PRECONDITION;
}

/* ------------------------------------------------------------------ choice */

/* Of y^T = W x^T, as the library has columns where we have rows. */
struct fast_product {
    cublasLtMatmulDesc_t what;
    cublasLtMatrixLayout_t w, x, y;
};

static void destroy(const struct fast_product *p)
{
    if (p->y)
        (void)fast.cublasLtMatrixLayoutDestroy(p->y);
    if (p->x)
        (void)fast.cublasLtMatrixLayoutDestroy(p->x);
    if (p->w)
        (void)fast.cublasLtMatrixLayoutDestroy(p->w);
    if (p->what)
        (void)fast.cublasLtMatmulDescDestroy(p->what);
}

static bool create(const struct fast_key *key, struct fast_product *out)
{
    const cublasOperation_t turned = CUBLAS_OP_T;
    struct fast_product p = {};

    if (!fast.cublasLtMatmulDescCreate(&p.what, CUBLAS_COMPUTE_32F,
                                       CUDA_R_32F) &&
        !fast.cublasLtMatmulDescSetAttribute(
            p.what, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof(turned)) &&
        !fast.cublasLtMatrixLayoutCreate(&p.w, CUDA_R_16BF, key->n_in,
                                         key->n_out, key->w_stride) &&
        !fast.cublasLtMatrixLayoutCreate(&p.x, CUDA_R_16BF, key->n_in,
                                         key->n_row, key->x_stride) &&
        !fast.cublasLtMatrixLayoutCreate(&p.y, CUDA_R_32F, key->n_out,
                                         key->n_row, key->y_stride)) {
        *out = p;
        return true;
    }
    destroy(&p);
    return false;
}

/* Without a measurement: the library's first proposal, always the same. */
static bool propose(const struct fast_key *key, const struct fast_product *p,
                    cublasLtMatmulAlgo_t *out)
{
    const size_t room = FAST_ROOM;
    const uint32_t w = (uint32_t)key->w_align, x = (uint32_t)key->x_align;
    const uint32_t y = (uint32_t)key->y_align;
    cublasLtMatmulPreference_t wish;
    cublasLtMatmulHeuristicResult_t found = {};
    int n_found = 0;

    if (fast.cublasLtMatmulPreferenceCreate(&wish))
        return false;
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t what,
                         const void *value, size_t bytes) {
        return !fast.cublasLtMatmulPreferenceSetAttribute(wish, what, value,
                                                          bytes);
    };
    const bool is_set =
        set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room, sizeof(room)) &&
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &w, sizeof(w)) &&
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &x, sizeof(x)) &&
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &y, sizeof(y)) &&
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &y, sizeof(y));
    const bool is_found = is_set &&
                          !fast.cublasLtMatmulAlgoGetHeuristic(
                              fast.handle, p->what, p->w, p->x, p->y, p->y,
                              wish, 1, &found, &n_found) &&
                          n_found;

    (void)fast.cublasLtMatmulPreferenceDestroy(wish);
    *out = found.algo;
    return is_found;
}

/* As proposed when a product of this kind came first. */
static bool choose(const struct fast_key *key, const struct fast_product *p,
                   cublasLtMatmulAlgo_t *out)
{
    const std::lock_guard<std::mutex> guard(fast.lock);
    const uint32_t n = fast.n_choice < N_CHOICE ? fast.n_choice : N_CHOICE;
    uint32_t i = 0;

    while (i < n && memcmp(&fast.choice[i].key, key, sizeof(*key)) != 0)
        i++;
    if (i == n) {
        i = fast.n_choice++ % N_CHOICE;
        fast.choice[i].key = *key;
        fast.choice[i].is_known = propose(key, p, &fast.choice[i].algo);
    }
    *out = fast.choice[i].algo;
    return fast.choice[i].is_known;
}

/* --------------------------------------------------------------------- run */

static uint64_t alignment(const void *at)
{
    const uintptr_t bits = (uintptr_t)at | 256;

    return bits & -bits;
}

size_t fast_room(const struct linear *w, uint32_t n_row)
{
    return w->arithmetic == ARITHMETIC_FAST && w->type == LINEAR_BF16 &&
                   n_row >= FAST_ROWS
               ? FAST_ROOM
               : 0;
}

bool fast_run(struct gpu *gpu, const struct product_job *job, void *room)
{
    const struct fast_key key = {job->n_in,
                                 job->n_out,
                                 job->n_row,
                                 job->w[0].stride,
                                 job->x.stride,
                                 job->y_stride,
                                 alignment(job->w[0].at),
                                 alignment(job->x.at),
                                 alignment(job->y),
                                 job->end == PRODUCT_ADD};
    const float one = 1.0f, beta = job->end == PRODUCT_ADD ? 1.0f : 0.0f;
    cublasLtMatmulAlgo_t algo;
    struct fast_product p;

    if (!create(&key, &p))
        return false;
    const bool is_done =
        choose(&key, &p, &algo) &&
        !fast.cublasLtMatmul(fast.handle, p.what, &one, job->w[0].at, p.w,
                             job->x.at, p.x, &beta, job->y, p.y, job->y, p.y,
                             &algo, room, FAST_ROOM, gpu_stream(gpu));

    destroy(&p);
    return is_done;
}

#else /* built without the header: package libcublas-dev-13-0 */

extern "C" enum status cuda_fast_prepare(char out_why[DEVICE_WHY_SIZE])
{
    (void)snprintf(out_why, DEVICE_WHY_SIZE,
                   "this libgodwit_cuda.so was built without cublasLt.h");
    return STATUS_FAILED_PRECONDITION;
}

size_t fast_room(const struct linear *w, uint32_t n_row)
{
    (void)w;
    (void)n_row;
    return 0;
}

bool fast_run(struct gpu *gpu, const struct product_job *job, void *room)
{
    (void)gpu;
    (void)job;
    (void)room;
    return false;
}
#endif
