#ifndef NODE_THREAD_TIMES_H
#define NODE_THREAD_TIMES_H
/*
 * Which threads of this process used the processors, by name: what the disk's
 * threads take is what the kernels, who want all CPUs, do not get. Read from
 * /proc; a system without it gives no times, which is no error.
 */
#include <stdint.h>

#define THREAD_NAME_SIZE 16u
#define THREAD_NAMES_MAX 16u

struct thread_times {
    uint32_t n;
    struct {
        char name[THREAD_NAME_SIZE]; /* as the thread calls itself; "main"; a
                                        thread without a name of its own is one
                                        of the kernels' pool: "kernels" */
        uint64_t ns;                 /* of all threads of that name */
    } of[THREAD_NAMES_MAX];
};

/* What was used up to now. Threads that have ended are not in it. */
void thread_times_read(struct thread_times *out);

/* Add what was used from `begin` to `end`, of those that still ran then. */
void thread_times_add(struct thread_times *sum,
                      const struct thread_times *begin,
                      const struct thread_times *end);
#endif
