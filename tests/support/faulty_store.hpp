// SPDX-License-Identifier: Apache-2.0
/// A BackingStore that forwards to another one, except for calls that a test makes fail or block.
///
/// Thread safety: the controls may be used from any thread while calls run. Lifetime: the inner store outlives it, and
/// no call is blocked in it when it is destroyed.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "persist/backing_store.hpp"

namespace stepstash::test {

class FaultyStore final : public persist::BackingStore {
 public:
  explicit FaultyStore(persist::BackingStore& inner) noexcept : inner_(inner) {}
  /// The `nth` commit from now (1: the next) fails with `error`.
  FaultyStore(persist::BackingStore& inner, std::uint64_t nth, std::error_code error);

  /// A failing commit does not reach the inner store, unless `landed`: then the inner store commits but the caller sees
  /// the error, as a failed COMMIT may do.
  void fail_nth_commit(std::uint64_t nth, std::error_code error, bool landed = false);
  void fail_commits(std::error_code error);
  /// Commits with values fail; those with facts of builds only succeed, as on a full disk.
  void fail_values(std::error_code error);
  /// Reads of single values and builds fail.
  void fail_loads(std::error_code error);
  /// Reading the list of entries fails.
  void fail_lists(std::error_code error);
  void fail_reservations(std::error_code error);
  /// Ends all failures.
  void heal();

  /// From the next one on, commits block before they reach the inner store, until release().
  void block_commits();
  /// The same for loads of values.
  void block_loads();
  /// Every call that may do I/O blocks before it reaches the inner store, as on a hung disk, until release().
  void hang();
  /// Reading the facts of one of these builds blocks until the build is no longer in the set.
  void hang_on_builds(std::set<BuildId> builds);
  /// Whether its files appear to have been moved away.
  void move_away(bool away);
  /// True once a call is blocked; false if none arrives within `deadline`.
  bool wait_until_blocked(std::chrono::milliseconds deadline = std::chrono::seconds(30));
  void release();
  /// True once at least `count` commits have returned, failed ones included; false after `deadline`.
  bool wait_for_commits(std::uint64_t count, std::chrono::milliseconds deadline = std::chrono::seconds(30));

  /// Numbers of calls, failed ones included; commits count when they begin.
  std::uint64_t commits() const;
  std::uint64_t failed_commits() const;
  std::uint64_t loads() const;
  std::uint64_t reservations() const;
  std::uint64_t vacuums() const;

  std::uint64_t store_id() const override { return inner_.store_id(); }
  std::uint64_t commit_count() const override { return inner_.commit_count(); }
  std::int64_t last_written() const override { return inner_.last_written(); }
  Result<> commit(const persist::Batch& batch) override;
  Result<std::uint64_t> reserve_ids(std::uint64_t count, std::uint64_t at_least) override;
  Result<Census> census() override;
  Result<> load_entries(const std::function<bool(const persist::StoredEntry&)>& each) override;
  std::vector<std::string> skipped() const override { return inner_.skipped(); }
  Result<> load_builds_with_data(const std::function<bool(const persist::StoredBuild&)>& each) override;
  Result<std::optional<persist::StoredBuild>> load_build(BuildId build) override;
  Result<> load_value(std::uint64_t id, std::uint64_t revision, std::span<std::byte> out) override;
  Result<std::uint64_t> vacuum(std::uint64_t pages) override;
  void checkpoint() override;
  Files look() const override;
  std::string last_error() const override { return inner_.last_error(); }

 private:
  /// Waits while the disk hangs. Call with the lock held.
  void pass(std::unique_lock<std::mutex>& lock) const;
  void pass() const;

  persist::BackingStore& inner_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool hanging_ = false;
  std::set<BuildId> hanging_builds_;
  bool away_ = false;
  std::uint64_t fail_at_ = 0;  // number of the commit that fails; 0: none
  std::error_code nth_error_;
  bool landed_ = false;
  std::optional<std::error_code> commit_error_;
  std::optional<std::error_code> value_error_;
  std::optional<std::error_code> load_error_;
  std::optional<std::error_code> list_error_;
  std::optional<std::error_code> reservation_error_;
  bool blocking_ = false;
  bool blocking_loads_ = false;
  mutable std::uint64_t blocked_ = 0;  // calls blocked now
  std::uint64_t commits_ = 0;
  std::uint64_t returned_ = 0;
  std::uint64_t failed_ = 0;
  std::uint64_t loads_ = 0;
  std::uint64_t reservations_ = 0;
  std::uint64_t vacuums_ = 0;
};

}  // namespace stepstash::test
