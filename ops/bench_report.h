#ifndef OPS_BENCH_REPORT_H
#define OPS_BENCH_REPORT_H
/*
 * What a run came to: one row for all requests and, where there are several
 * priorities, one for each. Quantiles are of replies that came whole.
 */
#include "ops/bench_load.h"

/* Rows of a "BenchList" for stdout. RESOURCE_EXHAUSTED, INTERNAL: as
   output_write(). */
MUST_CHECK enum status bench_report(enum output_format format,
                                    const struct bench_plan *plan,
                                    const struct bench_run *run);

/*
 * One line per request, TAB between fields, after a line with their names.
 *   INTERNAL  the file cannot be written
 */
MUST_CHECK enum status bench_report_replies(const char *path,
                                            const struct bench_plan *plan,
                                            const struct bench_run *run);

/* Milliseconds, for output_real(). */
double bench_ms(uint64_t us);
#endif
