/// The daemon's own view of what the segment holds: per build, by id, by last use. All of it is derived and rebuilt at
/// attach; the segment has the facts.
#pragma once

#include <boost/intrusive/list.hpp>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>

#include "base/types.hpp"
#include "shm/hash.hpp"
#include "shm/layout.hpp"

namespace stepstash::daemon {

/// Where something stands in the flusher's queue. `bytes` is what it counts for.
struct DirtyMark {
  std::uint64_t seq = 0;       ///< its place; 0: clean
  std::uint64_t next_seq = 0;  ///< set again while the former state is being committed: its next place
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
  bool loading = false;  ///< its value is on its way back from the database
};

struct BuildState {
  BuildId id = 0;
  shm::BuildRecord* record = nullptr;
  std::map<std::uint64_t, Node*> entries;  ///< by id
  DirtyMark dirty;
  std::uint64_t asking = 0;  ///< not 0: the number of the question under way, what the database knows of this build
  unsigned dropping = 0;     ///< deletions under way: entries up to record->drop_upto are on their way out
  std::size_t leaving = 0;   ///< of `entries`: those

  bool finished() const noexcept {
    return record->complete_at.load(std::memory_order_relaxed) != shm::kNotComplete;  // the loop's own stores
  }
  /// The record holds all that the database knew.
  bool merged() const noexcept { return record->merged.load(std::memory_order_relaxed) != 0; }
  /// The entry with this id has been deleted, though its turn to leave the index may not have come.
  bool dropped(std::uint64_t entry) const noexcept {
    return dropping > 0 && entry <= record->drop_upto.load(std::memory_order_relaxed);
  }
  std::size_t present() const noexcept { return entries.size() - leaving; }
  bool held() const noexcept { return record->hold.load(std::memory_order_relaxed) == shm::Hold::held; }
};

/// Thread safety: the loop's thread only.
class Catalog {
 public:
  // Clients choose builds, and by what they keep and delete also ids and blocks.
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
  void remove_build(BuildId build) { builds_.erase(build); }

  Node* find(std::uint64_t id) noexcept {
    const auto found = nodes_.find(id);
    return found == nodes_.end() ? nullptr : found->second.get();
  }
  Node* at_block(shm::Offset block) noexcept {
    const auto found = by_block_.find(block);
    return found == by_block_.end() ? nullptr : found->second;
  }
  Node& add(std::uint64_t id, shm::Offset block, BuildState& build) {
    auto& node = nodes_[id] = std::make_unique<Node>();
    node->id = id;
    node->block = block;
    node->build = &build;
    build.entries.emplace(id, node.get());
    by_block_.emplace(block, node.get());
    return *node;
  }
  void move(Node& node, shm::Offset block) {
    by_block_.erase(node.block);
    node.block = block;
    by_block_.emplace(block, &node);
  }
  void remove(Node& node) {
    by_block_.erase(node.block);
    node.build->entries.erase(node.id);
    nodes_.erase(node.id);
  }

  /// Clean resident entries, the one to evict first in front: of finished builds, then of the others.
  using UseList = boost::intrusive::list<Node, boost::intrusive::constant_time_size<false>>;
  UseList& finished() noexcept { return finished_; }
  UseList& running() noexcept { return running_; }

  /// The entry was used just now, or became evictable: it goes to the back of its list.
  void touch(Node& node) {
    node.unlink();
    (node.build->finished() ? finished_ : running_).push_back(node);
  }
  /// The entry is dirty or evicted: it is on no list.
  static void unlist(Node& node) { node.unlink(); }

  const Nodes& nodes() const noexcept { return nodes_; }
  const Builds& builds() const noexcept { return builds_; }

 private:
  // Lists first: nodes unlink themselves when they go.
  UseList finished_;
  UseList running_;
  Builds builds_;
  Nodes nodes_;
  std::unordered_map<shm::Offset, Node*, shm::SecretHash> by_block_;
};

}  // namespace stepstash::daemon
