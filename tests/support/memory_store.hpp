// SPDX-License-Identifier: Apache-2.0
/// BackingStore in memory, with the semantics of the one on disk: the tests' substitute for SQLite.
///
/// Thread safety: all calls may run concurrently. It outlives the daemon object that uses it, so a test can restart a
/// daemon on the same MemoryStore as on the same file.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "persist/backing_store.hpp"

namespace stepstash::test {

class MemoryStore final : public persist::BackingStore {
 public:
  explicit MemoryStore(std::uint64_t store_id = 0x5eed);

  std::uint64_t store_id() const override { return store_id_; }
  std::uint64_t commit_count() const override;
  std::int64_t last_written() const override { return last_written_; }
  /// By default the current clock is plausible.
  void set_last_written(std::int64_t seconds) { last_written_ = seconds; }
  Result<> commit(const persist::Batch& batch) override;
  Result<std::uint64_t> reserve_ids(std::uint64_t count, std::uint64_t at_least) override;
  Result<Census> census() override;
  Result<> load_entries(const std::function<bool(const persist::StoredEntry&)>& each) override;
  Result<> load_builds_with_data(const std::function<bool(const persist::StoredBuild&)>& each) override;
  Result<std::optional<persist::StoredBuild>> load_build(BuildId build) override;
  Result<> load_value(std::uint64_t id, std::uint64_t revision, std::span<std::byte> out) override;
  Result<std::uint64_t> vacuum(std::uint64_t pages) override;
  std::vector<std::string> skipped() const override { return {}; }
  void checkpoint() override {}
  Files look() const override;
  std::string last_error() const override { return {}; }

 private:
  struct Row {
    persist::StoredEntry entry;
    std::vector<std::byte> value;
  };
  struct Facts {
    std::optional<std::int64_t> complete_at;
    bool held = false;
  };
  using Key = std::pair<BuildId, std::string>;

  void erase(std::uint64_t id);
  bool has_data(BuildId build) const;
  persist::StoredBuild stored(BuildId build) const;

  const std::uint64_t store_id_;
  std::int64_t last_written_ = INT64_MAX;
  mutable std::mutex mutex_;
  std::map<std::uint64_t, Row> rows_;
  std::map<Key, std::uint64_t> ids_;
  std::map<BuildId, Facts> builds_;
  std::uint64_t commits_ = 0;
  std::uint64_t next_id_ = 1;
};

}  // namespace stepstash::test
