#ifndef OPS_OUTPUT_H
#define OPS_OUTPUT_H
/*
 * What godwitctl writes to stdout: rows of named values, shown as a table for
 * people, as TSV with a header line, or as JSON that says its version. The rows
 * are collected first, so that a table knows its widths; a call of a node never
 * has more than LIST_PAGE rows times the pages that were asked for.
 */
#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum output_format { OUTPUT_TABLE, OUTPUT_TSV, OUTPUT_JSON };

#define OUTPUT_WIDE_MAX 12u

struct output;

/*
 * kind: the JSON member "kind", "Session"; of a list "SessionList", whose rows
 * are then its "items". The table of a single row, or of rows with more than
 * OUTPUT_WIDE_MAX values, has one line per value.
 *   RESOURCE_EXHAUSTED  no memory
 */
MUST_CHECK enum status output_create(enum output_format format,
                                     const char *kind, bool is_list,
                                     struct output **out);
void output_destroy(struct output *output);

/*
 * Begin a row; the values that follow are its own, in their order. Every row
 * of a list has the same names: of the first row the header is made. Text that
 * is not UTF-8 is shown as empty.
 */
void output_row(struct output *output);
void output_text(struct output *output, const char *name, const char *value);
void output_number(struct output *output, const char *name, uint64_t value);
/* With at most n_digit digits behind the point. */
void output_real(struct output *output, const char *name, double value,
                 unsigned n_digit);
void output_flag(struct output *output, const char *name, bool value);
/* Seconds since 1970; ISO 8601 in UTC. 0: no time, null in JSON, else empty. */
void output_time(struct output *output, const char *name, int64_t seconds);
/* A value of named texts, filled by output_entry(): an object in JSON, else
   "a=1,b=2". */
void output_map(struct output *output, const char *name);
void output_entry(struct output *output, const char *name, const char *key,
                  const char *value);

/*
 * Write everything to stdout.
 *   INTERNAL            stdout cannot be written
 *   RESOURCE_EXHAUSTED  no memory, now or while the rows were collected
 */
MUST_CHECK enum status output_write(struct output *output);
#endif
