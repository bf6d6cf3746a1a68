#include "state/seal.h"

#include <assert.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEAL_VERSION 1u
#define CIPHER_AES_256_GCM 1u
#define KEY_ID_BYTES 16u
#define SALT_BYTES 32u
#define NONCE_BYTES 12u
#define TAG_BYTES 16u
#define TENANT_MAX 63u

/* One direction of one stream. */
struct stream {
    EVP_CIPHER_CTX *cipher; /* owned; has the stream's key */
    uint64_t next;          /* piece */
    bool is_done;
};
struct sealer {
    struct stream stream;
};
struct opener {
    struct stream stream;
};

static enum status no_crypto(const char *what)
{
    return status_fail(STATUS_INTERNAL, "OpenSSL cannot %s", what);
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool seal_key_parse(const char *text, size_t n_bytes, struct seal_key *out)
{
    struct seal_key key;

    if (n_bytes != 2u * SEAL_KEY_BYTES)
        return false;
    for (size_t i = 0; i < SEAL_KEY_BYTES; i++) {
        int high = hex_value(text[2 * i]), low = hex_value(text[2 * i + 1]);

        if (high < 0 || low < 0)
            return false;
        key.bytes[i] = (unsigned char)(high << 4 | low);
    }
    *out = key;
    return true;
}

/* HKDF-SHA256 (RFC 5869) of a tenant's key. */
static enum status derive(const struct seal_key *key, const void *salt,
                          size_t salt_bytes, const char *info,
                          unsigned char *out, size_t out_bytes)
{
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    EVP_KDF_CTX *context = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST,
                                         (char *)"SHA256", 0),
        OSSL_PARAM_construct_octet_string(
            OSSL_KDF_PARAM_KEY, (void *)(uintptr_t)key->bytes, SEAL_KEY_BYTES),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT,
                                          (void *)(uintptr_t)salt, salt_bytes),
        OSSL_PARAM_construct_octet_string(
            OSSL_KDF_PARAM_INFO, (void *)(uintptr_t)info, strlen(info)),
        OSSL_PARAM_construct_end(),
    };
    bool is_good =
        context && EVP_KDF_derive(context, out, out_bytes, params) == 1;

    EVP_KDF_CTX_free(context);
    EVP_KDF_free(kdf);
    return is_good ? STATUS_OK : no_crypto("derive a key");
}

/* Says which key it is, and nothing about it. */
static enum status key_id(const struct seal_key *key,
                          unsigned char out[KEY_ID_BYTES])
{
    return derive(key, "", 0, "godwit key id 1", out, KEY_ID_BYTES);
}

static enum status stream_init(struct stream *stream,
                               const struct seal_key *key,
                               const unsigned char salt[SALT_BYTES],
                               bool encrypts)
{
    unsigned char own[SEAL_KEY_BYTES];
    enum status st =
        derive(key, salt, SALT_BYTES, "godwit bundle 1", own, sizeof(own));

    if (st)
        return st;
    stream->cipher = EVP_CIPHER_CTX_new();
    if (!stream->cipher)
        st = status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for a cipher");
    else if (EVP_CipherInit_ex(stream->cipher, EVP_aes_256_gcm(), NULL, own,
                               NULL, encrypts) != 1)
        st = no_crypto("set a key");
    OPENSSL_cleanse(own, sizeof(own));
    return st;
}

/* What a piece is bound to besides its bytes: its nonce and its place. */
static bool begin_piece(struct stream *stream, bool is_last, uint32_t n_bytes,
                        bool encrypts)
{
    unsigned char nonce[NONCE_BYTES] = {0}, place[13];
    int n;

    memcpy(nonce, &stream->next, sizeof(stream->next));
    nonce[8] = is_last;
    memcpy(place, &stream->next, sizeof(stream->next));
    place[8] = is_last;
    memcpy(place + 9, &n_bytes, sizeof(n_bytes));
    return EVP_CipherInit_ex(stream->cipher, NULL, NULL, NULL, nonce,
                             encrypts) == 1 &&
           EVP_CipherUpdate(stream->cipher, NULL, &n, place, sizeof(place)) ==
               1;
}

enum status sealer_create(const struct seal_key *key, struct writer *out,
                          struct sealer **out_sealer)
{
    struct sealer *sealer = calloc(1, sizeof(*sealer));
    unsigned char id[KEY_ID_BYTES], salt[SALT_BYTES];
    size_t begin;
    enum status st;

