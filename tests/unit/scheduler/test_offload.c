#include "scheduler/offload.h"

#include <criterion/criterion.h>
#include <string.h>

#define N 6u

/* One letter each, least recently used first: s stored, u not stored, b busy,
 * S and U the same pinned. Ten bytes each. Answers whose turn it is: x goes. */
static bool choose(const char *sessions, size_t bytes, size_t left, char *out)
{
    struct offload_session session[N] = {0};
    const uint64_t n = strlen(sessions);
    bool fits;

    for (uint64_t i = 0; i < n; i++)
        session[i] = (struct offload_session){
            .bytes = 10,
            .is_stored = strchr("sS", sessions[i]) != NULL,
            .is_busy = sessions[i] == 'b',
            .is_pinned = strchr("SU", sessions[i]) != NULL,
            .goes = true};
    fits = offload_choose(bytes, (struct offload_room){left, 60}, session, n);
    for (uint64_t i = 0; i < n; i++)
        out[i] = session[i].goes ? 'x' : '-';
    out[n] = '\0';
    return fits;
}

struct row {
    const char *sessions;
    size_t bytes, left;
    bool fits;
    const char *goes;
};

Test(offload, decides_by_room_order_of_use_and_what_is_stored)
{
    static const struct row ROWS[] = {
        {"ssss", 10, 10, true, "----"},    /* there is room */
        {"ssss", 10, 9, true, "x---"},     /* the least recently used goes */
        {"ssss", 30, 10, true, "xx--"},    /* as many as are needed */
        {"bsss", 10, 0, true, "-x--"},     /* not one that cannot */
        {"Sss", 10, 0, true, "-x-"},       /* nor a pinned one, ... */
        {"SsS", 30, 0, true, "xxx"},       /* ... unless it must */
        {"usss", 10, 0, false, "x---"},    /* saved first: not now */
        {"susss", 30, 10, false, "-x---"}, /* so the stored one stays, too */
        {"uuss", 20, 10, false, "x---"},   /* no more are saved than needed */
        {"ss", 61, 60, false, "--"},       /* it never fits */
        {"bb", 10, 0, false, "--"},        /* nobody can go */
        {"su", 30, 0, false, "--"},        /* nor is it of use */
        {"", 10, 0, false, ""},
    };
    char goes[N + 1];

    for (size_t i = 0; i < sizeof(ROWS) / sizeof(ROWS[0]); i++) {
        const bool fits =
            choose(ROWS[i].sessions, ROWS[i].bytes, ROWS[i].left, goes);

        cr_assert_eq(fits, ROWS[i].fits, "row %zu", i);
        cr_assert_str_eq(goes, ROWS[i].goes, "row %zu", i);
    }
}
