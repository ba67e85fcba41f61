// SPDX-License-Identifier: Apache-2.0
/// What stands in a segment that nobody serves, read without trust and without changing a byte of it: its chain of
/// blocks, its index table, and for each slot the entry that it leads to or what is wrong with it. Attach acts on it
/// (Writer::recover), Writer::salvage picks from it (recovery.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <unordered_map>

#include "shm/hash.hpp"
#include "shm/layout.hpp"
#include "shm/object.hpp"

namespace stepstash::shm {

/// A mapped segment of this layout whose header has pages. Borrowed: mapping and map outlive it.
struct Image {
  const std::byte* base = nullptr;
  std::uint64_t bytes = 0;  ///< mapped, whole pages
  const DataMap& pages;

  const Header& header() const noexcept { return *reinterpret_cast<const Header*>(base); }
};

/// Its blocks, as far as one leads to the next.
struct Chain {
  std::unordered_map<Offset, std::uint64_t> blocks;  ///< offset -> bytes
  bool whole = false;                                ///< they tile the heap, and the stand-in where it has any (L7)

  /// O(blocks).
  static Chain of(const Image& image);
  /// What was freed still looks like an entry where its block was merged into the one before it.
  bool may_begin_block(Offset at) const { return !whole || blocks.contains(at); }
};

/// A table of index slots.
struct Table {
  Offset at = 0;  ///< of the first slot
  std::uint64_t slots = 0;
  std::optional<HashSecret> secret;  ///< none: it is damaged, and does not say whether a slot's fingerprint is right

  static Table of(const Image& image, Offset at, std::uint64_t slots);
  /// The one that the index word names, whatever is there. No slots: the word says what cannot be.
  static Table named(const Image& image);

  /// Whether a block of the chain holds it, to the byte: with fewer slots than were made, half of the entries would be
  /// missing without a word.
  bool fills_its_block(const Chain& chain) const;
};

/// The table that the index word of a damaged segment names; where that cannot be, for the word itself is what was
/// damaged, the one of the chain's tables that it named. Former tables stand there, too, with slots that may lead to
/// what was replaced or deleted since. O(slots of all tables) at worst.
Table table_to_save(const Image& image, const Chain& chain);

/// One slot that is in use.
struct Finding {
  std::uint64_t slot = 0;
  const Entry* entry = nullptr;  ///< sound in all but, perhaps, its value; nullptr: `complaint` says what is wrong
  std::string complaint;
  bool deleted = false;        ///< of a sound entry: it only waits for its turn to leave the index (L11)
  bool value_damaged = false;  ///< of a sound entry whose value was looked at
};

/// Which values are compared with their checksums: reading them is what inspect() costs.
enum class Values {
  dirty,  ///< those that do not say for certain that the database has them
  all,
};

/// Calls `each` with what every slot in use leads to, in the table's order. An entry is sound when it begins a block,
/// lies inside the segment on pages that are there, when its record's checksum holds, when it could have been set, and
/// the slot is its own alone. `deleted` says of an entry whether its build's record deletes it. `each` may change the
/// slot that it is called for, and what no checksum covers.
/// The caller has checked that the table lies inside the segment. O(slots + entries + bytes of `values`).
void inspect(const Image& image, const Chain& chain, const Table& table, Values values,
             const std::function<bool(const Entry&)>& deleted, const std::function<void(const Finding&)>& each);

/// For people: `build 7, name "report", id 12`.
std::string describe(const Entry& entry);

}  // namespace stepstash::shm