    if (!sealer)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory to seal a session");
    st = RAND_bytes(salt, sizeof(salt)) == 1 ? STATUS_OK
                                             : no_crypto("give random bytes");
    if (!st)
        st = key_id(key, id);
    if (!st)
        st = stream_init(&sealer->stream, key, salt, true);
    if (!st) {
        begin = frame_begin(out, FRAME_SEAL, SEAL_VERSION);
        writer_u32(out, CIPHER_AES_256_GCM);
        writer_bytes(out, id, sizeof(id));
        writer_bytes(out, salt, sizeof(salt));
        st = frame_end(out, begin);
    }
    if (st) {
        sealer_destroy(sealer);
        return st;
    }
    *out_sealer = sealer;
    return STATUS_OK;
}

void sealer_destroy(struct sealer *sealer)
{
    if (!sealer)
        return;
    EVP_CIPHER_CTX_free(sealer->stream.cipher);
    free(sealer);
}

enum status sealer_put(struct sealer *sealer, const void *bytes, size_t n_bytes,
                       bool is_last, struct writer *out)
{
    struct stream *stream = &sealer->stream;
    unsigned char text[SEAL_PIECE_BYTES], tag[TAG_BYTES];
    size_t begin;
    int n = 0, n_end = 0;

    assert(n_bytes <= SEAL_PIECE_BYTES && !stream->is_done);
    if (!begin_piece(stream, is_last, (uint32_t)n_bytes, true) ||
        (n_bytes > 0 && EVP_CipherUpdate(stream->cipher, text, &n, bytes,
                                         (int)n_bytes) != 1) ||
        EVP_CipherFinal_ex(stream->cipher, text + n, &n_end) != 1 ||
        EVP_CIPHER_CTX_ctrl(stream->cipher, EVP_CTRL_GCM_GET_TAG, TAG_BYTES,
                            tag) != 1)
        return no_crypto("encrypt");
    begin = frame_begin(out, FRAME_SEALED, SEAL_VERSION);
    writer_u64(out, stream->next);
    writer_u8(out, is_last);
    writer_u32(out, (uint32_t)n_bytes);
    writer_bytes(out, text, n_bytes);
    writer_bytes(out, tag, sizeof(tag));
    stream->next++;
    stream->is_done = is_last;
    return frame_end(out, begin);
}

static enum status damaged(const char *why)
{
    char copy[160];

    (void)snprintf(copy, sizeof(copy), "%s", why); /* it may be our cause's */
    (void)status_fail(STATUS_DATA_LOSS, "sealed bundle is damaged: %s", copy);
    return status_because("BUNDLE_DAMAGED");
}

static enum status check_head(const struct seal_key *key, struct reader *head,
                              const unsigned char **out_salt)
{
    uint32_t cipher = reader_u32(head);
    const void *its_id = reader_bytes(head, KEY_ID_BYTES);
    unsigned char id[KEY_ID_BYTES];
    enum status st = key_id(key, id);

    *out_salt = reader_bytes(head, SALT_BYTES);
    if (st)
        return st;
    if (!reader_is_done(head))
        return damaged("its head has another length");
    if (cipher != CIPHER_AES_256_GCM) {
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "bundle is sealed by cipher %u, this build knows %u",
                          cipher, CIPHER_AES_256_GCM);
        return status_because("BUNDLE_VERSION");
    }
    if (memcmp(id, its_id, sizeof(id)) != 0) {
        (void)status_fail(STATUS_FAILED_PRECONDITION,
                          "bundle was sealed with another key than this "
                          "tenant's");
        return status_because("KEY_MISMATCH");
    }
    return STATUS_OK;
}

enum status opener_create(const struct seal_key *key, const void *frame,
                          size_t n_bytes, struct opener **out)
{
    const unsigned char *salt;
    struct opener *opener;
    struct reader head;
    enum status st =
        frame_open(frame, n_bytes, FRAME_SEAL, SEAL_VERSION, &head);

    if (st == STATUS_FAILED_PRECONDITION)
        return status_because("BUNDLE_VERSION");
    if (!st)
        st = check_head(key, &head, &salt);
    if (st)
        return st;
    opener = calloc(1, sizeof(*opener));
    if (!opener)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory to open a session");
    st = stream_init(&opener->stream, key, salt, false);
    if (st) {
        opener_destroy(opener);
        return st;
    }
    *out = opener;
    return STATUS_OK;
}

void opener_destroy(struct opener *opener)
{
    if (!opener)
        return;
    EVP_CIPHER_CTX_free(opener->stream.cipher);
    free(opener);
}

