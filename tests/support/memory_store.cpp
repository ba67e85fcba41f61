// SPDX-License-Identifier: Apache-2.0
#include "tests/support/memory_store.hpp"

#include <algorithm>
#include <limits>

#include "base/errc.hpp"

namespace stepstash::test {
namespace {

constexpr std::uint64_t kMaxInt = std::numeric_limits<std::int64_t>::max();

}  // namespace

using persist::StoredBuild;
using persist::StoredEntry;

MemoryStore::MemoryStore(std::uint64_t store_id) : store_id_(store_id) {}

std::uint64_t MemoryStore::commit_count() const {
  const std::lock_guard lock(mutex_);
  return commits_;
}

Result<> MemoryStore::commit(const persist::Batch& batch) {
  const std::lock_guard lock(mutex_);
  for (const auto& row : batch.builds) {
    if (!valid_build(row.buildid)) return Errc::invalid_argument;
  }
  for (const auto& row : batch.entries) {
    if (row.id == 0 || row.id > kMaxInt || row.revision > kMaxInt || !valid_build(row.buildid)) {
      return Errc::invalid_argument;
    }
  }
  for (const auto& row : batch.builds) {
    if (row.complete_at || row.held) {
      Facts& facts = builds_[row.buildid];
      if (row.complete_at) facts.complete_at = row.complete_at;
      if (row.held) facts.held = *row.held;
    }
    for (auto at = ids_.lower_bound({row.buildid, ""}); at != ids_.end() && at->first.first == row.buildid;) {
      const std::uint64_t id = (at++)->second;
      if (id <= row.drop_upto) erase(id);
    }
  }
  for (const auto& row : batch.entries) {
    Key key{row.buildid, std::string(row.name)};
    if (const auto found = ids_.find(key); found != ids_.end() && found->second != row.id) erase(found->second);
    if (const auto old = rows_.find(row.id); old != rows_.end()) {
      if (old->second.entry.revision == row.revision) continue;
      erase(row.id);
    }
    Row made;
    made.entry.id = row.id;
    made.entry.revision = row.revision;
    made.entry.buildid = row.buildid;
    made.entry.length = row.lost_bytes > 0 ? row.lost_bytes : row.value.size();
    made.entry.name = row.name;
    made.entry.source = row.source;
    made.entry.value_hash = row.value_hash;
    made.value.assign(row.value.begin(), row.value.end());
    rows_.emplace(row.id, std::move(made));
    ids_.emplace(std::move(key), row.id);
  }
  ++commits_;
  return success();
}

Result<std::uint64_t> MemoryStore::reserve_ids(std::uint64_t count, std::uint64_t at_least) {
  const std::lock_guard lock(mutex_);
  if (count == 0) return Errc::invalid_argument;
  const std::uint64_t highest = rows_.empty() ? 0 : rows_.rbegin()->first;
  const std::uint64_t first = std::max({next_id_, at_least, highest + 1});
  if (first > kMaxInt || count > kMaxInt - first) return Errc::out_of_ids;
  next_id_ = first + count;
  ++commits_;
  return first;
}

Result<persist::BackingStore::Census> MemoryStore::census() {
  const std::lock_guard lock(mutex_);
  Census census;
  BuildId last = 0;
  for (const auto& [key, id] : ids_) {
    ++census.entries;
    census.text_bytes += key.second.size() + rows_.at(id).entry.source.size();
    if (key.first != std::exchange(last, key.first)) ++census.builds_with_data;
    const Row& row = rows_.at(id);
    if (row.entry.length != row.value.size()) census.lost.push_back(row.entry);
  }
  return census;
}

Result<> MemoryStore::load_entries(const std::function<bool(const StoredEntry&)>& each) {
  const std::lock_guard lock(mutex_);
  for (const auto& [id, row] : rows_) {
    if (!each(row.entry)) break;
  }
  return success();
}

Result<> MemoryStore::load_builds_with_data(const std::function<bool(const StoredBuild&)>& each) {
  const std::lock_guard lock(mutex_);
  BuildId last = 0;
  for (const auto& [key, id] : ids_) {
    if (key.first != std::exchange(last, key.first) && !each(stored(key.first))) break;
  }
  return success();
}

Result<std::optional<StoredBuild>> MemoryStore::load_build(BuildId build) {
  const std::lock_guard lock(mutex_);
  if (!builds_.contains(build) && !has_data(build)) return std::optional<StoredBuild>();
  return std::optional<StoredBuild>(stored(build));
}

Result<> MemoryStore::load_value(std::uint64_t id, std::uint64_t revision, std::span<std::byte> out) {
  const std::lock_guard lock(mutex_);
  const auto found = rows_.find(id);
  if (found == rows_.end() || found->second.entry.revision != revision || found->second.entry.length != out.size()) {
    return Errc::not_found;
  }
  if (found->second.value.size() != out.size()) return Errc::corrupt_value;
  std::ranges::copy(found->second.value, out.begin());
  return success();
}

Result<std::uint64_t> MemoryStore::vacuum(std::uint64_t) { return std::uint64_t{0}; }

persist::BackingStore::Files MemoryStore::look() const {
  const std::lock_guard lock(mutex_);
  Files files;
  for (const auto& [id, row] : rows_) {
    files.bytes += row.value.size() + row.entry.name.size() + row.entry.source.size();
  }
  return files;
}

void MemoryStore::erase(std::uint64_t id) {
  const auto row = rows_.find(id);
  if (row == rows_.end()) return;
  ids_.erase({row->second.entry.buildid, row->second.entry.name});
  rows_.erase(row);
}

bool MemoryStore::has_data(BuildId build) const {
  const auto first = ids_.lower_bound({build, ""});
  return first != ids_.end() && first->first.first == build;
}

StoredBuild MemoryStore::stored(BuildId build) const {
  StoredBuild result;
  result.buildid = build;
  if (const auto facts = builds_.find(build); facts != builds_.end()) {
    result.complete_at = facts->second.complete_at;
    result.held = facts->second.held;
  }
  return result;
}

}  // namespace stepstash::test
