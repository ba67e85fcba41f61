// SPDX-License-Identifier: Apache-2.0
/// Allocates blocks inside the segment. The chain of blocks is authoritative (layout.hpp, L7); the free lists live in
/// the daemon's memory only and are rebuilt at attach.
///
/// Best fit: the smallest free run that holds a request, the lowest among equals. O(log runs) for every call that does
/// not say otherwise.
///
/// After the heap proper comes the *stand-in*: the same amount of address space again, without memory. It is used only
/// while blocks of the heap are written off, that is while they can neither be reused nor be charged to their holder
/// (Segment, pins.hpp), and only for as many bytes as those blocks have: bytes in use and not written off never exceed
/// the capacity.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "base/result.hpp"
#include "shm/layout.hpp"
#include "shm/object.hpp"

namespace stepstash::shm {

/// Thread safety: one thread; only reserve() may also be called from other threads, for blocks that are in use.
/// Lifetime: the mapping and the descriptor outlive it.
class Heap {
 public:
  /// Manages [begin, end) of the segment mapped at `base`, with [stand_in, stand_in_end) as its stand-in, which begins
  /// on a granule. `fd` is the same segment, for posix_fallocate and hole punching.
  Heap(std::byte* base, Offset begin, Offset end, int fd, Offset stand_in = 0, Offset stand_in_end = 0);

  /// Makes the heap one free block. Errors: ENOSPC (the tmpfs has no room for its header).
  Result<> format();

  /// Walks the chain and takes over as free every block for which `in_use` returns false, merging neighbours.
  /// O(blocks). Errors: Errc::corrupt_segment if the blocks do not tile the heap.
  Result<> rebuild(const std::function<bool(Offset)>& in_use);

  /// Whether the stand-in has been used: its chain is separate and created on first use.
  static bool stand_in_used(const std::byte* base, Offset stand_in, Offset end, const DataMap& pages) noexcept;

  /// Sets how many bytes in use are written off. Replaces the previous value.
  void write_off(std::uint64_t bytes) noexcept { written_off_ = bytes; }
  std::uint64_t written_off() const noexcept { return written_off_; }
  bool stand_in_begun() const noexcept { return stand_in_begun_; }
  /// What can be allocated from the stand-in: the written-off bytes less those already used there.
  std::uint64_t stand_in_room() const noexcept {
    return written_off_ > stand_in_.used() ? std::min(written_off_ - stand_in_.used(), stand_in_.free) : 0;
  }
  std::uint64_t stand_in_used_bytes() const noexcept { return stand_in_.used(); }

  /// Calls `each` with every block in order, including free ones. With `pages`, does not touch headers that have no
  /// pages. O(blocks). Errors: Errc::corrupt_segment.
  static Result<> walk(const std::byte* base, Offset begin, Offset end,
                       const std::function<void(Offset, std::uint64_t size)>& each, const DataMap* pages = nullptr);

  /// Allocates a block of at least `bytes`, header included, rounded up to 64. Only the header's memory is reserved:
  /// call reserve() before touching the rest. Errors: Errc::segment_full (no free run is large enough), ENOSPC.
  Result<Offset> allocate(std::uint64_t bytes);

  /// Reserves the tmpfs pages of a block's first `bytes` bytes, and of a block header after them (posix_fallocate), so
  /// that touching them cannot raise SIGBUS. Pages already reserved cost nothing. O(pages). Errors: ENOSPC.
  Result<> reserve(Offset block, std::uint64_t bytes);
  Result<> reserve(Offset block) { return reserve(block, block_bytes(block)); }
  /// Upper bound of the bytes that the same reserve() would request from the tmpfs: after an attach, ranges whose pages
  /// are not known count as missing. O(granules).
  std::uint64_t unreserved_bytes(Offset block, std::uint64_t bytes) const noexcept;
  /// The same for the block that allocate() would return now; 0 if there is none. O(log runs + granules).
  std::uint64_t unreserved_for(std::uint64_t bytes) const noexcept;

  /// As allocate(), but from the end of the highest run that can be found quickly, and with its pages reserved. For
  /// long-lived blocks, to keep them apart from values. O(log runs), plus runs for which a full tmpfs has no pages.
  /// Errors: Errc::segment_full, ENOSPC.
  Result<Offset> allocate_high(std::uint64_t bytes);

  /// Makes allocate_high() avoid [begin, end); (0, 0): nothing.
  void keep_clear(Offset begin, Offset end) noexcept { clear_ = {begin, end}; }
  bool is_free(Offset block) const noexcept { return side(block).by_offset.contains(block); }

