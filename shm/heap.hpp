// SPDX-License-Identifier: Apache-2.0
/// Room for blocks inside the segment. The chain of blocks is the fact (layout.hpp, L7); what is free is known in the
/// daemon's memory only and rebuilt at attach.
///
/// Best fit: the smallest free run that holds a request, the lowest of equals. O(log runs) for every call that does not
/// say otherwise.
///
/// Behind the heap proper lies the *stand-in*: as much address space again, without memory. It is used only while
/// blocks of the heap are written off, that is while they can neither be reused nor count for their holder (Writer,
/// pins.hpp), and then for as many bytes as those have: what is in use and not written off never exceeds the capacity.
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

/// Thread safety: one thread; only reserve() may also be called from others, for blocks that are in use.
/// Lifetime: the mapping and the descriptor outlive it.
class Heap {
 public:
  /// Serves [begin, end) of the segment mapped at `base`, and [stand_in, stand_in_end), which begins on a granule, as
  /// its stand-in. `fd` is the same segment, for posix_fallocate and hole punching.
  Heap(std::byte* base, Offset begin, Offset end, int fd, Offset stand_in = 0, Offset stand_in_end = 0);

  /// Makes the heap one free block. Errors: no room in the tmpfs for its header (ENOSPC).
  Result<> format();

  /// Walks the chain and takes over all blocks for which `in_use` is false as free, merging neighbours. O(blocks).
  /// Errors: Errc::corrupt_segment when the blocks do not tile the heap.
  Result<> rebuild(const std::function<bool(Offset)>& in_use);

  /// The stand-in is a chain of its own, made when it is used for the first time: whether it has been.
  static bool stand_in_used(const std::byte* base, Offset stand_in, Offset end, const DataMap& pages) noexcept;

  /// So many bytes in use are written off now, instead of what was said before.
  void write_off(std::uint64_t bytes) noexcept { written_off_ = bytes; }
  std::uint64_t written_off() const noexcept { return written_off_; }
  bool stand_in_begun() const noexcept { return stand_in_begun_; }
  /// What may be taken of the stand-in: as much as is written off, and not used there.
  std::uint64_t stand_in_room() const noexcept {
    return written_off_ > stand_in_.used() ? std::min(written_off_ - stand_in_.used(), stand_in_.free) : 0;
  }
  std::uint64_t stand_in_used_bytes() const noexcept { return stand_in_.used(); }

  /// Calls `each` with every block in order, free ones included. With `pages`, headers that have none are not touched.
  /// O(blocks). Errors: Errc::corrupt_segment.
  static Result<> walk(const std::byte* base, Offset begin, Offset end,
                       const std::function<void(Offset, std::uint64_t size)>& each, const DataMap* pages = nullptr);

  /// A block of at least `bytes`, header included, rounded up to 64. Its memory is not reserved yet but for the
  /// header: call reserve() before touching the rest. Errors: Errc::segment_full (no free run is large enough), ENOSPC.
  Result<Offset> allocate(std::uint64_t bytes);

  /// Reserves the tmpfs pages of a block's first `bytes` bytes, and of a block header behind them (posix_fallocate), so
  /// that touching them cannot raise SIGBUS. Pages reserved before cost nothing. O(pages). Errors: ENOSPC.
  Result<> reserve(Offset block, std::uint64_t bytes);
  Result<> reserve(Offset block) { return reserve(block, block_bytes(block)); }
  /// Bytes that reserve() of the same would have to ask the tmpfs for, at most: where an attach has not looked for
  /// pages they count as missing. O(granules).
  std::uint64_t unreserved_bytes(Offset block, std::uint64_t bytes) const noexcept;
  /// The same for the block that allocate() would give out now; 0 where there is none. O(log runs + granules).
  std::uint64_t unreserved_for(std::uint64_t bytes) const noexcept;

  /// As allocate(), but from the end of a run as high up as can be found at once, and with its pages reserved. For what
  /// stays long and lies apart from values. O(log runs), but for those a full tmpfs has no pages for.
  /// Errors: Errc::segment_full, ENOSPC.
  Result<Offset> allocate_high(std::uint64_t bytes);

  /// allocate_high() keeps out of [begin, end) from now on; (0, 0): of nothing.
  void keep_clear(Offset begin, Offset end) noexcept { clear_ = {begin, end}; }
  bool is_free(Offset block) const noexcept { return side(block).by_offset.contains(block); }

  /// Cuts a block in use, all of whose pages are reserved, in two that are both in use; returns the second. Both parts
  /// are multiples of 64 bytes and at least 64 bytes long.
  Offset split(Offset block, std::uint64_t bytes) noexcept;

  /// Cuts a block in use to `bytes`; the rest becomes free. Never fails: the memory of the cut is reserved.
  void shrink(Offset block, std::uint64_t bytes) noexcept;

  /// Makes a block in use at least `bytes` long when the run behind it is free and long enough; false otherwise.
  Result<bool> extend(Offset block, std::uint64_t bytes);

  void free(Offset block) noexcept;

  /// Gives the pages of runs that have been free since before `idle_since` back to the system, at most `limit` bytes of
  /// them, the longest runs first, the stand-in's last, and returns how many. O(runs of at least a granule + pages).
  std::uint64_t punch(std::chrono::nanoseconds idle_since, std::uint64_t limit) noexcept;
  /// What punch() compares with; set it once in a while. CLOCK_MONOTONIC.
  void set_now(std::chrono::nanoseconds now) noexcept { now_ = now; }

  /// What the file system of the segment has. Zeros where it has no bound, or does not tell.
  struct FileSystem {
    std::uint64_t total = 0;
    std::uint64_t free = 0;
    bool bounded() const noexcept { return total != 0; }
  };
  /// One system call, which does not block on a tmpfs.
  FileSystem file_system() const noexcept;
  /// Bytes of the whole segment, its stand-in included, that have pages. One system call.
  std::uint64_t backed_bytes() const noexcept;

  /// Bytes that may be in use, those that are written off not counted: of the heap proper.
  std::uint64_t capacity() const noexcept { return proper_.end - proper_.begin; }
  /// What may be taken into use.
  std::uint64_t free_bytes() const noexcept { return std::min(proper_.free, room()) + stand_in_room(); }
  /// An upper bound of what allocate() gives at once.
  std::uint64_t largest_free() const noexcept {
    return std::max(std::min(proper_.largest(), room()), std::min(stand_in_.largest(), stand_in_room()));
  }
  std::uint64_t block_bytes(Offset block) const noexcept;

  /// Pages are reserved and given back in granules of this many bytes: 64 pages, so that a small value's share of
  /// zeroing them stays near 0.1 ms on the loop.
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
  /// What may be taken of the heap proper: less than is free there where the stand-in has more than is written off.
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
  bool stand_in_begun_ = false;  // its chain has its first header
  std::uint64_t written_off_ = 0;
  int fd_;
  std::chrono::nanoseconds now_{0};
  std::pair<Offset, Offset> clear_{0, 0};
  std::unique_ptr<std::atomic<Backing>[]> backing_;  // one per granule of the segment
};

}  // namespace stepstash::shm
