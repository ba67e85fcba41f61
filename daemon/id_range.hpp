// SPDX-License-Identifier: Apache-2.0
/// The ids and revisions that the daemon may give out: `next_id` and `id_limit` in the header of its segment, and the
/// order in which they change (docs/segment-layout.md, L2).
///
/// The database reserves ids in ranges of kCount before any of them is given out, so that none is given out twice, even
/// after a loss of power. A new range takes three steps: end(), then BackingStore::reserve_ids on the database's
/// thread, then begin().
#pragma once

#include <cstdint>

#include "base/result.hpp"
#include "shm/layout.hpp"

namespace stepstash::daemon {

/// A view of the header, which holds the whole state. Thread safety: the thread that writes the segment. Lifetime: the
/// segment outlives it.
class IdRange {
 public:
  /// Ids are reserved in ranges of this size.
  static constexpr std::uint64_t kCount = std::uint64_t{1} << 24;

  explicit IdRange(shm::Header& header) noexcept : header_(header) {}

  /// The next id or revision. Errors: Errc::out_of_ids, until the next range has begun.
  Result<std::uint64_t> take() const noexcept;
  /// Less than half of a range is left: the next one should be reserved now.
  bool low() const noexcept;

  /// No range may begin below this. Ids of the present range may be given out until the new one has begun: it starts
  /// behind all of them.
  std::uint64_t end() const noexcept;
  /// The database has reserved kCount ids from `first` on: they are the ones given out from now on.
  void begin(std::uint64_t first) const noexcept;

  // ---- at a start, before anything is served ----

  /// Gives out no id up to this one any more.
  void skip(std::uint64_t id) const noexcept;
  /// An id that no database has reserved yet: the caller lets a range begin behind it before the segment is served.
  std::uint64_t take_unreserved() const noexcept;
  /// The ids are no longer reserved: they were in another database.
  void forget_reserved() const noexcept;
  /// Continues where another segment is.
  void copy(const IdRange& other) const noexcept;

 private:
  shm::Header& header_;
};

}  // namespace stepstash::daemon
