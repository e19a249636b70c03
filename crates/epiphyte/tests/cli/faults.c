// Fails or kills at one call that changes a file below a directory: loaded into the process under
// test with LD_PRELOAD.
//
// FAULT_BELOW  the directory
// FAULT_AT     the number of the call, from 1; 0 for none
// FAULT_KIND   ENOSPC, EIO, EACCES, EINTR, short (half of a write) or kill
// FAULT_LOG    a file outside the directory to which each call is appended

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static long calls;

static int is_below(const char *path) {
    const char *below = getenv("FAULT_BELOW");
    return below && path && strncmp(path, below, strlen(below)) == 0;
}

// The path of a directory's descriptor with a name, or of the working directory with a path.
static const char *path_of(int directory, const char *path, char *buffer) {
    if (path && path[0] == '/') return path;
    char link[64], base[PATH_MAX];
    if (directory == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, base, sizeof base - 1);
    if (length < 0) return path;
    base[length] = 0;
    if (!path) snprintf(buffer, 2 * PATH_MAX, "%s", base);
    else snprintf(buffer, 2 * PATH_MAX, "%s/%s", base, path);
    return buffer;
}

// Counts a call; returns whether it is the one, and kills if that is the fault.
static int is_due(const char *name, int directory, const char *path) {
    char buffer[2 * PATH_MAX];
    path = path_of(directory, path, buffer);
    if (!is_below(path)) return 0;
    long call = __sync_add_and_fetch(&calls, 1);
    const char *log = getenv("FAULT_LOG");
    if (log) {
        static int (*real)(const char *, int, ...);
        if (!real) real = dlsym(RTLD_NEXT, "open");
        int file = real(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        if (file >= 0) {
            dprintf(file, "%ld %s %s\n", call, name, path);
            close(file);
        }
    }
    const char *at = getenv("FAULT_AT");
    if (!at || call != atol(at)) return 0;
    if (strcmp(getenv("FAULT_KIND"), "kill") == 0) raise(SIGKILL);
    return 1;
}

static int error(void) {
    const char *kind = getenv("FAULT_KIND");
    errno = !strcmp(kind, "ENOSPC") ? ENOSPC : !strcmp(kind, "EACCES") ? EACCES
          : !strcmp(kind, "EINTR") ? EINTR : EIO;
    return -1;
}

#define REAL(name, ...) \
    static int (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, name)

#define OPEN(symbol) \
    int symbol(const char *path, int flags, ...) { \
        REAL(#symbol, const char *, int, ...); \
        va_list list; va_start(list, flags); int mode = va_arg(list, int); va_end(list); \
        int writes = flags & (O_WRONLY | O_RDWR | O_CREAT); \
        if (writes && is_due("open", AT_FDCWD, path)) return error(); \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(symbol) \
    int symbol(int directory, const char *path, int flags, ...) { \
        REAL(#symbol, int, const char *, int, ...); \
        va_list list; va_start(list, flags); int mode = va_arg(list, int); va_end(list); \
        int writes = flags & (O_WRONLY | O_RDWR | O_CREAT); \
        if (writes && is_due("open", directory, path)) return error(); \
        return real(directory, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define WRITE(symbol, arguments, ...) \
    ssize_t symbol arguments { \
        static ssize_t (*real) arguments; \
        if (!real) real = dlsym(RTLD_NEXT, #symbol); \
        if (file > 2 && is_due("write", file, NULL)) { \
            if (strcmp(getenv("FAULT_KIND"), "short") || count < 2) return error(); \
            count /= 2; \
        } \
        return real(__VA_ARGS__); \
    }
WRITE(write, (int file, const void *bytes, size_t count), file, bytes, count)
WRITE(pwrite, (int file, const void *bytes, size_t count, off_t at), file, bytes, count, at)
WRITE(pwrite64, (int file, const void *bytes, size_t count, off64_t at), file, bytes, count, at)

#define ON_FILE(symbol, arguments, ...) \
    int symbol arguments { \
        static int (*real) arguments; \
        if (!real) real = dlsym(RTLD_NEXT, #symbol); \
        if (is_due(#symbol, file, NULL)) return error(); \
        return real(__VA_ARGS__); \
    }
ON_FILE(fsync, (int file), file)
ON_FILE(fdatasync, (int file), file)
ON_FILE(ftruncate, (int file, off_t length), file, length)
ON_FILE(ftruncate64, (int file, off64_t length), file, length)

#define ON_PATH(symbol, arguments, ...) \
    int symbol arguments { \
        static int (*real) arguments; \
        if (!real) real = dlsym(RTLD_NEXT, #symbol); \
        if (is_due(#symbol, AT_FDCWD, path)) return error(); \
        return real(__VA_ARGS__); \
    }
ON_PATH(mkdir, (const char *path, mode_t mode), path, mode)
ON_PATH(rmdir, (const char *path), path)
ON_PATH(unlink, (const char *path), path)
ON_PATH(rename, (const char *from, const char *path), from, path)

int unlinkat(int directory, const char *path, int flags) {
    REAL("unlinkat", int, const char *, int);
    if (is_due("unlinkat", directory, path)) return error();
    return real(directory, path, flags);
}
