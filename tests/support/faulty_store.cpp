// SPDX-License-Identifier: Apache-2.0
#include "tests/support/faulty_store.hpp"

namespace stepstash::test {

FaultyStore::FaultyStore(persist::BackingStore& inner, std::uint64_t nth, std::error_code error) : inner_(inner) {
  fail_nth_commit(nth, error);
}

void FaultyStore::fail_nth_commit(std::uint64_t nth, std::error_code error, bool landed) {
  const std::lock_guard lock(mutex_);
  fail_at_ = nth == 0 ? 0 : commits_ + nth;
  nth_error_ = error;
  landed_ = landed;
}

void FaultyStore::fail_commits(std::error_code error) {
  const std::lock_guard lock(mutex_);
  commit_error_ = error;
}

void FaultyStore::fail_values(std::error_code error) {
  const std::lock_guard lock(mutex_);
  value_error_ = error;
}

void FaultyStore::fail_loads(std::error_code error) {
  const std::lock_guard lock(mutex_);
  load_error_ = error;
}

void FaultyStore::fail_lists(std::error_code error) {
  const std::lock_guard lock(mutex_);
  list_error_ = error;
}

void FaultyStore::fail_reservations(std::error_code error) {
  const std::lock_guard lock(mutex_);
  reservation_error_ = error;
}

void FaultyStore::heal() {
  const std::lock_guard lock(mutex_);
  fail_at_ = 0;
  commit_error_.reset();
  value_error_.reset();
  load_error_.reset();
  list_error_.reset();
  reservation_error_.reset();
}

void FaultyStore::block_commits() {
  const std::lock_guard lock(mutex_);
  blocking_ = true;
}

void FaultyStore::block_loads() {
  const std::lock_guard lock(mutex_);
  blocking_loads_ = true;
}

bool FaultyStore::wait_until_blocked(std::chrono::milliseconds deadline) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, deadline, [&] { return blocked_ > 0; });
}

void FaultyStore::release() {
  {
    const std::lock_guard lock(mutex_);
    blocking_ = false;
    blocking_loads_ = false;
    hanging_ = false;
    hanging_builds_.clear();
  }
  changed_.notify_all();
}

void FaultyStore::hang() {
  const std::lock_guard lock(mutex_);
  hanging_ = true;
}

void FaultyStore::hang_on_builds(std::set<BuildId> builds) {
  {
    const std::lock_guard lock(mutex_);
    hanging_builds_ = std::move(builds);
  }
  changed_.notify_all();
}

void FaultyStore::move_away(bool away) {
  const std::lock_guard lock(mutex_);
  away_ = away;
}

void FaultyStore::pass(std::unique_lock<std::mutex>& lock) const {
  if (!hanging_) return;
  ++blocked_;
  changed_.notify_all();
  changed_.wait(lock, [&] { return !hanging_; });
  --blocked_;
}

void FaultyStore::pass() const {
  std::unique_lock lock(mutex_);
  pass(lock);
}

void FaultyStore::checkpoint() {
  pass();
  inner_.checkpoint();
}

persist::BackingStore::Files FaultyStore::look() const {
  pass();
  Files files = inner_.look();
  const std::lock_guard lock(mutex_);
  files.in_place = files.in_place && !away_;
  return files;
}

Result<persist::BackingStore::Census> FaultyStore::census() {
  pass();
  return inner_.census();
}

Result<> FaultyStore::load_entries(const std::function<bool(const persist::StoredEntry&)>& each) {
  pass();
  {
    const std::lock_guard lock(mutex_);
    if (list_error_) return *list_error_;
  }
  return inner_.load_entries(each);
}

Result<> FaultyStore::load_builds_with_data(const std::function<bool(const persist::StoredBuild&)>& each) {
  pass();
  return inner_.load_builds_with_data(each);
}

bool FaultyStore::wait_for_commits(std::uint64_t count, std::chrono::milliseconds deadline) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, deadline, [&] { return returned_ >= count; });
}

std::uint64_t FaultyStore::commits() const {
  const std::lock_guard lock(mutex_);
  return commits_;
}

std::uint64_t FaultyStore::failed_commits() const {
  const std::lock_guard lock(mutex_);
  return failed_;
}

std::uint64_t FaultyStore::loads() const {
  const std::lock_guard lock(mutex_);
  return loads_;
}

std::uint64_t FaultyStore::reservations() const {
  const std::lock_guard lock(mutex_);
  return reservations_;
}

std::uint64_t FaultyStore::vacuums() const {
  const std::lock_guard lock(mutex_);
  return vacuums_;
}

Result<> FaultyStore::commit(const persist::Batch& batch) {
  std::optional<std::error_code> error;
  bool reaches_inner = true;
  {
    std::unique_lock lock(mutex_);
    const std::uint64_t number = ++commits_;
    pass(lock);
    if (blocking_) {
      ++blocked_;
      changed_.notify_all();
      changed_.wait(lock, [&] { return !blocking_; });
      --blocked_;
    }
    // Checked after the wait, so that a test can make a blocked commit fail.
    if (number == fail_at_) {
      error = nth_error_;
      reaches_inner = landed_;
    } else if (commit_error_ || (value_error_ && !batch.entries.empty())) {
      error = commit_error_ ? commit_error_ : value_error_;
      reaches_inner = false;
    }
  }
  Result<> result = success();
  if (reaches_inner) result = inner_.commit(batch);
  if (result && error) result = *error;
  {
    const std::lock_guard lock(mutex_);
    ++returned_;
    if (!result) ++failed_;
  }
  changed_.notify_all();
  return result;
}

Result<std::uint64_t> FaultyStore::reserve_ids(std::uint64_t count, std::uint64_t at_least) {
  {
    std::unique_lock lock(mutex_);
    ++reservations_;
    pass(lock);
    if (reservation_error_) return *reservation_error_;
  }
  return inner_.reserve_ids(count, at_least);
}

Result<std::optional<persist::StoredBuild>> FaultyStore::load_build(BuildId build) {
  {
    std::unique_lock lock(mutex_);
    pass(lock);
    changed_.wait(lock, [&] { return !hanging_builds_.contains(build); });
    if (load_error_) return *load_error_;
  }
  return inner_.load_build(build);
}

Result<> FaultyStore::load_value(std::uint64_t id, std::uint64_t revision, std::span<std::byte> out) {
  {
    std::unique_lock lock(mutex_);
    ++loads_;
    pass(lock);
    if (blocking_loads_) {
      ++blocked_;
      changed_.notify_all();
      changed_.wait(lock, [&] { return !blocking_loads_; });
      --blocked_;
    }
    if (load_error_) return *load_error_;
  }
  return inner_.load_value(id, revision, out);
}

Result<std::uint64_t> FaultyStore::vacuum(std::uint64_t pages) {
  {
    std::unique_lock lock(mutex_);
    ++vacuums_;
    pass(lock);
  }
  return inner_.vacuum(pages);
}

}  // namespace stepstash::test
