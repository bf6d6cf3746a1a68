/*
 * A small driver for fuzz targets, so that they run in every build and not
 * only where libFuzzer is: each committed input once, then a bounded number of
 * seeded mutations of them. The same seed gives the same inputs.
 *
 *     fuzz_x CORPUS_DIR [N_MUTATION [SEED]]    replay, then mutate
 *     fuzz_x FILE                              one input: a crash again
 *
 * A target is a file tests/fuzz/<layer>/fuzz_<x>.c with libFuzzer's function;
 * its inputs lie in tests/fuzz/corpus/<x>/. An input that kills the target is
 * left in $TMPDIR (or /tmp) as fuzz-crash-<pid>; once fixed it belongs into the
 * corpus.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define INPUT_MAX 65536u /* bytes of one input */
#define CORPUS_MAX 256u  /* inputs */
#define STACK_MAX 6u     /* changes in one mutation */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* Only where a sanitizer is linked. */
void __sanitizer_set_death_callback(void (*callback)(void))
    __attribute__((weak));

struct input {
    uint8_t *data; /* owned */
    size_t n;
};

static struct input corpus[CORPUS_MAX];
static size_t n_corpus;
static uint64_t random_state;

/* What the target is reading now, for the one who must know why it died. */
static const uint8_t *volatile now_data;
static volatile size_t now_n;
static char crash_path[256];

static void save_input(void)
{
    int fd;

    if (!now_data)
        return;
    fd = open(crash_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, now_data, now_n) < 0)
        return;
    (void)close(fd);
    (void)!write(STDERR_FILENO, "input saved as ", 15);
    (void)!write(STDERR_FILENO, crash_path, strlen(crash_path));
    (void)!write(STDERR_FILENO, "\n", 1);
    now_data = NULL;
}

static void on_signal(int number)
{
    save_input();
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

static void catch_deaths(void)
{
    const char *dir = getenv("TMPDIR");

    (void)snprintf(crash_path, sizeof(crash_path), "%s/fuzz-crash-%d",
                   dir ? dir : "/tmp", (int)getpid());
    (void)signal(SIGABRT, on_signal);
    if (__sanitizer_set_death_callback) {
        __sanitizer_set_death_callback(save_input);
        return;
    }
    (void)signal(SIGSEGV, on_signal);
    (void)signal(SIGBUS, on_signal);
    (void)signal(SIGFPE, on_signal);
}

/* splitmix64 (Steele, Lea, Flood 2014) */
static uint64_t next_random(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static size_t below(size_t n)
{
    return n ? (size_t)(next_random() % n) : 0;
}

static void run(const uint8_t *data, size_t n)
{
    /* An exact copy, so that a sanitizer sees the byte behind its end. */
    uint8_t *copy = malloc(n ? n : 1);

    if (!copy)
        abort();
    if (n)
        memcpy(copy, data, n);
    now_n = n;
    now_data = copy;
    (void)LLVMFuzzerTestOneInput(copy, n);
    now_data = NULL;
    free(copy);
}

static int load_file(const char *path)
{
    struct input *input = &corpus[n_corpus];
    FILE *file = fopen(path, "rb");

    if (!file)
        return -1;
    input->data = malloc(INPUT_MAX);
    if (!input->data)
        abort();
    input->n = fread(input->data, 1, INPUT_MAX, file);
    (void)fclose(file);
    n_corpus++;
    return 0;
}

static int is_name(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static int load_corpus(const char *path)
{
    struct dirent **entry;
    char name[4096];
    struct stat info;
    int n, failed = 0;

    if (stat(path, &info))
        return -1;
    if (!S_ISDIR(info.st_mode))
        return load_file(path);
    n = scandir(path, &entry, is_name, alphasort); /* the order is the seed's */
    if (n < 0)
        return -1;
    for (int i = 0; i < n; i++) {
        (void)snprintf(name, sizeof(name), "%s/%s", path, entry[i]->d_name);
        if (n_corpus < CORPUS_MAX && load_file(name))
            failed = -1;
        free(entry[i]);
    }
    free(entry);
    return failed;
}

static void change_byte(uint8_t *data, size_t n)
{
    static const uint8_t SPECIAL[] = {0,   1,    '"',  '{',  '}',  '[', ']',
                                      ',', ':',  '\\', '0',  '9',  '-', '.',
                                      ' ', 0x7f, 0x80, 0xc3, 0xed, 0xff};
    uint8_t *byte = &data[below(n)];

    switch (below(4)) {
    case 0:
        *byte ^= (uint8_t)(1u << below(8));
        break;
    case 1:
        *byte = (uint8_t)next_random();
        break;
    case 2:
        *byte = SPECIAL[below(sizeof(SPECIAL))];
        break;
    default:
        *byte = (uint8_t)(*byte + (below(2) ? 1 : -1));
        break;
    }
}

/* Put n_part bytes over or between those at `at`. */
static size_t put(uint8_t *data, size_t n, size_t at, const uint8_t *part,
                  size_t n_part, int inserts)
{
    if (inserts) {
        if (n_part > INPUT_MAX - n)
            n_part = INPUT_MAX - n;
        memmove(data + at + n_part, data + at, n - at);
        n += n_part;
    } else if (n_part > n - at) {
        n_part = n - at;
    }
    memmove(data + at, part, n_part);
    return n;
}

static size_t mutate(uint8_t *data, size_t n)
{
    const struct input *other = &corpus[below(n_corpus)];
    uint8_t part[256];
    size_t at = below(n), length = below(sizeof(part));

    if (length > n - at)
        length = n - at;
    switch (below(8)) {
    case 0: /* cut out */
        memmove(data + at, data + at + length, n - at - length);
        return n - length;
    case 1: /* cut off; rarely, as little is left */
        return below(4) ? n : at;
    case 2: /* repeat */
        memcpy(part, data + at, length);
        return put(data, n, below(n), part, length, 1);
    case 3: /* move over */
        memcpy(part, data + at, length);
        return put(data, n, below(n), part, length, 0);
    case 4: /* from another input */
        at = below(other->n);
        length = below(sizeof(part));
        if (length > other->n - at)
            length = other->n - at;
        return put(data, n, below(n), other->data + at, length, below(2) == 0);
    case 5: /* a number that may not fit */
        length = (size_t)snprintf((char *)part, sizeof(part), "%lu",
                                  next_random() >> below(64));
        return put(data, n, at, part, length, below(2) == 0);
    default:
        if (n)
            change_byte(data, n);
        return n;
    }
}

int main(int argc, char **argv)
{
    static uint8_t data[INPUT_MAX];
    size_t n_mutation = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    size_t n;

    random_state = argc > 3 ? strtoul(argv[3], NULL, 10) : 1;
    if (argc < 2 || load_corpus(argv[1]) || !n_corpus) {
        fprintf(stderr, "usage: %s CORPUS_DIR|FILE [N_MUTATION [SEED]]\n",
                argv[0]);
        return 2;
    }
    catch_deaths();
    for (size_t i = 0; i < n_corpus; i++)
        run(corpus[i].data, corpus[i].n);
    for (size_t i = 0; i < n_mutation; i++) {
        const struct input *input = &corpus[below(n_corpus)];

        n = input->n;
        memcpy(data, input->data, n);
        for (size_t k = 1 + below(STACK_MAX); k > 0; k--)
            n = mutate(data, n);
        run(data, n);
    }
    printf("%zu inputs and %zu mutations of them\n", n_corpus, n_mutation);
    for (size_t i = 0; i < n_corpus; i++)
        free(corpus[i].data);
    return 0;
}
