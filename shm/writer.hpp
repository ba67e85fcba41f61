// SPDX-License-Identifier: Apache-2.0
/// The daemon's side of a segment: the only code that writes one.
///
/// Makes it or attaches to one that an earlier daemon left (segment.cpp, recovery.cpp), gives out blocks, publishes and
/// unpublishes entries, and returns blocks to the heap when nobody looks at them any more (writer.cpp).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.hpp"
#include "base/types.hpp"
#include "base/unique_fd.hpp"
#include "shm/build_table.hpp"
#include "shm/heap.hpp"
#include "shm/index.hpp"
#include "shm/layout.hpp"
#include "shm/mapping.hpp"
#include "shm/object.hpp"
#include "shm/pins.hpp"

namespace stepstash::shm {

/// An entry in the making: a block in use that no slot refers to. If the daemon dies it never was.
struct Draft {
  Offset block = 0;
  std::uint32_t value_offset = 0;
  std::uint64_t capacity = 0;  ///< bytes of value that fit
};

/// What attach found, for the log and for `stats`.
struct Recovery {
  std::uint64_t entries_kept = 0;
  std::vector<std::string> set_aside;  ///< what could not be trusted, by name, one line each
};

/// Thread safety: one thread (the loop's), but for reserve() and value_bytes() of drafts, which other threads may call.
class Writer {
 public:
  /// Makes a segment of `bytes` bytes (rounded up to pages) under a temporary name; install() gives it its own.
  /// Its build table has room for twice `known_builds`, and for one build per 64 KiB of segment. Only header, build
  /// table and index are reserved now. Errors: ENOSPC, Errc::invalid_argument (too small, also for the builds, or too
  /// large).
  static Result<std::unique_ptr<Writer>> create(const ObjectDirectory& directory, const std::string& name,
                                                std::uint64_t bytes, std::uint64_t known_builds = 0);

  /// Puts a new segment in its place. What was there is replaced in one step or, with `keep_former`, first renamed to
  /// `name`.damaged.N; returns that name (empty: nothing was kept). Clients of the former segment are told to attach
  /// anew. Its header's store_id says that the new one is complete, and has to be set by then: killed between the two
  /// steps, attach() takes the second.
  Result<std::string> install(bool keep_former);
  /// Removes a new segment instead.
  void abandon();

  /// Takes over the segment called `name`. Entries that cannot be trusted are unpublished and named in `recovery`;
  /// deletions that were under way are completed. O(entries + builds + dirty bytes). Errors: ENOENT;
  /// Errc::format_mismatch, Errc::corrupt_segment (as a whole: nothing was changed), Errc::unsafe_object; those of
  /// PinRegistry::adopt, with nothing changed, and of pinned(), with nothing freed.
  static Result<std::unique_ptr<Writer>> attach(const ObjectDirectory& directory, const std::string& name,
                                                Recovery& recovery);

  /// What the header of a segment that attach refused says, for what it is worth: which database its clean values are
  /// in. Zeros where nothing can be read.
  struct Former {
    std::uint64_t bytes = 0;   ///< not more than the object has
    std::uint64_t builds = 0;  ///< that its table holds
    std::uint64_t store_id = 0;
    std::uint64_t commit_count = 0;  ///< with kUnsettled, as it stands there
  };
  static Result<Former> former(const ObjectDirectory& directory, const std::string& name);

  /// Calls `each` with every entry of a segment that attach refused whose checksums hold, value included, and `build`
  /// with every build record that is plausible, these first. Either may be empty. Trusts nothing; O(segment). The
  /// object is not changed.
  static Result<> salvage(const ObjectDirectory& directory, const std::string& name,
                          const std::function<void(const Entry&)>& each,
                          const std::function<void(const BuildRecord&)>& build);

  /// The smallest segment that has room for `builds` builds, said to create(), and `entries` evicted entries with
  /// `text_bytes` of names and sources.
  static std::uint64_t bytes_for(std::uint64_t builds, std::uint64_t entries, std::uint64_t text_bytes) noexcept;

  // ---- entries ----

  /// Finds room for an entry whose value has `length` bytes. The memory is not reserved yet. Errors:
  /// Errc::segment_full, ENOSPC.
  Result<Draft> draft(std::string_view name, std::string_view source, std::uint64_t length);
  /// Reserves the pages of the record and of the value's first `bytes` bytes: 1 ms and more per MiB where they are new,
  /// and allowed on any thread. Errors: ENOSPC.
  Result<> reserve(const Draft& draft, std::uint64_t bytes);
  /// Bytes that the tmpfs has to have for draft() and reserve() of the whole value, at most. O(log runs + granules).
  std::uint64_t unreserved_for(std::string_view name, std::string_view source, std::uint64_t length) const noexcept;
  /// Bytes that reserve() of the same would ask the tmpfs for, at most. O(granules).
  std::uint64_t unreserved_bytes(const Draft& draft, std::uint64_t bytes) const noexcept {
    return heap_.unreserved_bytes(draft.block, draft.value_offset + bytes);
  }
  /// Where the draft's value goes. Only what reserve() has covered may be touched.
  std::span<std::byte> value_bytes(const Draft& draft) const noexcept;
  /// Lengthens a draft in place when the room behind it is free. reserve() again.
  Result<bool> extend(Draft& draft, std::uint64_t capacity);
  void discard(const Draft& draft) noexcept { heap_.free(draft.block); }

