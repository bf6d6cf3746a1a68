/*
 * The server's port: channel arguments, TLS by file, and an error that says
 * what is wrong where gRPC itself only says that it did not work.
 */
#include "rpc/server_parts.h"

#include <errno.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/log.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HOST_SIZE 256u
#define PORT_MAX 65535ul
#define PEM_BYTES_MAX (1u << 20)

#define KEEPALIVE_MS 20000
#define KEEPALIVE_TIMEOUT_MS 10000
/* A client that watches a long prefill pings; at the default of 5 minutes it
   would be cut off with "too_many_pings" (measured). */
#define MIN_PING_INTERVAL_MS 5000
#define HANDSHAKE_TIMEOUT_MS 10000
#define NO_GRPC_LINES ((gpr_log_severity)(GPR_LOG_SEVERITY_ERROR + 1))

static enum status split_address(const char *address, char host[HOST_SIZE],
                                 char port[8])
{
    const char *colon = strrchr(address, ':');
    const char *start = address, *end = colon;
    char *rest = NULL;
    unsigned long number;

    if (!colon || colon == address || colon[1] < '0' || colon[1] > '9')
        goto bad;
    number = strtoul(colon + 1, &rest, 10);
    if (*rest || number > PORT_MAX)
        goto bad;
    if (*start == '[' && end[-1] == ']') {
        start++;
        end--;
    } else if (memchr(start, ':', (size_t)(end - start))) {
        goto bad;
    }
    if (start == end || (size_t)(end - start) >= HOST_SIZE)
        goto bad;
    memcpy(host, start, (size_t)(end - start));
    host[end - start] = '\0';
    (void)snprintf(port, 8, "%lu", number);
    return STATUS_OK;
bad:
    return status_fail(STATUS_INVALID_ARGUMENT,
                       "listen is \"%.200s\", expected HOST:PORT like "
                       "127.0.0.1:50051 or [::1]:50051",
                       address);
}

/* Why gRPC could not bind: try it ourselves. OK when it can be bound. */
static enum status try_bind(const char *address)
{
    char host[HOST_SIZE], port[8];
    struct addrinfo want = {.ai_socktype = SOCK_STREAM,
                            .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    int fd = -1, error = 0, one = 1;
    enum status st = split_address(address, host, port);

    if (st)
        return st;
    if (getaddrinfo(host, port, &want, &found) != 0)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "listen names \"%s\", which is no address", host);
    fd = socket(found->ai_family, found->ai_socktype | SOCK_CLOEXEC, 0);
    if (fd < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) != 0 ||
        bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1) != 0)
        error = errno;
    if (fd >= 0)
        (void)close(fd);
    freeaddrinfo(found);
    if (error == EADDRINUSE)
        return status_fail(STATUS_UNAVAILABLE,
                           "port %s of %s is in use by another process", port,
                           host);
    if (error == EACCES)
        return status_fail(STATUS_PERMISSION_DENIED,
                           "port %s of %s may not be used: %s", port, host,
                           strerror(error));
    if (error)
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "cannot listen on port %s of %s: %s", port, host,
                           strerror(error));
    return STATUS_OK;
}

static bool is_set(const char *text)
{
    return text && text[0];
}

/* A whole PEM file, NUL-terminated; free() it. */
static enum status read_pem(const char *path, const char *what,
                            const char *mark, char **out)
{
    FILE *file = fopen(path, "re");
    char *text = NULL;
    size_t n;

    if (!file)
        return status_fail(errno == ENOENT   ? STATUS_NOT_FOUND
                           : errno == EACCES ? STATUS_PERMISSION_DENIED
                                             : STATUS_INVALID_ARGUMENT,
                           "%s file %s: %s", what, path, strerror(errno));
    text = calloc(1, PEM_BYTES_MAX + 1);
    n = text ? fread(text, 1, PEM_BYTES_MAX, file) : 0;
    (void)fclose(file);
    if (!text)
        return status_fail(STATUS_RESOURCE_EXHAUSTED, "no memory to read %s",
                           path);
    if (n == 0 || strlen(text) != n || !strstr(text, mark)) {
        free(text);
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "%s file %s holds no PEM block \"%s\"", what, path,
                           mark);
    }
    *out = text;
    return STATUS_OK;
}

