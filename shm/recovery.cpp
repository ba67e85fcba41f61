// SPDX-License-Identifier: Apache-2.0
// Handles what an earlier daemon left: takes it over (Segment::attach), or salvages what it can (Segment::salvage).

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <unordered_set>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "shm/inspection.hpp"
#include "shm/segment.hpp"
#include "shm/validate.hpp"

namespace stepstash::shm {

Result<> Segment::recover(Recovery& recovery) {
  // 1. Chain and table. A daemon that died leaves an intact chain (L7) and a table that fills one of its blocks;
  // anything else is damage.
  const DataMap pages = STEPSTASH_TRY(DataMap::of(fd_.get()));
  if (!pages.contains(0, header().heap_offset)) return Errc::corrupt_segment;
  const Image image{mapping_.data(), mapping_.size(), pages};
  const Chain chain = Chain::of(image);
  const Table table = Table::named(image);
  if (!chain.whole || table.slots == 0 || !table.secret || !table.fills_its_block(chain)) return Errc::corrupt_segment;
  // 2. The pages of the dead daemon's clients. If one cannot be opened, its pins are unknown; nothing has been changed
  // yet.
  STEPSTASH_TRY(pins_.adopt(header().segment_id));
  // From here on nothing in the segment makes recovery fail as a whole. Entries taken out may exist in the database.
  // The segment records that until the database has been checked: if we are killed in between, the next daemon still
  // checks.
  const auto take_out = [&](std::string what) {
    header().commit_count.fetch_or(kUnsettled, std::memory_order_release);
    STEPSTASH_CRASH_POINT("shm.recover.unsettled.stored");
    recovery.set_aside.push_back(std::move(what));
  };
  if ((header().commit_count.load(std::memory_order_relaxed) & kUnsettled) != 0) {
    recovery.set_aside.push_back("segment: a start before this one set something aside, and was cut short");
  }
  // 3. Build records.
  builds_.attach(take_out);
  // 4. Slots: each must refer to a valid entry of its own, reachable from its key.
  std::unordered_set<Offset> live;
  std::vector<Offset> damaged;
  std::uint64_t highest = 0;
  auto* slot = reinterpret_cast<std::atomic<Slot>*>(mapping_.data() + table.at);
  const auto deleted = [this](const Entry& entry) { return builds_.deleted(entry); };
  inspect(image, chain, table, Values::dirty, deleted, [&](const Finding& found) {
    if (found.entry == nullptr) {
      take_out(found.complaint);
      slot[found.slot].store(kTombstone, std::memory_order_seq_cst);
      STEPSTASH_CRASH_POINT("shm.recover.slot.set_aside");
      return;
    }
    const Entry& entry = *found.entry;
    highest = std::max({highest, entry.id, entry.revision});
    bind(entry);
    // A resident entry that is not marked clean is written again: if it were mistaken for clean it could be evicted,
    // and would be lost. An evicted one is clean unless it is marked lost.
    const EntryState state = entry.state.load(std::memory_order_relaxed);
    const EntryState other = entry.value_offset == 0 ? EntryState::clean : EntryState::dirty;
    if (state != EntryState::dirty && state != EntryState::clean) mark(entry, other);
    if (found.value_damaged) {
      recovery.set_aside.push_back(describe(entry) + ": the value does not match its checksum");
      damaged.push_back(offset_of(entry));
    }
    if (!found.deleted) {
      live.insert(offset_of(entry));
      return;
    }
    slot[found.slot].store(kTombstone, std::memory_order_seq_cst);  // a pending deletion
    STEPSTASH_CRASH_POINT("shm.recover.deletion.completed");
  });
  index_.attach();
  // Keys that cannot be reached from their home slot (the probe sequence is broken), or that occur twice.
  for (std::uint64_t i = 0; i < table.slots; ++i) {
    const Slot here = slot[i].load(std::memory_order_relaxed);
    if (here <= kTombstone) continue;
    const auto& entry = entry_at(slot_offset(here));
    if (index_.find(entry.buildid, entry_name(entry)) == slot_offset(here)) continue;
    take_out(describe(entry) + ": out of its place in the index");
    slot[i].store(kTombstone, std::memory_order_seq_cst);
    live.erase(slot_offset(here));
    STEPSTASH_CRASH_POINT("shm.recover.slot.out_of_place");
  }
  index_.attach();
  STEPSTASH_CRASH_POINT("shm.recover.slots.checked");
  header().deletions.store(0, std::memory_order_release);  // after the slots, as in BuildTable::end_deletion()
  STEPSTASH_CRASH_POINT("shm.recover.deletions.over");
  recovery.entries_kept = index_.entries();
  if (header().next_id.load(std::memory_order_relaxed) <= highest) header().next_id.store(highest + 1);
  STEPSTASH_CRASH_POINT("shm.recover.next_id.raised");

  // 5. Blocks pinned by readers of the dead daemon stay; the rest is free.
  STEPSTASH_TRY(pins_.scan(scan_));
  // A client may write anything into its page. A reader can only have found and pinned an entry: free blocks stay free.
  std::unordered_set<Offset> pinned;
  for (const auto& [at, size] : chain.blocks) {
    if (scan_.pinned(at) && checked_entry(mapping_.data(), mapped_bytes(), at) != nullptr) pinned.insert(at);
  }
  // A client stopped in the middle of a probe may be in a former table: see spare_or_new_table().
  std::unordered_set<Offset> former;
  if (pins_.pages() > 0) {
    for (const auto& [at, size] : chain.blocks) {
      if (former_table(at, pages)) former.insert(at);
    }
  }
  const Offset index_block = index_.table_block();
  STEPSTASH_TRY(heap_.rebuild(
      [&](Offset at) { return at == index_block || live.contains(at) || pinned.contains(at) || former.contains(at); }));
  for (const Offset block : former) index_.keep_former(block);
  STEPSTASH_CRASH_POINT("shm.recover.heap.rebuilt");
  for (const Offset block : pinned) {
    if (!live.contains(block)) retire(block);
  }
  // A damaged value is not served, nor an older one in its place (L10).
  for (const Offset block : damaged) {
    if (!live.contains(block)) continue;
    if (auto record = mark_lost(entry_at(block)); !record) erase(entry_at(block));
    STEPSTASH_CRASH_POINT("shm.recover.damaged_value.marked_lost");
  }
  (void)keep_slab();
  return success();
}

/// Whether a block with no other use was once the index table. Tables never shrink: a larger one was never completed.
bool Segment::former_table(Offset block, const DataMap& pages) const noexcept {
  const auto& head = *reinterpret_cast<const BlockHeader*>(mapping_.data() + block);
  const std::uint64_t size = heap_.block_bytes(block);
  const std::uint64_t slots = (size - IndexWriter::kTableHeader) / sizeof(Slot);
  return head.kind == BlockKind::index && block != index_.table_block() &&
         size <= heap_.block_bytes(index_.table_block()) && std::has_single_bit(slots) &&
         pages.contains(block, block + size);
}

Result<Segment::Former> Segment::former(const ObjectDirectory& directory, const std::string& name) {
  const UniqueFd fd = STEPSTASH_TRY(directory.open_own(name, ObjectDirectory::Access::read_only));
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return last_errno();
  Former found;
  alignas(Header) std::array<std::byte, sizeof(Header)> copy{};
  if (::pread(fd.get(), copy.data(), copy.size(), 0) != static_cast<ssize_t>(copy.size())) return found;
  const auto& head = *reinterpret_cast<const Header*>(copy.data());
  if (head.layout_version != kLayoutVersion) return found;
  found.bytes = std::min(static_cast<std::uint64_t>(status.st_size), head.segment_bytes);
  found.builds = std::min(found.bytes / sizeof(BuildRecord), head.builds_capacity) / 2;  // as in builds_for()
  found.store_id = head.store_id.load(std::memory_order_relaxed);                        // relaxed: a copy
  found.commit_count = head.commit_count.load(std::memory_order_relaxed);
  return found;
}

Result<> Segment::salvage(const ObjectDirectory& directory, const std::string& name,
                          const std::function<void(const Entry&)>& each,
                          const std::function<void(const BuildRecord&)>& build) {
  UniqueFd fd = STEPSTASH_TRY(directory.open_own(name, ObjectDirectory::Access::read_only));
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return last_errno();
  const std::uint64_t bytes = static_cast<std::uint64_t>(status.st_size) / kPageBytes * kPageBytes;
  if (bytes < 2 * kPageBytes) return success();
  const Mapping mapping = STEPSTASH_TRY(Mapping::map(fd.get(), bytes, Mapping::Access::read_only));
  const DataMap pages = STEPSTASH_TRY(DataMap::of(fd.get()));
  if (!pages.contains(0, sizeof(Header))) return success();
  const Image image{mapping.data(), bytes, pages};
  const Header& head = image.header();
  if (head.layout_version != kLayoutVersion) return success();  // another layout: cannot be read

  std::uint64_t builds = std::min((bytes - kPageBytes) / sizeof(BuildRecord), head.builds_capacity);
  if (!pages.contains(kPageBytes, kPageBytes + builds * sizeof(BuildRecord))) builds = 0;
  std::unordered_map<BuildId, std::uint64_t, SecretHash> dropped;
  for (std::uint64_t i = 0; i < builds; ++i) {
    const auto& record = reinterpret_cast<const BuildRecord*>(image.base + kPageBytes)[i];
    const BuildId id = record.buildid.load(std::memory_order_relaxed);
    if (!valid_build(id) || record.hold.load(std::memory_order_relaxed) > Hold::not_held) continue;
    dropped[id] = deleted_upto(head, record);
    if (!build) continue;
    BuildRecord copy{};  // with a deletion that had taken effect as a fact of the build
    copy.buildid = id;
    copy.complete_at = record.complete_at.load(std::memory_order_relaxed);
    copy.drop_upto = dropped[id];
    copy.hold = record.hold.load(std::memory_order_relaxed);
    copy.facts_loaded = record.facts_loaded.load(std::memory_order_relaxed);
    copy.completed_ns = record.completed_ns.load(std::memory_order_relaxed);
    build(copy);
  }
  if (!each) return success();
  const Chain chain = Chain::of(image);
  const Table table = table_to_save(image, chain);
  if (!pages.contains(table.at, table.at + table.slots * sizeof(Slot))) return success();
  const auto deleted = [&](const Entry& entry) {
    const auto drop = dropped.find(entry.buildid);
    return drop != dropped.end() && entry.id <= drop->second;
  };
  inspect(image, chain, table, Values::all, deleted, [&](const Finding& found) {
    if (found.entry != nullptr && !found.deleted && !found.value_damaged) each(*found.entry);
  });
  return success();
}

}  // namespace stepstash::shm
