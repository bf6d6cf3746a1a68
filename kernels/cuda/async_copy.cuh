#ifndef KERNELS_CUDA_ASYNC_COPY_CUH
#define KERNELS_CUDA_ASYNC_COPY_CUH
/*
 * Copies that run beside the threads, and what the threads wait with (PTX ISA:
 * mbarrier, cp.async.bulk, cp.async.bulk.tensor, cp.async, barrier.cluster).
 *
 * An mbarrier is 8 bytes of shared memory that go through phases, numbered 0, 1
 * and so on; a phase is over when all arrivals and all announced bytes have
 * come. Who waits names the phase's parity; the phase "before the first one",
 * parity 1, is over from the start.
 *
 * Bulk copies are made by the copy engine (TMA, the tensor memory accelerator):
 * one thread asks for many bytes, which an mbarrier counts. bulk_* copy what
 * lies in one piece, tensor_* a box of a matrix that a tensor map describes
 * (tensor_map.h). Addresses and bytes are multiples of 16.
 *
 * GPUs before Hopper have mbarriers and cp.async, by which each thread copies
 * 16 bytes at a time; of the rest, what both ways call does nothing there.
 *
 * Barriers and what is copied to are pointers into shared memory of this CTA;
 * of ptx_*() they are 32-bit addresses in it, as the instructions have them,
 * for who computes with these (delta_recur.cu, linear_sm80.cu).
 */
#include <cuda.h>
#include <stdint.h>

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---------------------------------------------------------------- mbarrier */

static __device__ __forceinline__ void mbarrier_init(uint64_t *barrier,
                                                     uint32_t n_arrival)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(
                     shared_address(barrier)),
                 "r"(n_arrival)
                 : "memory");
}

/* Makes initialised barriers known to the copy engine and, with a
 * cluster_sync*() behind it, to the cluster. */
static __device__ __forceinline__ void mbarrier_init_fence(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

static __device__ __forceinline__ void ptx_mbarrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier)
                 : "memory");
}

static __device__ __forceinline__ void mbarrier_arrive(uint64_t *barrier)
{
    ptx_mbarrier_arrive(shared_address(barrier));
}

/* One arrival, and the announcement of bytes that bulk copies will bring. */
static __device__ __forceinline__ void ptx_mbarrier_expect(uint32_t barrier,
                                                           uint32_t bytes)
{
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
        "r"(bytes)
        : "memory");
}

static __device__ __forceinline__ void mbarrier_expect(uint64_t *barrier,
                                                       uint32_t bytes)
{
    ptx_mbarrier_expect(shared_address(barrier), bytes);
}

/* One of the counted arrivals, once this thread's cp.async are in. */
static __device__ __forceinline__ void
ptx_mbarrier_arrive_copied(uint32_t barrier)
{
    asm volatile(
        "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier)
        : "memory");
}

/*
 * Until the phase with that parity is over. Of scope CTA, which is enough for
 * copies and for stages that are freed. It does not count tries: two of three
 * ways to count took the registers that keep products of attention asynchronous
 * (ptxas C7512).
 */
static __device__ __forceinline__ void ptx_mbarrier_wait(uint32_t barrier,
                                                         uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
#if __CUDA_ARCH__ >= 900
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
#else
                 "mbarrier.test_wait.parity.shared::cta.b64 done, [%0], %1;\n"
#endif
                 "@!done bra again;\n"
                 "}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

static __device__ __forceinline__ void mbarrier_wait(uint64_t *barrier,
                                                     uint32_t parity)
{
    ptx_mbarrier_wait(shared_address(barrier), parity);
}

/* The same, and what other CTAs of the cluster stored here before is seen: the
 * assembler adds an invalidation of the L1 cache (CCTL.IVALL). */
static __device__ __forceinline__ void mbarrier_wait_acquire(uint64_t *barrier,
                                                             uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 "
                 "done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

/* As mbarrier_wait(), but a copy that never comes, a bug of ours, ends in an
 * error of the launch instead of a GPU that hangs: after seconds. */
#define MBARRIER_TRIES_MAX (1u << 24)

static __device__ __forceinline__ bool mbarrier_try_wait(uint64_t *barrier,
                                                         uint32_t parity)
{
    uint32_t is_over;

    asm volatile("{\n"
                 ".reg .pred over;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, over;\n"
                 "}"
                 : "=r"(is_over)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
    return is_over;
}

static __device__ __forceinline__ void mbarrier_wait_or_trap(uint64_t *barrier,
                                                             uint32_t parity)
{
    for (uint32_t n = 0; !mbarrier_try_wait(barrier, parity); n++)
        if (n > MBARRIER_TRIES_MAX)
            __trap();
}

/* ------------------------------------------------- barriers with a number */

/* 1 to 15; n_thread: of those that wait and those that only arrive. */
static __device__ __forceinline__ void named_sync(int id, int n_thread)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n_thread) : "memory");
}

