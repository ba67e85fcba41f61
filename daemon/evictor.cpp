// SPDX-License-Identifier: Apache-2.0
#include "daemon/evictor.hpp"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/crash_point.hpp"

namespace stepstash::daemon {
namespace {

/// Values evicted per call: about a millisecond on the loop. The batch is large enough to pay for the two scans of the
/// pin pages that it takes, one to choose and one to reclaim: 8 for each page, so that an idle client costs a set next
/// to nothing; or this fraction of the segment, when the values are large.
constexpr std::size_t kEvictAtOnce = 1024;
constexpr std::size_t kEvictPerPage = 8;
constexpr std::size_t kEvictAtLeast = 16;
constexpr std::uint64_t kAheadPart = 64;
/// Values examined for that: many may be pinned; skipping one takes a few nanoseconds.
constexpr std::size_t kLookAtOnce = 32 * 1024;
/// Hints of at most this many pages are read per interval: 8,000 hints, half a millisecond.
constexpr std::size_t kHintPages = 128;
constexpr std::chrono::milliseconds kHintInterval{100};
/// Entries evicted or moved per call to clear one run: about five milliseconds.
constexpr std::size_t kClearAtOnce = 1024;
/// Fraction of the blocks of a very full segment, so that clearing takes a bounded number of walks over them.
constexpr std::size_t kClearPart = 64;
/// After a walk over all blocks that found nothing, the loop runs other work for this many times as long.
constexpr int kWalkPause = 9;

}  // namespace

bool Evictor::evict(std::uint64_t bytes, bool for_pages) {
  note_hints();
  const shm::PinScan& scan = segment_.pinned_now();
  const std::size_t batch = std::min(kEvictAtLeast + kEvictPerPage * segment_.pins().pages(), kEvictAtOnce);
  const std::uint64_t ahead = std::max(bytes, segment_.heap().capacity() / kAheadPart);
  std::uint64_t freed = 0;
  std::size_t evicted = 0;
  std::size_t looked_at = 0;
  const auto over = [&] {
    return (freed >= bytes && (freed >= ahead || evicted >= batch)) || evicted >= kEvictAtOnce ||
           looked_at >= kLookAtOnce;
  };
  // False when there was no room for an entry's record.
  const auto sweep = [&](Catalog::UseList& list, auto&& stays) {
    const Node* last = list.empty() ? nullptr : &list.back();
    for (bool more = last != nullptr; more && !list.empty() && !over();) {
      Node& node = list.front();
      more = &node != last;
      ++looked_at;
      const shm::Entry& entry = segment_.entry_at(node.block);
      const std::uint64_t gain = segment_.evictable_bytes(entry);
      if (gain == 0) {  // its record alone is as large: evicting it frees nothing, now or later
        Catalog::unlist(node);
        continue;
      }
      if (stays(node.block)) {
        catalog_.touch(node);
        continue;
      }
      auto record = segment_.evict(entry);
      if (!record) return false;
      STEPSTASH_CRASH_POINT("daemon.evict.value.replaced");
      note_moved(node, *record.value(), /*evicted=*/true);
      freed += gain;
      ++evicted;
    }
    return true;
  };
  const auto pinned = [&](shm::Offset block) { return scan.pinned(block); };
  const auto wanted = [&](shm::Offset block) { return scan.pinned(block) || scan.recent.contains(block); };
  for (auto* list : {&catalog_.finished(), &catalog_.running()}) {
    // First the values that no hint names. A hint is untrusted and may stay forever, so hinted values still go before a
    // value of a build that is not finished, and before a set is refused.
    if (!sweep(*list, wanted) || (freed < bytes && !sweep(*list, pinned))) return evicted > 0;
  }
  // A value that only closed pages pin stays intact for them and is written off: nobody else has to wait for it. It
  // keeps its pages, so this does not help when pages are what is missing.
  if (!for_pages && !scan.closed.empty() && freed < bytes) {
    looked_at = 0;
    const auto served = [&](shm::Offset block) { return scan.serving.contains(block); };
    for (auto* list : {&catalog_.finished(), &catalog_.running()}) {
      if (freed < bytes && !sweep(*list, served)) return evicted > 0;
    }
  }
  return evicted > 0;
}

/// Moves what readers used to the back. A hint may be any number: only those that name entry blocks count.
void Evictor::note_hints() {
  const auto now = clock_.monotonic();
  if (now < next_hints_) return;
  next_hints_ = now + kHintInterval;
  const auto touch = [&](shm::Offset block) {
    Node* node = catalog_.at_block(block);
    if (node != nullptr && node->is_linked()) catalog_.touch(*node);
  };
  segment_.pins().recent(touch, kHintPages);
}

/// The entry's record is now `record`: its value was evicted, or it was moved.
void Evictor::note_moved(Node& node, const shm::Entry& record, bool evicted) {
  catalog_.move(node, record, segment_.offset_of(record));
  Catalog::unlist(node);
  ++(evicted ? counters_.evictions : counters_.moves);
  ++progress_;
}

Evictor::Compacted Evictor::compact(std::uint64_t bytes, bool evictable) {
  const auto start = clock_.monotonic();
  if (start < next_compact_ && bytes >= compacted_for_) return Compacted::impossible;
  struct Block {
    shm::Offset at;
    std::uint64_t bytes;
    Node* node;          // to be evicted or moved; null if the block is free
    std::uint64_t cost;  // bytes that are evicted or moved
  };
  const shm::PinScan& scan = segment_.pinned_now();
  // The cheapest contiguous run of at least `bytes` bytes in which nothing has to stay: a window from `first` on.
  std::vector<Block> window;
  std::size_t first = 0;
  std::uint64_t length = 0, cost = 0, best_cost = UINT64_MAX;
  std::pair<std::size_t, std::size_t> best;  // in `window`
  segment_.for_each_block([&](shm::Offset at, std::uint64_t size, bool free) {
    Block block{at, size, nullptr, 0};
    if (!free) {
      block.node = catalog_.at_block(at);
      const bool stays = block.node == nullptr || scan.pinned(at) ||
                         (segment_.entry_at(at).value_offset != 0 && (block.node->dirty.dirty() || !evictable));
      if (stays) {
        window.push_back(block);
        first = window.size();
        length = cost = 0;
        return;
      }
      block.cost = size;
    }
    window.push_back(block);
    length += size;
    cost += block.cost;
    while (length - window[first].bytes >= bytes) {
      length -= window[first].bytes;
      cost -= window[first].cost;
      ++first;
    }
    if (length >= bytes && cost < best_cost) {
      best_cost = cost;
      best = {first, window.size()};
    }
  });
  if (best_cost == UINT64_MAX) {
    const auto now = clock_.monotonic();
    next_compact_ = now + kWalkPause * (now - start);
    compacted_for_ = bytes;
    return Compacted::impossible;
  }
  const std::size_t at_once = std::max(kClearAtOnce, window.size() / kClearPart);
  const bool slab_moved =
      segment_.keep_clear(window[best.first].at, window[best.second - 1].at + window[best.second - 1].bytes);
  std::size_t done = 0;
  for (std::size_t i = best.first; i < best.second && done < at_once; ++i) {
    Node* node = window[i].node;
    if (node == nullptr) continue;
    if (!move_away(*node)) break;
    ++done;
  }
  segment_.reclaim_new();
  segment_.keep_clear(0, 0);
  return done > 0 || slab_moved ? Compacted::progress : Compacted::unchanged;
}

/// Evicts the entry's value, or moves its record, to where keep_clear() allows; false if there is no room for the
/// record.
bool Evictor::move_away(Node& node) {
  const shm::Entry& entry = segment_.entry_at(node.block);
  const bool resident = entry.value_offset != 0;
  auto moved = resident ? segment_.evict(entry) : segment_.move_record(entry);
  if (!moved) return false;
  STEPSTASH_CRASH_POINT("daemon.clear.entry.moved");
  note_moved(node, *moved.value(), /*evicted=*/resident);
  return true;
}

bool Evictor::compact_records() {
  const auto start = clock_.monotonic();
  if (start < next_compact_records_) return false;
  constexpr std::uint64_t kGranule = shm::Heap::kGranule;
  struct Granule {
    std::uint64_t at = 0;
    std::uint64_t bytes = 0;  // of records
    std::vector<std::pair<Node*, shm::Offset>> records;
  };
  std::unordered_map<std::uint64_t, Granule> found;
  std::unordered_set<std::uint64_t> stays;
  const shm::PinScan& scan = segment_.pinned_now();
  segment_.for_each_block([&](shm::Offset at, std::uint64_t size, bool free) {
    if (free || size == 0) return;
    Node* node = catalog_.at_block(at);
    const bool record = node != nullptr && !scan.pinned(at) && segment_.entry_at(at).value_offset == 0;
    // Granules in the interior of a block hold nothing else.
    for (const std::uint64_t number : {at / kGranule, (at + size - 1) / kGranule}) {
      if (!record) {
        stays.insert(number);
        continue;
      }
      Granule& granule = found[number];
      granule.at = number * kGranule;
      if (!granule.records.empty() && granule.records.back().first == node) continue;
      granule.bytes += size;
      granule.records.emplace_back(node, at);
    }
  });
  std::vector<Granule*> cheapest;
  for (auto& [number, granule] : found) {
    if (!stays.contains(number)) cheapest.push_back(&granule);
  }
  std::sort(cheapest.begin(), cheapest.end(),
            [](const Granule* a, const Granule* b) { return std::pair(a->bytes, a->at) < std::pair(b->bytes, b->at); });
  const std::uint64_t free_before = segment_.heap().file_system().free;
  std::uint64_t bytes = 0;
  std::size_t count = 0;
  std::size_t records = 0;
  while (count < cheapest.size() && records < kClearAtOnce) {
    bytes += cheapest[count]->bytes;
    records += cheapest[count]->records.size();
    ++count;
  }
  if (count > 1 && bytes < (count - 1) * kGranule) {
    bool room = true;
    for (std::size_t i = 0; i < count && room; ++i) {
      segment_.keep_clear(cheapest[i]->at, cheapest[i]->at + kGranule);
      for (const auto& [node, at] : cheapest[i]->records) {
        if (node->block == at) room = room && move_away(*node);  // else it moved with the previous granule
      }
    }
    segment_.keep_clear(0, 0);
    segment_.reclaim_new();
    progress_ += segment_.heap().punch(clock_.monotonic(), kPunchAtOnce);
  }
  const bool gained = segment_.heap().file_system().free > free_before;
  const auto now = clock_.monotonic();
  if (!gained) next_compact_records_ = now + kWalkPause * (now - start);
  return gained;
}

}  // namespace stepstash::daemon
