// SPDX-License-Identifier: Apache-2.0
#include "shm/inspection.hpp"

#include <algorithm>
#include <bit>
#include <tuple>

#include "base/text.hpp"
#include "shm/block_set.hpp"
#include "shm/heap.hpp"
#include "shm/index.hpp"
#include "shm/validate.hpp"

namespace stepstash::shm {
namespace {

/// As checked_entry(), but never touches memory without pages.
const Entry* backed_entry(const Image& image, Offset block) {
  if (block > image.bytes - sizeof(Entry) || !image.pages.contains(block, block + sizeof(Entry))) return nullptr;
  const Entry* entry = checked_entry(image.base, image.bytes, block);
  if (entry == nullptr) return nullptr;
  const std::uint64_t texts_end = sizeof(Entry) + entry->name_bytes + entry->source_bytes;
  const std::uint64_t end = entry->value_offset == 0 ? texts_end : entry->value_offset + entry->length;
  return image.pages.contains(block, block + std::max(end, texts_end)) ? entry : nullptr;
}

/// Heap::walk() over the heap, and over the stand-in if it has blocks.
Result<> walk_all(const Image& image, Offset begin, Offset end,
                  const std::function<void(Offset, std::uint64_t)>& each) {
  STEPSTASH_TRY(Heap::walk(image.base, begin, end, each, &image.pages));
  const Offset stand_in = stand_in_offset(end);
  if (!Heap::stand_in_used(image.base, stand_in, image.bytes, image.pages)) return success();
  return Heap::walk(image.base, stand_in, image.bytes, each, &image.pages);
}

Slot slot_at(const Image& image, const Table& table, std::uint64_t i) noexcept {
  return reinterpret_cast<const std::atomic<Slot>*>(image.base + table.at)[i].load(std::memory_order_acquire);
}

/// What a slot refers to. Without `wrong`, a valid entry. With it, an entry whose record can at least be named, or
/// nullptr.
struct Verdict {
  const Entry* entry = nullptr;
  const char* wrong = nullptr;
};

Verdict judge(const Image& image, const Chain& chain, const Table& table, Slot slot) {
  const Offset block = slot_offset(slot);
  const Entry* entry = chain.may_begin_block(block) ? backed_entry(image, block) : nullptr;
  if (entry == nullptr) return {nullptr, "leads to no entry"};
  if (meta_hash(*entry) != entry->meta_hash || !valid_build(entry->buildid) || !valid_text(entry_name(*entry)) ||
      !valid_text(entry_source(*entry))) {
    return {nullptr, "the record of an entry is damaged"};
  }
  if (table.secret && make_slot(key_hash(*table.secret, entry->buildid, entry_name(*entry)), block) != slot) {
    return {entry, "the index does not fit it"};
  }
  return {entry, nullptr};
}

}  // namespace

Chain Chain::of(const Image& image) {
  Chain chain;
  const Offset begin = image.header().heap_offset;
  const Offset end = image.header().segment_bytes;
  if (begin % kPageBytes != 0 || begin < kPageBytes || begin >= end || end > image.bytes || end % kPageBytes != 0) {
    return chain;
  }
  const auto add = [&](Offset at, std::uint64_t size) { chain.blocks.emplace(at, size); };
  chain.whole = walk_all(image, begin, end, add).has_value();
  return chain;
}

Table Table::of(const Image& image, Offset at, std::uint64_t slots) {
  Table table{at, slots, {}};
  if (!table_inside(at, slots, image.bytes) || !image.pages.contains(at - sizeof(TableHeader), at)) return table;
  const HashSecret secret = table_secret(image.base, at);
  if (table_header(image.base, at).check.load(std::memory_order_relaxed) == secret_check(secret)) table.secret = secret;
  return table;
}

Table Table::named(const Image& image) {
  const IndexWord word = image.header().index.load(std::memory_order_acquire);
  const unsigned log2 = index_log2_slots(word);
  return of(image, index_slots_offset(word), log2 > 44 ? 0 : std::uint64_t{1} << log2);
}

bool Table::fills_its_block(const Chain& chain) const {
  const auto block = chain.blocks.find(at - IndexWriter::kTableHeader);
  return block != chain.blocks.end() && block->second == IndexWriter::kTableHeader + slots * sizeof(Slot);
}

Table table_to_save(const Image& image, const Chain& chain) {
  const Table named = Table::named(image);
  const bool inside = named.slots != 0 && table_inside(named.at, named.slots, image.bytes);
  if (inside && (named.fills_its_block(chain) || !chain.whole)) return named;
  // A table whose index word differs by one bit is the one that was meant. Otherwise take the table with the newest
  // entry: a former table lacks whatever was set after it was replaced.
  const IndexWord word = image.header().index.load(std::memory_order_relaxed);
  Table best;
  std::tuple<bool, std::uint64_t, std::uint64_t> best_is{};
  for (const auto& [at, size] : chain.blocks) {
    if (size <= IndexWriter::kTableHeader ||
        reinterpret_cast<const BlockHeader*>(image.base + at)->kind != BlockKind::index)
      continue;
    const Table table =
        Table::of(image, at + IndexWriter::kTableHeader, (size - IndexWriter::kTableHeader) / sizeof(Slot));
    if (!std::has_single_bit(table.slots) || !image.pages.contains(at, at + size)) continue;
    std::uint64_t newest = 0;
    std::uint64_t entries = 0;
    for (std::uint64_t i = 0; i < table.slots; ++i) {
      const Slot slot = slot_at(image, table, i);
      if (slot <= kTombstone) continue;
      const auto [entry, wrong] = judge(image, chain, table, slot);
      if (wrong != nullptr) continue;
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

void inspect(const Image& image, const Chain& chain, const Table& table, Values values,
             const std::function<bool(const Entry&)>& deleted, const std::function<void(const Finding&)>& each) {
  BlockSet seen(image.bytes);
  for (std::uint64_t i = 0; i < table.slots; ++i) {
    const Slot slot = slot_at(image, table, i);
    if (slot <= kTombstone) continue;
    auto [entry, wrong] = judge(image, chain, table, slot);
    const bool gone = wrong == nullptr && deleted(*entry);
    if (wrong == nullptr && !gone && !seen.insert(slot_offset(slot))) wrong = "found twice";
    if (wrong != nullptr) {
      const std::string what = entry == nullptr ? "index slot " + std::to_string(i) : describe(*entry);
      each({i, nullptr, what + ": " + wrong});
      continue;
    }
    // No checksum covers the state, because it changes. Any value but `clean` counts as dirty.
    const bool dirty = entry->state.load(std::memory_order_relaxed) != EntryState::clean;
    const bool damaged = entry->value_offset != 0 && (dirty || values == Values::all) &&
                         hash_bytes(entry_value(*entry)) != entry->value_hash;
    each({i, entry, {}, gone, damaged});
  }
}

std::string describe(const Entry& entry) {
  return "build " + std::to_string(entry.buildid) + ", name \"" + printable(entry_name(entry)) + "\", id " +
         std::to_string(entry.id);
}

}  // namespace stepstash::shm
