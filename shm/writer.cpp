#include "shm/writer.hpp"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <new>
#include <tuple>
#include <unordered_set>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "base/text.hpp"
#include "shm/validate.hpp"

namespace stepstash::shm {
namespace {

/// One build record per this many bytes of segment: a build with less data than this on average is unusual, and the
/// table costs 0.1 %.
constexpr std::uint64_t kBytesPerBuild = 64 * 1024;
constexpr std::uint64_t kMinBuilds = 1024;
/// One index slot per this many bytes to begin with (0.2 %); the table grows by itself.
constexpr std::uint64_t kBytesPerSlot = 4096;
constexpr std::uint64_t kMinSlots = 1024;
/// What keep_slab() sets aside: the records of at least 30 evicted entries, of some 500 usual ones.
constexpr std::uint64_t kSlabBytes = 64 * 1024;
constexpr std::uint64_t kLargestRecord = round_up(sizeof(Entry) + kMaxNameBytes + kMaxSourceBytes, kBlockAlign);
constexpr std::uint64_t kMinSegmentBytes = 1024 * 1024;
/// Retired blocks that are pinned are looked at with each scan, up to this number: 0.1 ms.
constexpr std::size_t kKeptLookedAt = 4096;

/// Records for twice as many builds as there are already.
std::uint64_t builds_for(std::uint64_t builds, std::uint64_t bytes) noexcept {
  return std::max({bytes / kBytesPerBuild, kMinBuilds, 2 * builds});
}

std::string temporary_name(const std::string& name) { return name + ".new"; }

std::uint64_t record_bytes(std::uint64_t text_bytes) noexcept {
  return round_up(sizeof(Entry) + text_bytes, kBlockAlign);
}

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

/// Whether this object is a segment that was made to its end (Writer::install), and only waits for its name.
Result<bool> complete(const ObjectDirectory& directory, const std::string& name) {
  auto fd = directory.open_own(name, ObjectDirectory::Access::read_only);
  if (!fd && fd.error() == std::errc::no_such_file_or_directory) return false;
  if (!fd) return fd.error();  // it may hold what nothing else does
  Header copy{};
  auto* to = reinterpret_cast<std::byte*>(&copy);
  const ssize_t got = ::pread(fd.value().get(), to, sizeof copy, 0);
  if (got < 0) return last_errno();
  if (got != static_cast<ssize_t>(sizeof copy)) return false;
  return copy.magic == kSegmentMagic && copy.store_id.load(std::memory_order_relaxed) != 0;
}

/// For people: `build 7, name "report", id 12`.
std::string describe(const Entry& entry) {
  return "build " + std::to_string(entry.buildid) + ", name \"" + printable(entry_name(entry)) + "\", id " +
         std::to_string(entry.id);
}

}  // namespace

Writer::Writer(const ObjectDirectory& directory, std::string name, UniqueFd fd, Mapping mapping)
    : directory_(directory),
      name_(std::move(name)),
      fd_(std::move(fd)),
      mapping_(std::move(mapping)),
      heap_(mapping_.data(), header().heap_offset, header().segment_bytes, fd_.get(),
            stand_in_offset(header().segment_bytes), mapping_.size()),
      index_(mapping_.data(), heap_),
      builds_(mapping_.data()),
      pins_(directory, name_ + ".pin."),
      scan_(mapping_.size()) {}

std::uint64_t Writer::bytes_for(std::uint64_t builds, std::uint64_t entries, std::uint64_t text_bytes) noexcept {
  // The index takes up to 8/3 slots of 8 bytes per entry after growing, and the old table stands beside the new one.
  const std::uint64_t per_entry = sizeof(Entry) + kBlockAlign + 48;
  const std::uint64_t heap = entries * per_entry + text_bytes + 2 * kSlabBytes;
  const std::uint64_t table = builds_for(builds, 0) * sizeof(BuildRecord);
  return round_up(kMinSegmentBytes + heap + heap / 8 + table, kPageBytes);
}

Result<std::unique_ptr<Writer>> Writer::create(const ObjectDirectory& directory, const std::string& name,
                                               std::uint64_t bytes, std::uint64_t known_builds) {
  bytes = round_up(bytes, kPageBytes);
  if (bytes < kMinSegmentBytes || bytes > kMaxSegmentBytes) return Errc::invalid_argument;
  const std::string temporary = temporary_name(name);
  STEPSTASH_TRY(directory.remove(temporary));  // of a daemon that died here
  UniqueFd fd = STEPSTASH_TRY(directory.create(temporary));

  const auto make = [&]() -> Result<std::unique_ptr<Writer>> {
    const std::uint64_t builds = builds_for(known_builds, bytes);
    const Offset heap_offset = round_up(kPageBytes + builds * sizeof(BuildRecord), kPageBytes);
    if (heap_offset + kMinSegmentBytes / 2 > bytes) return Errc::invalid_argument;
    // The stand-in is as large as the heap: all of that may be written off. It has addresses only.
    const std::uint64_t object_bytes = stand_in_offset(bytes) + (bytes - heap_offset);
    if (::ftruncate(fd.get(), static_cast<off_t>(object_bytes)) != 0) return last_errno();
    STEPSTASH_CRASH_POINT("shm.segment.create.sized");
    if (const int error = ::posix_fallocate(fd.get(), 0, static_cast<off_t>(heap_offset)); error != 0) {
      return std::error_code(error, std::system_category());
    }
    STEPSTASH_CRASH_POINT("shm.segment.create.reserved");
    Mapping mapping = STEPSTASH_TRY(Mapping::map(fd.get(), object_bytes, Mapping::Access::read_write));
    // Zero, and every build record is free. Written all the same: only pages that were count as data (DataMap).
    std::memset(mapping.data(), 0, heap_offset);
    STEPSTASH_CRASH_POINT("shm.segment.create.zeroed");
    auto* head = new (mapping.data()) Header{};
    head->magic = kSegmentMagic;
    head->layout_version = kLayoutVersion;
    head->fingerprint = layout_fingerprint();
    head->segment_bytes = bytes;
    head->object_bytes = object_bytes;
    if (::getrandom(head->segment_id.data(), head->segment_id.size(), 0) !=
        static_cast<ssize_t>(head->segment_id.size())) {
      return last_errno();
    }
    head->builds_capacity = builds;
    head->heap_offset = heap_offset;
    head->header_hash = hash_bytes({reinterpret_cast<const std::byte*>(head), offsetof(Header, header_hash)});
    head->next_id.store(1, std::memory_order_relaxed);  // nobody else sees the object before it is renamed
    STEPSTASH_CRASH_POINT("shm.segment.create.header");
    std::unique_ptr<Writer> writer(new Writer(directory, name, std::move(fd), std::move(mapping)));
    STEPSTASH_TRY(writer->heap_.format());
    STEPSTASH_TRY(writer->index_.format(std::max(bytes / kBytesPerSlot, kMinSlots)));
    writer->builds_.format();
    (void)writer->keep_slab();
    STEPSTASH_CRASH_POINT("shm.segment.create.complete");
    return writer;
  };
  auto made = make();
  if (!made) (void)directory.remove(temporary);
  return made;
}

Result<std::string> Writer::install(bool keep_former) {
  const std::string temporary = temporary_name(name_);
  std::string aside;
  // Killed in between, the next attach() finds no segment, and this one complete.
  if (keep_former) {
    auto kept = directory_.set_aside(name_, name_ + ".damaged");
    if (!kept && kept.error() != std::errc::no_such_file_or_directory) return kept.error();
    if (kept) aside = std::move(kept).value();
  }
  STEPSTASH_TRY(directory_.rename(temporary, name_));
  STEPSTASH_TRY(pins_.adopt(header().segment_id));
  return aside;
}

void Writer::abandon() { (void)directory_.remove(temporary_name(name_)); }

Result<> Writer::reserve(const Draft& draft, std::uint64_t bytes) {
  return heap_.reserve(draft.block, draft.value_offset + bytes);
}

Result<std::unique_ptr<Writer>> Writer::attach(const ObjectDirectory& directory, const std::string& name,
                                               Recovery& recovery) {
  auto opened = directory.open_own(name, ObjectDirectory::Access::read_write);
  if (!opened && opened.error() == std::errc::no_such_file_or_directory &&
      STEPSTASH_TRY(complete(directory, temporary_name(name)))) {
    STEPSTASH_TRY(directory.rename(temporary_name(name), name));
    opened = directory.open_own(name, ObjectDirectory::Access::read_write);
  }
  UniqueFd fd = STEPSTASH_TRY(std::move(opened));
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return last_errno();
  const auto bytes = static_cast<std::uint64_t>(status.st_size);
  if (bytes < kMinSegmentBytes || bytes > 2 * kMaxSegmentBytes + kStandInAlign) return Errc::corrupt_segment;
  const DataMap pages = STEPSTASH_TRY(DataMap::of(fd.get()));
  if (!pages.contains(0, sizeof(Header))) return Errc::corrupt_segment;
  Mapping mapping = STEPSTASH_TRY(Mapping::map(fd.get(), bytes, Mapping::Access::read_write));
  STEPSTASH_TRY(check_header(*reinterpret_cast<const Header*>(mapping.data()), bytes));
  std::unique_ptr<Writer> writer(new Writer(directory, name, std::move(fd), std::move(mapping)));
  STEPSTASH_TRY(writer->recover(recovery));
  // What a daemon left that died while it made another one.
  (void)directory.remove(temporary_name(name));
  return writer;
}

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

// ---- entries -------------------------------------------------------------------------------------------------------

namespace {

/// What a block takes for this entry: its value may have to be moved up to the next page.
std::uint64_t block_bytes_for(std::string_view name, std::string_view source, std::uint64_t length) noexcept {
  return round_up(sizeof(Entry) + name.size() + source.size(), kBlockAlign) + length +
         (length >= kPageAlignedFrom ? kPageBytes : 0);
}

}  // namespace

std::uint64_t Writer::unreserved_for(std::string_view name, std::string_view source,
                                     std::uint64_t length) const noexcept {
  return length > max_value_bytes() ? 0 : heap_.unreserved_for(block_bytes_for(name, source, length));
}

Result<Draft> Writer::draft(std::string_view name, std::string_view source, std::uint64_t length) {
  const std::uint64_t head = round_up(sizeof(Entry) + name.size() + source.size(), kBlockAlign);
  const bool page_aligned = length >= kPageAlignedFrom;
  if (length > max_value_bytes()) return Errc::segment_full;  // keeps the sums below from overflowing
  // Without room for a record nothing could be evicted any more: that comes before any value.
  STEPSTASH_TRY(keep_slab());
  const Offset block = STEPSTASH_TRY(heap_.allocate(block_bytes_for(name, source, length)));
  Draft made;
  made.block = block;
  const Offset value = page_aligned ? round_up(block + head, kPageBytes) : block + head;
  made.value_offset = static_cast<std::uint32_t>(value - block);
  made.capacity = heap_.block_bytes(block) - made.value_offset;
  return made;
}

std::span<std::byte> Writer::value_bytes(const Draft& draft) const noexcept {
  return {mapping_.data() + draft.block + draft.value_offset, static_cast<std::size_t>(draft.capacity)};
}

Result<bool> Writer::extend(Draft& draft, std::uint64_t capacity) {
  if (capacity > max_value_bytes()) return false;
  const bool done = STEPSTASH_TRY(heap_.extend(draft.block, draft.value_offset + capacity));
  draft.capacity = heap_.block_bytes(draft.block) - draft.value_offset;
  return done;
}

const Entry& Writer::publish(const Draft& draft, const EntryFacts& facts) noexcept {
  heap_.shrink(draft.block, draft.value_offset == 0 ? record_bytes(facts.name.size() + facts.source.size())
                                                    : draft.value_offset + facts.length);
  STEPSTASH_CRASH_POINT("shm.publish.block.fitted");
  auto* entry = reinterpret_cast<Entry*>(mapping_.data() + draft.block);
  entry->block.kind = BlockKind::entry;
  entry->id = facts.id;
  entry->buildid = facts.build;
  entry->revision = facts.revision;
  entry->length = facts.length;
  entry->value_hash = facts.value_hash;
  entry->set_at_ns = static_cast<std::uint64_t>(facts.set_at.count());
  entry->value_offset = draft.value_offset;
  entry->name_bytes = static_cast<std::uint16_t>(facts.name.size());
  entry->source_bytes = static_cast<std::uint16_t>(facts.source.size());
  STEPSTASH_CRASH_POINT("shm.publish.record.fields");
  entry->record.store(builds_.record_of(facts.build), std::memory_order_relaxed);  // published with the rest
  auto* text = reinterpret_cast<char*>(entry + 1);
  std::copy(facts.name.begin(), facts.name.end(), text);
  std::copy(facts.source.begin(), facts.source.end(), text + facts.name.size());
  STEPSTASH_CRASH_POINT("shm.publish.record.texts");
  entry->state.store(facts.state, std::memory_order_relaxed);  // published with the rest by the slot's store
  entry->meta_hash = meta_hash(*entry);
  STEPSTASH_CRASH_POINT("shm.publish.record.complete");
  if (const Offset old = index_.publish(draft.block)) retire(old);
  return *entry;
}

std::uint64_t Writer::evictable_bytes(const Entry& entry) const noexcept {
  if (entry.value_offset == 0) return 0;
  const std::uint64_t now = entry.block.size.load(std::memory_order_relaxed);
  const std::uint64_t after = record_bytes(entry.name_bytes + entry.source_bytes);
  return now > after ? now - after : 0;
}

Result<const Entry*> Writer::publish_record(const EntryFacts& facts) {
  const Offset block = STEPSTASH_TRY(allocate_record(record_bytes(facts.name.size() + facts.source.size())));
  return &publish(Draft{block, 0, 0}, facts);
}

Result<const Entry*> Writer::evict(const Entry& entry) { return publish_record_of(entry, EntryState::clean); }

Result<const Entry*> Writer::mark_lost(const Entry& entry) { return publish_record_of(entry, EntryState::dirty); }

Result<const Entry*> Writer::move_record(const Entry& record) {
  return publish_record_of(record, record.state.load(std::memory_order_relaxed));
}

Result<const Entry*> Writer::publish_record_of(const Entry& entry, EntryState state) {
  EntryFacts facts;
  facts.id = entry.id;
  facts.revision = entry.revision;
  facts.build = entry.buildid;
  facts.name = entry_name(entry);
  facts.source = entry_source(entry);
  facts.length = entry.length;
  facts.value_hash = entry.value_hash;
  facts.set_at = std::chrono::nanoseconds(entry.set_at_ns);
  facts.state = state;
  return publish_record(facts);
}

/// Records are cut off one slab after another, so that the few bytes that stay of an evicted value do not lie scattered
/// where large values could.
Result<Offset> Writer::allocate_record(std::uint64_t bytes) {
  (void)keep_slab();
  const std::uint64_t left = slab_bytes();
  if (left == bytes) return std::exchange(slab_, 0);
  if (left > bytes) {
    const Offset record = slab_;
    slab_ = heap_.split(record, bytes);
    return record;
  }
  return heap_.allocate_high(bytes);
}

/// Sees to it that the slab has room for a record of the largest kind. Errors: those of Heap::allocate_high, when there
/// is no run for another slab.
Result<> Writer::keep_slab() noexcept {
  const std::uint64_t left = slab_bytes();
  if (left >= kLargestRecord) return success();
  std::error_code why = Errc::segment_full;
  for (std::uint64_t bytes = kSlabBytes; bytes >= kLargestRecord; bytes /= 2) {
    auto slab = heap_.allocate_high(bytes);
    if (!slab) {
      why = slab.error();
      continue;
    }
    if (slab_ != 0) heap_.free(slab_);
    slab_ = slab.value();
    return success();
  }
  return why;
}

bool Writer::keep_clear(Offset begin, Offset end) noexcept {
  heap_.keep_clear(begin, end);
  if (slab_ == 0 || slab_ >= end || slab_ + slab_bytes() <= begin) return false;
  heap_.free(std::exchange(slab_, 0));
  return keep_slab().has_value();
}

void Writer::for_each_block(const std::function<void(Offset, std::uint64_t bytes, bool free)>& each) const {
  // The chains are ours and whole: there is nothing to complain of.
  const auto one = [&](Offset at, std::uint64_t size) { each(at, size, at == slab_ || heap_.is_free(at)); };
  (void)Heap::walk(mapping_.data(), header().heap_offset, bytes(), one);
  if (!heap_.stand_in_begun()) return;
  each(bytes(), 0, false);  // what stands there is no neighbour of what comes now
  std::uint64_t room = heap_.stand_in_room();
  (void)Heap::walk(mapping_.data(), stand_in_offset(bytes()), mapped_bytes(), [&](Offset at, std::uint64_t size) {
    if (!heap_.is_free(at)) return one(at, size);
    const std::uint64_t part = std::min(size, room);  // more of what is free here cannot be used
    each(at, part, true);
    room -= part;
    if (part < size) each(at + part, 0, false);
  });
}

void Writer::bind(const Entry& entry) noexcept {
  const std::uint32_t record = builds_.record_of(entry.buildid);
  if (entry.record.load(std::memory_order_relaxed) == record) return;
  const_cast<Entry&>(entry).record.store(record, std::memory_order_release);  // ours to write, as in mark()
  STEPSTASH_CRASH_POINT("shm.entry.record.bound");
}

void Writer::erase(const Entry& entry) noexcept {
  if (const Offset block = index_.erase(entry.buildid, entry_name(entry))) retire(block);
}

void Writer::mark(const Entry& entry, EntryState state) noexcept {
  // The segment is ours to write; entries are handed out as const because only `state` ever changes.
  // Release: a later attach that sees `clean` may rely on the commit, which happened before.
  const_cast<Entry&>(entry).state.store(state, std::memory_order_release);
  STEPSTASH_CRASH_POINT("shm.entry.state.marked");
}

const Entry* Writer::find(BuildId build, std::string_view name) const noexcept {
  const Offset block = index_.find(build, name);
  return block == 0 ? nullptr : &entry_at(block);
}

void Writer::for_each(const std::function<void(const Entry&)>& each) const {
  const IndexWord word = header().index.load(std::memory_order_relaxed);
  const auto* slot = reinterpret_cast<const std::atomic<Slot>*>(mapping_.data() + index_slots_offset(word));
  for (std::uint64_t i = 0; i < index_.slots(); ++i) {
    const Slot here = slot[i].load(std::memory_order_relaxed);
    if (here > kTombstone) each(entry_at(slot_offset(here)));
  }
}

std::uint64_t Writer::max_value_bytes() const noexcept {
  // Three times the table: it and its predecessors (index.cpp).
  const std::uint64_t taken = 3 * heap_.block_bytes(index_.table_block()) + kSlabBytes +
                              round_up(sizeof(Entry) + kMaxNameBytes + kMaxSourceBytes, kPageBytes) + kPageBytes;
  return heap_.capacity() > taken ? heap_.capacity() - taken : 0;
}

std::uint64_t Writer::max_value_bytes_on(std::uint64_t total) const noexcept {
  // Pages come in whole granules: two are cut by the value's ends, one holds the end of the table, two the slab. The
  // rest is for pin pages and what is kept for them.
  const std::uint64_t taken = header().heap_offset + 3 * heap_.block_bytes(index_.table_block()) + 8 * Heap::kGranule;
  return std::min(max_value_bytes(), total > taken ? total - taken : 0);
}

// ---- reclaiming ----------------------------------------------------------------------------------------------------

void Writer::retire(Offset block) {
  retired_.push_back(block);
  retired_bytes_ += heap_.block_bytes(block);
}

void Writer::unhold(Offset block) noexcept {
  const auto held = holds_.find(block);
  if (held != holds_.end() && --held->second == 0) holds_.erase(held);
}

std::uint64_t Writer::reclaim() { return reclaim(/*all=*/true); }

std::uint64_t Writer::reclaim_new() { return reclaim(kept_.size() <= kKeptLookedAt); }

std::uint64_t Writer::reclaim(bool all) {
  if (retired_.empty() && (!all || kept_.empty())) return 0;
  if (!pins_.scan(scan_)) return 0;
  const std::uint64_t before = heap_.free_bytes();
  std::uint64_t written_off = all ? 0 : heap_.written_off();
  const auto freed = [&](Offset block) {
    const bool kept = scan_.serving.contains(block) || holds_.contains(block);
    if (kept || scan_.closed.contains(block)) {
      if (!kept) written_off += heap_.block_bytes(block);
      return false;
    }
    retired_bytes_ -= heap_.block_bytes(block);
    heap_.free(block);
    STEPSTASH_CRASH_POINT("shm.reclaim.block.freed");
    return true;
  };
  if (all) std::erase_if(kept_, freed);
  for (const Offset block : retired_) {
    if (!freed(block)) kept_.push_back(block);
  }
  retired_.clear();
  heap_.write_off(written_off);
  // What is still held counts no longer: the next scan waits for as much again.
  due_blocks_ = 16 + 8 * pins_.pages();
  due_bytes_ = retired_bytes_ + heap_.capacity() / 64;
  const std::uint64_t after = heap_.free_bytes();
  if (after > before) (void)keep_slab();
  return after > before ? after - before : 0;
}

std::vector<Writer::Held> Writer::held_by_users() const {
  // A page may name anything: what is held is what is an entry's block.
  BlockSet entries(mapped_bytes());
  for_each_block([&](Offset at, std::uint64_t size, bool free) {
    if (!free && size > 0 && entry_at(at).block.kind == BlockKind::entry) entries.insert(at);
  });
  std::vector<Held> all;
  BlockSet seen(mapped_bytes());
  for (const std::uint32_t uid : pins_.users()) {
    Held held{uid, 0, 0, pins_.closed(uid)};
    seen.clear();
    pins_.for_each_pin(uid, [&](Offset block) {
      if (!seen.insert(block) || !entries.contains(block)) return;
      held.bytes += heap_.block_bytes(block);
      ++held.blocks;
    });
    if (held.blocks > 0 || held.closed) all.push_back(held);
  }
  return all;
}

Result<> Writer::close_user(std::uint32_t uid) {
  STEPSTASH_TRY(pins_.close(uid));
  STEPSTASH_CRASH_POINT("shm.writer.user.closed");
  reclaim();
  return success();
}

void Writer::open_user(std::uint32_t uid) {
  pins_.open(uid);
  reclaim();
}

std::uint64_t Writer::reclaim_if_due() {
  if (retired_.size() < due_blocks_ && retired_bytes_ < due_bytes_) return 0;
  return reclaim_new();
}

bool Writer::worth_reclaiming() const noexcept {
  return (!retired_.empty() && 8 * retired_.size() >= pins_.pages()) || retired_bytes_ >= due_bytes_;
}

const PinScan& Writer::pinned_now() {
  (void)pins_.scan(scan_, /*hints=*/true);  // of a page that cannot be read nothing is known
  return scan_;
}

Result<UniqueFd> Writer::open_for_client() const {
  return directory_.open_own(name_, ObjectDirectory::Access::read_only);
}

}  // namespace stepstash::shm
