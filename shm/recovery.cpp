// What is done with what an earlier daemon left: taken over (Writer::attach), or as much of it saved as can be
// (Writer::salvage).

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <tuple>
#include <unordered_set>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "base/text.hpp"
#include "shm/validate.hpp"
#include "shm/writer.hpp"

namespace stepstash::shm {
namespace {

/// checked_entry(), and without touching what has no pages.
const Entry* backed_entry(const std::byte* base, std::uint64_t bytes, Offset block, const DataMap& pages) {
  if (block > bytes - sizeof(Entry) || !pages.contains(block, block + sizeof(Entry))) return nullptr;
  const Entry* entry = checked_entry(base, bytes, block);
  if (entry == nullptr) return nullptr;
  const std::uint64_t texts_end = sizeof(Entry) + entry->name_bytes + entry->source_bytes;
  const std::uint64_t end = entry->value_offset == 0 ? texts_end : entry->value_offset + entry->length;
  return pages.contains(block, block + std::max(end, texts_end)) ? entry : nullptr;
}

/// Heap::walk() over the heap and over the stand-in, where it has blocks.
Result<> walk_all(const std::byte* base, Offset begin, Offset end, std::uint64_t object_bytes,
                  const std::function<void(Offset, std::uint64_t)>& each, const DataMap& pages) {
  STEPSTASH_TRY(Heap::walk(base, begin, end, each, &pages));
  const Offset stand_in = stand_in_offset(end);
  if (!Heap::stand_in_used(base, stand_in, object_bytes, pages)) return success();
  return Heap::walk(base, stand_in, object_bytes, each, &pages);
}

/// The blocks of a segment that attach refused, as far as one leads to the next.
struct Chain {
  std::unordered_map<Offset, std::uint64_t> blocks;
  bool whole = false;

  static Chain of(const std::byte* base, std::uint64_t bytes, const DataMap& pages) {
    Chain chain;
    const Offset begin = reinterpret_cast<const Header*>(base)->heap_offset;
    const Offset end = reinterpret_cast<const Header*>(base)->segment_bytes;
    if (begin % kPageBytes != 0 || begin < kPageBytes || begin >= end || end > bytes || end % kPageBytes != 0) {
      return chain;
    }
    const auto add = [&](Offset at, std::uint64_t size) { chain.blocks.emplace(at, size); };
    chain.whole = walk_all(base, begin, end, bytes, add, pages).has_value();
    return chain;
  }
  /// What was freed still looks like an entry where its block was merged into the one before it.
  bool may_begin_block(Offset at) const { return !whole || blocks.contains(at); }
};

struct Table {
  Offset at = 0;
  std::uint64_t slots = 0;
  std::optional<HashSecret> secret;  // none: it is damaged, and does not say whether a slot's fingerprint is right

