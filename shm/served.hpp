// SPDX-License-Identifier: Apache-2.0
/// Says in a segment's header that a daemon serves it, and has the kernel take that back when the daemon dies (L12).
///
/// The word is a robust futex: a list of such words is registered with a thread (set_robust_list(2)), and whatever ends
/// that thread, SIGKILL and exec included, the kernel goes through the list and replaces the thread's number by
/// FUTEX_OWNER_DIED in each word that has it. Nobody ever waits on the word. Clients see from it, at the price of a
/// load, that the segment they read is served no more.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "shm/layout.hpp"

namespace stepstash::shm {

/// Thread safety: made and destroyed on one thread. Lifetime: the segment's mapping outlives it.
class Served {
 public:
  /// From here on the segment is served. Where the kernel has no robust futexes, or no memory for a thread, the word
  /// says that it is not: clients then ask the daemon once a second whether it does.
  explicit Served(Header& header);
  /// An orderly end: it is not served any more.
  ~Served();
  Served(const Served&) = delete;
  Served& operator=(const Served&) = delete;

 private:
  struct List;
  void hold(List& list);

  Header& header_;
  List* list_ =
      nullptr;  // in shared memory of its own: the OOM killer's reaper takes private memory before we are dead
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace stepstash::shm
