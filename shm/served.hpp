// SPDX-License-Identifier: Apache-2.0
/// Marks in a segment's header that a daemon serves it; the kernel clears the mark when the daemon dies (L12).
///
/// The word is a robust futex: a list of such words is registered with a thread (set_robust_list(2)). However that
/// thread ends, SIGKILL and exec included, the kernel walks the list and replaces the thread's number by
/// FUTEX_OWNER_DIED in each word that has it. Nothing ever waits on the word. With one load, clients see that their
/// segment is no longer served.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "shm/layout.hpp"

namespace stepstash::shm {

/// Thread safety: construct and destroy it on one thread. Lifetime: the segment's mapping outlives it.
class Served {
 public:
  /// Marks the segment as served. If the kernel has no robust futexes, or there is no memory for a thread, the word
  /// says that it is not; clients then ask the daemon once a second whether it is.
  explicit Served(Header& header);
  /// Orderly shutdown: marks the segment as no longer served.
  ~Served();
  Served(const Served&) = delete;
  Served& operator=(const Served&) = delete;

 private:
  struct List;
  void hold(List& list);

  Header& header_;
  List* list_ =
      nullptr;  // in a separate shared mapping: the OOM reaper takes private memory before the process is dead
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace stepstash::shm
