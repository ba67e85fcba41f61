// SPDX-License-Identifier: Apache-2.0
/// The daemon's side of a segment: the only code that writes one.
///
/// Creates a segment or attaches to one that an earlier daemon left (segment.cpp, recovery.cpp), allocates blocks,
/// publishes and unpublishes entries, and frees blocks that no reader uses any more (segment_entries.cpp).
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

/// An unpublished entry: a block in use that no slot refers to. If the daemon dies, it vanishes.
struct Draft {
  Offset block = 0;
  std::uint32_t value_offset = 0;
  std::uint64_t capacity = 0;  ///< bytes of value that fit
};

/// What attach found, for the log and for `stats`.
struct Recovery {
  std::uint64_t entries_kept = 0;
  std::vector<std::string> set_aside;  ///< rejected items by name, one line each
};

/// Thread safety: one thread (the event loop's), except reserve() and value_bytes() of drafts, which any thread may
/// call.
class Segment {
 public:
  /// Creates a segment of `bytes` bytes (rounded up to pages) under a temporary name; install() gives it the final one.
  /// Its build table has room for twice `known_builds`, and for one build per 64 KiB of segment. Only header, build
  /// table and index are reserved now. Errors: ENOSPC, Errc::invalid_argument (too small, also for the builds, or too
  /// large).
  static Result<std::unique_ptr<Segment>> create(const ObjectDirectory& directory, const std::string& name,
                                                 std::uint64_t bytes, std::uint64_t known_builds = 0);

  /// Gives a new segment its final name. Atomically replaces an existing one or, with `keep_former`, first renames that
  /// to `name`.damaged.N; returns that name (empty: none was kept). Clients of the former segment are notified to
  /// attach again. Set the header's store_id first: it marks the new segment as complete. If we are killed between the
  /// two steps, attach() completes the second.
  Result<std::string> install(bool keep_former);
  /// Removes a new segment instead.
  void abandon();

  /// Takes over the segment called `name`. Unpublishes entries that cannot be trusted and names them in `recovery`;
  /// completes pending deletions. O(entries + builds + dirty bytes). Errors: ENOENT; Errc::format_mismatch,
  /// Errc::corrupt_segment (as a whole: nothing was changed), Errc::unsafe_object; those of PinRegistry::adopt, with
  /// nothing changed, and of PinRegistry::scan, with nothing freed.
  static Result<std::unique_ptr<Segment>> attach(const ObjectDirectory& directory, const std::string& name,
                                                 Recovery& recovery);

  /// What the header of a segment rejected by attach says, unverified: above all which database its clean values are
  /// in. Zeros where nothing can be read.
  struct Former {
    std::uint64_t bytes = 0;   ///< at most the size of the object
    std::uint64_t builds = 0;  ///< in its table
    std::uint64_t store_id = 0;
    std::uint64_t commit_count = 0;  ///< with kUnsettled, as stored
  };
  static Result<Former> former(const ObjectDirectory& directory, const std::string& name);

  /// Calls `build` with every plausible build record of a segment rejected by attach, then `each` with every entry
  /// whose checksums match, value included. Either may be empty. Trusts nothing; O(segment). Does not change the
  /// object.
  static Result<> salvage(const ObjectDirectory& directory, const std::string& name,
                          const std::function<void(const Entry&)>& each,
                          const std::function<void(const BuildRecord&)>& build);

  /// The smallest segment with room for `builds` builds, as passed to create(), and `entries` evicted entries with
  /// `text_bytes` of names and sources.
  static std::uint64_t bytes_for(std::uint64_t builds, std::uint64_t entries, std::uint64_t text_bytes) noexcept;

  // ---- entries ----

