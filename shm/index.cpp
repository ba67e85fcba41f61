// SPDX-License-Identifier: Apache-2.0
#include "shm/index.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "shm/fence.hpp"
#include "shm/validate.hpp"

namespace stepstash::shm {
namespace {

Header& header_at(std::byte* base) noexcept { return *reinterpret_cast<Header*>(base); }

std::atomic<Slot>* table_at(std::byte* base, Offset table) noexcept {
  return reinterpret_cast<std::atomic<Slot>*>(base + table);
}

/// A new key that finds no slot triggers a rebuild once this fraction of the slots has been published since the last
/// one.
constexpr std::uint64_t kRekeyPart = 8;
/// Secrets to try for one table. All keys were chosen before the secret was drawn, so the first one normally works.
constexpr int kSecretsTried = 4;

}  // namespace

IndexWriter::IndexWriter(std::byte* base, Heap& heap) : base_(base), heap_(heap) {}

std::atomic<Slot>& IndexWriter::slot(std::uint64_t i) const noexcept {
  return table_at(base_, table_)[i & (slots_ - 1)];
}

Result<Offset> IndexWriter::new_table(std::uint64_t slots) {
  const Offset block = STEPSTASH_TRY(heap_.allocate_high(kTableHeader + slots * sizeof(Slot)));
  reinterpret_cast<BlockHeader*>(base_ + block)->kind = BlockKind::index;
  STEPSTASH_CRASH_POINT("shm.index.new_table.kind");
  clear(block + kTableHeader, slots);
  STEPSTASH_CRASH_POINT("shm.index.new_table.cleared");
  return block + kTableHeader;
}

Result<> IndexWriter::format(std::uint64_t slots) {
  slots = std::bit_ceil(slots);
  const Offset table = STEPSTASH_TRY(new_table(slots));
  secret_ = STEPSTASH_TRY(key_table(table));
  table_ = table;
  slots_ = capacity_ = slots;
  live_ = tombstones_ = 0;
  const auto log2 = static_cast<unsigned>(std::countr_zero(slots));
  header_at(base_).index.store(make_index_word(0, log2, table), std::memory_order_seq_cst);
  STEPSTASH_CRASH_POINT("shm.index.format.word");
  return success();
}

void IndexWriter::attach() noexcept {
  const IndexWord word = header_at(base_).index.load(std::memory_order_relaxed);  // only this thread stores it
  table_ = index_slots_offset(word);
  slots_ = capacity_ = std::uint64_t{1} << index_log2_slots(word);
  secret_ = table_secret(base_, table_);
  live_ = tombstones_ = 0;
  for (std::uint64_t i = 0; i < slots_; ++i) {
    const Slot here = slot(i).load(std::memory_order_relaxed);
    if (here == kTombstone) {
      ++tombstones_;
    } else if (here != kEmptySlot) {
      ++live_;
    }
  }
}

void IndexWriter::keep_former(Offset block) {
  spares_.push_back({block + kTableHeader, (heap_.block_bytes(block) - kTableHeader) / sizeof(Slot)});
}

std::optional<std::uint64_t> IndexWriter::locate(BuildId build, std::string_view name,
                                                 std::uint64_t hash) const noexcept {
  for (std::uint64_t i = 0; i < std::min(slots_, kMaxProbe); ++i) {
    const Slot here = slot(hash + i).load(std::memory_order_relaxed);  // this thread's own stores
    if (here == kEmptySlot) return std::nullopt;
    if (!slot_matches(here, hash)) continue;
    const auto& entry = *reinterpret_cast<const Entry*>(base_ + slot_offset(here));
    if (entry.buildid == build && entry_name(entry) == name) return (hash + i) & (slots_ - 1);
  }
  return std::nullopt;
}

std::optional<std::uint64_t> IndexWriter::free_slot(std::uint64_t hash) const noexcept {
  for (std::uint64_t i = 0; i < std::min(slots_, kMaxProbe); ++i) {
    if (slot(hash + i).load(std::memory_order_relaxed) <= kTombstone) return (hash + i) & (slots_ - 1);
  }
  return std::nullopt;
}

Offset IndexWriter::find(BuildId build, std::string_view name) const noexcept {
  const auto at = locate(build, name, key_hash(secret_, build, name));
  return at ? slot_offset(slot(*at).load(std::memory_order_relaxed)) : 0;
}

Result<> IndexWriter::grow_if_needed() {
  // Up to a load of 5/8, tombstones included, a miss probes about 4 slots on average; above 7/8 about 32.
  if ((live_ + tombstones_ + 1) * 8 <= slots_ * 5) return success();
  // Double the table only if live entries require it; otherwise keep the size and drop the tombstones.
  auto rebuilt = rebuild(live_ * 8 > slots_ * 3 ? slots_ * 2 : slots_);
  if (rebuilt || (live_ + tombstones_ + 1) * 8 <= slots_ * 7) return success();
  return rebuilt.error();
}

Result<> IndexWriter::ensure_slot(BuildId build, std::string_view name) {
  STEPSTASH_TRY(grow_if_needed());
  const auto has_slot = [&] {
    const std::uint64_t hash = key_hash(secret_, build, name);
    return free_slot(hash) || locate(build, name, hash);
  };
  if (has_slot()) return success();
  // A client has searched for keys that collide here. Under a new secret, unknown to the client, all of them find a
  // slot. But a rebuild takes time in proportion to the slots, and the client can do it again.
  if (published_ < slots_ / kRekeyPart && !rekey_allowed_) return Errc::too_many;
  const auto start = std::chrono::steady_clock::now();
  STEPSTASH_TRY(rebuild(slots_));
  last_rekey_ = std::chrono::steady_clock::now() - start;
  rekey_allowed_ = false;
  ++rekeys_;
  if (has_slot()) return success();
  return Errc::too_many;
}

Result<HashSecret> IndexWriter::key_table(Offset table) noexcept {
  const HashSecret secret = STEPSTASH_TRY(secret_source());
  auto& head = *reinterpret_cast<TableHeader*>(base_ + table - kTableHeader);
  for (std::size_t i = 0; i < secret.words.size(); ++i) {
    head.secret[i].store(secret.words[i], std::memory_order_relaxed);  // published by the swap, as is all of the header
  }
  STEPSTASH_CRASH_POINT("shm.index.key_table.secret");
  head.check.store(secret_check(secret), std::memory_order_relaxed);
  STEPSTASH_CRASH_POINT("shm.index.key_table.check");
  return secret;
}

/// Returns false if a key would be too far from its home slot.
bool IndexWriter::copy_to(Offset table, std::uint64_t slots, const HashSecret& secret) noexcept {
  for (std::uint64_t i = 0; i < slots_; ++i) {
    const Slot here = slot(i).load(std::memory_order_relaxed);
    if (here <= kTombstone) continue;
    const auto& entry = *reinterpret_cast<const Entry*>(base_ + slot_offset(here));
    const std::uint64_t hash = key_hash(secret, entry.buildid, entry_name(entry));
    std::uint64_t probed = 0;
    while (table_at(base_, table)[(hash + probed) & (slots - 1)].load(std::memory_order_relaxed) != kEmptySlot) {
      if (++probed == kMaxProbe) return false;
    }
    table_at(base_, table)[(hash + probed) & (slots - 1)].store(make_slot(hash, slot_offset(here)),
                                                                std::memory_order_relaxed);  // published by the swap
    STEPSTASH_CRASH_POINT("shm.index.rebuild.slot_copied");
  }
  return true;
}

Result<> IndexWriter::rebuild(std::uint64_t slots) {
  const Table made = STEPSTASH_TRY(spare_or_new_table(slots));
  const Offset table = made.slots_at;
  HashSecret secret;
  const auto fill = [&]() -> Result<> {
    for (int tried = 0; tried < kSecretsTried; ++tried) {
      if (tried > 0) clear(table, slots);
      secret = STEPSTASH_TRY(key_table(table));
      if (copy_to(table, slots, secret)) return success();
    }
    return Errc::too_many;
  };
  if (auto filled = fill(); !filled) {
    spares_.push_back(made);
    return filled;
  }
  STEPSTASH_CRASH_POINT("shm.index.rebuild.filled");
  const IndexWord old_word = header_at(base_).index.load(std::memory_order_relaxed);
  const auto log2 = static_cast<unsigned>(std::countr_zero(slots));
  // Sequentially consistent: a reader that pinned through the old table loads the word again after its pin
  // (reader.cpp).
  header_at(base_).index.store(make_index_word(index_version(old_word) + 1, log2, table), std::memory_order_seq_cst);
  STEPSTASH_CRASH_POINT("shm.index.rebuild.swapped");
  // Stores to the old table's memory after this fence are not visible before the new word. A reader that probes such
  // bytes, or loads a secret from there (table_secret acquires), finds on its second look at the word that they are not
  // valid.
  full_fence();
  spares_.push_back({table_, capacity_});
  table_ = table;
  capacity_ = made.capacity;
  slots_ = slots;
  secret_ = secret;
  tombstones_ = 0;
  published_ = 0;
  return success();
}

/// Returns a former table if one is large enough, otherwise a new one. Former tables are kept rather than freed: a
/// reader stopped in the middle of a probe continues in one, finds the index word changed and starts over. Its memory
/// must still exist (I8) and must not hold a value. Together they take no more than twice the current one, because each
/// larger table is twice the size of its predecessor.
Result<IndexWriter::Table> IndexWriter::spare_or_new_table(std::uint64_t slots) {
  const auto spare = std::find_if(spares_.begin(), spares_.end(), [&](const Table& t) { return t.capacity >= slots; });
  if (spare == spares_.end()) return Table{STEPSTASH_TRY(new_table(slots)), slots};
  const Table table = *spare;
  spares_.erase(spare);
  clear(table.slots_at, slots);
  STEPSTASH_CRASH_POINT("shm.index.spare_table.cleared");
  return table;
}

void IndexWriter::clear(Offset table, std::uint64_t slots) noexcept {
  for (std::uint64_t i = 0; i < slots; ++i) {
    table_at(base_, table)[i].store(kEmptySlot, std::memory_order_relaxed);  // published by the swap
  }
}

Offset IndexWriter::publish(Offset block) noexcept {
  const auto& entry = *reinterpret_cast<const Entry*>(base_ + block);
  const std::uint64_t hash = key_hash(secret_, entry.buildid, entry_name(entry));
  if (const auto at = locate(entry.buildid, entry_name(entry), hash)) {
    // Sequentially consistent: pairs with the reader's load of the slot after its pin; the scan of the pins follows.
    const Slot old = slot(*at).exchange(make_slot(hash, block), std::memory_order_seq_cst);
    STEPSTASH_CRASH_POINT("shm.index.publish.replaced");
    return slot_offset(old);
  }
  const std::uint64_t at = free_slot(hash).value();  // ensure_slot() has ensured it
  if (slot(at).load(std::memory_order_relaxed) == kTombstone) --tombstones_;
  slot(at).store(make_slot(hash, block), std::memory_order_seq_cst);
  STEPSTASH_CRASH_POINT("shm.index.publish.added");
  ++live_;
  ++published_;
  return 0;
}

Offset IndexWriter::erase(BuildId build, std::string_view name) noexcept {
  const auto at = locate(build, name, key_hash(secret_, build, name));
  if (!at) return 0;
  --live_;
  ++tombstones_;
  const Slot old = slot(*at).exchange(kTombstone, std::memory_order_seq_cst);
  STEPSTASH_CRASH_POINT("shm.index.erase.unpublished");
  return slot_offset(old);
}

}  // namespace stepstash::shm
