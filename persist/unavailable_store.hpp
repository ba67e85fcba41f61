// SPDX-License-Identifier: Apache-2.0
/// Replaces a database that this program cannot use, so that the segment is still served.
#pragma once

#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "persist/backing_store.hpp"

namespace stepstash::persist {

/// Every call that reads or writes fails with the same error: nothing becomes clean, and nothing dirty is lost. Thread
/// safety: all calls may run concurrently.
class UnavailableStore final : public BackingStore {
 public:
  /// `why`: message with the database's path.
  UnavailableStore(std::error_code error, std::string why) : error_(error), why_(std::move(why)) {}

  std::uint64_t store_id() const override { return 0; }
  std::uint64_t commit_count() const override { return 0; }
  Result<> commit(const Batch&) override { return error_; }
  Result<std::uint64_t> reserve_ids(std::uint64_t, std::uint64_t) override { return error_; }
  Result<Census> census() override { return error_; }
  Result<> load_entries(const std::function<bool(const StoredEntry&)>&) override { return error_; }
  Result<> load_builds_with_data(const std::function<bool(const StoredBuild&)>&) override { return error_; }
  Result<std::optional<StoredBuild>> load_build(BuildId) override { return error_; }
  Result<> load_value(std::uint64_t, std::uint64_t, std::span<std::byte>) override { return error_; }
  Result<std::uint64_t> vacuum(std::uint64_t) override { return error_; }
  void checkpoint() override {}
  Files look() const override { return {}; }
  std::vector<std::string> skipped() const override { return {}; }
  std::int64_t last_written() const override { return 0; }
  std::error_code unusable() const override { return error_; }
  std::string last_error() const override { return why_; }

 private:
  std::error_code error_;
  std::string why_;
};

}  // namespace stepstash::persist
