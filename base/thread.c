#include "base/thread.h"

#include <sched.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BRIEF_NS 100000u /* the shortest slice that Linux gives */

/* struct sched_attr of linux/sched/types.h, which cannot be included beside
 * the C library's sched.h. */
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period; /* ns; runtime: of a slice */
};

void thread_is_brief(void)
{
    const struct attributes brief = {.size = sizeof(brief),
                                     .nice = getpriority(PRIO_PROCESS, 0),
                                     .runtime = BRIEF_NS};

    (void)syscall(SYS_sched_setattr, 0, &brief, 0);
}

int thread_cpu(void)
{
    return sched_getcpu();
}

void thread_avoid_cpu(int cpu)
{
    cpu_set_t set;

    /* The main thread has what the process was given. */
    if (sched_getaffinity(getpid(), sizeof(set), &set) != 0)
        return;
    if (cpu >= 0 && cpu < CPU_SETSIZE && CPU_COUNT(&set) > 1)
        CPU_CLR((unsigned)cpu, &set);
    (void)sched_setaffinity(0, sizeof(set), &set);
}
