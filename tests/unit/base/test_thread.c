/* What a thread may use is judged by the system's own answer. */
#include "base/thread.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>

static cpu_set_t allowed(void)
{
    cpu_set_t set;

    cr_assert_eq(sched_getaffinity(0, sizeof(set), &set), 0);
    return set;
}

static void *avoid_each(void *arg)
{
    const cpu_set_t before = allowed();
    cpu_set_t after;
    bool *is_right = arg;

    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        cpu_set_t rest = before, now;

        if (CPU_COUNT(&before) > 1)
            CPU_CLR((unsigned)cpu, &rest);
        thread_avoid_cpu(cpu);
        now = allowed();
        *is_right &= CPU_EQUAL(&now, &rest) != 0;
        *is_right &= CPU_ISSET((unsigned)thread_cpu(), &now) != 0;
    }
    thread_avoid_cpu(-1);
    after = allowed();
    *is_right &= CPU_EQUAL(&after, &before) != 0;
    return NULL;
}

Test(thread, one_cpu_is_avoided_at_a_time_and_never_the_last)
{
    const cpu_set_t before = allowed();
    cpu_set_t after;
    bool is_right = true;
    pthread_t id;

    cr_assert_eq(pthread_create(&id, NULL, avoid_each, &is_right), 0);
    cr_assert_eq(pthread_join(id, NULL), 0);
    cr_assert(is_right);
    after = allowed();
    cr_assert(CPU_EQUAL(&before, &after), "it is the caller's business alone");
}
