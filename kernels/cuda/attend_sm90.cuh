#ifndef KERNELS_CUDA_ATTEND_SM90_CUH
#define KERNELS_CUDA_ATTEND_SM90_CUH
/*
 * The instructions of Hopper that attention uses and C has no names for:
 * barriers in shared memory that count arrivals and bytes (mbarrier), bulk
 * copies that complete on them, products by a warpgroup (wgmma) and by a warp
 * (mma). PTX ISA 8.0 and later. All products with k = 16 give the same bits,
 * whatever their M and N, sources and orientation (measured, H100).
 */
#include <stdint.h>

static __device__ __forceinline__ uint32_t shared_at(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ void barrier_init(uint64_t *bar, uint32_t n)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_at(bar)),
                 "r"(n)
                 : "memory");
}

/* Makes the initialised barriers known to the copy engine and the cluster. */
static __device__ __forceinline__ void barrier_init_fence(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint64_t *bar)
{
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_at(bar))
                 : "memory");
}

/* Arrive, and let the phase wait for so many bytes besides. */
static __device__ __forceinline__ void barrier_expect(uint64_t *bar,
                                                      uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(
                     shared_at(bar)),
                 "r"(bytes)
                 : "memory");
}

/*
 * Wait for the end of a phase. Of scope CTA, which is enough for copies and for
 * stages that are freed; for the cluster's the assembler adds an invalidation
 * of the L1 cache (CCTL.IVALL). It does not count tries: two of three ways to
 * count took the registers that keep products asynchronous (ptxas C7512).
 */
static __device__ __forceinline__ void barrier_wait(uint64_t *bar,
                                                    uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(shared_at(bar)),
                 "r"(parity)
                 : "memory");
}

/* The same, and what other CTAs of the cluster stored here before is seen. */
static __device__ __forceinline__ void cluster_wait_for(uint64_t *bar,
                                                        uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 "
                 "done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(shared_at(bar)),
                 "r"(parity)
                 : "memory");
}

/* 16-byte aligned on both sides, a multiple of 16 bytes. */
static __device__ __forceinline__ void bulk_copy(void *to, const void *from,
                                                 uint32_t bytes, uint64_t *bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::"
                 "bytes [%0], [%1], %2, [%3];" ::"r"(shared_at(to)),
                 "l"(from), "r"(bytes), "r"(shared_at(bar))
                 : "memory");
}

/* The same to the same place in both CTAs of a cluster of two, completing on
 * the barrier of each. */
static __device__ __forceinline__ void
bulk_copy_both(void *to, const void *from, uint32_t bytes, uint64_t *bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::"
                 "bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(
                     shared_at(to)),
                 "l"(from), "r"(bytes), "r"(shared_at(bar)), "h"((uint16_t)3)
                 : "memory");
}

/* To the L2 cache; as aligned. */
static __device__ __forceinline__ void bulk_prefetch(const void *from,
                                                     uint32_t bytes)
{
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from),
                 "r"(bytes)
                 : "memory");
}

/* Ordinary writes to shared memory before what the copy engine does next. */
static __device__ __forceinline__ void copy_fence(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

static __device__ __forceinline__ void named_sync(int id, int n_thread)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n_thread) : "memory");
}

static __device__ __forceinline__ void named_arrive(int id, int n_thread)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n_thread) : "memory");
}

/* Programmatic dependent launch: wait until the kernels before are over; let
 * the kernel behind be launched, which waits likewise. */
static __device__ __forceinline__ void kernel_wait(void)
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

static __device__ __forceinline__ void kernel_release(void)
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/* Cluster. An address in shared memory as it is called in CTA `rank`. */
static __device__ __forceinline__ uint32_t cluster_at(uint32_t at,
                                                      uint32_t rank)
{
    uint32_t y;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(y) : "r"(at), "r"(rank));
    return y;
}

/* Copy to the same place in CTA `rank`, completing on its barrier. */
static __device__ __forceinline__ void
cluster_copy(const void *from, uint32_t bytes, uint64_t *bar, uint32_t rank)
{
    uint32_t at = shared_at(from);
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::"
        "bytes [%0], [%1], %2, [%3];" ::"r"(cluster_at(at, rank)),
        "r"(at), "r"(bytes), "r"(cluster_at(shared_at(bar), rank))
        : "memory");
}

static __device__ __forceinline__ void cluster_store(uint32_t at, uint32_t x)
{
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(at), "r"(x)
                 : "memory");
}

