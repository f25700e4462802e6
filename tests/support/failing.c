/* Loaded before a process starts: has calls to files below FAULT_ROOT fail, as FAULT_CONTROL says.
 *
 * FAULT_CONTROL names a file of the shape below, mapped by this process and by whoever looks on. Every
 * call has a number; those from `from` on, before `to`, and of the kinds in `kinds` fail with `error`.
 * An error of 0: reads and writes do half of what they were asked for, others are done. Reads of segments at
 * an offset that meet the bytes from `lost_from` to `lost_to` fail with EIO, as those of a bad sector do.
 *
 * What goes past the C library, and what is done through a map, is not seen. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS 4096

enum kind { OPEN = 1, READ = 2, WRITE = 4, RENAME = 8, SYNC = 16, REMOVE = 32, LENGTH = 64 };

struct control {
    _Atomic uint64_t count, from, to, kinds, error, failed, lost_from, lost_to;
};

static struct control *control;
static const char *root;
static size_t root_len;
static _Atomic char watched[FDS];

__attribute__((constructor)) static void begin(void) {
    root = getenv("FAULT_ROOT");
    const char *path = getenv("FAULT_CONTROL");
    if (!root || !path) return;
    root_len = strlen(root);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) abort();
    void *at = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) abort();
    control = at;
    syscall(SYS_close, fd);
}

static int is_below(const char *path) {
    return control && path && strncmp(path, root, root_len) == 0 && path[root_len] == '/';
}
static int is_watched(int fd) { return control && fd >= 0 && fd < FDS ? watched[fd] : 0; }

/* The error of this call; -1: none, 0: do half. */
static int due(enum kind kind) {
    uint64_t number = atomic_fetch_add(&control->count, 1);
    if (number < control->from || number >= control->to || !(control->kinds & kind)) return -1;
    atomic_fetch_add(&control->failed, 1);
    return (int)control->error;
}

#define FAIL(is_ours, kind) \
    int error = is_ours ? due(kind) : -1; \
    if (error > 0) { errno = error; return -1; }

/* Of a piece of work, what is done of it. */
static size_t part(int error, size_t n) { return error == 0 && n > 1 ? n / 2 : n; }

static int open_at(int dir, const char *path, int flags, mode_t mode) {
    int is_ours = is_below(path);
    FAIL(is_ours, OPEN)
    int fd = (int)syscall(SYS_openat, dir, path, flags, mode);
    if (fd >= 0 && fd < FDS) watched[fd] = (char)(is_ours ? 1 + !!strstr(path, "/segments/") : 0);
    return fd;
}

#define MODE \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE return open_at(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE return open_at(dir, path, flags, mode); }

int close(int fd) {
    if (fd >= 0 && fd < FDS) watched[fd] = 0;
    return (int)syscall(SYS_close, fd);
}

ssize_t read(int fd, void *to, size_t n) {
    FAIL(is_watched(fd), READ)
    return syscall(SYS_read, fd, to, part(error, n));
}

ssize_t pread(int fd, void *to, size_t n, off_t at) {
    FAIL(is_watched(fd), READ)
    if (is_watched(fd) == 2 && at < (off_t)control->lost_to && at + (off_t)n > (off_t)control->lost_from) {
        atomic_fetch_add(&control->failed, 1);
        errno = EIO;
        return -1;
    }
    return syscall(SYS_pread64, fd, to, part(error, n), at);
}

ssize_t pread64(int fd, void *to, size_t n, off64_t at) { return pread(fd, to, n, at); }

ssize_t write(int fd, const void *from, size_t n) {
    FAIL(is_watched(fd), WRITE)
    return syscall(SYS_write, fd, from, part(error, n));
}

ssize_t pwrite(int fd, const void *from, size_t n, off_t at) {
    FAIL(is_watched(fd), WRITE)
    return syscall(SYS_pwrite64, fd, from, part(error, n), at);
}

ssize_t pwrite64(int fd, const void *from, size_t n, off64_t at) { return pwrite(fd, from, n, at); }

ssize_t writev(int fd, const struct iovec *list, int count) {
    FAIL(is_watched(fd), WRITE)
    /* Half of a list is some of its pieces. */
    return syscall(SYS_writev, fd, list, (int)part(error, (size_t)count));
}

ssize_t pwritev(int fd, const struct iovec *list, int count, off_t at) {
    FAIL(is_watched(fd), WRITE)
    return syscall(SYS_pwritev, fd, list, (int)part(error, (size_t)count), at, 0);
}

ssize_t pwritev64(int fd, const struct iovec *list, int count, off64_t at) {
    return pwritev(fd, list, count, at);
}

int ftruncate(int fd, off_t len) {
    FAIL(is_watched(fd), LENGTH)
    return (int)syscall(SYS_ftruncate, fd, len);
}

int ftruncate64(int fd, off64_t len) { return ftruncate(fd, len); }

int fsync(int fd) {
    FAIL(is_watched(fd), SYNC)
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    FAIL(is_watched(fd), SYNC)
    return (int)syscall(SYS_fdatasync, fd);
}

int rename(const char *from, const char *to) {
    FAIL(is_below(to), RENAME)
    return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlink(const char *path) {
    FAIL(is_below(path), REMOVE)
    return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int mkdir(const char *path, mode_t mode) {
    FAIL(is_below(path), OPEN)
    return (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}
