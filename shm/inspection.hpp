// SPDX-License-Identifier: Apache-2.0
/// Reads a segment that no daemon serves, without trusting or changing it: its chain of blocks, its index table, and
/// for each slot the entry it refers to or what is wrong with it.
///
/// Attach acts on the result (Segment::recover), Segment::salvage picks from it (recovery.cpp).
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

/// The segment's blocks, as far as the chain can be followed.
struct Chain {
  std::unordered_map<Offset, std::uint64_t> blocks;  ///< offset -> bytes
  bool whole = false;                                ///< they tile the heap, and the stand-in if used (L7)

  /// O(blocks).
  static Chain of(const Image& image);
  /// A freed block that was merged into its predecessor still looks like an entry; an intact chain rules it out.
  bool may_begin_block(Offset at) const { return !whole || blocks.contains(at); }
};

/// A table of index slots.
struct Table {
  Offset at = 0;  ///< of the first slot
  std::uint64_t slots = 0;
  std::optional<HashSecret> secret;  ///< none: damaged, so fingerprints cannot be checked

  static Table of(const Image& image, Offset at, std::uint64_t slots);
  /// The table that the index word names, whether or not it is valid. No slots: the word is impossible.
  static Table named(const Image& image);

  /// Whether a block of the chain holds exactly this table. With a damaged slot count, half of the entries would be
  /// silently missing.
  bool fills_its_block(const Chain& chain) const;
};

/// The table that the index word of a damaged segment names. If the word itself is damaged, the table of the chain that
/// it most likely named. Former tables exist as well; their slots may refer to entries replaced or deleted since.
/// O(slots of all tables) at worst.
Table table_to_save(const Image& image, const Chain& chain);

/// One slot in use.
struct Finding {
  std::uint64_t slot = 0;
  const Entry* entry = nullptr;  ///< valid except, perhaps, for its value; nullptr: see `complaint`
  std::string complaint;
  bool deleted = false;        ///< of a valid entry: deleted, but still in the index (L11)
  bool value_damaged = false;  ///< of a valid entry whose value was checked
};

/// Which values to check against their checksums. Reading them is the main cost of inspect().
enum class Values {
  dirty,  ///< those not marked clean, which the database may lack
  all,
};

/// Calls `each` for every slot in use, in the table's order. An entry is valid if it begins a block, lies inside the
/// segment on existing pages, has a record whose checksum matches and whose contents could have been set, and no other
/// slot refers to it. `deleted` returns whether the record of the entry's build deletes it. `each` may change the slot
/// it is called for, and whatever no checksum covers. The caller has checked that the table lies inside the segment.
/// O(slots + entries + bytes of `values`).
void inspect(const Image& image, const Chain& chain, const Table& table, Values values,
             const std::function<bool(const Entry&)>& deleted, const std::function<void(const Finding&)>& each);

/// For log messages: `build 7, name "report", id 12`.
std::string describe(const Entry& entry);

}  // namespace stepstash::shm
