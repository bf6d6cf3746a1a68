#ifndef KERNELS_CUDA_ASYNC_CUH
#define KERNELS_CUDA_ASYNC_CUH
/*
 * Barriers in shared memory that go through phases, and copies that arrive at
 * them (PTX ISA: mbarrier, cp.async.bulk, cp.async). GPUs before Hopper have
 * the barriers and the copies of 16 bytes: there threads copy by copy_share(),
 * and what is for the copy engine is nothing.
 */
#include <cuda.h>
#include <stdint.h>

static __device__ __forceinline__ void barrier_init(uint32_t barrier,
                                                    uint32_t n_arrival)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier),
                 "r"(n_arrival)
                 : "memory");
}

/* So that the copy engine knows the barriers; before the CTA's first barrier.
 */
static __device__ __forceinline__ void barrier_publish(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

static __device__ __forceinline__ void barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier)
                 : "memory");
}

/* An arrival that announces bytes of bulk copies. */
static __device__ __forceinline__ void barrier_expect(uint32_t barrier,
                                                      uint32_t bytes)
{
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
        "r"(bytes)
        : "memory");
}

/* One of the counted arrivals, once this thread's copies of 16 bytes are in. */
static __device__ __forceinline__ void barrier_arrive_copied(uint32_t barrier)
{
    asm volatile(
        "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier)
        : "memory");
}

static __device__ __forceinline__ void barrier_wait(uint32_t barrier,
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

static __device__ __forceinline__ void
copy_bulk(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::"
                 "bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

/* A box of two dimensions, as its map has it. */
static __device__ __forceinline__ void copy_box(uint32_t to,
                                                const CUtensorMap *from,
                                                uint32_t column, uint32_t row,
                                                uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier"
                 "::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(from), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}

/* Both of these into every CTA of the cluster whose bit is set, at the same
 * place and with the same barrier of each. */
static __device__ __forceinline__ void
copy_bulk_to(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier,
             uint16_t mask)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::"
                 "bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier), "h"(mask)
                 : "memory");
}

static __device__ __forceinline__ void
copy_box_to(uint32_t to, const CUtensorMap *from, uint32_t column, uint32_t row,
            uint32_t barrier, uint16_t mask)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier"
                 "::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(from), "r"(column), "r"(row), "r"(barrier), "h"(mask)
                 : "memory");
}

/* One arrival at the same barrier of another CTA of the cluster, or of this
 * one. It says that something was read, not that something was written. */
static __device__ __forceinline__ void barrier_arrive_at(uint32_t barrier,
                                                         uint32_t rank)
{
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}" ::"r"(barrier),
                 "r"(rank)
                 : "memory");
}

/* This CTA's number in its cluster. */
static __device__ __forceinline__ uint32_t cluster_rank(void)
{
    uint32_t rank = 0;

#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}

/* All threads of the cluster have come here; before Hopper, of the CTA. Orders
 * nothing else. */
static __device__ __forceinline__ void cluster_sync(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n"
                 "barrier.cluster.wait.aligned;" ::
                     : "memory");
#else
    __syncthreads();
#endif
}

/* Back to device memory; copies_out_wait() before the thread ends. */
static __device__ __forceinline__ void copy_bulk_out(void *to, uint32_t from,
                                                     uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n"
                 "cp.async.bulk.commit_group;" ::"l"(to),
                 "r"(from), "r"(bytes)
                 : "memory");
}

static __device__ __forceinline__ void copies_out_wait(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
}

static __device__ __forceinline__ void copy_16(uint32_t to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to),
                 "l"(from)
                 : "memory");
}
/* Thread `thread` of n_thread's share of whole 16 bytes. */
static __device__ __forceinline__ void copy_share(uint32_t to, const void *from,
                                                  uint32_t bytes,
                                                  uint32_t thread,
                                                  uint32_t n_thread)
{
    for (uint32_t i = thread * 16; i < bytes; i += n_thread * 16)
        copy_16(to + i, (const char *)from + i);
}
/* This thread's copies of 16 bytes are in. */
static __device__ __forceinline__ void copies_wait(void)
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}
/* What this thread wrote to shared memory comes before later bulk copies. */
static __device__ __forceinline__ void copies_after_writes(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
#endif