  /// Allocates room for an entry whose value has `length` bytes. Its memory is not reserved yet. Errors:
  /// Errc::segment_full, ENOSPC.
  Result<Draft> draft(std::string_view name, std::string_view source, std::uint64_t length);
  /// Reserves the pages of the record and of the value's first `bytes` bytes: 1 ms or more per MiB of new pages. Any
  /// thread. Errors: ENOSPC.
  Result<> reserve(const Draft& draft, std::uint64_t bytes);
  /// Upper bound of the tmpfs bytes that draft() and reserve() of the whole value need. O(log runs + granules).
  std::uint64_t unreserved_for(std::string_view name, std::string_view source, std::uint64_t length) const noexcept;
  /// Upper bound of the bytes that the same reserve() would request from the tmpfs. O(granules).
  std::uint64_t unreserved_bytes(const Draft& draft, std::uint64_t bytes) const noexcept {
    return heap_.unreserved_bytes(draft.block, draft.value_offset + bytes);
  }
  /// The memory for the draft's value. Only bytes that reserve() has covered may be touched.
  std::span<std::byte> value_bytes(const Draft& draft) const noexcept;
  /// Extends a draft in place if the room after it is free. Call reserve() again.
  Result<bool> extend(Draft& draft, std::uint64_t capacity);
  void discard(const Draft& draft) noexcept { heap_.free(draft.block); }

  /// All of an entry but its value.
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

