#ifndef KERNELS_POOL_H
#define KERNELS_POOL_H
/*
 * Worker threads for kernels. Task i belongs to thread i % n_thread, so that
 * the same thread meets the same rows and heads again, but a thread that is
 * done takes over what others have not begun: the CPUs are not ours alone, and
 * one thread that lost its own would hold up all others. No result depends on
 * who does what (E7): tasks write disjoint outputs and never share a
 * reduction.
 *
 * Workers spin for some microseconds after a job, because the next operator of
 * the same step follows at once, and then sleep on a futex, so that an idle
 * node costs nothing. pool_run() is called by one thread at a time, which
 * works as thread 0.
 */
#include "base/status.h"

#include <stddef.h>

#define POOL_THREAD_MAX 256u
#define POOL_SCRATCH_BYTES (8u << 20) /* per thread; touched only when used */
#define POOL_SHARED_BYTES (32u << 20) /* per pool; the same */

struct pool;

/*
 *   INVALID_ARGUMENT    n_thread is 0 or above POOL_THREAD_MAX
 *   RESOURCE_EXHAUSTED  no memory or no thread
 */
MUST_CHECK enum status pool_create(uint32_t n_thread, struct pool **out);
void pool_destroy(struct pool *pool);
uint32_t pool_n_thread(const struct pool *pool);

/*
 * In place of threads a device (kernels/device.h), for backends that have one:
 * a pool of the calling thread alone that names it. Borrowed.
 *   RESOURCE_EXHAUSTED  no memory
 */
struct device;
MUST_CHECK enum status pool_create_device(struct device *device,
                                          struct pool **out);
struct device *pool_device(const struct pool *pool);

/*
 * Tasks run under the flush modes of kernels/flush.h on every thread.
 *
 * Call work(arg, task, scratch) for task = 0 .. n_task - 1 and return when all
 * are done. scratch: POOL_SCRATCH_BYTES, 64-byte aligned, this thread's own,
 * contents undefined. A pool of NULL runs everything on the caller with a
 * scratch that the caller's thread keeps.
 */
typedef void pool_work(void *arg, uint32_t task, void *scratch);
void pool_run(struct pool *pool, uint32_t n_task, pool_work *work, void *arg);

/*
 * For what is dear to set up and to undo with every task: `undo` is called on
 * this thread once it has no more tasks of the job. Of several only the last.
 */
void pool_at_rest(void (*undo)(void));

/*
 * POOL_SHARED_BYTES, 64-byte aligned, for what one job makes and the next one
 * reads; only who calls pool_run() may use it. Contents are undefined once an
 * operator is over. A pool of NULL: the calling thread's own.
 */
void *pool_shared(struct pool *pool);
#endif
