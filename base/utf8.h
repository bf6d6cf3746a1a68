#ifndef BASE_UTF8_H
#define BASE_UTF8_H
/*
 * Is a text from outside UTF-8? What is not must not become a string of a
 * message. Any thread.
 */
#include <stddef.h>

/* Bytes of the longest valid UTF-8 prefix; n_bytes if all are valid. */
size_t utf8_prefix(const char *text, size_t n_bytes);
#endif
