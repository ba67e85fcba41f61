#include "shm/heap.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include <algorithm>
#include <vector>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "shm/validate.hpp"

namespace stepstash::shm {
namespace {

/// Runs that allocate_high() passes by before it looks for another way.
constexpr int kRunsPassed = 256;

}  // namespace

Heap::Heap(std::byte* base, Offset begin, Offset end, int fd) : base_(base), begin_(begin), end_(end), fd_(fd) {
  const std::size_t granules = end / kGranule + 1;
  backing_ = std::make_unique<std::atomic<Backing>[]>(granules);  // zeroed: holes
  static_assert(static_cast<int>(Backing::hole) == 0);
}

BlockHeader& Heap::header(Offset block) const noexcept { return *reinterpret_cast<BlockHeader*>(base_ + block); }

std::uint64_t Heap::block_bytes(Offset block) const noexcept {
  return header(block).size.load(std::memory_order_relaxed);  // this thread is the only one that changes sizes
}

void Heap::write_header(Offset block, std::uint64_t size, BlockKind kind) noexcept {
  BlockHeader& at = header(block);
  at.magic = kBlockMagic;
  at.kind = kind;
  at.size.store(size, std::memory_order_relaxed);  // ordered by the store that makes this block part of the chain
}

Result<> Heap::format() {
  STEPSTASH_TRY(reserve_range(begin_, begin_ + sizeof(BlockHeader)));
  write_header(begin_, capacity(), BlockKind::free);
  STEPSTASH_CRASH_POINT("shm.heap.format.header");
  insert_run(begin_, capacity(), now_);
  return success();
}

Result<> Heap::walk(const std::byte* base, Offset begin, Offset end,
                    const std::function<void(Offset, std::uint64_t)>& each, const DataMap* pages) {
  Offset at = begin;
  while (at < end) {
    if (pages != nullptr && !pages->contains(at, at + sizeof(BlockHeader))) return Errc::corrupt_segment;
    const auto& block = *reinterpret_cast<const BlockHeader*>(base + at);
    const std::uint64_t size = block.size.load(std::memory_order_relaxed);
    if (block.magic != kBlockMagic || size == 0 || size % kBlockAlign != 0 || size > end - at) {
      return Errc::corrupt_segment;
    }
    each(at, size);
    at += size;
  }
  return success();
}

Result<> Heap::rebuild(const std::function<bool(Offset)>& in_use) {
  by_offset_.clear();
  by_size_.clear();
  free_bytes_ = 0;
  const std::size_t granules = end_ / kGranule + 1;
  for (std::size_t i = 0; i < granules; ++i) backing_[i].store(Backing::unknown, std::memory_order_relaxed);

  std::vector<std::pair<Offset, std::uint64_t>> runs;
  STEPSTASH_TRY(walk(base_, begin_, end_, [&](Offset at, std::uint64_t size) {
    if (in_use(at)) return;
    if (!runs.empty() && runs.back().first + runs.back().second == at) {
      runs.back().second += size;
    } else {
      runs.emplace_back(at, size);
    }
  }));
  for (const auto& [at, size] : runs) {
    // Release: the chain is whole before and after, whichever of the two sizes a later attach finds.
    header(at).size.store(size, std::memory_order_release);
    header(at).kind = BlockKind::free;
    STEPSTASH_CRASH_POINT("shm.heap.rebuild.run_merged");
    insert_run(at, size, now_);
  }
  return success();
}

void Heap::insert_run(Offset at, std::uint64_t size, std::chrono::nanoseconds freed_at) {
  by_offset_.emplace(at, Run{size, freed_at});
  by_size_.emplace(size, at);
  free_bytes_ += size;
}

void Heap::erase_run(std::map<Offset, Run>::iterator run) {
  free_bytes_ -= run->second.size;
  by_size_.erase({run->second.size, run->first});
  by_offset_.erase(run);
}

Result<> Heap::reserve_range(Offset begin, Offset end) {
  std::size_t granule = begin / kGranule;
  const std::size_t last = (end - 1) / kGranule;
  while (granule <= last) {
    // Acquire/release between threads that reserve neighbours: whoever sees `reserved` may touch the pages.
    if (backing_[granule].load(std::memory_order_acquire) == Backing::reserved) {
      ++granule;
      continue;
    }
    std::size_t stop = granule + 1;
    while (stop <= last && backing_[stop].load(std::memory_order_acquire) != Backing::reserved) ++stop;
    const Offset from = granule * kGranule;
    const Offset to = std::min<Offset>(stop * kGranule, end_);
    int error = 0;
    do {
      error = ::posix_fallocate(fd_, static_cast<off_t>(from), static_cast<off_t>(to - from));
    } while (error == EINTR);
    if (error != 0) return std::error_code(error, std::system_category());
    STEPSTASH_CRASH_POINT("shm.heap.reserve.pages");
    for (; granule < stop; ++granule) backing_[granule].store(Backing::reserved, std::memory_order_release);
  }
  return success();
}

Result<Offset> Heap::allocate(std::uint64_t bytes) {
  const std::uint64_t want = round_up(std::max<std::uint64_t>(bytes, kBlockAlign), kBlockAlign);
  const auto fit = by_size_.lower_bound({want, 0});
  if (fit == by_size_.end()) return Errc::segment_full;
  const auto [size, at] = *fit;
  if (size > want) {
    STEPSTASH_TRY(reserve_range(at + want, at + want + sizeof(BlockHeader)));
    write_header(at + want, size - want, BlockKind::free);
    STEPSTASH_CRASH_POINT("shm.heap.allocate.second_header");
  }
  const auto run = by_offset_.find(at);
  const auto freed_at = run->second.freed_at;
  erase_run(run);
  if (size > want) {
    // Release pairs with attach in a later process: the second header is there before the first block ends at it.
    header(at).size.store(want, std::memory_order_release);
    STEPSTASH_CRASH_POINT("shm.heap.allocate.cut");
    insert_run(at + want, size - want, freed_at);
  }
  return at;
}

Result<Offset> Heap::allocate_high(std::uint64_t bytes) {
  const std::uint64_t want = round_up(std::max<std::uint64_t>(bytes, kBlockAlign), kBlockAlign);
  Offset at = 0;
  std::uint64_t size = 0;
  Result<> taken = Errc::segment_full;
  int passed = 0;  // runs that are too small, or kept clear
  // Whether the search is over. A full tmpfs may still have given pages to another run.
  const auto look_at = [&](Offset begin, std::uint64_t run_bytes) {
    const Offset end = begin + run_bytes;
    if (run_bytes < want || (end > clear_.first && end - want < clear_.second)) return ++passed >= kRunsPassed;
    at = begin;
    size = run_bytes;
    taken = reserve_range(end - want, end);
    return taken || taken.error() != std::errc::no_space_on_device;
  };
  bool over = false;
  for (auto run = by_offset_.rbegin(); run != by_offset_.rend() && !over; ++run)
    over = look_at(run->first, run->second.size);
  // Many that are too small: then the one that fits best.
  if (passed >= kRunsPassed) {
    passed = 0;
    over = false;
    for (auto run = by_size_.lower_bound({want, 0}); run != by_size_.end() && !over; ++run) {
      over = look_at(run->second, run->first);
    }
  }
  if (!taken) return taken.error();
  const Offset block = at + size - want;
  if (size > want) write_header(block, want, BlockKind::free);
  STEPSTASH_CRASH_POINT("shm.heap.allocate_high.second_header");
  const auto run = by_offset_.find(at);
  const auto freed_at = run->second.freed_at;
  erase_run(run);
  if (size > want) {
    header(at).size.store(size - want, std::memory_order_release);  // as in allocate()
    insert_run(at, size - want, freed_at);
    STEPSTASH_CRASH_POINT("shm.heap.allocate_high.cut");
  }
  return block;
}

Offset Heap::split(Offset block, std::uint64_t bytes) noexcept {
  write_header(block + bytes, block_bytes(block) - bytes, BlockKind::free);
  STEPSTASH_CRASH_POINT("shm.heap.split.second_header");
  header(block).size.store(bytes, std::memory_order_release);  // as in allocate()
  STEPSTASH_CRASH_POINT("shm.heap.split.cut");
  return block + bytes;
}

Result<> Heap::reserve(Offset block, std::uint64_t bytes) {
  // Rounded as shrink() rounds: the header it writes may lie up to 63 bytes behind `bytes`, in the next granule.
  return reserve_range(block, std::min(block + round_up(bytes, kBlockAlign) + sizeof(BlockHeader), end_));
}

std::uint64_t Heap::unreserved_bytes(Offset block, std::uint64_t bytes) const noexcept {
  const Offset end = std::min(block + round_up(bytes, kBlockAlign) + sizeof(BlockHeader), end_);  // as reserve() does
  std::uint64_t missing = 0;
  for (std::size_t granule = block / kGranule; granule <= (end - 1) / kGranule; ++granule) {
    // Relaxed: a figure. Who is to touch the pages reserves them.
    if (backing_[granule].load(std::memory_order_relaxed) != Backing::reserved) missing += kGranule;
  }
  return missing;
}

std::uint64_t Heap::unreserved_for(std::uint64_t bytes) const noexcept {
  const auto fit = by_size_.lower_bound({round_up(std::max<std::uint64_t>(bytes, kBlockAlign), kBlockAlign), 0});
  return fit == by_size_.end() ? 0 : unreserved_bytes(fit->second, bytes);
}

Heap::FileSystem Heap::file_system() const noexcept {
  struct statfs status {};
  if (::fstatfs(fd_, &status) != 0 || status.f_blocks == 0) return {};  // no blocks: a tmpfs without a bound
  const auto block = static_cast<std::uint64_t>(status.f_bsize);
  return {status.f_blocks * block, status.f_bavail * block};
}

std::uint64_t Heap::backed_bytes() const noexcept {
  constexpr std::uint64_t kStatBlock = 512;  // what st_blocks counts, whatever the file system's blocks
  struct stat status {};
  return ::fstat(fd_, &status) == 0 ? static_cast<std::uint64_t>(status.st_blocks) * kStatBlock : 0;
}

void Heap::shrink(Offset block, std::uint64_t bytes) noexcept {
  const std::uint64_t keep = round_up(std::max<std::uint64_t>(bytes, kBlockAlign), kBlockAlign);
  const std::uint64_t size = block_bytes(block);
  if (keep >= size) return;
  write_header(block + keep, size - keep, BlockKind::free);
  STEPSTASH_CRASH_POINT("shm.heap.shrink.second_header");
  header(block).size.store(keep, std::memory_order_release);  // as in allocate()
  STEPSTASH_CRASH_POINT("shm.heap.shrink.cut");
  free(block + keep);
}

Result<bool> Heap::extend(Offset block, std::uint64_t bytes) {
  const std::uint64_t want = round_up(bytes, kBlockAlign);
  const std::uint64_t size = block_bytes(block);
  if (want <= size) return true;
  const auto next = by_offset_.find(block + size);
  if (next == by_offset_.end() || size + next->second.size < want) return false;
  const std::uint64_t rest = size + next->second.size - want;
  if (rest > 0) {
    STEPSTASH_TRY(reserve_range(block + want, block + want + sizeof(BlockHeader)));
    write_header(block + want, rest, BlockKind::free);
    STEPSTASH_CRASH_POINT("shm.heap.extend.second_header");
  }
  const auto freed_at = next->second.freed_at;
  erase_run(next);
  header(block).size.store(want, std::memory_order_release);  // as in allocate()
  STEPSTASH_CRASH_POINT("shm.heap.extend.merged");
  if (rest > 0) insert_run(block + want, rest, freed_at);
  return true;
}

void Heap::free(Offset block) noexcept {
  std::uint64_t size = block_bytes(block);
  Offset at = block;
  auto next = by_offset_.find(block + size);
  if (next != by_offset_.end()) {
    size += next->second.size;
    erase_run(next);
  }
  auto after = by_offset_.lower_bound(block);
  if (after != by_offset_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second.size == block) {
      at = before->first;
      size += before->second.size;
      erase_run(before);
    }
  }
  header(at).kind = BlockKind::free;
  STEPSTASH_CRASH_POINT("shm.heap.free.kind");
  header(at).size.store(size, std::memory_order_release);  // one store merges up to three blocks
  STEPSTASH_CRASH_POINT("shm.heap.free.merged");
  insert_run(at, size, now_);
}

std::uint64_t Heap::punch(std::chrono::nanoseconds idle_since, std::uint64_t limit) noexcept {
  std::uint64_t given = 0;
  // Shorter runs have no whole granule, and there may be very many of them.
  for (auto run = by_size_.rbegin(); run != by_size_.rend() && run->first >= kGranule && given < limit; ++run) {
    const auto& [size, at] = *run;
    if (by_offset_.at(at).freed_at > idle_since) continue;
    // Whole granules behind the run's header page; what is cut off at the ends is under two granules.
    for (Offset from = round_up(at + sizeof(BlockHeader), kGranule); from + kGranule <= at + size && given < limit;
         from += kGranule) {
      auto& backing = backing_[from / kGranule];
      if (backing.load(std::memory_order_relaxed) == Backing::hole) continue;  // relaxed: free runs are this thread's
      const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
      if (::fallocate(fd_, mode, static_cast<off_t>(from), static_cast<off_t>(kGranule)) != 0) return given;
      backing.store(Backing::hole, std::memory_order_relaxed);
      STEPSTASH_CRASH_POINT("shm.heap.punch.granule");
      given += kGranule;
    }
  }
  return given;
}

}  // namespace stepstash::shm