static enum status make_credentials(const struct server_options *options,
                                    grpc_server_credentials **out)
{
    grpc_ssl_pem_key_cert_pair pair = {0};
    char *cert = NULL, *key = NULL, *ca = NULL;
    enum status st;

    if (!is_set(options->tls_cert) && !is_set(options->tls_key)) {
        if (is_set(options->tls_ca))
            return status_fail(STATUS_INVALID_ARGUMENT,
                               "a TLS CA is given without a certificate and "
                               "its key");
        *out = grpc_insecure_server_credentials_create();
        return STATUS_OK;
    }
    if (!is_set(options->tls_cert) || !is_set(options->tls_key))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "a TLS %s is given without its %s",
                           is_set(options->tls_cert) ? "certificate" : "key",
                           is_set(options->tls_cert) ? "key" : "certificate");
    st = read_pem(options->tls_cert, "TLS certificate", "-----BEGIN CERT",
                  &cert);
    if (!st)
        st = read_pem(options->tls_key, "TLS key", "PRIVATE KEY-----", &key);
    if (!st && is_set(options->tls_ca))
        st = read_pem(options->tls_ca, "TLS CA", "-----BEGIN CERT", &ca);
    if (!st) {
        pair.private_key = key;
        pair.cert_chain = cert;
        *out = grpc_ssl_server_credentials_create_ex(
            ca, &pair, 1,
            ca ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
               : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
            NULL);
        if (!*out)
            st = status_fail(STATUS_INVALID_ARGUMENT,
                             "TLS files %s and %s are refused",
                             options->tls_cert, options->tls_key);
    }
    free(cert);
    free(key);
    free(ca);
    return st;
}

static grpc_arg integer(const char *key, int value)
{
    grpc_arg arg = {.type = GRPC_ARG_INTEGER, .key = (char *)key};

    arg.value.integer = value;
    return arg;
}

static void create_grpc(struct server *server)
{
    const struct server_options *options = &server->options;
    grpc_arg arg[] = {
        integer(GRPC_ARG_ALLOW_REUSEPORT, 0), /* else two nodes share a port */
        integer(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
                (int)options->max_message_bytes),
        integer(GRPC_ARG_MAX_CONCURRENT_STREAMS, (int)options->max_streams),
        integer(GRPC_ARG_KEEPALIVE_TIME_MS, KEEPALIVE_MS),
        integer(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, KEEPALIVE_TIMEOUT_MS),
        integer(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        integer(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        integer(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                MIN_PING_INTERVAL_MS),
        integer(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, HANDSHAKE_TIMEOUT_MS),
    };
    const grpc_channel_args args = {sizeof(arg) / sizeof(arg[0]), arg};

    server->grpc = grpc_server_create(&args, NULL);
    grpc_server_register_completion_queue(server->grpc, server->queue, NULL);
}

enum status server_listen(struct server *server)
{
    const struct server_options *options = &server->options;
    grpc_server_credentials *credentials = NULL;
    char host[HOST_SIZE], port[8];
    enum status st = split_address(options->listen, host, port);
    int bound;

    if (!st)
        st = make_credentials(options, &credentials);
    if (st)
        return st;
    create_grpc(server);
    /* Its own lines about a port that is taken would only repeat ours. */
    gpr_set_log_verbosity(NO_GRPC_LINES);
    bound =
        grpc_server_add_http2_port(server->grpc, options->listen, credentials);
    gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
    grpc_server_credentials_release(credentials);
    if (bound > 0) {
        server->port = (uint16_t)bound;
        return STATUS_OK;
    }
    st = try_bind(options->listen);
    if (st)
        return st;
    if (is_set(options->tls_cert))
        return status_fail(STATUS_INVALID_ARGUMENT,
                           "TLS key %s and certificate %s do not match, or one "
                           "of the PEM files does not parse",
                           options->tls_key, options->tls_cert);
    return status_fail(STATUS_INVALID_ARGUMENT, "cannot listen on %s",
                       options->listen);
}
