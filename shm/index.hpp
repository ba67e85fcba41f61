// SPDX-License-Identifier: Apache-2.0
/// The daemon's side of the index: (build, name) -> block of the entry. Readers search the same slots without it
/// (reader.cpp).
///
/// Open addressing with linear probing (Knuth, TAOCP 3, 6.4, algorithm L), over 8-byte atomic slots. A slot goes from
/// empty to an entry, from entry to entry, from entry to tombstone and back, and never back to empty: a probe that
/// passes it stays right. Tables grow and are cleaned by building another one and swapping the index word (L4).
///
/// Keys are placed by a hash with a secret of the table. Clients can read it and look for keys that go to one place; so
/// no key is placed further than kMaxProbe from its own slot, and where one would have to be, the table is built again
/// with another secret: as often as the sets in between, or the time, pay for.
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

  /// Makes an empty table and publishes it. Errors: those of Heap::allocate.
  Result<> format(std::uint64_t slots);

  /// Takes over the table that the header names and counts what is in it. O(slots).
  /// The caller has checked that the table lies inside the segment.
  void attach() noexcept;

  /// The entry's block; 0: none. O(1) expected, and at most kMaxProbe slots.
  Offset find(BuildId build, std::string_view name) const noexcept;

  /// Makes sure that one more key can be added, growing or cleaning the table when it is due. O(1) amortised, O(slots)
  /// then. Errors: Errc::segment_full when it is full and there is no room for a larger one.
  Result<> make_room();
  /// The same for this key: also that there is a slot within kMaxProbe of its own. Errors: Errc::too_many when other
  /// keys fill that range, and it is too early for another table.
  Result<> make_room(BuildId build, std::string_view name);
  /// Allows one more table on account of a key that finds no slot, however few were published since the last. To be
  /// called by the clock: last_rekey() says what one costs.
  void allow_rekey() noexcept { rekey_allowed_ = true; }
  std::chrono::nanoseconds last_rekey() const noexcept { return last_rekey_; }
  /// Tables that were built on account of a key that found no slot.
  std::uint64_t rekeys() const noexcept { return rekeys_; }

  /// Publishes `block` under its entry's key, by one store; returns the block that stood there before, 0: none.
  /// A new key needs make_room(build, name) first.
  Offset publish(Offset block) noexcept;

  /// Unpublishes the key's entry and returns its block; 0: it was not there.
  Offset erase(BuildId build, std::string_view name) noexcept;

  std::uint64_t entries() const noexcept { return live_; }
  std::uint64_t slots() const noexcept { return slots_; }
  /// Takes a block that held a former table, for readers that may still be in it; make_room() uses it again.
  void keep_former(Offset block);
  /// The block that the table lies in.
  Offset table_block() const noexcept { return table_ - kTableHeader; }

  /// Bytes from a table's block to its first slot: slots start on a cache line.
  static constexpr std::uint64_t kTableHeader = sizeof(TableHeader);

  /// Where tables get their secrets. Tests that must know them put another function here.
  static inline Result<HashSecret> (*secret_source)() noexcept = draw_secret;

 private:
  std::atomic<Slot>& slot(std::uint64_t i) const noexcept;
  std::optional<std::uint64_t> locate(BuildId build, std::string_view name, std::uint64_t hash) const noexcept;
  struct Table {
    Offset slots_at = 0;
    std::uint64_t capacity = 0;
  };
  /// The slot for a new key; none: all within kMaxProbe of its own are taken.
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
  std::uint64_t capacity_ = 0;  // slots that the current table has room for
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