static __device__ __forceinline__ void named_arrive(int id, int n_thread)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n_thread) : "memory");
}

/* ----------------------------------------------------------------- cluster */

/* This CTA's number in its cluster. */
static __device__ __forceinline__ uint32_t cluster_rank(void)
{
    uint32_t rank = 0;

#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}

/* The same, read here and now: the compiler may move the other one. */
static __device__ __forceinline__ uint32_t cluster_rank_now(void)
{
    uint32_t rank;

    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* All threads of the cluster have come here, and see what each other wrote. */
static __device__ __forceinline__ void cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* All threads of the cluster have come here; before Hopper, of the CTA. Orders
 * nothing else. */
static __device__ __forceinline__ void cluster_sync_relaxed(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n"
                 "barrier.cluster.wait.aligned;" ::
                     : "memory");
#else
    __syncthreads();
#endif
}

/* What lies at `p` of this CTA, in CTA `rank`: an address for the cluster. */
static __device__ __forceinline__ uint32_t cluster_address(const void *p,
                                                           uint32_t rank)
{
    uint32_t there;

    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(there)
        : "r"(shared_address(p)), "r"(rank));
    return there;
}

/* To the same place in CTA `rank`. */
static __device__ __forceinline__ void cluster_store(uint32_t *to, uint32_t x,
                                                     uint32_t rank)
{
    asm volatile(
        "st.shared::cluster.u32 [%0], %1;" ::"r"(cluster_address(to, rank)),
        "r"(x)
        : "memory");
}

/* One arrival at the same barrier of another CTA of the cluster, or of this
 * one. Without .release.cluster, which waits a microsecond for all stores of
 * the thread: it says that something was read, not that it was written. */
static __device__ __forceinline__ void mbarrier_arrive_at(uint64_t *barrier,
                                                          uint32_t rank)
{
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(
                     cluster_address(barrier, rank))
                 : "memory");
}

/* The same, and who waits by mbarrier_wait_acquire() sees what was written. */
static __device__ __forceinline__ void
mbarrier_arrive_release_at(uint64_t *barrier, uint32_t rank)
{
    asm volatile(
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(
            cluster_address(barrier, rank))
        : "memory");
}

/* ------------------------------------------------------------- bulk copies */

static __device__ __forceinline__ void
bulk_copy(void *to, const void *from, uint32_t bytes, uint64_t *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::"
                 "bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

/* Into every CTA of the cluster whose bit is set, at the same place and with
 * the same barrier of each. */
static __device__ __forceinline__ void
ptx_bulk_copy_multicast(uint32_t to, const void *from, uint32_t bytes,
                        uint32_t barrier, uint16_t mask)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::"
                 "bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier), "h"(mask)
                 : "memory");
}

/* From this CTA to the same place in CTA `rank`, with its barrier. */
static __device__ __forceinline__ void
bulk_copy_at(const void *from, uint32_t bytes, uint64_t *barrier, uint32_t rank)
{
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::"
        "bytes [%0], [%1], %2, [%3];" ::"r"(cluster_address(from, rank)),
        "r"(shared_address(from)), "r"(bytes),
        "r"(cluster_address(barrier, rank))
        : "memory");
}