  /// All of an entry but its bytes and where they lie.
  struct EntryFacts {
    std::uint64_t id = 0;
    std::uint64_t revision = 0;
    BuildId build = 0;
    std::string_view name;
    std::string_view source;
    std::uint64_t length = 0;
    std::uint64_t value_hash = 0;
    std::chrono::nanoseconds set_at{0};
    EntryState state = EntryState::dirty;
  };
  /// Completes the record and publishes it by one store; what stood there before is retired. The slot has to be
  /// there: make_room() comes first, for this key. Gives back what the draft has too much.
  const Entry& publish(const Draft& draft, const EntryFacts& facts) noexcept;
  Result<> make_room(BuildId build, std::string_view name) { return index_.make_room(build, name); }

  /// Publishes an entry whose value is in the database only. Errors: Errc::segment_full, ENOSPC.
  Result<const Entry*> publish_record(const EntryFacts& facts);
  /// Replaces a clean resident entry by its record alone. The value's block is retired. Errors: Errc::segment_full.
  Result<const Entry*> evict(const Entry& entry);
  /// Replaces an entry whose value is damaged by its record alone, dirty, for the database is to be told: a get reports
  /// the damage from now on, and finds no older value after a cold start. Errors: Errc::segment_full.
  Result<const Entry*> mark_lost(const Entry& entry);
  /// Publishes a copy of an evicted entry's record elsewhere; the former is retired. Errors: Errc::segment_full.
  Result<const Entry*> move_record(const Entry& record);
  /// Bytes that evict() would give back: 0 when it is not worth doing.
  std::uint64_t evictable_bytes(const Entry& entry) const noexcept;

  /// Puts no record into [begin, end) until it is called again: that run is to become free. (0, 0): everywhere again.
  /// Returns whether what is set apart for records lay there and lies elsewhere now.
  bool keep_clear(Offset begin, Offset end) noexcept;
  /// Calls `each` with every block of the heap, in order; what is set apart for records counts as free. O(blocks).
  void for_each_block(const std::function<void(Offset, std::uint64_t bytes, bool free)>& each) const;

  /// L11: deletes what the builds hold now, all of it at one instant for everybody. The entries leave the index by
  /// erase(), in any time; then end_deletion(). Returns the id up to which entries are deleted. O(builds).
  std::uint64_t begin_deletion(std::span<BuildRecord* const> builds) noexcept { return builds_.begin_deletion(builds); }
  void end_deletion() noexcept { builds_.end_deletion(); }
  /// Sees to it that the entry knows where its build's record is: for one whose build got it after the entry.
  void bind(const Entry& entry) noexcept;

  /// Unpublishes and retires. The reference is void afterwards, but for hold()s.
  void erase(const Entry& entry) noexcept;
  /// Its transaction has committed / it has to be written (again).
  void mark(const Entry& entry, EntryState state) noexcept;

  const Entry* find(BuildId build, std::string_view name) const noexcept;
  /// Calls `each` for every entry, in no particular order. O(slots).
  void for_each(const std::function<void(const Entry&)>& each) const;
  Offset offset_of(const Entry& entry) const noexcept {
    return static_cast<Offset>(reinterpret_cast<const std::byte*>(&entry) - mapping_.data());
  }
  const Entry& entry_at(Offset block) const noexcept {
    return *reinterpret_cast<const Entry*>(mapping_.data() + block);
  }

  // ---- reclaiming ----

  /// Keeps a block from being reused, retired or not, until unhold(); counted. What a flush or a copy in progress
  /// reads.
  void hold(Offset block) { ++holds_[block]; }
  void unhold(Offset block) noexcept;
  /// Frees retired blocks that nobody pins or holds; returns the bytes. None while a pin page cannot be read.
  /// O(retired + pages * kPinsPerPage).
  std::uint64_t reclaim();
  /// The same for what was retired since the last reclaim(), or is little: who pins very many blocks that were retired
  /// makes others pay for it no more often than reclaim() is called.
  std::uint64_t reclaim_new();
  /// reclaim_new(), when enough has been retired for the scan of all pin pages to be worth its price: O(1) amortised
  /// over retired blocks.
  std::uint64_t reclaim_if_due();
  /// Whether a scan of the pages could free so much that its price does not count.
  bool worth_reclaiming() const noexcept;
  /// What is pinned now, as far as it can be read, and what readers' hints say: for a choice of what had better go,
  /// nothing is freed by it. Valid until the next call of this or of reclaim(). O(pages * kPinsPerPage).
  const PinScan& pinned_now();
  std::size_t retired() const noexcept { return retired_.size() + kept_.size(); }
  std::uint64_t retired_bytes() const noexcept { return retired_bytes_; }

