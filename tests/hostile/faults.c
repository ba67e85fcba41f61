/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded into the daemon under test: makes its N-th allocation and its disk I/O fail, as currently requested by the
 * file that FAULTS_CONTROL names. The layout of that file is struct faults; faults.hpp is the test's side. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

struct faults {
  atomic_long allocations;  /* since it was set to 0 */
  atomic_long fail_at;      /* this one fails; 0: none */
  atomic_long io_errno;     /* not 0: what pwrite64, fsync and fdatasync fail with */
  atomic_long read_errno;   /* not 0: what pread64 fails with, */
  atomic_long reads_left;   /* after so many more */
  atomic_long rename_errno; /* not 0: what rename fails with; -1: it waits */
};

static struct faults* control;

__attribute__((constructor)) static void attach(void) {
  const char* path = getenv("FAULTS_CONTROL");
  const int fd = path != NULL ? open(path, O_RDWR | O_CLOEXEC) : -1;
  if (fd < 0) return;
  void* at = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (at != MAP_FAILED) control = at;
}

static int allocation_fails(void) {
  if (control == NULL) return 0;
  const long at = atomic_load(&control->fail_at);
  const long number = atomic_fetch_add(&control->allocations, 1) + 1;
  if (number != at) return 0;
  errno = ENOMEM;
  return 1;
}

/* glibc's internal names of the interposed functions: dlsym(3) would allocate. */
extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);

void* malloc(size_t bytes) { return allocation_fails() ? NULL : __libc_malloc(bytes); }
void* calloc(size_t count, size_t bytes) { return allocation_fails() ? NULL : __libc_calloc(count, bytes); }
void* realloc(void* old, size_t bytes) { return allocation_fails() ? NULL : __libc_realloc(old, bytes); }

static int fails_with(long error) {
  if (error == 0) return 0;
  errno = (int)error;
  return 1;
}
static int reads_fail(void) {
  const long error = control != NULL ? atomic_load(&control->read_errno) : 0;
  return fails_with(error != 0 && atomic_fetch_sub(&control->reads_left, 1) <= 0 ? error : 0);
}
static int writes_fail(void) { return fails_with(control != NULL ? atomic_load(&control->io_errno) : 0); }

static void* next_of(void* _Atomic* place, const char* name) {
  void* found = atomic_load(place);
  if (found == NULL) {
    found = dlsym(RTLD_NEXT, name);
    atomic_store(place, found);
  }
  return found;
}

ssize_t pread64(int fd, void* bytes, size_t count, off64_t at) {
  static void* _Atomic place;
  if (reads_fail()) return -1;
  return ((ssize_t(*)(int, void*, size_t, off64_t))next_of(&place, "pread64"))(fd, bytes, count, at);
}

ssize_t pwrite64(int fd, const void* bytes, size_t count, off64_t at) {
  static void* _Atomic place;
  if (writes_fail()) return -1;
  return ((ssize_t(*)(int, const void*, size_t, off64_t))next_of(&place, "pwrite64"))(fd, bytes, count, at);
}

int rename(const char* from, const char* to) {
  static void* _Atomic place;
  while (control != NULL && atomic_load(&control->rename_errno) == -1) usleep(1000);
  if (fails_with(control != NULL ? atomic_load(&control->rename_errno) : 0)) return -1;
  return ((int (*)(const char*, const char*))next_of(&place, "rename"))(from, to);
}

int fsync(int fd) {
  static void* _Atomic place;
  if (writes_fail()) return -1;
  return ((int (*)(int))next_of(&place, "fsync"))(fd);
}

int fdatasync(int fd) {
  static void* _Atomic place;
  if (writes_fail()) return -1;
  return ((int (*)(int))next_of(&place, "fdatasync"))(fd);
}
