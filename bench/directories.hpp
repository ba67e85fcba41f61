// SPDX-License-Identifier: Apache-2.0
/// Where this run keeps its files: one directory in memory, one on a disk. Both are removed at the end.
#pragma once

#include <string>

namespace stepstash::bench {

struct Directories {
  /// Below $STEPSTASH_BENCH_SHM and $STEPSTASH_BENCH_DISK (bench/run), else /dev/shm and $TMPDIR.
  Directories();
  ~Directories();
  Directories(const Directories&) = delete;
  Directories& operator=(const Directories&) = delete;

  std::string shm;
  std::string disk;
};

}  // namespace stepstash::bench
