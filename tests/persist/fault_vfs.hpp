// SPDX-License-Identifier: Apache-2.0
/// SQLite's own seam for faults: a VFS that counts what reaches the files and can fail it, stop at it, or die at it.
///
/// While one lives it is SQLite's default VFS, so the store under test is opened as in production and knows nothing.
/// One at a time; every database opened through it is closed before it is destroyed.
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

  /// Called before each write (to database or WAL) with its number, from 1; what it returns other than 0 (SQLITE_OK)
  /// is the write's result instead. Called in the thread that writes; must not be changed while one does.
  std::function<int(std::uint64_t number)> on_write;
  /// Likewise for fsync.
  std::function<int(std::uint64_t number)> on_sync;

  std::atomic<std::uint64_t> writes{0};
  std::atomic<std::uint64_t> syncs{0};
  std::atomic<std::uint64_t> bytes_read{0};
  std::atomic<std::uint64_t> bytes_written{0};
};

}  // namespace stepstash::test
