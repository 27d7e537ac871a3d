/* Counts a process's (and its children's) file operations below a directory, and makes one of them go wrong.
 *
 * Loaded with LD_PRELOAD. FAULT_ROOT is the directory; FAULT_CONTROL names a file that is mapped as `struct control` by
 * everybody: counted in one place, operation N is the N-th of the whole build, whichever process it is in.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct control {
    long count;   /* operations so far */
    long at;      /* the one that goes wrong; 0: none */
    long action;  /* -1: SIGKILL, else the errno to fail with */
    long onwards; /* 1: all after it go wrong too */
    char what[240];
};

static struct control *control;
static char root[4096];
static size_t root_length;

__attribute__((constructor)) static void start(void) {
    const char *directory = getenv("FAULT_ROOT"), *file = getenv("FAULT_CONTROL");
    if (!directory || !file) return;
    int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int handle = real_open(file, O_RDWR | O_CLOEXEC);
    if (handle < 0) return;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, handle, 0);
    close(handle);
    if (mapped == MAP_FAILED) return;
    snprintf(root, sizeof root, "%s/", directory);
    root_length = strlen(root);
    control = mapped;
}

static int below(const char *path) { return strncmp(path, root, root_length) == 0; }

/* 1: the operation is to fail, errno is set. */
static int strike(const char *operation, const char *path) {
    long number = __atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST);
    if (!control->at || number < control->at || (number > control->at && !control->onwards)) return 0;
    if (number == control->at) snprintf(control->what, sizeof control->what, "%s %s", operation, path + root_length);
    if (control->action == -1) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    errno = (int)control->action;
    return 1;
}

static int fails_at(const char *operation, int directory, const char *path) {
    char whole[8192], link[64];
    if (!control || !path) return 0;
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else if (directory == AT_FDCWD) {
        if (!getcwd(whole, 4096)) return 0;
        strcat(whole, "/");
        strncat(whole, path, 4000);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t length = readlink(link, whole, 4096);
        if (length < 0) return 0;
        snprintf(whole + length, sizeof whole - length, "/%s", path);
    }
    return below(whole) ? strike(operation, whole) : 0;
}

static int fails(const char *operation, const char *path) { return fails_at(operation, AT_FDCWD, path); }

static int fails_fd(const char *operation, int handle) {
    char link[64], path[4097];
    if (!control) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, 4096);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path) ? strike(operation, path) : 0;
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, #name)

#define WRITES(flags) ((flags) & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC | O_APPEND))
#define MODE(flags, last) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, last); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        MODE(flags, flags) \
        return WRITES(flags) && fails("open", path) ? -1 : real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) { \
        REAL(int, name, int, const char *, int, ...); \
        MODE(flags, flags) \
        return WRITES(flags) && fails_at("open", directory, path) ? -1 : real(directory, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define ON_FD(result, name, parameters, arguments, ...) \
    result name parameters { \
        REAL(result, name, __VA_ARGS__); \
        return fails_fd(#name, handle) ? -1 : real arguments; \
    }
ON_FD(ssize_t, write, (int handle, const void *data, size_t size), (handle, data, size), int, const void *, size_t)
ON_FD(ssize_t, writev, (int handle, const struct iovec *data, int n), (handle, data, n), int, const struct iovec *, int)
ON_FD(ssize_t, pwrite, (int handle, const void *data, size_t size, off_t at), (handle, data, size, at), int,
      const void *, size_t, off_t)
ON_FD(ssize_t, pwrite64, (int handle, const void *data, size_t size, off64_t at), (handle, data, size, at), int,
      const void *, size_t, off64_t)
ON_FD(int, fsync, (int handle), (handle), int)
ON_FD(int, fdatasync, (int handle), (handle), int)
ON_FD(int, ftruncate, (int handle, off_t size), (handle, size), int, off_t)
ON_FD(int, ftruncate64, (int handle, off64_t size), (handle, size), int, off64_t)
ON_FD(int, fallocate, (int handle, int mode, off_t at, off_t size), (handle, mode, at, size), int, int, off_t, off_t)
ON_FD(int, fchmod, (int handle, mode_t mode), (handle, mode), int, mode_t)
ON_FD(ssize_t, sendfile, (int handle, int from, off_t *at, size_t size), (handle, from, at, size), int, int, off_t *,
      size_t)
ON_FD(ssize_t, sendfile64, (int handle, int from, off64_t *at, size_t size), (handle, from, at, size), int, int,
      off64_t *, size_t)

ssize_t copy_file_range(int from, off64_t *from_at, int handle, off64_t *at, size_t size, unsigned flags) {
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
    return fails_fd("copy_file_range", handle) ? -1 : real(from, from_at, handle, at, size, flags);
}

#define ON_PATH(name, parameters, arguments, path, ...) \
    int name parameters { \
        REAL(int, name, __VA_ARGS__); \
        return fails(#name, path) ? -1 : real arguments; \
    }
ON_PATH(rename, (const char *from, const char *to), (from, to), to, const char *, const char *)
ON_PATH(link, (const char *from, const char *to), (from, to), to, const char *, const char *)
ON_PATH(symlink, (const char *from, const char *to), (from, to), to, const char *, const char *)
ON_PATH(unlink, (const char *path), (path), path, const char *)
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode), path, const char *, mode_t)
ON_PATH(rmdir, (const char *path), (path), path, const char *)
ON_PATH(chmod, (const char *path, mode_t mode), (path, mode), path, const char *, mode_t)
ON_PATH(truncate, (const char *path, off_t size), (path, size), path, const char *, off_t)

#define ON_PATH_AT(name, parameters, arguments, directory, path, ...) \
    int name parameters { \
        REAL(int, name, __VA_ARGS__); \
        return fails_at(#name, directory, path) ? -1 : real arguments; \
    }
ON_PATH_AT(renameat, (int from_at, const char *from, int to_at, const char *to), (from_at, from, to_at, to), to_at, to,
           int, const char *, int, const char *)
ON_PATH_AT(renameat2, (int from_at, const char *from, int to_at, const char *to, unsigned flags),
           (from_at, from, to_at, to, flags), to_at, to, int, const char *, int, const char *, unsigned)
ON_PATH_AT(linkat, (int from_at, const char *from, int to_at, const char *to, int flags),
           (from_at, from, to_at, to, flags), to_at, to, int, const char *, int, const char *, int)
ON_PATH_AT(symlinkat, (const char *from, int at, const char *to), (from, at, to), at, to, const char *, int,
           const char *)
ON_PATH_AT(unlinkat, (int at, const char *path, int flags), (at, path, flags), at, path, int, const char *, int)
ON_PATH_AT(mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), at, path, int, const char *, mode_t)
ON_PATH_AT(fchmodat, (int at, const char *path, mode_t mode, int flags), (at, path, mode, flags), at, path, int,
           const char *, mode_t, int)
