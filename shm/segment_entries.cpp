// SPDX-License-Identifier: Apache-2.0
#include "shm/segment.hpp"

#include <algorithm>
#include <utility>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "shm/validate.hpp"

namespace stepstash::shm {
namespace {

constexpr std::uint64_t kLargestRecord = round_up(sizeof(Entry) + kMaxNameBytes + kMaxSourceBytes, kBlockAlign);
/// Each scan checks up to this many retired blocks that were pinned before: 0.1 ms.
constexpr std::size_t kKeptLookedAt = 4096;

std::uint64_t record_bytes(std::uint64_t text_bytes) noexcept {
  return round_up(sizeof(Entry) + text_bytes, kBlockAlign);
}

/// Block size for this entry: its value may have to be moved up to the next page.
std::uint64_t block_bytes_for(std::string_view name, std::string_view source, std::uint64_t length) noexcept {
  return round_up(sizeof(Entry) + name.size() + source.size(), kBlockAlign) + length +
         (length >= kPageAlignedFrom ? kPageBytes : 0);
}

}  // namespace

// ---- entries -------------------------------------------------------------------------------------------------------

Segment::EntryFacts Segment::EntryFacts::of(const Entry& entry) noexcept {
  return {.id = entry.id,
          .revision = entry.revision,
          .build = entry.buildid,
          .name = entry_name(entry),
          .source = entry_source(entry),
          .length = entry.length,
          .value_hash = entry.value_hash,
          .set_at = std::chrono::nanoseconds(entry.set_at_ns),
          .state = entry.state.load(std::memory_order_relaxed)};
}

Segment::EntryFacts Segment::EntryFacts::of(const EntryInfo& info, std::uint64_t value_hash) noexcept {
  return {.id = info.id,
          .revision = info.revision,
          .build = info.buildid,
          .name = info.name,
          .source = info.source,
          .length = info.length,
          .value_hash = value_hash,
          .set_at = {},
          .state = EntryState::clean};
}

std::uint64_t Segment::unreserved_for(std::string_view name, std::string_view source,
                                      std::uint64_t length) const noexcept {
  return length > max_value_bytes() ? 0 : heap_.unreserved_for(block_bytes_for(name, source, length));
}

Result<Draft> Segment::draft(std::string_view name, std::string_view source, std::uint64_t length) {
  const std::uint64_t head = round_up(sizeof(Entry) + name.size() + source.size(), kBlockAlign);
  const bool page_aligned = length >= kPageAlignedFrom;
  if (length > max_value_bytes()) return Errc::segment_full;  // prevents overflow of the sums below
  // Without room for a record nothing could be evicted any more, so the slab comes before any value.
  STEPSTASH_TRY(keep_slab());
  const Offset block = STEPSTASH_TRY(heap_.allocate(block_bytes_for(name, source, length)));
  Draft made;
  made.block = block;
  const Offset value = page_aligned ? round_up(block + head, kPageBytes) : block + head;
  made.value_offset = static_cast<std::uint32_t>(value - block);
  made.capacity = heap_.block_bytes(block) - made.value_offset;
  return made;
}

Result<> Segment::reserve(const Draft& draft, std::uint64_t bytes) {
  return heap_.reserve(draft.block, draft.value_offset + bytes);
}

std::span<std::byte> Segment::value_bytes(const Draft& draft) const noexcept {
  return {mapping_.data() + draft.block + draft.value_offset, static_cast<std::size_t>(draft.capacity)};
}

Result<bool> Segment::extend(Draft& draft, std::uint64_t capacity) {
  if (capacity > max_value_bytes()) return false;
  const bool done = STEPSTASH_TRY(heap_.extend(draft.block, draft.value_offset + capacity));
  draft.capacity = heap_.block_bytes(draft.block) - draft.value_offset;
  return done;
}

const Entry& Segment::publish(const Draft& draft, const EntryFacts& facts) noexcept {
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

std::uint64_t Segment::evictable_bytes(const Entry& entry) const noexcept {
  if (entry.value_offset == 0) return 0;
  const std::uint64_t now = entry.block.size.load(std::memory_order_relaxed);
  const std::uint64_t after = record_bytes(entry.name_bytes + entry.source_bytes);
  return now > after ? now - after : 0;
}

Result<const Entry*> Segment::publish_record(const EntryFacts& facts) {
  const Offset block = STEPSTASH_TRY(allocate_record(record_bytes(facts.name.size() + facts.source.size())));
  return &publish(Draft{block, 0, 0}, facts);
}

Result<const Entry*> Segment::evict(const Entry& entry) { return publish_record_of(entry, EntryState::clean); }

Result<const Entry*> Segment::mark_lost(const Entry& entry) { return publish_record_of(entry, EntryState::dirty); }

Result<const Entry*> Segment::move_record(const Entry& record) {
  return publish_record_of(record, record.state.load(std::memory_order_relaxed));
}

Result<const Entry*> Segment::publish_record_of(const Entry& entry, EntryState state) {
  EntryFacts facts = EntryFacts::of(entry);
  facts.state = state;
  return publish_record(facts);
}

/// Records are cut from one slab after another, so that the small remains of evicted values are not scattered over
/// space for large ones.
Result<Offset> Segment::allocate_record(std::uint64_t bytes) {
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

/// Ensures that the slab has room for the largest possible record. Errors: those of Heap::allocate_high if there is no
/// run for another slab.
Result<> Segment::keep_slab() noexcept {
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

bool Segment::keep_clear(Offset begin, Offset end) noexcept {
  heap_.keep_clear(begin, end);
  if (slab_ == 0 || slab_ >= end || slab_ + slab_bytes() <= begin) return false;
  heap_.free(std::exchange(slab_, 0));
  return keep_slab().has_value();
}

void Segment::for_each_block(const std::function<void(Offset, std::uint64_t bytes, bool free)>& each) const {
  // The daemon's own chains are intact: no error is possible.
  const auto one = [&](Offset at, std::uint64_t size) { each(at, size, at == slab_ || heap_.is_free(at)); };
  (void)Heap::walk(mapping_.data(), header().heap_offset, bytes(), one);
  if (!heap_.stand_in_begun()) return;
  each(bytes(), 0, false);  // blocks of the heap are not adjacent to those of the stand-in
  std::uint64_t room = heap_.stand_in_room();
  (void)Heap::walk(mapping_.data(), stand_in_offset(bytes()), mapped_bytes(), [&](Offset at, std::uint64_t size) {
    if (!heap_.is_free(at)) return one(at, size);
    const std::uint64_t part = std::min(size, room);  // free bytes beyond the room cannot be used
    each(at, part, true);
    room -= part;
    if (part < size) each(at + part, 0, false);
  });
}

void Segment::bind(const Entry& entry) noexcept {
  const std::uint32_t record = builds_.record_of(entry.buildid);
  if (entry.record.load(std::memory_order_relaxed) == record) return;
  const_cast<Entry&>(entry).record.store(record, std::memory_order_release);  // the daemon may write it, as in mark()
  STEPSTASH_CRASH_POINT("shm.entry.record.bound");
}

void Segment::erase(const Entry& entry) noexcept {
  if (const Offset block = index_.erase(entry.buildid, entry_name(entry))) retire(block);
}

void Segment::mark(const Entry& entry, EntryState state) noexcept {
  // The daemon may write the segment; entries are const elsewhere because only `state` ever changes. Release: a later
  // attach that sees `clean` may rely on the commit, which happened before.
  const_cast<Entry&>(entry).state.store(state, std::memory_order_release);
  STEPSTASH_CRASH_POINT("shm.entry.state.marked");
}

const Entry* Segment::find(BuildId build, std::string_view name) const noexcept {
  const Offset block = index_.find(build, name);
  return block == 0 ? nullptr : &entry_at(block);
}

void Segment::for_each(const std::function<void(const Entry&)>& each) const {
  const IndexWord word = header().index.load(std::memory_order_relaxed);
  const auto* slot = reinterpret_cast<const std::atomic<Slot>*>(mapping_.data() + index_slots_offset(word));
  for (std::uint64_t i = 0; i < index_.slots(); ++i) {
    const Slot here = slot[i].load(std::memory_order_relaxed);
    if (here > kTombstone) each(entry_at(slot_offset(here)));
  }
}

std::uint64_t Segment::max_value_bytes() const noexcept {
  // Three times the table: it and its predecessors (index.cpp).
  const std::uint64_t taken = 3 * heap_.block_bytes(index_.table_block()) + kSlabBytes +
                              round_up(sizeof(Entry) + kMaxNameBytes + kMaxSourceBytes, kPageBytes) + kPageBytes;
  return heap_.capacity() > taken ? heap_.capacity() - taken : 0;
}

std::uint64_t Segment::max_value_bytes_on(std::uint64_t total) const noexcept {
  // Pages come in whole granules: two are cut by the value's ends, one holds the end of the table, two the slab. The
  // rest is for pin pages and their reserve.
  const std::uint64_t taken = header().heap_offset + 3 * heap_.block_bytes(index_.table_block()) + 8 * Heap::kGranule;
  return std::min(max_value_bytes(), total > taken ? total - taken : 0);
}

// ---- reclaiming ----------------------------------------------------------------------------------------------------

void Segment::retire(Offset block) {
  retired_.push_back(block);
  retired_bytes_ += heap_.block_bytes(block);
}

void Segment::unretain(Offset block) noexcept {
  const auto held = retained_.find(block);
  if (held != retained_.end() && --held->second == 0) retained_.erase(held);
}

std::uint64_t Segment::reclaim() { return reclaim(/*all=*/true); }

std::uint64_t Segment::reclaim_new() { return reclaim(kept_.size() <= kKeptLookedAt); }

std::uint64_t Segment::reclaim(bool all) {
  if (retired_.empty() && (!all || kept_.empty())) return 0;
  if (!pins_.scan(scan_)) return 0;
  const std::uint64_t before = heap_.free_bytes();
  std::uint64_t written_off = all ? 0 : heap_.written_off();
  const auto freed = [&](Offset block) {
    const bool kept = scan_.serving.contains(block) || retained_.contains(block);
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
  // Blocks still pinned no longer count: the next scan waits for the same amount again.
  due_blocks_ = 16 + 8 * pins_.pages();
  due_bytes_ = retired_bytes_ + heap_.capacity() / 64;
  const std::uint64_t after = heap_.free_bytes();
  if (after > before) (void)keep_slab();
  return after > before ? after - before : 0;
}

/// A page may name any offset: only the blocks of entries count as held.
BlockSet Segment::entry_blocks() const {
  BlockSet entries(mapped_bytes());
  for_each_block([&](Offset at, std::uint64_t size, bool free) {
    if (!free && size > 0 && entry_at(at).block.kind == BlockKind::entry) entries.insert(at);
  });
  return entries;
}

std::vector<Segment::Held> Segment::held_by_users() const {
  const BlockSet entries = entry_blocks();
  std::vector<Held> all;
  BlockSet seen(mapped_bytes());
  for (const std::uint32_t uid : pins_.users()) {
    Held held{uid, 0, 0, pins_.closed(uid)};
    seen.clear();
    pins_.for_each_pin(uid, [&](Offset block, bool serving) {
      if (!entries.contains(block)) return;
      if (serving) held.closed = false;
      if (!seen.insert(block)) return;
      held.bytes += heap_.block_bytes(block);
      ++held.blocks;
    });
    if (held.blocks > 0 || held.closed) all.push_back(held);
  }
  return all;
}

Result<> Segment::close_user(std::uint32_t uid) {
  const Result<> closed = pins_.close(uid, entry_blocks());
  STEPSTASH_CRASH_POINT("shm.segment.user.closed");
  reclaim();
  return closed;
}

void Segment::open_user(std::uint32_t uid) {
  pins_.open(uid);
  reclaim();
}

std::uint64_t Segment::reclaim_if_due() {
  if (retired_.size() < due_blocks_ && retired_bytes_ < due_bytes_) return 0;
  return reclaim_new();
}

bool Segment::worth_reclaiming() const noexcept {
  return (!retired_.empty() && 8 * retired_.size() >= pins_.pages()) || retired_bytes_ >= due_bytes_;
}

const PinScan& Segment::pinned_now() {
  (void)pins_.scan(scan_, /*hints=*/true);  // pins of an unreadable page are unknown
  return scan_;
}

}  // namespace stepstash::shm
