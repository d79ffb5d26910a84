/* Preloaded into a training run: makes one change of the file system below FAULT_FOLDER fail, and with FAULT_STAYS all later
   ones, or kills the process just before it. FAULT_AT: which change, from 1; FAULT_ERROR: an errno, or 0 for SIGKILL. A line
   on FAULT_SEEN tells what was met. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long count;
#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

static int fails(const char *what, const char *path) {
    const char *folder = getenv("FAULT_FOLDER"), *at = getenv("FAULT_AT"), *seen = getenv("FAULT_SEEN");
    if (!folder || !path || strncmp(path, folder, strlen(folder)))
        return 0;
    long number = atomic_fetch_add(&count, 1) + 1, point = atol(at);
    if (number != point && !(number > point && getenv("FAULT_STAYS")))
        return 0;
    int error = atoi(getenv("FAULT_ERROR"));
    if (number == point) {
        char line[PATH_MAX + 99];
        int file = REAL(open)(seen, O_WRONLY | O_CREAT | O_APPEND, 0644);
        int length = snprintf(line, sizeof line, "%s %d %s\n", what, error, path);
        if (REAL(write)(file, line, length) < 0) abort();
        REAL(close)(file);
        if (!error)
            kill(getpid(), SIGKILL);
    }
    errno = error;
    return 1;
}

static int file_fails(const char *what, int file) {
    char link[64], path[PATH_MAX];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length < 0)
        return 0;
    path[length] = 0;
    return fails(what, path);
}

static int stream_fails(const char *what, FILE *file) { return file && file_fails(what, fileno(file)); }

#define OPEN(name) int name(const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0; va_end(more); \
    return flags & (O_CREAT | O_TRUNC) && fails("open", path) ? -1 : REAL(name)(path, flags, mode); }
OPEN(open)
OPEN(open64)
#define OPENAT(name) int name(int at, const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0; va_end(more); \
    return flags & (O_CREAT | O_TRUNC) && fails("open", path) ? -1 : REAL(name)(at, path, flags, mode); }
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(name) FILE *name(const char *path, const char *mode) { \
    return *mode != 'r' && fails("fopen", path) ? NULL : REAL(name)(path, mode); }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int file, const void *data, size_t size) {
    return file_fails("write", file) ? -1 : REAL(write)(file, data, size); }
ssize_t writev(int file, const struct iovec *data, int n) {
    return file_fails("writev", file) ? -1 : REAL(writev)(file, data, n); }
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
    return file_fails("pwrite", file) ? -1 : REAL(pwrite)(file, data, size, at); }
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    return file_fails("pwrite", file) ? -1 : REAL(pwrite64)(file, data, size, at); }
size_t fwrite(const void *data, size_t size, size_t n, FILE *file) {
    return stream_fails("fwrite", file) ? 0 : REAL(fwrite)(data, size, n, file); }
#undef fwrite_unlocked
size_t fwrite_unlocked(const void *data, size_t size, size_t n, FILE *file) {
    return stream_fails("fwrite", file) ? 0 : REAL(fwrite_unlocked)(data, size, n, file); }
int fflush(FILE *file) { return stream_fails("fflush", file) ? EOF : REAL(fflush)(file); }
int fsync(int file) { return file_fails("fsync", file) ? -1 : REAL(fsync)(file); }
int fdatasync(int file) { return file_fails("fsync", file) ? -1 : REAL(fdatasync)(file); }
int ftruncate(int file, off_t size) { return file_fails("truncate", file) ? -1 : REAL(ftruncate)(file, size); }
int ftruncate64(int file, off64_t size) { return file_fails("truncate", file) ? -1 : REAL(ftruncate64)(file, size); }
int rename(const char *from, const char *to) { return fails("rename", to) ? -1 : REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) {
    return fails("rename", to) ? -1 : REAL(renameat)(a, from, b, to); }
int mkdir(const char *path, mode_t mode) { return fails("mkdir", path) ? -1 : REAL(mkdir)(path, mode); }
int unlink(const char *path) { return fails("unlink", path) ? -1 : REAL(unlink)(path); }
int rmdir(const char *path) { return fails("rmdir", path) ? -1 : REAL(rmdir)(path); }
