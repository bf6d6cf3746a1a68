/* A whole file. Whatever opens is read from its first byte to its last. */
#include "model/safetensors.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[] = "/tmp/godwit-fuzz-XXXXXX.safetensors";
static int is_made;

static void drop_file(void)
{
    (void)unlink(path);
}

static void write_input(const uint8_t *data, size_t size)
{
    FILE *file;

    if (!is_made) {
        const int fd = mkstemps(path, (int)strlen(".safetensors"));

        if (fd < 0)
            abort();
        (void)close(fd);
        is_made = 1;
        (void)atexit(drop_file);
    }
    (void)unlink(path); /* truncating would wait for the disk */
    file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file))
        abort();
}

static void read_all(const struct safetensors *file, size_t size)
{
    float value[256];

    for (uint32_t i = 0; i < safetensors_count(file); i++) {
        const struct tensor *tensor = safetensors_at(file, i);
        const uint64_t width = tensor->type == TENSOR_F32 ? 4 : 2;
        const struct tensor *same;

        assert(tensor->n_bytes <= size);
        assert(safetensors_find(file, tensor->name) == tensor);
        if (tensor->type > TENSOR_BF16)
            continue;
        assert(safetensors_need(file, tensor->name, tensor->n_dim, tensor->dim,
                                &same) == STATUS_OK);
        for (uint64_t at = 0; at < tensor->n_bytes / width; at += 256) {
            const uint64_t left = tensor->n_bytes / width - at;

            tensor_read_f32(tensor, at, left < 256 ? left : 256, value);
        }
    }
    (void)safetensors_digest(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors *file = NULL;

    write_input(data, size);
    if (safetensors_open(path, &file) == STATUS_OK)
        read_all(file, size);
    else
        assert(!file && status_reason()[0]);
    safetensors_close(file);
    return 0;
}
