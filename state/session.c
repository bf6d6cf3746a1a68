#include "state/session.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

bool uid_equal(struct uid a, struct uid b)
{
    return a.hi == b.hi && a.lo == b.lo;
}

void uid_format(struct uid uid, char out[UID_TEXT_SIZE])
{
    (void)snprintf(out, UID_TEXT_SIZE, "%08x-%04x-%04x-%04x-%012lx",
                   (unsigned)(uid.hi >> 32), (unsigned)(uid.hi >> 16 & 0xffffu),
                   (unsigned)(uid.hi & 0xffffu), (unsigned)(uid.lo >> 48),
                   uid.lo & 0xffffffffffffu);
}

/* RFC 9562, UUID version 7: 48 bits of time, 74 random ones. */
enum status uid_make(uint64_t wall_ms, struct uid *out)
{
    uint64_t random[2];
    ssize_t n;

    do
        n = getrandom(random, sizeof(random), 0);
    while (n < 0 && errno == EINTR);
    if (n != (ssize_t)sizeof(random))
        return status_fail(STATUS_INTERNAL, "system gave no random bytes: %s",
                           n < 0 ? strerror(errno) : "short read");
    out->hi = wall_ms << 16 | 0x7000u | (random[0] & 0x0fffu);
    out->lo = 0x8000000000000000u | random[1] >> 2;
    return STATUS_OK;
}