/* Back to device memory; bulk_store_wait() before the thread ends. */
static __device__ __forceinline__ void bulk_store(void *to, const void *from,
                                                  uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n"
                 "cp.async.bulk.commit_group;" ::"l"(to),
                 "r"(shared_address(from)), "r"(bytes)
                 : "memory");
}

static __device__ __forceinline__ void bulk_store_wait(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
}

/* To the L2 cache. */
static __device__ __forceinline__ void bulk_prefetch(const void *from,
                                                     uint32_t bytes)
{
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from),
                 "r"(bytes)
                 : "memory");
}

/* What this thread wrote to shared memory comes before later bulk copies. */
static __device__ __forceinline__ void bulk_fence(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* ----------------------------------------------------------- tensor copies */

/* Where a box begins, in elements, rows and matrices of its map. */
struct box_at {
    int32_t column, row, matrix;
};

/* How long the L2 cache keeps what a copy reads: policies as createpolicy makes
 * them (CUTLASS has the same constants). */
#define KEEP_NORMALLY 0x1000000000000000u
#define KEEP_SHORTLY 0x12f0000000000000u

/* By a map of one matrix. */
static __device__ __forceinline__ void
ptx_tensor_copy_2d(uint32_t to, const CUtensorMap *from, uint32_t column,
                   uint32_t row, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier"
                 "::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(from), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}

/* Multicast: as ptx_bulk_copy_multicast(). */
static __device__ __forceinline__ void
ptx_tensor_copy_2d_multicast(uint32_t to, const CUtensorMap *from,
                             uint32_t column, uint32_t row, uint32_t barrier,
                             uint16_t mask)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier"
                 "::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(from), "r"(column), "r"(row), "r"(barrier), "h"(mask)
                 : "memory");
}

/* By a map of several matrices. */
static __device__ __forceinline__ void
tensor_copy_3d(void *to, const CUtensorMap *from, struct box_at at,
               uint64_t *barrier, uint64_t keep)
{
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier"
        "::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared_address(to)),
        "l"(from), "r"(at.column), "r"(at.row), "r"(at.matrix),
        "r"(shared_address(barrier)), "l"(keep)
        : "memory");
}

static __device__ __forceinline__ void
tensor_copy_3d_multicast(void *to, const CUtensorMap *from, struct box_at at,
                         uint64_t *barrier, uint16_t mask, uint64_t keep)
{
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier"
        "::complete_tx::bytes.multicast::cluster.L2::cache_hint "
        "[%0], [%1, {%2, %3, %4}], [%5], %6, %7;" ::"r"(shared_address(to)),
        "l"(from), "r"(at.column), "r"(at.row), "r"(at.matrix),
        "r"(shared_address(barrier)), "h"(mask), "l"(keep)
        : "memory");
}

/* ---------------------------------------------------------------- cp.async */

static __device__ __forceinline__ void ptx_cp_async_16(uint32_t to,
                                                       const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to),
                 "l"(from)
                 : "memory");
}

static __device__ __forceinline__ void cp_async_16(void *to, const void *from)
{
    ptx_cp_async_16(shared_address(to), from);
}

/* Zeros unless is_there; then `from` is not read, but must be an address. */
static __device__ __forceinline__ void
ptx_cp_async_16_or_zeros(uint32_t to, const void *from, bool is_there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
                 "l"(from), "r"(is_there ? 16 : 0)
                 : "memory");
}

/* The same through the L1 cache, for what others on the SM ask for, too. */
static __device__ __forceinline__ void
cp_async_16_or_zeros_cached(void *to, const void *from, bool is_there)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(is_there ? 16 : 0)
                 : "memory");
}

/* What this thread has asked for since the last one is a group. */
static __device__ __forceinline__ void cp_async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until all groups of this thread but the N_LEFT newest are in. */
template <int N_LEFT> static __device__ __forceinline__ void cp_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N_LEFT) : "memory");
}

/* Until all of this thread's are in, in a group or not. */
static __device__ __forceinline__ void cp_async_wait_all(void)
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}
#endif
