// SPDX-License-Identifier: Apache-2.0
/// The database as the daemon sees it: owner of the backing store, of the threads that call it, and of its state.
///
/// A disk may hang in any call of the store, so none is made on the loop: write() and read() run jobs on two threads,
/// and a third looks at the files ten times a second. What the loop needs to know is the state:
///
///   ready     commits succeed
///   stalled   the last commit failed (locked, disk full, I/O error); it is retried
///   hung      the disk has not answered for kDiskAnswers
///   detached  the file was deleted, renamed or replaced while in use; until it is back
///   damaged   a commit met damage; until the next daemon has set the file aside
///   absent    this daemon cannot use it (newer, foreign, damaged and in the way); until the next start
///
///   start ──▶ ready ◀── commit succeeds ─── stalled        any but absent ── silence ──▶ hung ── answer ──▶ as before
///     │         └────── commit fails ────────▶ ┘           any but absent ── file gone ─▶ detached ─ back ▶ as before
///     └─▶ absent                                           any ── commit meets damage ──▶ damaged
///
/// These are conditions, and several may hold; the state is the gravest one, the last in the list. What it allows:
///
///              commit   load   evict   identify
///   ready        x       x       x        x
///   stalled      x       x       x        x         a commit is tried again, with a pause
///   hung         x       x       -        x         what is evicted now may not come back soon
///   detached     -       x       -        x         the next program would not find what is written
///   damaged      -       x       -        x         what is written may not come back
///   absent       -       -       -        -
#pragma once

#include <utility>  // before awaitable.hpp, which uses std::exchange without it in Boost 1.74

#include <array>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>

#include "base/result.hpp"
#include "daemon/tasks.hpp"
#include "persist/backing_store.hpp"

namespace stepstash::daemon {

/// Thread safety: the loop's thread only. Lifetime: outlives the coroutines that wait for it, until stop_threads().
class Database {
 public:
  enum class State : std::uint8_t { ready, stalled, hung, detached, damaged, absent };
  enum class Use : std::uint8_t {
    commit,    ///< write, reserve ids, give space back
    load,      ///< read values and facts of builds
    evict,     ///< drop values from memory that are only in the database then
    identify,  ///< rely on it for what the segment does not record: "clean", and facts of builds without data
  };
  /// Why there is no database.
  struct Absence {
    std::error_code error;
    std::string why;  ///< message with the path
  };

  /// `store` must be open. Reads the state of its files once, before any client is served.
  Database(asio::io_context& loop, std::shared_ptr<persist::BackingStore> store);
  /// Absent.
  Database(asio::io_context& loop, Absence absence);

  // ---- state ----

  State state() const noexcept { return state_; }
  static std::string_view name_of(State state) noexcept;
  static bool allows(State state, Use use) noexcept;
  bool allows(Use use) const noexcept { return allows(state_, use); }
  /// A sentence for operators; empty when ready.
  const std::string& reason() const noexcept { return conditions_[index(state_)].reason; }
  /// How long it has been in this state.
  std::chrono::nanoseconds since() const { return std::chrono::steady_clock::now() - conditions_[index(state_)].since; }
  /// Absence::error; none if there is a database.
  std::error_code absence() const noexcept { return absence_; }

  /// The outcome of a commit or of a reservation of ids. `proof`: success shows that what is dirty can be written.
  void report(const Result<>& outcome, bool proof);
  /// Adds to the reason of a damaged database why it is not replaced.
  void keep_damaged(const std::string& why);
  /// Notified when the state changes, and when the log is held back or no longer is.
  WaitList& changed() noexcept { return changed_; }

  // ---- work ----

  /// Runs `job(store)` on the writing thread and returns its result on the loop. Only if allows(Use::commit).
  template <class Job>
  auto write(Job job) -> awaitable<decltype(job(std::declval<persist::BackingStore&>()))> {
    auto on_thread = [this, &job] { return job(*store_); };
    co_return co_await run_on(writer_, on_thread);
  }
  /// The same on the reading thread. Only if allows(Use::load).
  template <class Job>
  auto read(Job job) -> awaitable<decltype(job(std::declval<persist::BackingStore&>()))> {
    auto on_thread = [this, &job] { return job(*store_); };
    co_return co_await run_on(reader_, on_thread);
  }

  // ---- facts that need no thread ----

  /// As BackingStore; 0 when absent.
  std::uint64_t store_id() const { return store_ ? store_->store_id() : 0; }
  std::uint64_t commit_count() const { return store_ ? store_->commit_count() : 0; }
  std::int64_t last_written() const { return store_ ? store_->last_written() : 0; }
  /// The files as last seen, and how long ago.
  const persist::BackingStore::Files& files() const noexcept { return files_; }
  std::chrono::nanoseconds files_age() const { return std::chrono::steady_clock::now() - files_seen_; }

  // ---- life ----

  /// The files as they are now, from any thread but the loop's. Not when absent.
  persist::BackingStore::Files look() const { return store_->look(); }
  /// Looks at the files until stop_watching().
  awaitable<void> watch();
  /// Returns when watch() has ended.
  awaitable<void> stop_watching();
  /// Ends the threads after their queued work.
  void stop_threads();

  /// How often the files are looked at, and how long a disk may take to answer.
  static constexpr auto kLookEvery = std::chrono::milliseconds(100);
  static constexpr auto kDiskAnswers = std::chrono::seconds(5);

 private:
  static constexpr std::size_t kStates = 6;
  struct Condition {
    bool holds = false;
    TimePoint since{};
    std::string reason{};
  };
  static constexpr std::size_t index(State state) noexcept { return static_cast<std::size_t>(state); }

  void set(State condition, bool holds, std::string reason = {});

  const std::shared_ptr<persist::BackingStore> store_;  // null: absent
  std::error_code absence_;
  asio::io_context& loop_;
  asio::thread_pool writer_{1};
  asio::thread_pool reader_{1};
  asio::thread_pool watcher_{1};
  State state_ = State::ready;
  std::array<Condition, kStates> conditions_;
  WaitList changed_;
  persist::BackingStore::Files files_;
  TimePoint files_seen_ = std::chrono::steady_clock::now();  // when the look began
  Waiter pause_;
  bool watching_ = false;
};

}  // namespace stepstash::daemon
