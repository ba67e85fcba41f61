// SPDX-License-Identifier: Apache-2.0
/// A BackingStore that hands everything on to another one, except what a test wants to fail or to wait.
///
/// Thread safety: the controls may be used from any thread while calls run. Lifetime: the inner store outlives it, and
/// nobody is blocked in it when it is destroyed.
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

  /// A failing commit does not reach the inner store, unless `landed`: then the inner store commits and the caller is
  /// told otherwise, which is what a failed COMMIT may mean.
  void fail_nth_commit(std::uint64_t nth, std::error_code error, bool landed = false);
  void fail_commits(std::error_code error);
  /// Commits with values fail, and those of builds' facts alone do not, as on a full disk.
  void fail_values(std::error_code error);
  /// Reading single values and builds.
  void fail_loads(std::error_code error);
  void fail_reservations(std::error_code error);
  /// No more failures of any kind.
  void heal();

  /// From the next one on, commits stop before they reach the inner store, until release().
  void block_commits();
  /// The same for values that are loaded.
  void block_loads();
  /// Every call that may do input or output stops before it reaches the inner store, as on a disk that hangs, until
  /// release().
  void hang();
  /// What is known of one of these builds is not told before it is none of these.
  void hang_on_builds(std::set<BuildId> builds);
  /// Its files are where they belong, or not.
  void move_away(bool away);
  /// True when a call is stopped there; false when none came within `deadline`.
  bool wait_until_blocked(std::chrono::milliseconds deadline = std::chrono::seconds(30));
  void release();
  /// True when at least `count` commits have returned, failed ones included; false after `deadline`.
  bool wait_for_commits(std::uint64_t count, std::chrono::milliseconds deadline = std::chrono::seconds(30));

  /// Calls, failed ones included: commits when they begin.
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
  std::error_code unusable() const override { return inner_.unusable(); }
  std::string last_error() const override { return inner_.last_error(); }

 private:
  /// Waits while the disk hangs. With the lock.
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
  std::optional<std::error_code> reservation_error_;
  bool blocking_ = false;
  bool blocking_loads_ = false;
  mutable std::uint64_t blocked_ = 0;  // calls stopped now
  std::uint64_t commits_ = 0;
  std::uint64_t returned_ = 0;
  std::uint64_t failed_ = 0;
  std::uint64_t loads_ = 0;
  std::uint64_t reservations_ = 0;
  std::uint64_t vacuums_ = 0;
};

}  // namespace stepstash::test
