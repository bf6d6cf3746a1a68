#ifndef OPS_PROGRESS_H
#define OPS_PROGRESS_H
/*
 * How far a long prefill is, on stderr: a bar that is drawn over itself on a
 * terminal, else one line per five seconds.
 *
 *   prefill  61% [############--------] 639488/1048576 tokens, 31 s left
 *
 * A prefill of less than a second shows nothing, unless lines are asked for.
 */
#include <stdbool.h>
#include <stdint.h>

enum progress_kind {
    PROGRESS_AUTO, /* a bar if stderr is a terminal, else lines */
    PROGRESS_BAR,
    PROGRESS_LINES, /* the first and the last one always */
    PROGRESS_NONE,
};

struct progress {
    enum progress_kind kind;
    uint64_t begin_us, next_us; /* when to show the next one */
    bool is_shown;              /* a bar stands on the terminal's line */
    bool was_shown;
};

#define PROGRESS_LINE_SIZE 128

void progress_init(struct progress *progress, enum progress_kind kind,
                   uint64_t now_us);

/* left_s < 0: not known. */
void progress_show(struct progress *progress, uint64_t n_done, uint64_t n_total,
                   int64_t left_s, uint64_t now_us);

/* Before anything else is written to the terminal: take the bar away. */
void progress_clear(struct progress *progress);

/* The line without its bar: "prefill  61% 639488/1048576 tokens, 31 s left". */
void progress_format(char out[PROGRESS_LINE_SIZE], bool has_bar,
                     uint64_t n_done, uint64_t n_total, int64_t left_s);
#endif
