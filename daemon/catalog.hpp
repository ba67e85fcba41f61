// SPDX-License-Identifier: Apache-2.0
/// The daemon's own index of the segment's contents: per build, by id, by last use. All of it is derived and rebuilt at
/// attach; the segment holds the facts.
#pragma once

#include <boost/intrusive/list.hpp>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string_view>
#include <unordered_map>

#include "base/types.hpp"
#include "shm/hash.hpp"
#include "shm/layout.hpp"
#include "shm/segment.hpp"

namespace stepstash::daemon {

/// Position in the flusher's queue. `bytes`: its share of the dirty bytes.
struct DirtyMark {
  std::uint64_t seq = 0;       ///< position in the queue; 0: clean
  std::uint64_t next_seq = 0;  ///< set again while the previous state is being committed: its next position
  bool in_flight = false;
  std::uint64_t bytes = 0;
  bool dirty() const noexcept { return seq != 0; }
};

struct BuildState;

/// One entry of build data. It keeps its identity while its value is replaced, evicted and reloaded.
struct Node : boost::intrusive::list_base_hook<boost::intrusive::link_mode<boost::intrusive::auto_unlink>> {
  shm::Offset block = 0;
  std::uint64_t id = 0;
  BuildState* build = nullptr;
  DirtyMark dirty;
  bool loading = false;  ///< its value is being read back from the database
  bool resident = false;
  std::uint64_t length = 0;  ///< of its value, as counted for its build
};

struct BuildState {
  BuildId id = 0;
  shm::BuildRecord* record = nullptr;
  std::map<std::uint64_t, Node*> entries;  ///< by id
  DirtyMark dirty;
  std::uint64_t asking = 0;  ///< number of the database query under way for this build; 0: none
  unsigned dropping = 0;     ///< deletions under way: entries up to record->drop_upto are being removed

  /// Totals of its entries, kept up to date by the Catalog. Entries that are being removed do not count.
  struct Sums {
    std::uint64_t entries = 0;
    std::uint64_t resident_bytes = 0;
    std::uint64_t evicted_bytes = 0;
  } sums;
  std::uint64_t uncounted_upto = 0;  ///< entries with ids up to here are not in `sums`

  bool finished() const noexcept {
    return shm::is_finished(record->complete_at.load(std::memory_order_relaxed));  // the loop's own stores
  }
  /// The record holds everything the database knew.
  bool facts_loaded() const noexcept { return record->facts_loaded.load(std::memory_order_relaxed) != 0; }
  /// The entry with this id has been deleted, though it may not have left the index yet.
  bool dropped(std::uint64_t entry) const noexcept {
    return dropping > 0 && entry <= record->drop_upto.load(std::memory_order_relaxed);
  }
  bool held() const noexcept { return record->hold.load(std::memory_order_relaxed) == shm::Hold::held; }
};

/// Thread safety: the loop's thread only.
class Catalog {
 public:
  // Clients choose builds, and indirectly ids and blocks, by what they keep and delete: hence the keyed hash.
  using Builds = std::unordered_map<BuildId, std::unique_ptr<BuildState>, shm::SecretHash>;
  using Nodes = std::unordered_map<std::uint64_t, std::unique_ptr<Node>, shm::SecretHash>;

  BuildState* find_build(BuildId build) noexcept {
    const auto found = builds_.find(build);
    return found == builds_.end() ? nullptr : found->second.get();
  }
  BuildState& add_build(BuildId build, shm::BuildRecord& record) {
    auto& state = builds_[build];
    if (!state) {
      state = std::make_unique<BuildState>();
      state->id = build;
      state->record = &record;
    }
    return *state;
  }
  void remove_build(BuildId build) {
    with_data_.erase(build);
    builds_.erase(build);
  }

