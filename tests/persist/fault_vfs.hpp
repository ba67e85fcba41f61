// SPDX-License-Identifier: Apache-2.0
/// Fault injection through SQLite's own seam: a VFS that counts I/O on the files and can fail, stop or kill at any of
/// it.
///
/// While one exists it is SQLite's default VFS, so the store under test is opened as in production and is unaware of
/// it. One at a time; every database opened through it is closed before it is destroyed.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace stepstash::test {

class FaultVfs {
 public:
  FaultVfs();
  FaultVfs(const FaultVfs&) = delete;
  FaultVfs& operator=(const FaultVfs&) = delete;
  ~FaultVfs();

  /// Called before each write (to database or WAL) with its number, from 1; a result other than 0 (SQLITE_OK) replaces
  /// the write's own. Called in the writing thread; must not be changed during a write.
  std::function<int(std::uint64_t number)> on_write;
  /// Likewise for fsync.
  std::function<int(std::uint64_t number)> on_sync;

  std::atomic<std::uint64_t> writes{0};
  std::atomic<std::uint64_t> syncs{0};
  std::atomic<std::uint64_t> bytes_read{0};
  std::atomic<std::uint64_t> bytes_written{0};
};

}  // namespace stepstash::test