  static Table of(const std::byte* base, std::uint64_t bytes, const DataMap& pages, Offset at, std::uint64_t slots) {
    Table table{at, slots, {}};
    if (!table_inside(at, slots, bytes) || !pages.contains(at - sizeof(TableHeader), at)) return table;
    const HashSecret secret = table_secret(base, at);
    if (table_header(base, at).check.load(std::memory_order_relaxed) == secret_check(secret)) table.secret = secret;
    return table;
  }
};

Slot slot_at(const std::byte* base, Offset table, std::uint64_t i) noexcept {
  return reinterpret_cast<const std::atomic<Slot>*>(base + table)[i].load(std::memory_order_relaxed);
}

/// The entry that a slot leads to, if there is one whose record holds.
const Entry* sound_record(const std::byte* base, std::uint64_t bytes, const DataMap& pages, const Chain& chain,
                          const Table& table, Slot slot) {
  if (slot <= kTombstone || !chain.may_begin_block(slot_offset(slot))) return nullptr;
  const Entry* entry = backed_entry(base, bytes, slot_offset(slot), pages);
  if (entry == nullptr || meta_hash(*entry) != entry->meta_hash || !valid_build(entry->buildid)) return nullptr;
  if (!table.secret) return entry;
  const std::uint64_t hash = key_hash(*table.secret, entry->buildid, entry_name(*entry));
  return make_slot(hash, slot_offset(slot)) == slot ? entry : nullptr;
}

/// The table that the index word of a refused segment names; where that cannot be, for the word itself is what was
/// damaged, the one of the chain's tables that it named. Former tables stand there, too, with slots that may lead to
/// what was replaced or deleted since.
Table table_to_save(const std::byte* base, std::uint64_t bytes, const DataMap& pages, const Chain& chain) {
  const IndexWord word = reinterpret_cast<const Header*>(base)->index.load(std::memory_order_relaxed);
  const unsigned log2 = index_log2_slots(word);
  const Table named = Table::of(base, bytes, pages, index_slots_offset(word), log2 > 44 ? 0 : std::uint64_t{1} << log2);
  const bool inside = named.slots != 0 && table_inside(named.at, named.slots, bytes);
  const auto block = chain.blocks.find(named.at - IndexWriter::kTableHeader);
  const bool fills_its_block =
      block != chain.blocks.end() && block->second == IndexWriter::kTableHeader + named.slots * sizeof(Slot);
  if (inside && (fills_its_block || !chain.whole)) return named;
  // One bit away from the word is the one that was meant. Else the one with the newest entry: what was set after a
  // table was left behind is not in it.
  Table best;
  std::tuple<bool, std::uint64_t, std::uint64_t> best_is{};
  for (const auto& [at, size] : chain.blocks) {
    if (size <= IndexWriter::kTableHeader || reinterpret_cast<const BlockHeader*>(base + at)->kind != BlockKind::index)
      continue;
    const Table table = Table::of(base, bytes, pages, at + IndexWriter::kTableHeader,
                                  (size - IndexWriter::kTableHeader) / sizeof(Slot));
    if (!std::has_single_bit(table.slots) || !pages.contains(at, at + size)) continue;
    std::uint64_t newest = 0;
    std::uint64_t entries = 0;
    for (std::uint64_t i = 0; i < table.slots; ++i) {
      const Entry* entry = sound_record(base, bytes, pages, chain, table, slot_at(base, table.at, i));
      if (entry == nullptr) continue;
      newest = std::max(newest, entry->revision);
      ++entries;
    }
    const auto its_log2 = static_cast<unsigned>(std::countr_zero(table.slots));
    const bool near = std::popcount(word ^ make_index_word(index_version(word), its_log2, table.at)) <= 1;
    const std::tuple is{near, newest, entries};
    if (best.slots != 0 && is <= best_is) continue;
    best = table;
    best_is = is;
  }
  return best;
}

/// For people: `build 7, name "report", id 12`.
std::string describe(const Entry& entry) {
  return "build " + std::to_string(entry.buildid) + ", name \"" + printable(entry_name(entry)) + "\", id " +
         std::to_string(entry.id);
}

}  // namespace

Result<> Writer::recover(Recovery& recovery) {
  std::byte* base = mapping_.data();
  // 1. The chain, as it stands. A dead daemon leaves it whole (L7); anything else is damage.
  std::unordered_map<Offset, std::uint64_t> blocks;
  const DataMap pages = STEPSTASH_TRY(DataMap::of(fd_.get()));
  if (!pages.contains(0, header().heap_offset)) return Errc::corrupt_segment;
  STEPSTASH_TRY(walk_all(
      base, header().heap_offset, bytes(), mapped_bytes(),
      [&](Offset at, std::uint64_t size) { blocks.emplace(at, size); }, pages));
  // 2. The table must fill a block of the chain.
  const IndexWord word = header().index.load(std::memory_order_acquire);
  const Offset table = index_slots_offset(word);
  if (index_log2_slots(word) > 44) return Errc::corrupt_segment;
  const std::uint64_t slots = std::uint64_t{1} << index_log2_slots(word);
  if (!table_inside(table, slots, mapped_bytes())) return Errc::corrupt_segment;
  const auto table_block = blocks.find(table - IndexWriter::kTableHeader);
  // To the byte: with fewer slots than were made, half of the entries would be missing without a word.
  if (table_block == blocks.end() || table_block->second != IndexWriter::kTableHeader + slots * sizeof(Slot)) {
    return Errc::corrupt_segment;
  }
  const HashSecret secret = table_secret(base, table);
  if (table_header(base, table).check.load(std::memory_order_relaxed) != secret_check(secret)) {
    return Errc::corrupt_segment;
  }
  // 3. The pages of the dead daemon's clients. Where one cannot be opened nobody knows what is pinned, and nothing has
  // been changed yet.
  STEPSTASH_TRY(pins_.adopt(header().segment_id));
  // From here on nothing in the segment makes it fail as a whole.
  // What is taken out may stand in the database. Until somebody has looked there, the segment says so: killed in
  // between, the next daemon looks all the same.
  const auto take_out = [&](std::string what) {
    header().commit_count.fetch_or(kUnsettled, std::memory_order_release);
    STEPSTASH_CRASH_POINT("shm.recover.unsettled.stored");
    recovery.set_aside.push_back(std::move(what));
  };
  if ((header().commit_count.load(std::memory_order_relaxed) & kUnsettled) != 0) {
    recovery.set_aside.push_back("segment: a start before this one set something aside, and was cut short");
  }
  // 4. Build records.
  builds_.attach(take_out);
  // 5. Slots: each must lead to a block of the chain with an entry whose checksums hold, found where its key says.
  std::unordered_set<Offset> live;
  std::vector<Offset> damaged;
  std::uint64_t highest = 0;
  auto* slot = reinterpret_cast<std::atomic<Slot>*>(base + table);
  for (std::uint64_t i = 0; i < slots; ++i) {
    const Slot here = slot[i].load(std::memory_order_acquire);
    if (here <= kTombstone) continue;
    const Offset block = slot_offset(here);
    const auto in_chain = blocks.find(block);
    const Entry* entry = in_chain == blocks.end() ? nullptr : backed_entry(base, mapped_bytes(), block, pages);
    std::string complaint;
    if (entry == nullptr) {
      complaint = "index slot " + std::to_string(i) + ": leads to no entry";
    } else if (meta_hash(*entry) != entry->meta_hash || !valid_build(entry->buildid) ||
               !valid_text(entry_name(*entry)) || !valid_text(entry_source(*entry))) {
      complaint = "index slot " + std::to_string(i) + ": the record of an entry is damaged";
    } else if (make_slot(key_hash(secret, entry->buildid, entry_name(*entry)), block) != here) {
      complaint = describe(*entry) + ": the index does not fit it";
    } else if (!live.insert(block).second) {
      complaint = describe(*entry) + ": found twice";
    }
    if (!complaint.empty()) {
      take_out(std::move(complaint));
      slot[i].store(kTombstone, std::memory_order_seq_cst);
      STEPSTASH_CRASH_POINT("shm.recover.slot.set_aside");
      continue;
    }
    highest = std::max({highest, entry->id, entry->revision});
    bind(*entry);
    // No checksum covers the state, for it changes. A resident entry that does not say for certain that it is clean is
    // written again: taken for clean it could be evicted, and would be lost. An evicted one is clean unless it says
    // lost.
    const EntryState state = entry->state.load(std::memory_order_relaxed);
    const EntryState other = entry->value_offset == 0 ? EntryState::clean : EntryState::dirty;
    if (state != EntryState::dirty && state != EntryState::clean) mark(*entry, other);
    if (entry->state.load(std::memory_order_relaxed) == EntryState::dirty && entry->value_offset != 0 &&
        hash_bytes(entry_value(*entry)) != entry->value_hash) {
      recovery.set_aside.push_back(describe(*entry) + ": the value does not match its checksum");
      damaged.push_back(block);
    }
    if (builds_.deleted(*entry)) {
      slot[i].store(kTombstone, std::memory_order_seq_cst);  // a deletion that was under way
      STEPSTASH_CRASH_POINT("shm.recover.deletion.completed");
      live.erase(block);
    }
  }
  index_.attach();
  // Keys that cannot be found from where their hash points (their way there is broken), or are there twice.
  for (std::uint64_t i = 0; i < slots; ++i) {
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
  recovery.attached = true;
  recovery.entries_kept = index_.entries();
  if (header().next_id.load(std::memory_order_relaxed) <= highest) header().next_id.store(highest + 1);
  STEPSTASH_CRASH_POINT("shm.recover.next_id.raised");

  // 6. What readers of the dead daemon hold stays; the rest is free.
  STEPSTASH_TRY(pins_.scan(scan_));
  // A client may write anything into its page. Only an entry can have been found and pinned: what is free stays free.
  std::unordered_set<Offset> pinned;
  for (const auto& [at, size] : blocks) {
    if (scan_.pinned(at) && checked_entry(base, mapped_bytes(), at) != nullptr) pinned.insert(at);
  }
  // A client that was stopped in the middle of a probe may stand in a former table: see spare_or_new_table().
  std::unordered_set<Offset> former;
  if (pins_.pages() > 0) {
    for (const auto& [at, size] : blocks) {
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
  // A damaged value is not served, and no older one in its place (L10).
  for (const Offset block : damaged) {
    if (!live.contains(block)) continue;
    if (auto record = mark_lost(entry_at(block)); !record) erase(entry_at(block));
    STEPSTASH_CRASH_POINT("shm.recover.damaged_value.marked_lost");
  }
  (void)keep_slab();
  return success();
}

/// Whether a block that is in use for nothing else was once the table. Tables never become smaller: a larger one was
/// never finished.
bool Writer::former_table(Offset block, const DataMap& pages) const noexcept {
  const auto& head = *reinterpret_cast<const BlockHeader*>(mapping_.data() + block);
  const std::uint64_t size = heap_.block_bytes(block);
  const std::uint64_t slots = (size - IndexWriter::kTableHeader) / sizeof(Slot);
  return head.kind == BlockKind::index && block != index_.table_block() &&
         size <= heap_.block_bytes(index_.table_block()) && std::has_single_bit(slots) &&
         pages.contains(block, block + size);
}

Result<Writer::Former> Writer::former(const ObjectDirectory& directory, const std::string& name) {
  const UniqueFd fd = STEPSTASH_TRY(directory.open_own(name, ObjectDirectory::Access::read_only));
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return last_errno();
  Former found;
  alignas(Header) std::array<std::byte, sizeof(Header)> copy{};
  if (::pread(fd.get(), copy.data(), copy.size(), 0) != static_cast<ssize_t>(copy.size())) return found;
  const auto& head = *reinterpret_cast<const Header*>(copy.data());
  if (head.layout_version != kLayoutVersion) return found;
  found.bytes = std::min(static_cast<std::uint64_t>(status.st_size), head.segment_bytes);
  found.builds = std::min(found.bytes / sizeof(BuildRecord), head.builds_capacity) / 2;  // builds_for()
  found.store_id = head.store_id.load(std::memory_order_relaxed);                        // of a copy
  found.commit_count = head.commit_count.load(std::memory_order_relaxed);
  return found;
}

Result<> Writer::salvage(const ObjectDirectory& directory, const std::string& name,
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
  const std::byte* base = mapping.data();
  const auto& head = *reinterpret_cast<const Header*>(base);
  if (head.layout_version != kLayoutVersion) return success();  // another layout: nothing here can be read

  std::uint64_t builds = std::min((bytes - kPageBytes) / sizeof(BuildRecord), head.builds_capacity);
  if (!pages.contains(kPageBytes, kPageBytes + builds * sizeof(BuildRecord))) builds = 0;
  std::unordered_map<BuildId, std::uint64_t, SecretHash> dropped;
  for (std::uint64_t i = 0; i < builds; ++i) {
    const auto& record = reinterpret_cast<const BuildRecord*>(base + kPageBytes)[i];
    const BuildId id = record.buildid.load(std::memory_order_relaxed);
    if (!valid_build(id) || record.hold.load(std::memory_order_relaxed) > Hold::not_held) continue;
    dropped[id] = deleted_upto(head, record);
    if (!build) continue;
    BuildRecord copy{};  // with the deletion that had taken effect as the build's own fact
    copy.buildid = id;
    copy.complete_at = record.complete_at.load(std::memory_order_relaxed);
    copy.drop_upto = dropped[id];
    copy.hold = record.hold.load(std::memory_order_relaxed);
    copy.merged = record.merged.load(std::memory_order_relaxed);
    copy.completed_ns = record.completed_ns.load(std::memory_order_relaxed);
    build(copy);
  }
  if (!each) return success();
  const Chain chain = Chain::of(base, bytes, pages);
  const Table table = table_to_save(base, bytes, pages, chain);
  if (!pages.contains(table.at, table.at + table.slots * sizeof(Slot))) return success();
  for (std::uint64_t i = 0; i < table.slots; ++i) {
    const Entry* entry = sound_record(base, bytes, pages, chain, table, slot_at(base, table.at, i));
    if (entry == nullptr) continue;
    if (entry->value_offset != 0 && hash_bytes(entry_value(*entry)) != entry->value_hash) continue;
    const auto drop = dropped.find(entry->buildid);
    if (drop != dropped.end() && entry->id <= drop->second) continue;
    each(*entry);
  }
  return success();
}

}  // namespace stepstash::shm