  Node* find(std::uint64_t id) noexcept {
    const auto found = nodes_.find(id);
    return found == nodes_.end() ? nullptr : found->second.get();
  }
  Node* at_block(shm::Offset block) noexcept {
    const auto found = by_block_.find(block);
    return found == by_block_.end() ? nullptr : found->second;
  }
  Node& add(const shm::Entry& entry, shm::Offset block, BuildState& build) {
    const std::uint64_t id = entry.id;
    auto& node = nodes_[id] = std::make_unique<Node>();
    node->id = id;
    node->block = block;
    node->build = &build;
    build.entries.emplace(id, node.get());
    by_block_.emplace(block, node.get());
    count(*node, entry);
    return *node;
  }
  /// The entry's record is now `entry`, at `block`.
  void move(Node& node, const shm::Entry& entry, shm::Offset block) {
    by_block_.erase(node.block);
    node.block = block;
    by_block_.emplace(block, &node);
    uncount(node);
    count(node, entry);
  }
  void remove(Node& node) {
    uncount(node);
    by_block_.erase(node.block);
    node.build->entries.erase(node.id);
    nodes_.erase(node.id);
  }

  /// All entries with ids up to `id` are deleted, though still present: they no longer count.
  void leave_out(BuildState& build, std::uint64_t id) {
    build.sums = {};
    build.uncounted_upto = id;
    for (auto at = build.entries.upper_bound(id); at != build.entries.end(); ++at) add_to_sums(*at->second);
    if (build.sums.entries == 0) with_data_.erase(build.id);
  }
  /// The builds whose sums are not zero, in order of build number.
  const std::map<BuildId, const BuildState*>& with_data() const noexcept { return with_data_; }

  /// Clean resident entries, next to be evicted first: of finished builds, then of the others.
  using UseList = boost::intrusive::list<Node, boost::intrusive::constant_time_size<false>>;
  UseList& finished() noexcept { return finished_; }
  UseList& running() noexcept { return running_; }

  /// The entry was just used, or became evictable: moves it to the back of its list.
  void touch(Node& node) {
    node.unlink();
    (node.build->finished() ? finished_ : running_).push_back(node);
  }
  /// The entry is dirty or evicted: takes it off its list.
  static void unlist(Node& node) { node.unlink(); }

  const Nodes& nodes() const noexcept { return nodes_; }
  /// Entries whose values are in the database only.
  std::uint64_t evicted() const noexcept { return evicted_; }
  std::uint64_t resident() const noexcept { return nodes_.size() - evicted_; }
  const Builds& builds() const noexcept { return builds_; }

 private:
  void count(Node& node, const shm::Entry& entry) {
    node.length = entry.length;
    node.resident = entry.value_offset != 0;
    if (!node.resident) ++evicted_;
    if (node.id <= node.build->uncounted_upto) return;
    add_to_sums(node);
    if (node.build->sums.entries == 1) with_data_.emplace(node.build->id, node.build);
  }
  static void add_to_sums(const Node& node) noexcept {
    BuildState::Sums& sums = node.build->sums;
    ++sums.entries;
    (node.resident ? sums.resident_bytes : sums.evicted_bytes) += node.length;
  }
  void uncount(const Node& node) {
    if (!node.resident) --evicted_;
    if (node.id <= node.build->uncounted_upto) return;
    BuildState::Sums& sums = node.build->sums;
    (node.resident ? sums.resident_bytes : sums.evicted_bytes) -= node.length;
    if (--sums.entries == 0) with_data_.erase(node.build->id);
  }

  // Lists first: nodes unlink themselves in their destructors.
  UseList finished_;
  UseList running_;
  Builds builds_;
  Nodes nodes_;
  std::unordered_map<shm::Offset, Node*, shm::SecretHash> by_block_;
  std::map<BuildId, const BuildState*> with_data_;
  std::uint64_t evicted_ = 0;
};

/// The current entry; none while it is being deleted.
inline const shm::Entry* current_entry(const shm::Segment& segment, Catalog& catalog, BuildId build,
                                       std::string_view name) noexcept {
  const shm::Entry* entry = segment.find(build, name);
  if (entry == nullptr) return nullptr;
  const BuildState* state = catalog.find_build(build);
  return state != nullptr && state->dropped(entry->id) ? nullptr : entry;
}

}  // namespace stepstash::daemon