/* On a barrier of any CTA of the cluster, when nothing written is to be seen
 * there: no fence, as for a stage whose products are over. */
static __device__ __forceinline__ void cluster_arrive_free(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar)
                 : "memory");
}

/* The same, and what was written before is seen. */
static __device__ __forceinline__ void cluster_arrive(uint32_t bar)
{
    asm volatile(
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(
            bar)
        : "memory");
}

static __device__ __forceinline__ void cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* Products by a warp: acc += a b, 16 x 8. */
static __device__ __forceinline__ void
warp_product(float *acc, const uint32_t *a, const uint32_t *b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]),
                   "r"(b[1]));
}

static __device__ __forceinline__ void load_matrix(uint32_t *to, uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, "
                 "[%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}

static __device__ __forceinline__ void load_transposed(uint32_t *to,
                                                       uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 "
                 "{%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}

/* Products by a warpgroup. */
static __device__ __forceinline__ void wgmma_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int N_LEFT> static __device__ __forceinline__ void wgmma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N_LEFT) : "memory");
}

/* Keeps the compiler from moving registers across a running product. */
template <int N> static __device__ __forceinline__ void wgmma_pin(float *acc)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(acc[i])::"memory");
}

template <int N> static __device__ __forceinline__ void words_pin(uint32_t *x)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(x[i])::"memory");
}

/*
 * Tiles of swizzled 128-byte rows, 8 rows 1024 bytes apart. `lead` is the way
 * from 64 columns to the next 64 where the columns are the outputs (values).
 */
static __device__ __forceinline__ uint64_t tile_descriptor(uint32_t at,
                                                           uint32_t lead)
{
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)(lead >> 4) << 16 | (at & 0x3ffff) >> 4;
}

/* acc = a b^T (is_sum: acc +=), 64 x N; both [row][k] tiles. */
template <int N>
static __device__ void wgmma_scores(float *acc, uint64_t a, uint64_t b,
                                    int is_sum);
/* acc += a b, 64 x N; a in registers, b [k][column] tiles. */
template <int N>
static __device__ void wgmma_values(float *acc, const uint32_t *a, uint64_t b);

/* clang-format off: lists of operands */
#define D0                                                                     \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                   \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define D32                                                                    \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"        \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define D64                                                                    \
    ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"        \
    "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"         \
    "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,"  \
    "%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,"   \
    "%125,%126,%127"
#define F4(i) "+f"(acc[i]), "+f"(acc[i + 1]), "+f"(acc[i + 2]), "+f"(acc[i + 3])
#define F16(i) F4(i), F4(i + 4), F4(i + 8), F4(i + 12)
#define F32 F16(0), F16(16)
#define F64 F32, F16(32), F16(48)
#define F128 F64, F16(64), F16(80), F16(96), F16(112)
template <>
__device__ __forceinline__ void wgmma_scores<64>(float *acc, uint64_t a,
                                                 uint64_t b, int is_sum)
{
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" D0
                 "}, %32, %33, p, 1, 1, 0, 0; }\n"
                 : F32
                 : "l"(a), "l"(b), "r"(is_sum));
}
template <>
__device__ __forceinline__ void wgmma_scores<128>(float *acc, uint64_t a,
                                                  uint64_t b, int is_sum)
{
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" D0 D32
        "}, %64, %65, p, 1, 1, 0, 0; }\n"
        : F64
        : "l"(a), "l"(b), "r"(is_sum));
}
template <>
__device__ __forceinline__ void wgmma_values<64>(float *acc, const uint32_t *a,
                                                 uint64_t b)
{
    asm volatile("{ .reg .pred p; setp.eq.b32 p, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" D0
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1; }\n"
                 : F32
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
template <>
__device__ __forceinline__ void wgmma_values<128>(float *acc, const uint32_t *a,
                                                  uint64_t b)
{
    asm volatile(
        "{ .reg .pred p; setp.eq.b32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" D0 D32
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1; }\n"
        : F64
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
template <>
__device__ __forceinline__ void wgmma_values<256>(float *acc, const uint32_t *a,
                                                  uint64_t b)
{
    asm volatile(
        "{ .reg .pred p; setp.eq.b32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" D0 D32 D64
        "}, {%128, %129, %130, %131}, %132, p, 1, 1, 1; }\n"
        : F128
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#undef D0
#undef D32
#undef D64
#undef F4
#undef F16
#undef F32
#undef F64
#undef F128
/* clang-format on */
#endif
