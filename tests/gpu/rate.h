#ifndef TESTS_GPU_RATE_H
#define TESTS_GPU_RATE_H
/*
 * How every program that times kernels says what it found, so that run.sh can
 * make one table of all: what was timed, microseconds that it cannot go below,
 * microseconds that it took, the share reached.
 */
#include <stdarg.h>
#include <stdio.h>

static void rate_print(double bound, double us, const char *format, ...)
{
    char what[96];
    va_list list;

    va_start(list, format);
    (void)vsnprintf(what, sizeof(what), format, list);
    va_end(list);
    printf("%-78s | %9.1f | %9.1f | %3.0f %%\n", what, bound, us,
           100.0 * bound / us);
    (void)fflush(stdout); /* lines before one that hangs are kept */
}
#endif
