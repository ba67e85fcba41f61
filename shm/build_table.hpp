// SPDX-License-Identifier: Apache-2.0
/// The segment's build records: which build has which record, which are free, and deletion by build (L11). The daemon's
/// side; readers access the records directly (validate.hpp, deleted_upto).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/result.hpp"
#include "base/types.hpp"
#include "shm/hash.hpp"
#include "shm/layout.hpp"

namespace stepstash::shm {

/// Thread safety: one thread. Lifetime: the mapping outlives it. Empty until format() or attach().
class BuildTable {
 public:
  explicit BuildTable(std::byte* base) noexcept : base_(base) {}

  /// For a new segment, whose records are zero. O(capacity).
  void format();
  /// Takes over the existing records. Frees an invalid record after passing its name to `take_out`. A deletion that had
  /// taken effect becomes a fact of the build; one that had not is discarded. O(capacity).
  void attach(const std::function<void(std::string)>& take_out);

  BuildRecord* find(BuildId build) const noexcept {
    const auto found = builds_.find(build);
    return found == builds_.end() ? nullptr : found->second;
  }
  /// Returns the build's record and creates it if necessary. `spare` may use the last eighth of the table, which is
  /// reserved for operations that free space. Errors: Errc::too_many_builds.
  Result<BuildRecord*> add(BuildId build, bool spare);
  void remove(BuildRecord& record) noexcept;

  /// Index of the build's record in the table, or kNoRecord.
  std::uint32_t record_of(BuildId build) const noexcept;
  /// Whether the record of the entry's build deletes it. Valid once attach() has settled pending deletions.
  bool deleted(const Entry& entry) const noexcept;
  std::size_t size() const noexcept { return builds_.size(); }
  std::uint64_t capacity() const noexcept { return header().builds_capacity; }
  void for_each(const std::function<void(BuildRecord&)>& each) const;

  /// L11: atomically deletes everything the builds hold now; all processes see it at the same instant. Returns the id
  /// up to which entries are deleted. Call end_deletion() once they have left the index. O(builds).
  std::uint64_t begin_deletion(std::span<BuildRecord* const> builds) noexcept;
  void end_deletion() noexcept;

 private:
  Header& header() const noexcept { return *reinterpret_cast<Header*>(base_); }
  BuildRecord* records() const noexcept { return reinterpret_cast<BuildRecord*>(base_ + kPageBytes); }
  void collect_free();

  std::byte* base_;
  std::unordered_map<BuildId, BuildRecord*, SecretHash> builds_;
  std::vector<BuildRecord*> free_;  // the last one is used next
};

}  // namespace stepstash::shm
