/*
 * The picture of a run as SVG, by hand: rectangles and text, nothing to link.
 */
#include "node/eval_report.h"

#include <string.h>

#define NAME_WIDTH 150u
#define CELL_WIDTH 96u
#define CELL_HEIGHT 30u
#define HEAD_HEIGHT 66u
#define FOOT_HEIGHT 40u
#define MARGIN 12u
#define STRIP_HEIGHT 10u
#define WIDTH_MIN 480u
#define LENGTH_MAX 64u
#define TASK_MAX 64u

/* White to dark blue; the middle is a light blue. */
static void format_colour(double share, char out[8])
{
    static const int STOP[3][3] = {
        {247, 247, 247}, {107, 174, 214}, {8, 48, 107}};
    const int part = share < 0.5 ? 0 : 1;
    const double t = 2 * (share - 0.5 * part);
    int colour[3];

    for (int i = 0; i < 3; i++)
        colour[i] =
            STOP[part][i] +
            (int)(t * (STOP[part + 1][i] - STOP[part][i]) + (t < 0 ? -0.5 : 0));
    (void)snprintf(out, 8, "#%02x%02x%02x", (unsigned)colour[0],
                   (unsigned)colour[1], (unsigned)colour[2]);
}

/* XML text; what may not stand in it is replaced. */
static void write_escaped(const char *text, FILE *to)
{
    for (; *text; text++)
        if (*text == '<')
            (void)fputs("&lt;", to);
        else if (*text == '&')
            (void)fputs("&amp;", to);
        else
            (void)fputc((unsigned char)*text < ' ' ? '?' : *text, to);
}

static void write_rect(uint32_t x, uint32_t y, const uint32_t size[2],
                       const char *colour, FILE *to)
{
    fprintf(to,
            "<rect x=\"%u\" y=\"%u\" width=\"%u\" height=\"%u\" fill=\"%s\"/>"
            "\n",
            x, y, size[0], size[1], colour);
}

/* One tally: the whole cell with its number, or its part of the strip. */
static void write_cell(const struct eval_about *about,
                       const struct eval_tally *tally, uint32_t x, uint32_t y,
                       FILE *to)
{
    const double share = eval_share(tally);
    const struct eval_interval interval =
        eval_wilson(share, eval_trials(tally));
    const uint32_t width = CELL_WIDTH - 2;
    char colour[8];

    format_colour(share, colour);
    if (tally->depth == EVAL_DEPTH_ALL) {
        write_rect(x, y,
                   (const uint32_t[2]){
                       width, CELL_HEIGHT - 2 -
                                  (tally->task->has_depth ? STRIP_HEIGHT : 0)},
                   colour, to);
        fprintf(to,
                "<text x=\"%u\" y=\"%u\" text-anchor=\"middle\" fill=\"%s\">"
                "%.2f<title>%.3f, 95 %% interval %.3f to %.3f</title></text>\n",
                x + width / 2, y + (tally->task->has_depth ? 14 : 19),
                share > 0.5 ? "#ffffff" : "#222222", share, share, interval.low,
                interval.high);
        return;
    }
    write_rect(x + width * tally->depth / about->n_depth,
               y + CELL_HEIGHT - 2 - STRIP_HEIGHT,
               (const uint32_t[2]){width * (tally->depth + 1) / about->n_depth -
                                       width * tally->depth / about->n_depth,
                                   STRIP_HEIGHT},
               colour, to);
}

/* Rows and columns, in the order in which tallies first name them. */
struct axes {
    const struct eval_task *task[TASK_MAX];
    uint32_t length[LENGTH_MAX];
    uint32_t n_task, n_length;
};

/* Where a tally has its row and column; those that are new are added. */
static bool locate(struct axes *axes, const struct eval_tally *tally,
                   uint32_t *out_row, uint32_t *out_column)
{
    uint32_t row = 0, column = 0;

    while (row < axes->n_task && axes->task[row] != tally->task)
        row++;
    while (column < axes->n_length && axes->length[column] != tally->length)
        column++;
    if (row == TASK_MAX || column == LENGTH_MAX)
        return false;
    if (row == axes->n_task)
        axes->task[axes->n_task++] = tally->task;
    if (column == axes->n_length)
        axes->length[axes->n_length++] = tally->length;
    *out_row = row;
    *out_column = column;
    return true;
}

static void write_head(const struct eval_about *about, uint32_t width,
                       uint32_t height, FILE *to)
{
    fprintf(to,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%u\" "
            "height=\"%u\" viewBox=\"0 0 %u %u\" font-family=\"sans-serif\" "
            "font-size=\"12\">\n",
            width, height, width, height);
    write_rect(0, 0, (const uint32_t[2]){width, height}, "#ffffff", to);
    fprintf(to, "<text x=\"%u\" y=\"24\" font-size=\"14\">", MARGIN);
    write_escaped(about->model, to);
    fprintf(to, ", policy %s</text>\n", about->policy);
    fprintf(to,
            "<text x=\"%u\" y=\"%u\" fill=\"#555555\">score 0 (white) to 1 "
            "(dark), by tokens of the prompt; strips: depth 0 to 1</text>\n",
            MARGIN, height - FOOT_HEIGHT / 2);
}

void eval_plot(const struct eval_about *about, const struct eval_tally *tally,
               uint32_t n_tally, FILE *to)
{
    struct axes axes = {.n_task = 0};
    uint32_t row, column, width, height;

    for (uint32_t i = 0; i < n_tally; i++)
        (void)locate(&axes, &tally[i], &row, &column);
    width = 2 * MARGIN + NAME_WIDTH + axes.n_length * CELL_WIDTH;
    height = HEAD_HEIGHT + axes.n_task * CELL_HEIGHT + FOOT_HEIGHT;
    write_head(about, width > WIDTH_MIN ? width : WIDTH_MIN, height, to);
    for (uint32_t i = 0; i < axes.n_length; i++)
        fprintf(to,
                "<text x=\"%u\" y=\"%u\" text-anchor=\"middle\">%u</text>"
                "\n",
                MARGIN + NAME_WIDTH + i * CELL_WIDTH + CELL_WIDTH / 2,
                HEAD_HEIGHT - 10, axes.length[i]);
    for (uint32_t i = 0; i < axes.n_task; i++)
        fprintf(to, "<text x=\"%u\" y=\"%u\">%s</text>\n", MARGIN,
                HEAD_HEIGHT + i * CELL_HEIGHT + 18, axes.task[i]->name);
    for (uint32_t i = 0; i < n_tally; i++)
        if (locate(&axes, &tally[i], &row, &column))
            write_cell(about, &tally[i],
                       MARGIN + NAME_WIDTH + column * CELL_WIDTH,
                       HEAD_HEIGHT + row * CELL_HEIGHT, to);
    fprintf(to, "</svg>\n");
}
