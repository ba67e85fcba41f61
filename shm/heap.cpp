// SPDX-License-Identifier: Apache-2.0
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

static_assert(kStandInAlign % Heap::kGranule == 0);

/// Number of unsuitable runs that allocate_high() skips before it changes its search.
constexpr int kRunsPassed = 256;
/// How far records and tables may exceed the written-off bytes: a few slabs.
constexpr std::uint64_t kOverdraft = 256 * 1024;

}  // namespace

Heap::Heap(std::byte* base, Offset begin, Offset end, int fd, Offset stand_in, Offset stand_in_end)
    : base_(base), proper_{begin, end}, stand_in_{stand_in, stand_in_end}, fd_(fd) {
  const std::size_t granules = std::max(end, stand_in_end) / kGranule + 1;
  backing_ = std::make_unique<std::atomic<Backing>[]>(granules);  // zero-initialised: holes
  static_assert(static_cast<int>(Backing::hole) == 0);
}

BlockHeader& Heap::header(Offset block) const noexcept { return *reinterpret_cast<BlockHeader*>(base_ + block); }

std::uint64_t Heap::block_bytes(Offset block) const noexcept {
  return header(block).size.load(std::memory_order_relaxed);  // only this thread changes sizes
}

void Heap::write_header(Offset block, std::uint64_t size, BlockKind kind) noexcept {
  BlockHeader& at = header(block);
  at.magic = kBlockMagic;
  at.kind = kind;
  at.size.store(size, std::memory_order_relaxed);  // ordered by the store that links this block into the chain
}

Result<> Heap::format() {
  STEPSTASH_TRY(reserve_range(proper_.begin, proper_.begin + sizeof(BlockHeader)));
  write_header(proper_.begin, capacity(), BlockKind::free);
  STEPSTASH_CRASH_POINT("shm.heap.format.header");
  insert_run(proper_.begin, capacity(), now_);
  if (stand_in_.end > stand_in_.begin) insert_run(stand_in_.begin, stand_in_.end - stand_in_.begin, now_);
  return success();
}

bool Heap::stand_in_used(const std::byte* base, Offset stand_in, Offset end, const DataMap& pages) noexcept {
  if (stand_in >= end || !pages.contains(stand_in, stand_in + sizeof(BlockHeader))) return false;
  // Reserved memory is zero until the header is written, and the size is written last.
  const auto& first = *reinterpret_cast<const BlockHeader*>(base + stand_in);
  return first.size.load(std::memory_order_relaxed) != 0;
}

/// Writes its first header, which needs memory: the stand-in has none before its first use.
Result<> Heap::begin_stand_in() {
  if (stand_in_begun_) return success();
  STEPSTASH_TRY(reserve_range(stand_in_.begin, stand_in_.begin + sizeof(BlockHeader)));
  BlockHeader& first = header(stand_in_.begin);
  first.magic = kBlockMagic;
  first.kind = BlockKind::free;
  STEPSTASH_CRASH_POINT("shm.heap.stand_in.header");
  first.size.store(stand_in_.end - stand_in_.begin, std::memory_order_release);  // one store creates the chain
  STEPSTASH_CRASH_POINT("shm.heap.stand_in.begun");
  stand_in_begun_ = true;
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
  const std::size_t granules = std::max(proper_.end, stand_in_.end) / kGranule + 1;
  for (std::size_t i = 0; i < granules; ++i) backing_[i].store(Backing::unknown, std::memory_order_relaxed);
  const DataMap pages = STEPSTASH_TRY(DataMap::of(fd_));
  stand_in_begun_ = stand_in_used(base_, stand_in_.begin, stand_in_.end, pages);
  for (std::size_t i = stand_in_.begin / kGranule; !stand_in_begun_ && stand_in_.end > stand_in_.begin && i < granules;
       ++i)
    backing_[i].store(Backing::hole, std::memory_order_relaxed);

  for (Side* chain : {&proper_, &stand_in_}) {
    chain->by_offset.clear();
    chain->by_size.clear();
    chain->free = 0;
    if (chain == &stand_in_ && !stand_in_begun_) {
      if (stand_in_.end > stand_in_.begin) insert_run(stand_in_.begin, stand_in_.end - stand_in_.begin, now_);
      continue;
    }
    std::vector<std::pair<Offset, std::uint64_t>> runs;
    STEPSTASH_TRY(walk(base_, chain->begin, chain->end, [&](Offset at, std::uint64_t size) {
      if (in_use(at)) return;
      if (!runs.empty() && runs.back().first + runs.back().second == at) {
        runs.back().second += size;
      } else {
        runs.emplace_back(at, size);
      }
    }));
    for (const auto& [at, size] : runs) {
      // Release: a later attach finds an intact chain whichever of the two sizes it reads.
      header(at).size.store(size, std::memory_order_release);
      header(at).kind = BlockKind::free;
      STEPSTASH_CRASH_POINT("shm.heap.rebuild.run_merged");
      insert_run(at, size, now_);
    }
  }
  return success();
}

