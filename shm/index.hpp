/// The daemon's side of the index: (build, name) -> block of the entry. Readers search the same slots without it
/// (reader.cpp).
///
/// Open addressing with linear probing (Knuth, TAOCP 3, 6.4, algorithm L), over 8-byte atomic slots. A slot goes from
/// empty to an entry, from entry to entry, from entry to tombstone and back, and never back to empty: a probe that
/// passes it stays right. Tables grow and are cleaned by building another one and swapping the index word (L4).
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "base/types.hpp"
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

  /// The entry's block; 0: none. O(1) expected.
  Offset find(BuildId build, std::string_view name) const noexcept;

  /// Makes sure that one more key can be added, growing or cleaning the table when it is due. O(1) amortised, O(slots)
  /// then. Errors: Errc::segment_full when it is full and there is no room for a larger one.
  Result<> make_room();

  /// Publishes `block` under its entry's key, by one store; returns the block that stood there before, 0: none.
  /// A new key needs make_room() first.
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
  static constexpr std::uint64_t kTableHeader = 64;

 private:
  std::atomic<Slot>& slot(std::uint64_t i) const noexcept;
  std::optional<std::uint64_t> locate(BuildId build, std::string_view name, std::uint64_t hash) const noexcept;
  struct Table {
    Offset slots_at = 0;
    std::uint64_t capacity = 0;
  };
  Result<> rebuild(std::uint64_t slots);
  Result<Offset> new_table(std::uint64_t slots);
  Result<Table> spare_or_new_table(std::uint64_t slots);
  void clear(Offset table, std::uint64_t slots) noexcept;

  std::byte* base_;
  Heap& heap_;
  Offset table_ = 0;
  std::uint64_t slots_ = 0;
  std::uint64_t capacity_ = 0;  // slots that the current table has room for
  std::vector<Table> spares_;   // former tables
  std::uint64_t live_ = 0;
  std::uint64_t tombstones_ = 0;
};

}  // namespace stepstash::shm
