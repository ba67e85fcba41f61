// SPDX-License-Identifier: Apache-2.0
/// The daemon's side of the index: (build, name) -> block of the entry. Readers search the same slots with their own
/// code (reader.cpp).
///
/// Open addressing with linear probing (Knuth, TAOCP 3, 6.4, algorithm L), over 8-byte atomic slots. A slot changes
/// from empty to an entry, from entry to entry, from entry to tombstone and back, and never back to empty: a concurrent
/// probe past it stays correct. To grow or clean the table, a new one is built and the index word is swapped (L4).
///
/// Keys are placed by a hash keyed with the table's secret. Clients can read the secret and search for colliding keys.
/// Therefore no key is placed more than kMaxProbe slots from its home slot; a key that would be causes a rebuild with
/// another secret. The number of sets in between, or the time, bounds how often that happens.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "base/types.hpp"
#include "shm/hash.hpp"
#include "shm/heap.hpp"
#include "shm/layout.hpp"

namespace stepstash::shm {

/// Thread safety: one thread. Lifetime: mapping and heap outlive it.
class IndexWriter {
 public:
  IndexWriter(std::byte* base, Heap& heap);

  /// Creates an empty table and publishes it. Errors: those of Heap::allocate.
  Result<> format(std::uint64_t slots);

  /// Takes over the table that the header names and counts its entries. O(slots). The caller has checked that the table
  /// lies inside the segment.
  void attach() noexcept;

  /// The entry's block; 0: none. O(1) expected, and at most kMaxProbe slots.
  Offset find(BuildId build, std::string_view name) const noexcept;

  /// Ensures that one more key can be added; grows or cleans the table if it is due. O(1) amortised, O(slots) when it
  /// does. Errors: Errc::segment_full if the table is full and there is no room for a larger one.
  Result<> grow_if_needed();
  /// The same for this key, and also that there is a free slot within kMaxProbe of its home slot. Errors:
  /// Errc::too_many if other keys fill that range and it is too early for another rebuild.
  Result<> ensure_slot(BuildId build, std::string_view name);
  /// Allows one more rebuild for a key that finds no slot, however few keys were published since the last. Call it on a
  /// timer: last_rekey() gives the cost of a rebuild.
  void allow_rekey() noexcept { rekey_allowed_ = true; }
  std::chrono::nanoseconds last_rekey() const noexcept { return last_rekey_; }
  /// Rebuilds caused by a key that found no slot.
  std::uint64_t rekeys() const noexcept { return rekeys_; }

  /// Publishes `block` under its entry's key by one store; returns the block it replaces, or 0. A new key needs
  /// ensure_slot(build, name) first.
  Offset publish(Offset block) noexcept;

  /// Unpublishes the key's entry and returns its block; 0: there was none.
  Offset erase(BuildId build, std::string_view name) noexcept;

  std::uint64_t entries() const noexcept { return live_; }
  std::uint64_t slots() const noexcept { return slots_; }
  /// Keeps the block of a former table for readers that may still be in it; grow_if_needed() reuses it.
  void keep_former(Offset block);
  /// The block that holds the table.
  Offset table_block() const noexcept { return table_ - kTableHeader; }

  /// Bytes from a table's block to its first slot: slots start on a cache line.
  static constexpr std::uint64_t kTableHeader = sizeof(TableHeader);

  /// The source of table secrets. Tests that must know them replace it.
  static inline Result<HashSecret> (*secret_source)() noexcept = draw_secret;

 private:
  std::atomic<Slot>& slot(std::uint64_t i) const noexcept;
  std::optional<std::uint64_t> locate(BuildId build, std::string_view name, std::uint64_t hash) const noexcept;
  struct Table {
    Offset slots_at = 0;
    std::uint64_t capacity = 0;
  };
  /// A slot for a new key; none: all slots within kMaxProbe of its home slot are taken.
  std::optional<std::uint64_t> free_slot(std::uint64_t hash) const noexcept;
  Result<> rebuild(std::uint64_t slots);
  bool copy_to(Offset table, std::uint64_t slots, const HashSecret& secret) noexcept;
  Result<HashSecret> key_table(Offset table) noexcept;
  Result<Offset> new_table(std::uint64_t slots);
  Result<Table> spare_or_new_table(std::uint64_t slots);
  void clear(Offset table, std::uint64_t slots) noexcept;

  std::byte* base_;
  Heap& heap_;
  Offset table_ = 0;
  std::uint64_t slots_ = 0;
  std::uint64_t capacity_ = 0;  // slots in the current table
  std::vector<Table> spares_;   // former tables
  HashSecret secret_;           // of the current table
  std::uint64_t live_ = 0;
  std::uint64_t tombstones_ = 0;
  std::uint64_t published_ = 0;  // new keys since the last table
  bool rekey_allowed_ = true;
  std::chrono::nanoseconds last_rekey_{0};
  std::uint64_t rekeys_ = 0;
};

}  // namespace stepstash::shm