  /// Splits a block in use, all of whose pages are reserved, into two blocks in use; returns the second. Both parts are
  /// multiples of 64 bytes and at least 64 bytes long.
  Offset split(Offset block, std::uint64_t bytes) noexcept;

  /// Shrinks a block in use to `bytes` and frees the rest. Never fails: the memory at the cut is reserved.
  void shrink(Offset block, std::uint64_t bytes) noexcept;

  /// Extends a block in use to at least `bytes` if the run after it is free and long enough; returns false otherwise.
  Result<bool> extend(Offset block, std::uint64_t bytes);

  void free(Offset block) noexcept;

  /// Returns the pages of runs that have been free since before `idle_since` to the system, at most `limit` bytes, the
  /// longest runs first and the stand-in's last. Returns how many bytes. O(runs of at least a granule + pages).
  std::uint64_t punch(std::chrono::nanoseconds idle_since, std::uint64_t limit) noexcept;
  /// The time that newly freed runs get, for punch(). Update it periodically. CLOCK_MONOTONIC.
  void set_now(std::chrono::nanoseconds now) noexcept { now_ = now; }

  /// Size of the segment's file system. Zeros if it has no limit or does not report one.
  struct FileSystem {
    std::uint64_t total = 0;
    std::uint64_t free = 0;
    bool bounded() const noexcept { return total != 0; }
  };
  /// One system call, which does not block on a tmpfs.
  FileSystem file_system() const noexcept;
  /// Bytes of the whole segment, stand-in included, that have pages. One system call.
  std::uint64_t backed_bytes() const noexcept;

  /// The size of the heap proper: the most bytes that may be in use, not counting written-off ones.
  std::uint64_t capacity() const noexcept { return proper_.end - proper_.begin; }
  /// What can still be allocated.
  std::uint64_t free_bytes() const noexcept { return std::min(proper_.free, room()) + stand_in_room(); }
  /// Upper bound of what a single allocate() can return.
  std::uint64_t largest_free() const noexcept {
    return std::max(std::min(proper_.largest(), room()), std::min(stand_in_.largest(), stand_in_room()));
  }
  std::uint64_t block_bytes(Offset block) const noexcept;

  /// Pages are reserved and returned in granules of this many bytes: 64 pages, so that a small value's share of zeroing
  /// them stays near 0.1 ms on the event loop.
  static constexpr std::uint64_t kGranule = 256 * 1024;

 private:
  struct Run {
    std::uint64_t size;
    std::chrono::nanoseconds freed_at;
  };
  /// The free runs of the heap proper, or of its stand-in.
  struct Side {
    Offset begin;
    Offset end;
    std::uint64_t free = 0;
    std::map<Offset, Run> by_offset{};
    std::set<std::pair<std::uint64_t, Offset>> by_size{};

    std::uint64_t largest() const noexcept { return by_size.empty() ? 0 : by_size.rbegin()->first; }
    std::uint64_t used() const noexcept { return end - begin - free; }
  };
  Side& side(Offset block) noexcept { return block < proper_.end ? proper_ : stand_in_; }
  const Side& side(Offset block) const noexcept { return block < proper_.end ? proper_ : stand_in_; }
  /// What can be allocated from the heap proper: less than its free bytes if the stand-in holds more than is written
  /// off.
  std::uint64_t room() const noexcept {
    const std::uint64_t all = proper_.free + written_off_;
    return all > stand_in_.used() ? all - stand_in_.used() : 0;
  }
  Result<> begin_stand_in();
  Result<Offset> allocate_from(Side& from, std::uint64_t want);
  Result<Offset> allocate_high_from(Side& from, std::uint64_t want);
  enum class Backing : std::uint8_t { hole, unknown, reserved };

  BlockHeader& header(Offset block) const noexcept;
  void write_header(Offset block, std::uint64_t size, BlockKind kind) noexcept;
  Result<> reserve_range(Offset begin, Offset end);
  void insert_run(Offset at, std::uint64_t size, std::chrono::nanoseconds freed_at);
  void erase_run(Side& from, std::map<Offset, Run>::iterator run);

  std::byte* base_;
  Side proper_;
  Side stand_in_;
  bool stand_in_begun_ = false;  // its chain has a first header
  std::uint64_t written_off_ = 0;
  int fd_;
  std::chrono::nanoseconds now_{0};
  std::pair<Offset, Offset> clear_{0, 0};
  std::unique_ptr<std::atomic<Backing>[]> backing_;  // one per granule of the segment
};

}  // namespace stepstash::shm