void Heap::insert_run(Offset at, std::uint64_t size, std::chrono::nanoseconds freed_at) {
  Side& into = side(at);
  into.by_offset.emplace(at, Run{size, freed_at});
  into.by_size.emplace(size, at);
  into.free += size;
}

void Heap::erase_run(Side& from, std::map<Offset, Run>::iterator run) {
  from.free -= run->second.size;
  from.by_size.erase({run->second.size, run->first});
  from.by_offset.erase(run);
}

Result<> Heap::reserve_range(Offset begin, Offset end) {
  std::size_t granule = begin / kGranule;
  const std::size_t last = (end - 1) / kGranule;
  while (granule <= last) {
    // Acquire/release between threads that reserve neighbours: a thread that sees `reserved` may touch the pages.
    if (backing_[granule].load(std::memory_order_acquire) == Backing::reserved) {
      ++granule;
      continue;
    }
    std::size_t stop = granule + 1;
    while (stop <= last && backing_[stop].load(std::memory_order_acquire) != Backing::reserved) ++stop;
    const Offset from = granule * kGranule;
    const Offset to = std::min<Offset>(stop * kGranule, side(begin).end);
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
  if (want <= room()) {
    auto block = allocate_from(proper_, want);
    if (block || block.error() != Errc::segment_full) return block;
  }
  if (want > stand_in_room()) return Errc::segment_full;
  STEPSTASH_TRY(begin_stand_in());
  return allocate_from(stand_in_, want);
}

Result<Offset> Heap::allocate_from(Side& from, std::uint64_t want) {
  const auto fit = from.by_size.lower_bound({want, 0});
  if (fit == from.by_size.end()) return Errc::segment_full;
  const auto [size, at] = *fit;
  if (size > want) {
    STEPSTASH_TRY(reserve_range(at + want, at + want + sizeof(BlockHeader)));
    write_header(at + want, size - want, BlockKind::free);
    STEPSTASH_CRASH_POINT("shm.heap.allocate.second_header");
  }
  const auto run = from.by_offset.find(at);
  const auto freed_at = run->second.freed_at;
  erase_run(from, run);
  if (size > want) {
    // Release: pairs with attach in a later process. The second header is complete before the first block ends at it.
    header(at).size.store(want, std::memory_order_release);
    STEPSTASH_CRASH_POINT("shm.heap.allocate.cut");
    insert_run(at + want, size - want, freed_at);
  }
  return at;
}

/// Eviction needs room for records. It may therefore slightly exceed the written-off bytes if the stand-in holds more
/// than those (after a restart, when nothing is written off yet).
Result<Offset> Heap::allocate_high(std::uint64_t bytes) {
  const std::uint64_t want = round_up(std::max<std::uint64_t>(bytes, kBlockAlign), kBlockAlign);
  Result<Offset> block = Errc::segment_full;
  if (want <= room() + kOverdraft) block = allocate_high_from(proper_, want);
  if (block || (written_off_ == 0 && stand_in_.used() == 0) || stand_in_.used() + want > written_off_ + kOverdraft) {
    return block;
  }
  STEPSTASH_TRY(begin_stand_in());
  return allocate_high_from(stand_in_, want);
}

Result<Offset> Heap::allocate_high_from(Side& from, std::uint64_t want) {
  Offset at = 0;
  std::uint64_t size = 0;
  Result<> taken = Errc::segment_full;
  int passed = 0;  // runs that are too small or kept clear
  // Returns whether the search is over. In a full tmpfs another run may still have pages.
  const auto look_at = [&](Offset begin, std::uint64_t run_bytes) {
    const Offset end = begin + run_bytes;
    if (run_bytes < want || (end > clear_.first && end - want < clear_.second)) return ++passed >= kRunsPassed;
    at = begin;
    size = run_bytes;
    taken = reserve_range(end - want, end);
    return taken || taken.error() != std::errc::no_space_on_device;
  };
  bool over = false;
  for (auto run = from.by_offset.rbegin(); run != from.by_offset.rend() && !over; ++run)
    over = look_at(run->first, run->second.size);
  // Many runs were too small: use the best fit instead.
  if (passed >= kRunsPassed) {
    passed = 0;
    over = false;
    for (auto run = from.by_size.lower_bound({want, 0}); run != from.by_size.end() && !over; ++run) {
      over = look_at(run->second, run->first);
    }
  }
  if (!taken) return taken.error();
  const Offset block = at + size - want;
  if (size > want) write_header(block, want, BlockKind::free);
  STEPSTASH_CRASH_POINT("shm.heap.allocate_high.second_header");
  const auto run = from.by_offset.find(at);
  const auto freed_at = run->second.freed_at;
  erase_run(from, run);
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
  // Rounds as shrink() does: the header that shrink() writes may lie up to 63 bytes past `bytes`, in the next granule.
  return reserve_range(block, std::min(block + round_up(bytes, kBlockAlign) + sizeof(BlockHeader), side(block).end));
}

std::uint64_t Heap::unreserved_bytes(Offset block, std::uint64_t bytes) const noexcept {
  const Offset end =
      std::min(block + round_up(bytes, kBlockAlign) + sizeof(BlockHeader), side(block).end);  // as in reserve()
  std::uint64_t missing = 0;
  for (std::size_t granule = block / kGranule; granule <= (end - 1) / kGranule; ++granule) {
    // Relaxed: for statistics. A caller that touches the pages reserves them first.
    if (backing_[granule].load(std::memory_order_relaxed) != Backing::reserved) missing += kGranule;
  }
  return missing;
}

std::uint64_t Heap::unreserved_for(std::uint64_t bytes) const noexcept {
  const std::uint64_t want = round_up(std::max<std::uint64_t>(bytes, kBlockAlign), kBlockAlign);
  for (const Side* of : {&proper_, &stand_in_}) {  // as in allocate()
    if (want > (of == &proper_ ? room() : stand_in_room())) continue;
    const auto fit = of->by_size.lower_bound({want, 0});
    if (fit != of->by_size.end()) return unreserved_bytes(fit->second, bytes);
  }
  return 0;
}

Heap::FileSystem Heap::file_system() const noexcept {
  struct statfs status {};
  if (::fstatfs(fd_, &status) != 0 || status.f_blocks == 0) return {};  // zero blocks: a tmpfs without a size limit
  const auto block = static_cast<std::uint64_t>(status.f_bsize);
  return {status.f_blocks * block, status.f_bavail * block};
}

std::uint64_t Heap::backed_bytes() const noexcept {
  constexpr std::uint64_t kStatBlock = 512;  // the unit of st_blocks, independent of the file system's block size
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
  Side& from = side(block);
  const auto next = from.by_offset.find(block + size);
  if (next == from.by_offset.end() || size + next->second.size < want) return false;
  if (want - size > (&from == &proper_ ? room() : stand_in_room())) return false;
  const std::uint64_t rest = size + next->second.size - want;
  if (rest > 0) {
    STEPSTASH_TRY(reserve_range(block + want, block + want + sizeof(BlockHeader)));
    write_header(block + want, rest, BlockKind::free);
    STEPSTASH_CRASH_POINT("shm.heap.extend.second_header");
  }
  const auto freed_at = next->second.freed_at;
  erase_run(from, next);
  header(block).size.store(want, std::memory_order_release);  // as in allocate()
  STEPSTASH_CRASH_POINT("shm.heap.extend.merged");
  if (rest > 0) insert_run(block + want, rest, freed_at);
  return true;
}

void Heap::free(Offset block) noexcept {
  std::uint64_t size = block_bytes(block);
  Offset at = block;
  Side& into = side(block);
  auto next = into.by_offset.find(block + size);
  if (next != into.by_offset.end()) {
    size += next->second.size;
    erase_run(into, next);
  }
  auto after = into.by_offset.lower_bound(block);
  if (after != into.by_offset.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second.size == block) {
      at = before->first;
      size += before->second.size;
      erase_run(into, before);
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
  for (const Side* of : {&proper_, &stand_in_}) {
    if (of == &stand_in_ && !stand_in_begun_) break;  // it has no memory
    // Shorter runs contain no whole granule, and there may be very many of them.
    for (auto run = of->by_size.rbegin(); run != of->by_size.rend() && run->first >= kGranule && given < limit; ++run) {
      const auto& [size, at] = *run;
      if (of->by_offset.at(at).freed_at > idle_since) continue;
      // Whole granules after the page of the run's header; less than two granules are lost at the ends.
      for (Offset from = round_up(at + sizeof(BlockHeader), kGranule); from + kGranule <= at + size && given < limit;
           from += kGranule) {
        auto& backing = backing_[from / kGranule];
        if (backing.load(std::memory_order_relaxed) == Backing::hole)
          continue;  // relaxed: only this thread handles free runs
        const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        if (::fallocate(fd_, mode, static_cast<off_t>(from), static_cast<off_t>(kGranule)) != 0) return given;
        backing.store(Backing::hole, std::memory_order_relaxed);
        STEPSTASH_CRASH_POINT("shm.heap.punch.granule");
        given += kGranule;
      }
    }
  }
  return given;
}

}  // namespace stepstash::shm
