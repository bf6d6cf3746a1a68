#ifndef BASE_THREAD_H
#define BASE_THREAD_H
/*
 * What a thread tells the system's scheduler about itself. The kernels' threads
 * keep every CPU busy, so that all others can only come between them. A system
 * that refuses is slower, not wrong, so nothing is returned.
 */

/*
 * The caller works for microseconds and somebody waits for it: let it in at
 * once, not at the end of another's slice. Linux 6.12 and later.
 */
void thread_is_brief(void);

/* The CPU that the caller has now; negative: not known. */
int thread_cpu(void);

/*
 * Keep the caller off a CPU whose thread hands out everybody's work, as long as
 * there is another one that the process may use. When the threads of a pool
 * lose theirs, the others take over what they have not begun; while the one
 * that hands it out waits, they all do. Negative: any CPU will do again.
 */
void thread_avoid_cpu(int cpu);
#endif
