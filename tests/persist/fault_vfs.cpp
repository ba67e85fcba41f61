// SPDX-License-Identifier: Apache-2.0
#include "tests/persist/fault_vfs.hpp"

#include <sqlite3.h>

#include <cstdlib>

namespace stepstash::test {
namespace {

FaultVfs* current = nullptr;
sqlite3_vfs* real_vfs = nullptr;

/// SQLite allocates szOsFile bytes: ours, followed by the real VFS's.
struct File {
  sqlite3_file base;
  sqlite3_file* real() noexcept { return reinterpret_cast<sqlite3_file*>(this + 1); }
};

sqlite3_file* real(sqlite3_file* file) noexcept { return reinterpret_cast<File*>(file)->real(); }

int close_file(sqlite3_file* f) { return real(f)->pMethods->xClose(real(f)); }
int read_file(sqlite3_file* f, void* to, int n, sqlite3_int64 at) {
  current->bytes_read += static_cast<std::uint64_t>(n);
  return real(f)->pMethods->xRead(real(f), to, n, at);
}
int write_file(sqlite3_file* f, const void* from, int n, sqlite3_int64 at) {
  const std::uint64_t number = ++current->writes;
  if (current->on_write) {
    if (const int code = current->on_write(number); code != SQLITE_OK) return code;
  }
  current->bytes_written += static_cast<std::uint64_t>(n);
  return real(f)->pMethods->xWrite(real(f), from, n, at);
}
int sync_file(sqlite3_file* f, int flags) {
  const std::uint64_t number = ++current->syncs;
  if (current->on_sync) {
    if (const int code = current->on_sync(number); code != SQLITE_OK) return code;
  }
  return real(f)->pMethods->xSync(real(f), flags);
}
int truncate_file(sqlite3_file* f, sqlite3_int64 n) { return real(f)->pMethods->xTruncate(real(f), n); }
int file_size(sqlite3_file* f, sqlite3_int64* n) { return real(f)->pMethods->xFileSize(real(f), n); }
int lock(sqlite3_file* f, int level) { return real(f)->pMethods->xLock(real(f), level); }
int unlock(sqlite3_file* f, int level) { return real(f)->pMethods->xUnlock(real(f), level); }
int check_lock(sqlite3_file* f, int* out) { return real(f)->pMethods->xCheckReservedLock(real(f), out); }
int control(sqlite3_file* f, int op, void* arg) { return real(f)->pMethods->xFileControl(real(f), op, arg); }
int sector_size(sqlite3_file* f) { return real(f)->pMethods->xSectorSize(real(f)); }
int characteristics(sqlite3_file* f) { return real(f)->pMethods->xDeviceCharacteristics(real(f)); }
int shm_map(sqlite3_file* f, int page, int size, int extend, void volatile** out) {
  return real(f)->pMethods->xShmMap(real(f), page, size, extend, out);
}
int shm_lock(sqlite3_file* f, int offset, int n, int flags) {
  return real(f)->pMethods->xShmLock(real(f), offset, n, flags);
}
void shm_barrier(sqlite3_file* f) { real(f)->pMethods->xShmBarrier(real(f)); }
int shm_unmap(sqlite3_file* f, int remove) { return real(f)->pMethods->xShmUnmap(real(f), remove); }

// Version 2: without xFetch, so that no read goes past the counter through a mapping.
const sqlite3_io_methods kMethods = {
    2,        close_file,  read_file,  write_file, truncate_file, sync_file,       file_size,
    lock,     unlock,      check_lock, control,    sector_size,   characteristics, shm_map,
    shm_lock, shm_barrier, shm_unmap,  nullptr,    nullptr};

int open_file(sqlite3_vfs*, const char* name, sqlite3_file* f, int flags, int* out_flags) {
  auto* const file = reinterpret_cast<File*>(f);
  file->base.pMethods = nullptr;
  const int code = real_vfs->xOpen(real_vfs, name, file->real(), flags, out_flags);
  if (file->real()->pMethods != nullptr) file->base.pMethods = &kMethods;
  return code;
}

sqlite3_vfs shim;

}  // namespace

FaultVfs::FaultVfs() {
  if (current != nullptr) std::abort();
  real_vfs = sqlite3_vfs_find(nullptr);
  shim = *real_vfs;
  shim.zName = "stepstash-fault";
  shim.szOsFile = static_cast<int>(sizeof(File)) + real_vfs->szOsFile;
  shim.pNext = nullptr;
  shim.xOpen = open_file;
  current = this;
  sqlite3_vfs_register(&shim, 1);
}

FaultVfs::~FaultVfs() {
  sqlite3_vfs_unregister(&shim);
  sqlite3_vfs_register(real_vfs, 1);
  current = nullptr;
}

}  // namespace stepstash::test
