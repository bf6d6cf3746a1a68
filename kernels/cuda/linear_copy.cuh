#ifndef KERNELS_CUDA_LINEAR_COPY_CUH
#define KERNELS_CUDA_LINEAR_COPY_CUH
/*
 * Barriers in shared memory and copies by the tensor memory accelerator that
 * report to them (PTX ISA: mbarrier, cp.async.bulk.tensor). A barrier goes
 * through phases; a phase is over when all arrivals and all announced bytes
 * have come. In a cluster a copy may go to the same place of several CTAs and
 * then reports to the same barrier of each.
 */
#include <cuda.h>
#include <stdint.h>

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ void barrier_init(uint64_t *barrier,
                                                    uint32_t n_arrival)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(
                     shared_address(barrier)),
                 "r"(n_arrival)
                 : "memory");
}

/* One arrival, and the announcement of bytes that copies will bring. */
static __device__ __forceinline__ void barrier_expect(uint64_t *barrier,
                                                      uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

/* One arrival at the same barrier of another CTA of the cluster. Without
 * .release.cluster, which waits a microsecond for all stores of the thread: it
 * says that the stage was read, and nothing was written. */
static __device__ __forceinline__ void barrier_arrive_at(uint64_t *barrier,
                                                         uint32_t rank)
{
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}" ::"r"(shared_address(barrier)),
                 "r"(rank)
                 : "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint64_t *barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(
                     shared_address(barrier))
                 : "memory");
}

static __device__ __forceinline__ bool barrier_try(uint64_t *barrier,
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

/* Until the phase with that parity is over. A copy that never comes is a bug
 * of ours, and better an error than a GPU that hangs: seconds. */
#define BARRIER_POLLS_MAX (1u << 24)

static __device__ __forceinline__ void barrier_wait(uint64_t *barrier,
                                                    uint32_t parity)
{
    for (uint32_t n = 0; !barrier_try(barrier, parity); n++)
        if (n > BARRIER_POLLS_MAX)
            __trap();
}

/* Makes initialised barriers known to the copy engine and, with cluster_sync()
 * behind it, to the cluster. */
static __device__ __forceinline__ void barrier_publish(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* All threads of the cluster have come here. Orders nothing else. */
static __device__ __forceinline__ void cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n"
                 "barrier.cluster.wait.aligned;" ::
                     : "memory");
}

static __device__ __forceinline__ uint32_t cluster_rank(void)
{
    uint32_t rank;

    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* Where a box begins: column, row, matrix. */
struct box_at {
    int32_t column, row, matrix;
};

/* How long the L2 cache keeps what a copy reads: policies as createpolicy makes
 * them (CUTLASS has the same constants). */
#define KEEP_NORMALLY 0x1000000000000000u
#define KEEP_SHORTLY 0x12f0000000000000u

/* Into this CTA. */
static __device__ __forceinline__ void
copy_box(void *to, const CUtensorMap *from, struct box_at at, uint64_t *barrier,
         uint64_t keep)
{
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier"
        "::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared_address(to)),
        "l"(from), "r"(at.column), "r"(at.row), "r"(at.matrix),
        "r"(shared_address(barrier)), "l"(keep)
        : "memory");
}

/* Into every CTA of the cluster whose bit is set. */
static __device__ __forceinline__ void
copy_box_to(void *to, const CUtensorMap *from, struct box_at at,
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

/*
 * Programmatic launches: a kernel that was launched so may begin while the one
 * before it still runs, and sees its results behind previous_wait(). The one
 * before allows it by next_begin().
 */
static __device__ __forceinline__ void previous_wait(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

static __device__ __forceinline__ void next_begin(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#endif
