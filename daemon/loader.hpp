// SPDX-License-Identifier: Apache-2.0
/// Reads from the database on a thread of its own, while the flusher writes on another.
#pragma once

#include <utility>  // before awaitable.hpp, which uses std::exchange without it in Boost 1.74

#include <boost/asio/thread_pool.hpp>

#include "daemon/tasks.hpp"
#include "persist/backing_store.hpp"

namespace stepstash::daemon {

/// Thread safety: the loop's thread only. Lifetime: outlives the coroutines that wait for it, until stop().
class Loader {
 public:
  explicit Loader(persist::BackingStore& database) : database_(database) {}

  /// Runs `job(database)` on the loader's thread and returns its result on the loop.
  template <class Job>
  auto run(Job job) -> awaitable<decltype(job(std::declval<persist::BackingStore&>()))> {
    auto on_thread = [this, &job] { return job(database_); };
    co_return co_await run_on(thread_, on_thread);
  }
  /// For queries that need no thread: those that do no I/O.
  const persist::BackingStore& database() const noexcept { return database_; }
  /// Ends the thread after its queued work.
  void stop() { thread_.join(); }

 private:
  persist::BackingStore& database_;
  asio::thread_pool thread_{1};
};

}  // namespace stepstash::daemon
