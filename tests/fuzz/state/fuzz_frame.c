/*
 * Any bytes as a frame. They are opened as they are, and, since a digest keeps
 * a fuzzer out, once more as the payload of a sound frame that every kind of
 * read then runs over.
 */
#include "proto/frame.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

static void read_all(struct reader *reader)
{
    char text[16];

    while (reader->left > 0) {
        size_t before = reader->left;

        switch (reader_u8(reader) % 8) {
        case 0:
            (void)reader_u16(reader);
            break;
        case 1:
            (void)reader_u32(reader);
            break;
        case 2:
            (void)reader_u64(reader);
            break;
        case 3:
            (void)reader_f32(reader);
            break;
        case 4:
            (void)reader_digest(reader);
            break;
        case 5:
            (void)reader_bytes(reader, reader_u16(reader));
            break;
        case 6:
            (void)reader_bytes(reader, reader_u64(reader));
            break;
        default:
            reader_text(reader, text, sizeof(text));
        }
        if (reader->left >= before || (reader->is_failed && reader->left))
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    struct reader reader;
    struct writer writer;
    size_t begin;

    for (int kind = 0; kind < 9; kind++)
        if (!frame_open(bytes, n_bytes, (enum frame_kind)kind, 1, &reader))
            read_all(&reader);
    writer_init(&writer, 1u << 20);
    begin = frame_begin(&writer, FRAME_TURN, 1);
    writer_bytes(&writer, bytes, n_bytes);
    if (!frame_end(&writer, begin)) {
        if (frame_open(writer.bytes, writer.n, FRAME_TURN, 1, &reader))
            abort(); /* what was written is not read */
        read_all(&reader);
    }
    writer_release(&writer);
    return 0;
}
