#include "kernels/linear.h"

#include "base/rooms.h"
#include "kernels/device.h"
#include "kernels/linear_f8.h"
#include "kernels/room.h"
#include "kernels/scalar.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHT_BYTES_MAX ((size_t)1 << 46) /* more than any machine has */
#define Q_MAX 127.0f

const char *arithmetic_name(enum arithmetic arithmetic)
{
    static const char *const NAME[N_ARITHMETIC] = {
        [ARITHMETIC_FP32] = "fp32",          [ARITHMETIC_PAIR] = "bf16-pair",
        [ARITHMETIC_TILE] = "bf16-tile",     [ARITHMETIC_MMA] = "bf16-mma",
        [ARITHMETIC_FAST] = "bf16-mma-fast",
    };
    return NAME[arithmetic];
}

const char *arithmetic_id(enum arithmetic arithmetic)
{
    static const char *const ID[N_ARITHMETIC] = {
        [ARITHMETIC_FP32] = "fp32-chain-2",
        [ARITHMETIC_PAIR] = "bf16-pair-2",
        [ARITHMETIC_TILE] = "bf16-tile-2",
        [ARITHMETIC_MMA] = "bf16-mma-2",
        [ARITHMETIC_FAST] = "bf16-mma-fast-1",
    };
    return ID[arithmetic];
}

/* ------------------------------------------------------------------- life */

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static bool has_rows(const struct linear *linear)
{
    return arithmetic_is_mma(linear->arithmetic) || linear->type == LINEAR_F8;
}

size_t linear_n_step(const struct linear *linear)
{
    if (linear->type == LINEAR_F8)
        return round_up(linear->n_in, LINEAR_F8_BLOCK);
    if (has_rows(linear))
        return round_up(linear->n_in, LINEAR_TILE);
    switch (linear->type) {
    case LINEAR_BF16:
        return round_up(linear->n_in, LINEAR_STEP);
    case LINEAR_W8:
    case LINEAR_W8A8:
        return round_up(linear->n_in, LINEAR_GROUP);
    default:
        return linear->n_in;
    }
}

size_t linear_panel_bytes(const struct linear *linear)
{
    const size_t n_step = linear_n_step(linear);

    switch (linear->type) {
    case LINEAR_BF16:
        return n_step * LINEAR_PANEL * sizeof(uint16_t);
    case LINEAR_W8:
        return n_step / LINEAR_GROUP * sizeof(struct linear_group);
    case LINEAR_W8A8:
        return n_step / LINEAR_GROUP * sizeof(struct linear_quads);
    case LINEAR_F8:
        return n_step * LINEAR_PANEL;
    default:
        return n_step * LINEAR_PANEL * sizeof(float);
    }
}

static size_t n_panel(const struct linear *linear)
{
    const size_t to = has_rows(linear) ? LINEAR_TILE : LINEAR_PANEL;

    return round_up(linear->n_out, to) / LINEAR_PANEL;
}

size_t linear_bytes(const struct linear *linear)
{
    if (linear->type == LINEAR_F8)
        return linear_f8_bytes(
            (struct linear_f8_shape){linear->n_in, linear->n_out});
    return n_panel(linear) * linear_panel_bytes(linear);
}

enum status linear_init(uint32_t n_in, uint32_t n_out, enum linear_type type,
                        enum arithmetic arithmetic, struct linear *out)
{
    struct linear linear = {
        .n_in = n_in, .n_out = n_out, .type = type, .arithmetic = arithmetic};

    assert(!arithmetic_is_mma(arithmetic) ||
           (type != LINEAR_W8 && type != LINEAR_W8A8));
    if (type == LINEAR_F32 || type == LINEAR_W8A8)
        linear.arithmetic = ARITHMETIC_FP32;
    if (linear_panel_bytes(&linear) <=
        WEIGHT_BYTES_MAX / (n_panel(&linear) + 1))
        linear.panel = room_take(linear_bytes(&linear));
    if (!linear.panel)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for weights [%u, %u]", n_out, n_in);
    memset(linear.panel, 0, linear_bytes(&linear));
    *out = linear;
    return STATUS_OK;
}

void linear_release(struct linear *linear)
{
    if (linear->rooms)
        rooms_give(linear->rooms, linear->panel);
    else
        device_give(linear->device, linear->panel);
    *linear = (struct linear){0};
}

enum status linear_settle(struct linear *linear, struct rooms *rooms)
{
    const size_t bytes = linear_bytes(linear);
    void *panel;
    enum status st;

    assert(!linear->device && !linear->rooms);
    if (!rooms || bytes >= ROOM_HUGE_BYTES)
        return STATUS_OK;
    st = rooms_take(rooms, bytes, &panel);
    if (st)
        return st;
    memcpy(panel, linear->panel, bytes);
    free(linear->panel);
    linear->panel = panel;
    linear->rooms = rooms;
    return STATUS_OK;
}

enum status linear_move(struct linear *linear, struct device *device)
{
    const size_t bytes = linear_bytes(linear);
    void *panel;
    enum status st;

    if (!device)
        return STATUS_OK;
    assert(!linear->rooms);
    st = device_take(device, bytes, &panel);
    if (st)
        return st;
    device_write(device, panel, linear->panel, bytes);
    free(linear->panel);
    linear->panel = panel;
    linear->device = device;
    return STATUS_OK;
}

/* ---------------------------------------------------------------- packing */

/* Up to LINEAR_GROUP inputs of one output, on their way into its panel. */
struct piece {
    const unsigned char *source;
    bool is_bf16;
    size_t n; /* inputs */
    size_t lane;
};

