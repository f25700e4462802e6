/* Loaded before a process starts: writes down, in order, what it does to files below RECORD_ROOT.
 *
 * Trace, per operation: u8 what | u32 descriptor | u64 number | u32 length | bytes
 *   1 open      number: 1 each write is synced, 2 made if missing, 4 emptied; bytes: path
 *   2 write     number: offset; bytes: data        3 set length   number: length
 *   4 sync                                         5 rename       bytes: from, a zero, to
 *   6 unlink    bytes: path                        7 make a directory   bytes: path
 *   8 failed sync
 *
 * With RECORD_SYNCS_FAIL each so-many-th sync of a segment or body fails, as if the disk were ill, and what
 * was to be synced counts as written.
 *
 * The real call and its line are made under one lock, so that the order is the one that happened.
 * What goes past the C library is not seen. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int trace = -1;
static const char *root;
static size_t root_len;
static char watched[FDS]; /* 2: its syncs may fail */
static unsigned long fails_every, syncs;
/* A store that opens has to be able to. */
#define WELL_FIRST 12

__attribute__((constructor)) static void begin(void) {
    root = getenv("RECORD_ROOT");
    const char *path = getenv("RECORD_TRACE");
    if (!root || !path) return;
    root_len = strlen(root);
    const char *every = getenv("RECORD_SYNCS_FAIL");
    fails_every = every ? strtoul(every, 0, 10) : 0;
    trace = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void put(const void *bytes, size_t n) {
    const char *p = bytes;
    while (n > 0) {
        long done = syscall(SYS_write, trace, p, n);
        /* A trace with a hole would prove nothing. */
        if (done <= 0) abort();
        p += done;
        n -= (size_t)done;
    }
}

static void note(uint8_t what, int fd, uint64_t number, const void *bytes, size_t n) {
    unsigned char head[17];
    uint32_t a = (uint32_t)fd, len = (uint32_t)n;
    head[0] = what;
    memcpy(head + 1, &a, 4);
    memcpy(head + 5, &number, 8);
    memcpy(head + 13, &len, 4);
    put(head, sizeof head);
    put(bytes, n);
}

static int is_below(const char *path) {
    return trace >= 0 && path && strncmp(path, root, root_len) == 0;
}

static int is_watched(int fd) {
    return trace >= 0 && fd >= 0 && fd < FDS ? watched[fd] : 0;
}

#define LOCKED(expression) \
    pthread_mutex_lock(&lock); \
    expression; \
    int saved = errno; \
    pthread_mutex_unlock(&lock); \
    errno = saved;

static int opened(int fd, const char *path, int flags) {
    if (fd < 0 || fd >= FDS) return fd;
    watched[fd] = (char)is_below(path);
    if (watched[fd]) {
        if (strstr(path, "/segments/") || strstr(path, "/files/")) watched[fd] = 2;
        uint64_t how = (flags & (O_DSYNC | O_SYNC) ? 1 : 0) | (flags & O_CREAT ? 2 : 0)
                     | (flags & O_TRUNC ? 4 : 0);
        note(1, fd, how, path, strlen(path));
    }
    return fd;
}

static int open_at(const char *path, int flags, mode_t mode) {
    int fd;
    LOCKED(fd = opened((int)syscall(SYS_openat, AT_FDCWD, path, flags, mode), path, flags))
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

int open(const char *path, int flags, ...) { MODE return open_at(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return open_at(path, flags, mode); }

int openat(int dir, const char *path, int flags, ...) {
    MODE
    if (dir == AT_FDCWD || path[0] == '/') return open_at(path, flags, mode);
    return (int)syscall(SYS_openat, dir, path, flags, mode);
}

int openat64(int dir, const char *path, int flags, ...) {
    MODE
    if (dir == AT_FDCWD || path[0] == '/') return open_at(path, flags, mode);
    return (int)syscall(SYS_openat, dir, path, flags, mode);
}

int close(int fd) {
    int result;
    LOCKED(if (fd >= 0 && fd < FDS) watched[fd] = 0; result = (int)syscall(SYS_close, fd))
    return result;
}

static ssize_t wrote(int fd, const void *bytes, ssize_t n, off_t at) {
    if (n > 0 && is_watched(fd)) note(2, fd, (uint64_t)at, bytes, (size_t)n);
    return n;
}

ssize_t write(int fd, const void *bytes, size_t n) {
    ssize_t result;
    LOCKED(off_t at = is_watched(fd) ? lseek(fd, 0, SEEK_CUR) : 0;
           result = wrote(fd, bytes, syscall(SYS_write, fd, bytes, n), at))
    return result;
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) {
    ssize_t result;
    LOCKED(result = wrote(fd, bytes, syscall(SYS_pwrite64, fd, bytes, n, at), at))
    return result;
}

ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) { return pwrite(fd, bytes, n, at); }

/* One piece after the other: the order within one call is nobody's promise anyway. */
static ssize_t pieces(int fd, const struct iovec *list, int count, off_t at) {
    ssize_t sum = 0;
    for (int i = 0; i < count; i++) {
        ssize_t n = pwrite(fd, list[i].iov_base, list[i].iov_len, at + sum);
        if (n < 0) return sum > 0 ? sum : n;
        sum += n;
        if ((size_t)n < list[i].iov_len) break;
    }
    return sum;
}

ssize_t pwritev(int fd, const struct iovec *list, int count, off_t at) { return pieces(fd, list, count, at); }
ssize_t pwritev64(int fd, const struct iovec *list, int count, off64_t at) { return pieces(fd, list, count, at); }

ssize_t writev(int fd, const struct iovec *list, int count) {
    if (!is_watched(fd)) return syscall(SYS_writev, fd, list, count);
    off_t at = lseek(fd, 0, SEEK_CUR);
    ssize_t sum = pieces(fd, list, count, at);
    if (sum > 0) lseek(fd, at + sum, SEEK_SET);
    return sum;
}

static int set_length(int fd, off_t len) {
    int result;
    LOCKED(result = (int)syscall(SYS_ftruncate, fd, len);
           if (result == 0 && is_watched(fd)) note(3, fd, (uint64_t)len, "", 0))
    return result;
}

int ftruncate(int fd, off_t len) { return set_length(fd, len); }
int ftruncate64(int fd, off64_t len) { return set_length(fd, len); }

static int synced(int fd, long call) {
    int result;
    LOCKED(int ill = is_watched(fd) == 2 && fails_every && ++syncs > WELL_FIRST && syncs % fails_every == 0;
           if (ill) {
               note(8, fd, 0, "", 0);
               errno = EIO;
               result = -1;
           } else {
               result = (int)syscall(call, fd);
               if (result == 0 && is_watched(fd)) note(4, fd, 0, "", 0);
           })
    return result;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

int rename(const char *from, const char *to) {
    int result;
    char both[8192];
    size_t a = strlen(from) + 1, b = strlen(to);
    if (a + b > sizeof both) abort();
    memcpy(both, from, a);
    memcpy(both + a, to, b);
    LOCKED(result = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
           if (result == 0 && is_below(to)) note(5, 0, 0, both, a + b))
    return result;
}

int unlink(const char *path) {
    int result;
    LOCKED(result = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
           if (result == 0 && is_below(path)) note(6, 0, 0, path, strlen(path)))
    return result;
}

int mkdir(const char *path, mode_t mode) {
    int result;
    LOCKED(result = (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
           if (result == 0 && is_below(path)) note(7, 0, 0, path, strlen(path)))
    return result;
}
