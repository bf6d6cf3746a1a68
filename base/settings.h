#ifndef BASE_SETTINGS_H
#define BASE_SETTINGS_H
/*
 * One table of settings: flags, environment, file, `--help` and (later) the
 * chart's schema all come from the same rows. Precedence: flag, environment,
 * file, default. Long options only: `--name value` or `--name=value`. A switch
 * stands alone or is `--name=false`; it never takes the next word. The last of
 * two equal options wins; behind `--` all are words. The environment name of
 * `--data-dir` is GODWIT_DATA_DIR; an empty one counts as absent. The file is a
 * JSON object whose keys are setting names, read when the table has a text row
 * "config" and that is not empty.
 */
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum setting_kind {
    SETTING_NUMBER, /* uint64_t between min and max */
    SETTING_REAL,   /* double between min and max */
    SETTING_SWITCH, /* bool; true, on or 1, and false, off or 0 */
    SETTING_TEXT,   /* const char *, "" when absent */
    SETTING_CHOICE, /* const char *, one of `choices` */
};

struct setting {
    const char *name; /* "listen", without dashes */
    enum setting_kind kind;
    const char *preset;  /* default as text; NULL: must be given */
    double min, max;     /* of numbers and reals */
    const char *choices; /* "none|local", of choices */
    const char *unit;    /* "tokens", "HOST:PORT", or "" */
    const char *help;    /* one line */
    size_t offset;       /* of the field in the values struct */
};

#define SETTINGS_TEXT_MAX (1u << 20) /* bytes of all texts together */
#define SETTING_NO_ENV 1u            /* ignore the environment (tests) */

struct settings {
    const char *program; /* "godwitd serve" */
    const char *about;   /* what it does, one or more lines */
    const struct setting *row;
    size_t n_row;
    unsigned flags; /* SETTING_NO_ENV or 0 */
};

/*
 * Fill `values`, the struct that the rows' offsets point into; on failure
 * nothing is written. Texts are copied and owned by the settings storage
 * `*out_store` (settings_release()). argv[0] is skipped; words that are no
 * option go to out_word (borrowed from argv), at most max_word of them.
 *   INVALID_ARGUMENT    unknown option, missing value, value out of range, too
 *                       many words: "--max-tokens is '-3', expected 0 to 4096";
 *                       a file that is no JSON object or has an unknown key
 *   NOT_FOUND           the file named by `--config` (if the table has that
 *                       row); PERMISSION_DENIED, INTERNAL: it cannot be read
 *   RESOURCE_EXHAUSTED  no memory, or texts above SETTINGS_TEXT_MAX
 */
struct settings_store;
MUST_CHECK enum status settings_read(const struct settings *settings, int argc,
                                     char **argv, const char **out_word,
                                     int max_word, int *out_n_word,
                                     void *values,
                                     struct settings_store **out_store);
void settings_release(struct settings_store *store);

/* True when argv holds --help in front of any `--`. */
bool settings_wants_help(int argc, char **argv);

/* One line per row: name and unit, default, range, environment name, help. */
void settings_help(const struct settings *settings, FILE *to);
#endif
