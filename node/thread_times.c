#include "node/thread_times.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_BYTES_MAX 64u

/* The first line of /proc/self/task/<tid>/<file>; false when it is gone. */
static bool read_line(const char *tid, const char *file,
                      char out[FILE_BYTES_MAX])
{
    char path[64];
    ssize_t n;
    int fd;

    (void)snprintf(path, sizeof(path), "/proc/self/task/%.16s/%s", tid, file);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    n = read(fd, out, FILE_BYTES_MAX - 1);
    (void)close(fd);
    if (n <= 0)
        return false;
    out[n] = 0;
    out[strcspn(out, "\n")] = 0;
    return true;
}

/* NULL: too many names. */
static uint64_t *ns_of(struct thread_times *times, const char *name)
{
    uint32_t i = 0;

    while (i < times->n && strcmp(times->of[i].name, name) != 0)
        i++;
    if (i == THREAD_NAMES_MAX)
        return NULL;
    if (i == times->n) {
        (void)snprintf(times->of[i].name, THREAD_NAME_SIZE, "%s", name);
        times->of[i].ns = 0;
        times->n++;
    }
    return &times->of[i].ns;
}

void thread_times_read(struct thread_times *out)
{
    DIR *tasks = opendir("/proc/self/task");
    char main_tid[16], main_name[FILE_BYTES_MAX];
    const struct dirent *task;

    *out = (struct thread_times){0};
    (void)snprintf(main_tid, sizeof(main_tid), "%d", (int)getpid());
    if (!tasks)
        return;
    if (!read_line(main_tid, "comm", main_name))
        main_name[0] = 0;
    while ((task = readdir(tasks))) {
        char name[FILE_BYTES_MAX], times[FILE_BYTES_MAX];
        uint64_t *ns;

        if (task->d_name[0] == '.' || !read_line(task->d_name, "comm", name) ||
            !read_line(task->d_name, "schedstat", times))
            continue;
        if (strcmp(task->d_name, main_tid) == 0)
            ns = ns_of(out, "main");
        else
            ns = ns_of(out, strcmp(name, main_name) == 0 ? "kernels" : name);
        if (ns)
            *ns += strtoull(times, NULL, 10);
    }
    (void)closedir(tasks);
}

void thread_times_add(struct thread_times *sum,
                      const struct thread_times *begin,
                      const struct thread_times *end)
{
    for (uint32_t i = 0; i < end->n; i++) {
        uint64_t before = 0, *ns = ns_of(sum, end->of[i].name);

        for (uint32_t j = 0; j < begin->n; j++)
            if (strcmp(begin->of[j].name, end->of[i].name) == 0)
                before = begin->of[j].ns;
        if (ns && end->of[i].ns > before)
            *ns += end->of[i].ns - before;
    }
}
