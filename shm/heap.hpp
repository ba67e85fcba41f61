/// Room for blocks inside the segment. The chain of blocks is the fact (layout.hpp, L7); what is free is known in the
/// daemon's memory only and rebuilt at attach.
///
/// Best fit: the smallest free run that holds a request, the lowest of equals. O(log runs) for every call that does not
/// say otherwise.
#pragma once

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
  /// Serves [begin, end) of the segment mapped at `base`. `fd` is the same segment, for posix_fallocate and hole
  /// punching.
  Heap(std::byte* base, Offset begin, Offset end, int fd);

  /// Makes the heap one free block. Errors: no room in the tmpfs for its header (ENOSPC).
  Result<> format();

  /// Walks the chain and takes over all blocks for which `in_use` is false as free, merging neighbours. O(blocks).
  /// Errors: Errc::corrupt_segment when the blocks do not tile the heap.
  Result<> rebuild(const std::function<bool(Offset)>& in_use);

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
  bool is_free(Offset block) const noexcept { return by_offset_.contains(block); }

  /// Cuts a block in use, all of whose pages are reserved, in two that are both in use; returns the second. Both parts
  /// are multiples of 64 bytes and at least 64 bytes long.
  Offset split(Offset block, std::uint64_t bytes) noexcept;

  /// Cuts a block in use to `bytes`; the rest becomes free. Never fails: the memory of the cut is reserved.
  void shrink(Offset block, std::uint64_t bytes) noexcept;

  /// Makes a block in use at least `bytes` long when the run behind it is free and long enough; false otherwise.
  Result<bool> extend(Offset block, std::uint64_t bytes);

  void free(Offset block) noexcept;

  /// Gives the pages of runs that have been free since before `idle_since` back to the system, at most `limit` bytes of
  /// them, the longest runs first, and returns how many. O(runs of at least a granule + pages).
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
  /// Bytes of the whole segment that have pages. One system call.
  std::uint64_t backed_bytes() const noexcept;

  std::uint64_t capacity() const noexcept { return end_ - begin_; }
  std::uint64_t free_bytes() const noexcept { return free_bytes_; }
  std::uint64_t largest_free() const noexcept { return by_size_.empty() ? 0 : by_size_.rbegin()->first; }
  std::uint64_t block_bytes(Offset block) const noexcept;

  /// Pages are reserved and given back in granules of this many bytes: 64 pages, so that a small value's share of
  /// zeroing them stays near 0.1 ms on the loop.
  static constexpr std::uint64_t kGranule = 256 * 1024;

 private:
  struct Run {
    std::uint64_t size;
    std::chrono::nanoseconds freed_at;
  };
  enum class Backing : std::uint8_t { hole, unknown, reserved };

  BlockHeader& header(Offset block) const noexcept;
  void write_header(Offset block, std::uint64_t size, BlockKind kind) noexcept;
  Result<> reserve_range(Offset begin, Offset end);
  void insert_run(Offset at, std::uint64_t size, std::chrono::nanoseconds freed_at);
  void erase_run(std::map<Offset, Run>::iterator run);

  std::byte* base_;
  Offset begin_;
  Offset end_;
  int fd_;
  std::chrono::nanoseconds now_{0};
  std::uint64_t free_bytes_ = 0;
  std::pair<Offset, Offset> clear_{0, 0};
  std::map<Offset, Run> by_offset_;
  std::set<std::pair<std::uint64_t, Offset>> by_size_;
  std::unique_ptr<std::atomic<Backing>[]> backing_;  // one per granule of the segment
};

}  // namespace stepstash::shm