/* Nothing of the text leaves before its tag was found right. */
static enum status decrypt(struct stream *stream, bool is_last,
                           const unsigned char *text, uint32_t n_bytes,
                           const unsigned char *tag, struct writer *out)
{
    unsigned char plain[SEAL_PIECE_BYTES];
    int n = 0, n_end = 0;

    if (!begin_piece(stream, is_last, n_bytes, false) ||
        (n_bytes > 0 && EVP_CipherUpdate(stream->cipher, plain, &n, text,
                                         (int)n_bytes) != 1) ||
        EVP_CIPHER_CTX_ctrl(stream->cipher, EVP_CTRL_GCM_SET_TAG, TAG_BYTES,
                            (void *)(uintptr_t)tag) != 1)
        return no_crypto("decrypt");
    if (EVP_CipherFinal_ex(stream->cipher, plain + n, &n_end) != 1)
        return damaged("a piece fails its tag");
    writer_bytes(out, plain, n_bytes);
    OPENSSL_cleanse(plain, n_bytes);
    if (out->is_failed)
        return status_fail(STATUS_RESOURCE_EXHAUSTED,
                           "no memory for a piece of a bundle");
    return STATUS_OK;
}

enum status opener_take(struct opener *opener, const void *frame,
                        size_t n_bytes, struct writer *out)
{
    struct stream *stream = &opener->stream;
    const unsigned char *text, *tag;
    struct reader reader;
    uint64_t number;
    uint32_t n;
    uint8_t is_last;
    enum status st =
        frame_open(frame, n_bytes, FRAME_SEALED, SEAL_VERSION, &reader);

    if (st)
        return damaged(status_reason());
    number = reader_u64(&reader);
    is_last = reader_u8(&reader);
    n = reader_u32(&reader);
    text = reader_bytes(&reader, n);
    tag = reader_bytes(&reader, TAG_BYTES);
    if (!reader_is_done(&reader) || n > SEAL_PIECE_BYTES || is_last > 1)
        return damaged("a piece's fields and length disagree");
    if (stream->is_done || number != stream->next)
        return damaged("a piece is not the next one");
    st = decrypt(stream, is_last, text, n, tag, out);
    if (st)
        return st;
    stream->next++;
    stream->is_done = is_last;
    return STATUS_OK;
}

bool opener_is_done(const struct opener *opener)
{
    return opener->stream.is_done;
}

/* --- keys --- */

struct keyring {
    size_t n;
    struct tenant_key {
        char tenant[TENANT_MAX + 1];
        struct seal_key key;
    } row[];
};

static bool parse_line(const char *line, size_t n_bytes, struct tenant_key *out)
{
    const char *blank = memchr(line, ' ', n_bytes);
    size_t n = blank ? (size_t)(blank - line) : 0;

    if (n == 0 || n > TENANT_MAX)
        return false;
    memcpy(out->tenant, line, n);
    out->tenant[n] = 0;
    if (strcmp(out->tenant, "-") == 0)
        out->tenant[0] = 0;
    return seal_key_parse(blank + 1, n_bytes - n - 1, &out->key);
}

static size_t count_lines(const char *text)
{
    size_t n = 1;

    for (; *text; text++)
        n += *text == '\n';
    return n;
}

enum status keyring_parse(const char *text, struct keyring **out)
{
    struct keyring *keyring = calloc(
        1, sizeof(*keyring) + count_lines(text) * sizeof(keyring->row[0]));

    if (!keyring)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory for keys");
    for (size_t number = 1; *text; number++) {
        size_t n = strcspn(text, "\n");
        struct tenant_key *row = &keyring->row[keyring->n];

        if (n > 0 && *text != '#') {
            bool is_good = parse_line(text, n, row);

            if (!is_good || keyring_find(keyring, row->tenant)) {
                keyring_destroy(keyring);
                return status_fail(STATUS_INVALID_ARGUMENT,
                                   "line %zu of the keys is %s", number,
                                   is_good
                                       ? "a second key of one tenant"
                                       : "no tenant, blank and 64 hex digits");
            }
            keyring->n++;
        }
        text += n + (text[n] == '\n');
    }
    *out = keyring;
    return STATUS_OK;
}

void keyring_destroy(struct keyring *keyring)
{
    if (!keyring)
        return;
    OPENSSL_cleanse(keyring->row, keyring->n * sizeof(keyring->row[0]));
    free(keyring);
}

const struct seal_key *keyring_find(const struct keyring *keyring,
                                    const char *tenant)
{
    for (size_t i = 0; keyring && i < keyring->n; i++)
        if (strcmp(keyring->row[i].tenant, tenant) == 0)
            return &keyring->row[i].key;
    return NULL;
}
