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
#endif