    /// Of an entry in a segment, from which the texts are borrowed.
    static EntryFacts of(const Entry& entry) noexcept;
    /// Of an entry whose value is in the database only. `info`, from which the texts are borrowed, outlives the facts.
    static EntryFacts of(const EntryInfo& info, std::uint64_t value_hash) noexcept;
  };
  /// Completes the record and publishes it by one store; retires the entry it replaces. Call ensure_slot() for this key
  /// first, which guarantees a slot. Returns the draft's excess room to the heap.
  const Entry& publish(const Draft& draft, const EntryFacts& facts) noexcept;
  Result<> ensure_slot(BuildId build, std::string_view name) { return index_.ensure_slot(build, name); }

  /// Publishes an entry whose value is in the database only. Errors: Errc::segment_full, ENOSPC.
  Result<const Entry*> publish_record(const EntryFacts& facts);
  /// Replaces a clean resident entry by its record alone and retires the value's block. Errors: Errc::segment_full.
  Result<const Entry*> evict(const Entry& entry);
  /// Replaces an entry with a damaged value by its record alone, marked dirty so that the database learns of it: gets
  /// report the damage from now on, and a cold start finds no older value. Errors: Errc::segment_full.
  Result<const Entry*> mark_lost(const Entry& entry);
  /// Publishes a copy of an evicted entry's record elsewhere and retires the original. Errors: Errc::segment_full.
  Result<const Entry*> move_record(const Entry& record);
  /// Bytes that evict() would free; 0 if it is not worthwhile.
  std::uint64_t evictable_bytes(const Entry& entry) const noexcept;

  /// Places no record in [begin, end) until the next call, so that this run can become free. (0, 0): no restriction.
  /// Returns whether the slab for records lay there and has been moved.
  bool keep_clear(Offset begin, Offset end) noexcept;
  /// Calls `each` with every block of the heap, in order; the slab for records counts as free. O(blocks).
  void for_each_block(const std::function<void(Offset, std::uint64_t bytes, bool free)>& each) const;

  /// L11: atomically deletes everything the builds hold now; all processes see it at the same instant. Remove the
  /// entries from the index by erase(), at any pace, then call end_deletion(). Returns the id up to which entries are
  /// deleted. O(builds).
  std::uint64_t begin_deletion(std::span<BuildRecord* const> builds) noexcept { return builds_.begin_deletion(builds); }
  void end_deletion() noexcept { builds_.end_deletion(); }
  /// Stores the place of the build's record in the entry: for an entry that is older than the record.
  void bind(const Entry& entry) noexcept;

  /// Unpublishes and retires the entry. The reference is invalid afterwards, unless the block is kept by retain().
  void erase(const Entry& entry) noexcept;
  /// `clean`: its transaction has committed; `dirty`: it has to be written (again).
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

  /// Keeps a block, retired or not, from being reused until unretain(); counted. For a flush or copy in progress.
  void retain(Offset block) { ++retained_[block]; }
  void unretain(Offset block) noexcept;
  /// Frees retired blocks that are neither pinned nor retained; returns the bytes. Frees none while a pin page cannot
  /// be read. O(retired + pages * kPinsPerPage).
  std::uint64_t reclaim();
  /// The same for blocks retired since the last reclaim(), or for all if they are few: a client that pins very many
  /// retired blocks makes others pay for them only when reclaim() is called.
  std::uint64_t reclaim_new();
  /// reclaim_new(), if enough has been retired to justify scanning all pin pages: O(1) amortised over retired blocks.
  std::uint64_t reclaim_if_due();
  /// Whether a scan of the pages could free so much that its cost is negligible.
  bool worth_reclaiming() const noexcept;
  /// The current pins, as far as they can be read, and the readers' hints. Only for choosing eviction victims: nothing
  /// is freed by it. Valid until the next call of this or of reclaim(). O(pages * kPinsPerPage).
  const PinScan& pinned_now();
  std::size_t retired() const noexcept { return retired_.size() + kept_.size(); }
  std::uint64_t retired_bytes() const noexcept { return retired_bytes_; }

  // ---- what one user may hold ----

  /// What the views of one user's clients keep in place: entries, each counted once, retired or not.
  struct Held {
    std::uint32_t uid = 0;
    std::uint64_t bytes = 0;
    std::size_t blocks = 0;
    bool closed = false;  ///< and no page of the user that holds anything is serving
  };
  /// For each user that holds anything or is closed. O(blocks + pages * kPinsPerPage).
  std::vector<Held> held_by_users() const;
  /// Closes a user's pages. What the user holds stays valid for the user. But a retired block held only by closed pages
  /// is written off, and others get the same number of bytes from the heap's stand-in; so eviction for room may also
  /// take entries that only closed pages pin. O(blocks). Errors: those of PinRegistry::close; the user counts as closed
  /// nevertheless, until open_user(), and can be closed again.
  Result<> close_user(std::uint32_t uid);
  /// Reverses close_user(). Call it once the user holds little, because its pins count from now on.
  void open_user(std::uint32_t uid);
  /// The unused rest of the slab that records of evicted entries are cut from: neither free nor used.
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
  /// The configured size: to the end of the heap.
  std::uint64_t bytes() const noexcept { return header().segment_bytes; }
  /// Including the stand-in after it, which takes memory only when it is used.
  std::uint64_t mapped_bytes() const noexcept { return mapping_.size(); }
  /// The longest value that an otherwise empty segment could hold.
  std::uint64_t max_value_bytes() const noexcept;
  /// The same for a tmpfs of `total` bytes that contains nothing but this segment.
  std::uint64_t max_value_bytes_on(std::uint64_t total) const noexcept;
  /// Where its object lies.
  const std::string& directory() const noexcept { return directory_.path(); }
  PinRegistry& pins() noexcept { return pins_; }
  const PinRegistry& pins() const noexcept { return pins_; }
  /// A read-only descriptor of the segment, opened separately, to be passed to a client.
  Result<UniqueFd> open_for_client() const;

 private:
  /// Size of a slab from keep_slab(): records of at least 30 evicted entries, of some 500 typical ones.
  static constexpr std::uint64_t kSlabBytes = 64 * 1024;

  Segment(const ObjectDirectory& directory, std::string name, UniqueFd fd, Mapping mapping);
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
  std::vector<Offset> retired_;  // since the last scan of all retired blocks
  std::vector<Offset> kept_;     // found pinned or retained by a scan
  PinScan scan_;                 // the last scan
  std::uint64_t retired_bytes_ = 0;
  std::size_t due_blocks_ = 16;
  std::uint64_t due_bytes_ = 0;
  std::unordered_map<Offset, int> retained_;
  Offset slab_ = 0;  // for records of evicted entries, so that eviction never fails for lack of room
};

}  // namespace stepstash::shm
