/* Judged by texts written by hand and by RFC 9562's fields of a version 7. */
#include "state/session.h"

#include <criterion/criterion.h>
#include <string.h>

Test(uid, is_written_as_a_uuid)
{
    struct uid uid = {0x0123456789ab7def, 0x8123456789abcdef};
    char text[UID_TEXT_SIZE];

    uid_format(uid, text);
    cr_assert_str_eq(text, "01234567-89ab-7def-8123-456789abcdef");
    uid_format((struct uid){0, 1}, text);
    cr_assert_str_eq(text, "00000000-0000-0000-0000-000000000001");
}

Test(uid, carries_its_time_and_version_and_is_unique)
{
    struct uid uid[1000];

    for (size_t i = 0; i < 1000; i++) {
        cr_assert_eq(uid_make(0x0123456789ab, &uid[i]), STATUS_OK);
        cr_assert_eq(uid[i].hi >> 16, 0x0123456789ab);
        cr_assert_eq(uid[i].hi >> 12 & 15, 7);
        cr_assert_eq(uid[i].lo >> 62, 2);
        for (size_t k = 0; k < i; k++)
            cr_assert_not(uid_equal(uid[i], uid[k]));
    }
}

Test(uid, equal_means_both_halves)
{
    cr_assert(uid_equal((struct uid){1, 2}, (struct uid){1, 2}));
    cr_assert_not(uid_equal((struct uid){1, 2}, (struct uid){1, 3}));
    cr_assert_not(uid_equal((struct uid){2, 2}, (struct uid){1, 2}));
}
