#include "ops/progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BAR_CELLS 20u
#define QUIET_US 1000000u /* shorter prefills show nothing */
#define LINE_US 5000000u
#define BAR_US 100000u

void progress_init(struct progress *progress, enum progress_kind kind,
                   uint64_t now_us)
{
    *progress = (struct progress){.kind = kind, .begin_us = now_us};
    if (kind == PROGRESS_AUTO) {
        progress->kind = isatty(STDERR_FILENO) ? PROGRESS_BAR : PROGRESS_LINES;
        progress->next_us = now_us + QUIET_US;
    }
}

void progress_format(char out[PROGRESS_LINE_SIZE], bool has_bar,
                     uint64_t n_done, uint64_t n_total, int64_t left_s)
{
    double share = n_total > 0 ? (double)n_done / (double)n_total : 1;
    char bar[BAR_CELLS + 4] = "", left[32] = "";
    unsigned n_full;

    if (share > 1)
        share = 1;
    n_full = (unsigned)(share * BAR_CELLS);
    if (has_bar) {
        bar[0] = '[';
        memset(bar + 1, '#', n_full);
        memset(bar + 1 + n_full, '-', BAR_CELLS - n_full);
        memcpy(bar + 1 + BAR_CELLS, "] ", 3);
    }
    if (left_s >= 0 && n_done < n_total)
        (void)snprintf(left, sizeof(left), ", %ld s left", left_s);
    (void)snprintf(out, PROGRESS_LINE_SIZE, "prefill %3u%% %s%lu/%lu tokens%s",
                   (unsigned)(share * 100), bar, n_done, n_total, left);
}

void progress_show(struct progress *progress, uint64_t n_done, uint64_t n_total,
                   int64_t left_s, uint64_t now_us)
{
    bool is_bar = progress->kind == PROGRESS_BAR;
    bool is_end = n_done >= n_total && progress->was_shown;
    char line[PROGRESS_LINE_SIZE];

    if (progress->kind == PROGRESS_NONE ||
        (now_us < progress->next_us && !is_end))
        return;
    progress_format(line, is_bar, n_done, n_total, left_s);
    if (is_bar)
        (void)fprintf(stderr, "\r\033[K%s", line);
    else
        (void)fprintf(stderr, "%s\n", line);
    (void)fflush(stderr);
    progress->next_us = now_us + (is_bar ? BAR_US : LINE_US);
    progress->is_shown = is_bar;
    progress->was_shown = true;
}

void progress_clear(struct progress *progress)
{
    if (!progress->is_shown)
        return;
    (void)fputs("\r\033[K", stderr);
    (void)fflush(stderr);
    progress->is_shown = false;
}