static void read_piece(const struct piece *piece, float *w)
{
    if (!piece->is_bf16) {
        memcpy(w, piece->source, piece->n * sizeof(float));
        return;
    }
    for (size_t i = 0; i < piece->n; i++) {
        uint16_t bits;

        memcpy(&bits, piece->source + i * sizeof(bits), sizeof(bits));
        w[i] = scalar_from_bf16(bits);
    }
}

static void put_f32(const struct piece *piece, float *panel)
{
    float w[LINEAR_GROUP];

    read_piece(piece, w);
    for (size_t i = 0; i < piece->n; i++)
        panel[i * LINEAR_PANEL + piece->lane] = w[i];
}

static void round_piece(const struct piece *piece, uint16_t *bits)
{
    float w[LINEAR_GROUP];

    if (piece->is_bf16) { /* as they are, subnormals too */
        memcpy(bits, piece->source, piece->n * sizeof(*bits));
        return;
    }
    read_piece(piece, w);
    for (size_t i = 0; i < piece->n; i++)
        bits[i] = scalar_to_bf16(w[i]);
}

static void put_bf16(const struct piece *piece, uint16_t *panel)
{
    uint16_t bits[LINEAR_GROUP];

    round_piece(piece, bits);
    for (size_t i = 0; i < piece->n; i++)
        panel[(i / 2 * LINEAR_PANEL + piece->lane) * 2 + i % 2] = bits[i];
}

float linear_quantise(const float *x, size_t n, int8_t q[LINEAR_GROUP])
{
    float largest = 0.0f, zero = 0.0f, scale, inverse;

    for (size_t i = 0; i < n; i++) {
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
        zero += x[i] * 0.0f; /* NaN as soon as one is not finite */
    }
    /* The inverse is finite only for a normal scale; below is nothing. */
    scale = largest / Q_MAX < FLT_MIN ? 0.0f : largest / Q_MAX;
    inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    memset(q, 0, LINEAR_GROUP);
    for (size_t i = 0; i < n && zero == 0.0f; i++) {
        const float near = x[i] * inverse;

        q[i] = (int8_t)lrintf(near > Q_MAX    ? Q_MAX
                              : near < -Q_MAX ? -Q_MAX
                                              : near);
    }
    return zero == 0.0f ? scale : NAN;
}

static void put_w8(const struct piece *piece, struct linear_group *group)
{
    float w[LINEAR_GROUP];
    int8_t q[LINEAR_GROUP];

    read_piece(piece, w);
    group->scale[piece->lane] = linear_quantise(w, piece->n, q);
    for (size_t i = 0; i < piece->n; i++)
        group->q[i][piece->lane] = q[i];
}

static void put_w8a8(const struct piece *piece, struct linear_quads *quads)
{
    float w[LINEAR_GROUP];
    int8_t q[LINEAR_GROUP];

    read_piece(piece, w);
    quads->scale[piece->lane] = linear_quantise(w, piece->n, q);
    for (size_t i = 0; i < piece->n; i++)
        quads->q[i / 4][piece->lane][i % 4] = q[i];
}

static void pack_row(const struct linear *linear, size_t o, struct piece piece,
                     size_t source_bytes)
{
    unsigned char *panel = (unsigned char *)linear->panel +
                           o / LINEAR_PANEL * linear_panel_bytes(linear);
    const size_t bytes = linear_panel_bytes(linear) / linear_n_step(linear);

    piece.lane = o % LINEAR_PANEL;
    for (size_t i = 0; i < linear->n_in; i += LINEAR_GROUP) {
        const size_t left = linear->n_in - i;

        piece.n = left < LINEAR_GROUP ? left : LINEAR_GROUP;
        if (linear->type == LINEAR_F32)
            put_f32(&piece, (float *)(void *)(panel + i * bytes));
        else if (linear->type == LINEAR_BF16)
            put_bf16(&piece, (uint16_t *)(void *)(panel + i * bytes));
        else if (linear->type == LINEAR_W8)
            put_w8(&piece,
                   (struct linear_group *)(void *)panel + i / LINEAR_GROUP);
        else
            put_w8a8(&piece,
                     (struct linear_quads *)(void *)panel + i / LINEAR_GROUP);
        piece.source += piece.n * source_bytes;
    }
}

static void pack_plain_row(const struct linear *linear, size_t o,
                           struct piece piece, size_t source_bytes)
{
    uint16_t *row = (uint16_t *)linear->panel + o * linear_n_step(linear);

    if (piece.is_bf16) {
        memcpy(row, piece.source, linear->n_in * sizeof(*row));
        return;
    }
    for (size_t i = 0; i < linear->n_in; i += LINEAR_GROUP) {
        const size_t left = linear->n_in - i;

        piece.n = left < LINEAR_GROUP ? left : LINEAR_GROUP;
        round_piece(&piece, row + i);
        piece.source += piece.n * source_bytes;
    }
}

static void pack(const struct linear *linear, uint32_t first_out,
                 uint32_t n_row, const void *weight, bool is_bf16)
{
    const size_t bytes = is_bf16 ? sizeof(uint16_t) : sizeof(float);
    struct piece piece = {.source = weight, .is_bf16 = is_bf16};

    assert((uint64_t)first_out + n_row <= linear->n_out &&
           linear->type != LINEAR_F8);
    for (size_t row = 0; row < n_row; row++) {
        if (has_rows(linear))
            pack_plain_row(linear, first_out + row, piece, bytes);
        else
            pack_row(linear, first_out + row, piece, bytes);
        piece.source += linear->n_in * bytes;
    }
}

void linear_pack_f32(struct linear *linear, uint32_t first_out, uint32_t n_row,
                     const void *weight)
{
    pack(linear, first_out, n_row, weight, false);
}

void linear_pack_bf16(struct linear *linear, uint32_t first_out, uint32_t n_row,
                      const void *weight)
{
    pack(linear, first_out, n_row, weight, true);
}
