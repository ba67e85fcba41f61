// SPDX-License-Identifier: Apache-2.0
/// The segment's build records: which build has which, which are free, and deletions by builds (L11). The daemon's
/// side; readers look at the records by themselves (validate.hpp, deleted_upto).
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

  /// Of a new segment, whose records are zero. O(capacity).
  void format();
  /// Takes over what stands there. A record that cannot be is freed, after `take_out` has been told its name; a
  /// deletion that had taken effect becomes the build's own fact, one that had not never does. O(capacity).
  void attach(const std::function<void(std::string)>& take_out);

  BuildRecord* find(BuildId build) const noexcept {
    const auto found = builds_.find(build);
    return found == builds_.end() ? nullptr : found->second;
  }
  /// The build's record, made when it is not there. `spare` may use the last eighth of the table, which is kept for
  /// what frees. Errors: Errc::too_many_builds.
  Result<BuildRecord*> add(BuildId build, bool spare);
  void remove(BuildRecord& record) noexcept;

  /// Where the build's record stands in the table; kNoRecord: it has none.
  std::uint32_t record_of(BuildId build) const noexcept;
  /// Whether the entry's build has a record that deletes it, once attach() has settled what was under way.
  bool deleted(const Entry& entry) const noexcept;
  std::size_t size() const noexcept { return builds_.size(); }
  std::uint64_t capacity() const noexcept { return header().builds_capacity; }
  void for_each(const std::function<void(BuildRecord&)>& each) const;

  /// L11: deletes what the builds hold now, all of it at one instant for everybody. Returns the id up to which entries
  /// are deleted. end_deletion() when they have left the index. O(builds).
  std::uint64_t begin_deletion(std::span<BuildRecord* const> builds) noexcept;
  void end_deletion() noexcept;

 private:
  Header& header() const noexcept { return *reinterpret_cast<Header*>(base_); }
  BuildRecord* records() const noexcept { return reinterpret_cast<BuildRecord*>(base_ + kPageBytes); }
  void collect_free();

  std::byte* base_;
  std::unordered_map<BuildId, BuildRecord*, SecretHash> builds_;
  std::vector<BuildRecord*> free_;  // the next one to be used at the end
};

}  // namespace stepstash::shm