  // ---- what one user may hold ----

  /// What the views of one user's clients keep in place: entries, each counted once, retired or not.
  struct Held {
    std::uint32_t uid = 0;
    std::uint64_t bytes = 0;
    std::size_t blocks = 0;
    bool closed = false;  ///< and none of his pages that hold anything serves
  };
  /// Of each user who holds anything or is closed. O(blocks + pages * kPinsPerPage).
  std::vector<Held> held_by_users() const;
  /// Closes the pages of a user: what he holds stays as it is for him, but where only closed pages hold a block that is
  /// retired, it is written off, and others have the room of as many bytes in the heap's stand-in. So who wants
  /// room evicts what only closed pages pin, too. O(blocks). Errors: those of PinRegistry::close; he counts as closed
  /// all the same, until open_user(), and can be closed again.
  Result<> close_user(std::uint32_t uid);
  /// The end of that: to be called when he holds little again, for it counts from now on.
  void open_user(std::uint32_t uid);
  /// What is left of the slab that records of evicted entries are cut from: neither free nor used.
  std::uint64_t slab_bytes() const noexcept { return slab_ == 0 ? 0 : heap_.block_bytes(slab_); }

  // ---- builds ----

  BuildRecord* find_build(BuildId build) const noexcept { return builds_.find(build); }
  /// BuildTable::add(). Errors: Errc::too_many_builds.
  Result<BuildRecord*> add_build(BuildId build, bool spare) { return builds_.add(build, spare); }
  void remove_build(BuildRecord& record) noexcept { builds_.remove(record); }
  std::size_t builds() const noexcept { return builds_.size(); }
  std::uint64_t builds_capacity() const noexcept { return builds_.capacity(); }
  void for_each_build(const std::function<void(BuildRecord&)>& each) const { builds_.for_each(each); }

  // ---- the rest ----

  Header& header() const noexcept { return *reinterpret_cast<Header*>(mapping_.data()); }
  Heap& heap() noexcept { return heap_; }
  const Heap& heap() const noexcept { return heap_; }
  const IndexWriter& index() const noexcept { return index_; }
  /// IndexWriter::allow_rekey().
  void allow_rekey() noexcept { index_.allow_rekey(); }
  /// As was wanted: to the end of the heap.
  std::uint64_t bytes() const noexcept { return header().segment_bytes; }
  /// With the stand-in behind it, which has no memory unless it is used.
  std::uint64_t mapped_bytes() const noexcept { return mapping_.size(); }
  /// The longest value that an otherwise empty segment could hold.
  std::uint64_t max_value_bytes() const noexcept;
  /// The same for a tmpfs of `total` bytes that has nothing but this segment.
  std::uint64_t max_value_bytes_on(std::uint64_t total) const noexcept;
  /// Where its object lies.
  const std::string& directory() const noexcept { return directory_.path(); }
  PinRegistry& pins() noexcept { return pins_; }
  const PinRegistry& pins() const noexcept { return pins_; }
  /// A read-only descriptor of the segment, an open of its own, to be passed to a client.
  Result<UniqueFd> open_for_client() const;

 private:
  /// What keep_slab() sets aside: the records of at least 30 evicted entries, of some 500 usual ones.
  static constexpr std::uint64_t kSlabBytes = 64 * 1024;

  Writer(const ObjectDirectory& directory, std::string name, UniqueFd fd, Mapping mapping);
  Result<> recover(Recovery& recovery);
  bool former_table(Offset block, const DataMap& pages) const noexcept;
  Result<> keep_slab() noexcept;
  Result<Offset> allocate_record(std::uint64_t bytes);
  Result<const Entry*> publish_record_of(const Entry& entry, EntryState state);
  void retire(Offset block);
  BlockSet entry_blocks() const;
  std::uint64_t reclaim(bool all);

  const ObjectDirectory& directory_;
  std::string name_;
  UniqueFd fd_;
  Mapping mapping_;
  Heap heap_;
  IndexWriter index_;
  BuildTable builds_;
  PinRegistry pins_;
  std::vector<Offset> retired_;  // since the last scan of all
  std::vector<Offset> kept_;     // that a scan found pinned, or held
  PinScan scan_;                 // the last one
  std::uint64_t retired_bytes_ = 0;
  std::size_t due_blocks_ = 16;
  std::uint64_t due_bytes_ = 0;
  std::unordered_map<Offset, int> holds_;
  Offset slab_ = 0;  // a slab for records of evicted entries: freeing is never refused
};

}  // namespace stepstash::shm
