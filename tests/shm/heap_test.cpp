// SPDX-License-Identifier: Apache-2.0
#include "shm/heap.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cstring>
#include <map>
#include <random>

#include "shm/mapping.hpp"
#include "shm/validate.hpp"
#include "tests/support/segment_fixture.hpp"

namespace stepstash::test {
namespace {

using shm::Heap;
using shm::Offset;
using std::chrono::seconds;

constexpr Offset kBegin = 2 * shm::kPageBytes;

/// A heap in an object of its own, and a model of what is in use.
struct HeapFixture {
  explicit HeapFixture(std::uint64_t bytes = 1024 * 1024, const std::string& directory = "")
      : path(directory.empty() ? dir.path() : directory), end(bytes) {
    fd = take(take(shm::ObjectDirectory::open(path)).create("heap"));
    BOOST_TEST_REQUIRE(::ftruncate(fd.get(), static_cast<::off_t>(bytes)) == 0);
    mapping = take(shm::Mapping::map(fd.get(), bytes, shm::Mapping::Access::read_write));
    heap = std::make_unique<Heap>(mapping.data(), kBegin, bytes, fd.get());
    take(heap->format());
  }

  std::byte* base() const { return mapping.data(); }

  Result<Offset> allocate(std::uint64_t bytes) {
    const std::uint64_t size = std::max<std::uint64_t>(shm::round_up(bytes, 64), 64);
    // Best fit, the lowest of equals, by looking at every gap.
    Offset best = 0;
    std::uint64_t best_size = 0;
    for (const auto& [at, gap] : gaps()) {
      if (gap >= size && (best == 0 || gap < best_size)) {
        best = at;
        best_size = gap;
      }
    }
    auto made = heap->allocate(bytes);
    if (best == 0) {
      BOOST_TEST((made.has_error() && made.error() == Errc::segment_full));
      return made;
    }
    BOOST_TEST_REQUIRE(made.has_value());
    BOOST_TEST(made.value() == best);
    used[made.value()] = size;
    return made;
  }
  /// The end of the highest gap that is long enough.
  Result<Offset> allocate_high(std::uint64_t bytes) {
    const std::uint64_t size = std::max<std::uint64_t>(shm::round_up(bytes, 64), 64);
    Offset expected = 0;
    for (const auto& [at, gap] : gaps()) {
      if (gap >= size) expected = at + gap - size;
    }
    auto made = heap->allocate_high(bytes);
    if (expected == 0) {
      BOOST_TEST((made.has_error() && made.error() == Errc::segment_full));
      return made;
    }
    BOOST_TEST_REQUIRE(made.has_value());
    BOOST_TEST(made.value() == expected);
    used[made.value()] = size;
    return made;
  }
  void free(Offset block) {
    heap->free(block);
    used.erase(block);
  }

  std::map<Offset, std::uint64_t> gaps() const {
    std::map<Offset, std::uint64_t> free_runs;
    Offset at = kBegin;
    for (const auto& [block, size] : used) {
      if (block > at) free_runs[at] = block - at;
      at = block + size;
    }
    if (at < end) free_runs[at] = end - at;
    return free_runs;
  }

  /// The chain is exactly the model: blocks in use where they were given out, one free block per gap.
  void check() const {
    std::map<Offset, std::uint64_t> chain;
    take(Heap::walk(base(), kBegin, end, [&](Offset at, std::uint64_t size) { chain[at] = size; }));
    auto expected = gaps();
    std::uint64_t free_bytes = 0;
    std::uint64_t largest = 0;
    for (const auto& [at, size] : expected) {
      free_bytes += size;
      largest = std::max(largest, size);
    }
    expected.insert(used.begin(), used.end());
    BOOST_TEST((chain == expected));
    BOOST_TEST(heap->free_bytes() == free_bytes);
    BOOST_TEST(heap->largest_free() == largest);
  }

  std::uint64_t pages_in_use() const {
    struct stat status {};
    ::fstat(fd.get(), &status);
    return static_cast<std::uint64_t>(status.st_blocks) * 512 / shm::kPageBytes;
  }

  ShmDir dir;
  std::string path;
  std::uint64_t end;
  UniqueFd fd;
  shm::Mapping mapping;
  std::unique_ptr<Heap> heap;
  std::map<Offset, std::uint64_t> used;
};

struct LargeHeap : HeapFixture {
  LargeHeap() : HeapFixture(8 * 1024 * 1024) {}
};

BOOST_AUTO_TEST_SUITE(heap)

BOOST_FIXTURE_TEST_CASE(a_new_heap_is_one_free_run, HeapFixture) {
  check();
  BOOST_TEST(heap->free_bytes() == heap->capacity());
}

BOOST_FIXTURE_TEST_CASE(blocks_start_on_64_bytes_and_hold_what_was_asked_for, HeapFixture) {
  for (const std::uint64_t bytes : {0u, 1u, 64u, 65u, 1000u, 4096u}) {
    const Offset block = take(allocate(bytes));
    BOOST_TEST(block % 64 == 0u);
    BOOST_TEST(heap->block_bytes(block) == std::max<std::uint64_t>(shm::round_up(bytes, 64), 64));
    check();
  }
}

BOOST_FIXTURE_TEST_CASE(a_freed_block_merges_with_both_its_neighbours, HeapFixture) {
  const Offset a = take(allocate(100));
  const Offset b = take(allocate(200));
  const Offset c = take(allocate(300));
  take(allocate(64));
  free(a);
  check();
  free(c);
  check();
  free(b);
  check();
  BOOST_TEST(gaps().size() == 2u);
}

BOOST_FIXTURE_TEST_CASE(the_smallest_run_that_fits_is_taken_and_the_lowest_of_equals, HeapFixture) {
  std::vector<Offset> blocks;
  for (const std::uint64_t bytes : {512u, 64u, 256u, 64u, 256u, 64u, 1024u, 64u})
    blocks.push_back(take(allocate(bytes)));
  for (const std::size_t i : {0u, 2u, 4u, 6u}) free(blocks[i]);
  BOOST_TEST(take(allocate(200)) == blocks[2]);
  BOOST_TEST(take(allocate(256)) == blocks[4]);
  BOOST_TEST(take(allocate(256)) == blocks[0]);
  check();
}

BOOST_FIXTURE_TEST_CASE(a_full_heap_says_so_and_serves_again_when_something_is_freed, HeapFixture) {
  std::vector<Offset> blocks;
  for (;;) {
    auto made = allocate(64 * 1024);
    if (!made) break;
    blocks.push_back(made.value());
  }
  BOOST_TEST((heap->allocate(heap->largest_free() + 1).error() == Errc::segment_full));
  take(allocate(heap->largest_free()));
  BOOST_TEST(heap->free_bytes() == 0u);
  BOOST_TEST(heap->largest_free() == 0u);
  BOOST_TEST((heap->allocate(1).error() == Errc::segment_full));
  free(blocks[3]);
  BOOST_TEST(take(allocate(64 * 1024)) == blocks[3]);
  check();
}

BOOST_FIXTURE_TEST_CASE(the_whole_heap_can_be_one_block, HeapFixture) {
  BOOST_TEST(take(allocate(heap->capacity())) == kBegin);
  check();
  free(kBegin);
  check();
}

BOOST_FIXTURE_TEST_CASE(shrinking_frees_the_rest_and_merges_it_with_the_run_behind, HeapFixture) {
  const Offset block = take(allocate(10'000));
  take(heap->reserve(block));
  heap->shrink(block, 1000);
  used[block] = 1024;
  check();
  heap->shrink(block, 1024);  // nothing to cut
  check();
  heap->shrink(block, 0);
  used[block] = 64;
  check();
}

BOOST_FIXTURE_TEST_CASE(a_block_extends_into_a_free_run_behind_it_and_no_further, HeapFixture) {
  const Offset block = take(allocate(1000));
  const Offset behind = take(allocate(1000));
  const Offset last = take(allocate(64));
  BOOST_TEST(take(heap->extend(block, 1000)));   // has it already: blocks are rounded up
  BOOST_TEST(!take(heap->extend(block, 1025)));  // taken
  free(behind);
  BOOST_TEST(take(heap->extend(block, 1100)));
  used[block] = 1152;
  check();
  BOOST_TEST(!take(heap->extend(block, 2049)));
  BOOST_TEST(take(heap->extend(block, 2048)));  // all of it: no rest
  used[block] = 2048;
  check();
  BOOST_TEST(block + 2048 == last);
}

BOOST_FIXTURE_TEST_CASE(a_high_block_is_the_end_of_the_highest_run_that_holds_it, HeapFixture) {
  const Offset low = take(allocate(4096));
  const Offset high = take(allocate_high(1000));
  BOOST_TEST(high + 1024 == end);
  check();
  const Offset next = take(allocate_high(64));
  BOOST_TEST(next + 64 == high);
  take(allocate(heap->largest_free()));
  free(low);
  BOOST_TEST(take(allocate_high(64)) == low + 4096 - 64);
  BOOST_TEST(take(allocate_high(4096 - 64)) == low);  // a whole run
  BOOST_TEST(allocate_high(1).has_error());
  check();
}

BOOST_FIXTURE_TEST_CASE(a_block_is_split_into_two_that_are_freed_apart, HeapFixture) {
  const Offset block = take(allocate_high(1024));
  const Offset second = heap->split(block, 192);
  BOOST_TEST(second == block + 192);
  used[block] = 192;
  used[second] = 1024 - 192;
  check();
  free(block);
  check();
  free(second);
  check();
}

BOOST_FIXTURE_TEST_CASE(any_order_of_calls_leaves_the_chain_of_the_model, HeapFixture) {
  std::mt19937 random(20240917);
  const auto any_block = [&] {
    auto at = used.begin();
    std::advance(at, static_cast<long>(random() % used.size()));
    return at->first;
  };
  for (int step = 0; step < 6000; ++step) {
    const auto what = random() % 10;
    // Small sizes mostly, a large one now and then: the heap is full again and again.
    const std::uint64_t bytes = random() % 8 == 0 ? random() % 200'000 : random() % 4000;
    if (what < 4 || used.empty()) {
      (void)allocate(bytes);
    } else if (what == 4) {
      const auto block = allocate_high(bytes);
      if (block && used[block.value()] >= 128) {
        const std::uint64_t first = 64 + random() % (used[block.value()] / 64 - 1) * 64;
        const Offset second = heap->split(block.value(), first);
        used[second] = used[block.value()] - first;
        used[block.value()] = first;
      }
    } else if (what < 8) {
      free(any_block());
    } else if (what == 8) {
      const Offset block = any_block();
      const std::uint64_t keep = random() % (used[block] + 1);
      take(heap->reserve(block, keep));
      heap->shrink(block, keep);
      used[block] = std::min(used[block], std::max<std::uint64_t>(shm::round_up(keep, 64), 64));
    } else {
      const Offset block = any_block();
      const std::uint64_t want = shm::round_up(used[block] + bytes % 3000, 64);
      const auto free_runs = gaps();
      const auto run = free_runs.find(block + used[block]);
      const bool fits = want <= used[block] || (run != free_runs.end() && used[block] + run->second >= want);
      BOOST_TEST(take(heap->extend(block, want)) == fits);
      if (fits) used[block] = std::max(used[block], want);
    }
    if (step % 16 == 0) check();
  }
  check();
  // What attach does: another Heap takes over the same chain.
  heap = std::make_unique<Heap>(mapping.data(), kBegin, end, fd.get());
  take(heap->rebuild([&](Offset at) { return used.contains(at); }));
  check();
}

BOOST_FIXTURE_TEST_CASE(rebuilding_frees_and_merges_what_is_not_in_use, HeapFixture) {
  std::vector<Offset> blocks;
  for (int i = 0; i < 8; ++i) blocks.push_back(take(allocate(1000)));
  for (const int i : {1, 2, 3, 6}) used.erase(blocks[static_cast<std::size_t>(i)]);  // unknown to the next process
  heap = std::make_unique<Heap>(mapping.data(), kBegin, end, fd.get());
  take(heap->rebuild([&](Offset at) { return used.contains(at); }));
  check();
}

BOOST_FIXTURE_TEST_CASE(a_chain_with_a_gap_or_an_overlap_is_refused, HeapFixture) {
  const Offset block = take(allocate(1000));
  auto& header = *reinterpret_cast<shm::BlockHeader*>(base() + block);
  const auto refused = [&] {
    Heap other(mapping.data(), kBegin, end, fd.get());
    const auto rebuilt = other.rebuild([](Offset) { return true; });
    return rebuilt.has_error() && rebuilt.error() == Errc::corrupt_segment;
  };
  BOOST_TEST(!refused());
  for (const std::uint64_t size : {std::uint64_t{0}, std::uint64_t{63}, std::uint64_t{64}, std::uint64_t{1088}, end,
                                   ~std::uint64_t{0}, ~std::uint64_t{63}}) {
    header.size = size;
    BOOST_TEST(refused(), "size " << size);
  }
  header.size = 1024;
  header.magic ^= 1;
  BOOST_TEST(refused());
}

BOOST_FIXTURE_TEST_CASE(punching_gives_the_pages_of_idle_runs_back_and_they_can_be_used_again, LargeHeap) {
  const Offset kept = take(allocate(100'000));
  const Offset block = take(allocate(4 * 1024 * 1024));
  const Offset behind = take(allocate(100'000));
  for (const Offset at : {kept, block, behind}) take(heap->reserve(at));
  std::memset(base() + kept + 16, 1, 100'000 - 16);
  std::memset(base() + block + 16, 2, 4 * 1024 * 1024 - 16);
  std::memset(base() + behind + 16, 3, 100'000 - 16);
  const std::uint64_t full = pages_in_use();
  heap->set_now(seconds(10));
  free(block);

  BOOST_TEST(heap->punch(seconds(9), ~std::uint64_t{0}) == 0u);  // not idle for long enough
  BOOST_TEST(pages_in_use() == full);
  BOOST_TEST(heap->punch(seconds(10), Heap::kGranule) == Heap::kGranule);  // no more than the limit
  BOOST_TEST(pages_in_use() == full - Heap::kGranule / shm::kPageBytes);
  const std::uint64_t given = Heap::kGranule + heap->punch(seconds(10), ~std::uint64_t{0});
  BOOST_TEST(given >= 4 * 1024 * 1024 - 2 * Heap::kGranule);
  BOOST_TEST(pages_in_use() == full - given / shm::kPageBytes);
  BOOST_TEST(heap->punch(seconds(10), ~std::uint64_t{0}) == 0u);  // given once
  check();
  const auto whole = [&](Offset at, int value, std::size_t bytes) {
    for (std::size_t i = 16; i < bytes; ++i) {
      if (base()[at + i] != std::byte(value)) return false;
    }
    return true;
  };
  BOOST_TEST(whole(kept, 1, 100'000));
  BOOST_TEST(whole(behind, 3, 100'000));

  BOOST_TEST(take(allocate(4 * 1024 * 1024)) == block);
  take(heap->reserve(block));
  BOOST_TEST(pages_in_use() == full);
  std::memset(base() + block + 16, 4, 4 * 1024 * 1024 - 16);
  BOOST_TEST(pages_in_use() == full);
  check();
}

BOOST_FIXTURE_TEST_CASE(what_a_block_lacks_is_known_before_it_is_allocated_and_falls_as_it_is_reserved, LargeHeap) {
  constexpr std::uint64_t kBytes = 3 * 1024 * 1024;
  const std::uint64_t lacking = heap->unreserved_for(kBytes);
  BOOST_TEST(lacking >= kBytes - Heap::kGranule);
  BOOST_TEST(lacking <= kBytes + 2 * Heap::kGranule);
  const std::uint64_t before = pages_in_use();
  const Offset block = take(allocate(kBytes));
  take(heap->reserve(block, kBytes / 2));
  const std::uint64_t rest = heap->unreserved_bytes(block, kBytes);
  BOOST_TEST(rest < lacking);
  BOOST_TEST(rest >= kBytes / 2 - 2 * Heap::kGranule);
  take(heap->reserve(block));
  BOOST_TEST(heap->unreserved_bytes(block, kBytes) == 0u);
  BOOST_TEST((pages_in_use() - before) * shm::kPageBytes <= lacking);  // it promises no less than is taken
  free(block);
  BOOST_TEST(heap->unreserved_for(kBytes / 2) == 0u);
  heap->punch(seconds(100), ~std::uint64_t{0});
  BOOST_TEST(heap->unreserved_for(kBytes) >= kBytes - 2 * Heap::kGranule);
  BOOST_TEST(heap->unreserved_for(std::uint64_t{1} << 40) == 0u);  // no run for it: there is nothing to lack
}

BOOST_FIXTURE_TEST_CASE(reserving_covers_the_header_that_shrinking_writes, LargeHeap) {
  // A value that ends up to 48 bytes before a granule's end: the header of the cut lies in the next granule.
  for (std::uint64_t before = 1; before <= 64; ++before) {
    HeapFixture one(8 * 1024 * 1024);
    const Offset block = take(one.heap->allocate(4 * 1024 * 1024));
    const Offset granule = shm::round_up(block + Heap::kGranule, Heap::kGranule);
    const std::uint64_t bytes = granule - before - block;
    take(one.heap->reserve(block, bytes));
    const std::uint64_t reserved = one.pages_in_use();
    one.heap->shrink(block, bytes);
    BOOST_TEST(one.pages_in_use() == reserved, before << " bytes before the granule's end");
  }
}

BOOST_AUTO_TEST_CASE(a_full_tmpfs_is_an_error_and_the_heap_goes_on_with_what_it_has,
                     *boost::unit_test::precondition(TinyTmpfs::possible)) {
  TinyTmpfs tiny(2 * 1024 * 1024);
  HeapFixture one(8 * 1024 * 1024, tiny.path());
  const Offset block = take(one.allocate(6 * 1024 * 1024 - 100));
  const auto reserved = one.heap->reserve(block);
  BOOST_TEST_REQUIRE(reserved.has_error());
  BOOST_TEST((reserved.error() == std::errc::no_space_on_device));
  one.check();
  one.free(block);
  one.check();
  const Offset small = take(one.allocate(100'000));
  take(one.heap->reserve(small));
  std::memset(one.base() + small + 16, 7, 100'000 - 16);
  one.check();
}

/// Every header that the heap writes lies in memory that was reserved: with the tmpfs full to the brim nothing may
/// touch a page it does not have. SIGBUS would end the child.
BOOST_AUTO_TEST_CASE(no_call_touches_memory_that_a_full_tmpfs_cannot_give,
                     *boost::unit_test::precondition(TinyTmpfs::possible)) {
  TinyTmpfs tiny(4 * 1024 * 1024);
  HeapFixture one(16 * 1024 * 1024, tiny.path());
  std::vector<Offset> blocks;
  for (std::uint64_t i = 0; i < 6; ++i) {
    blocks.push_back(take(one.heap->allocate(400'000 + i * 64)));
    take(one.heap->reserve(blocks.back()));
  }
  tiny.fill();
  Child child([&](int) {
    Heap& heap = *one.heap;
    std::mt19937 random(7);
    int refused = 0;
    for (int step = 0; step < 3000; ++step) {
      const std::size_t i = random() % blocks.size();
      if (blocks[i] != 0) {
        const std::uint64_t keep = random() % 400'000;
        if (heap.reserve(blocks[i], keep)) heap.shrink(blocks[i], keep);
        heap.free(blocks[i]);
        blocks[i] = 0;
      }
      auto made = heap.allocate(random() % 2'000'000);
      if (!made) {
        ++refused;
        continue;
      }
      blocks[i] = made.value();
      const std::uint64_t size = heap.block_bytes(made.value());
      const std::uint64_t touched = random() % size;
      if (!heap.reserve(made.value(), touched)) {
        ++refused;
        heap.free(made.value());
        blocks[i] = 0;
        continue;
      }
      if (touched > 16) std::memset(one.base() + made.value() + 16, 1, touched - 16);
      heap.shrink(made.value(), touched);
      auto longer = heap.extend(made.value(), touched + random() % 100'000);
      if (!longer) ++refused;
      auto high = heap.allocate_high(128 + random() % 5000);
      if (!high) {
        ++refused;
        continue;
      }
      heap.free(heap.split(high.value(), 64));
      heap.free(high.value());
    }
    const bool whole = Heap::walk(one.base(), kBegin, one.end, [](Offset, std::uint64_t) {}).has_value();
    return whole && refused > 0 ? 0 : 1;
  });
  const int status = child.wait();
  BOOST_TEST(!WIFSIGNALED(status), "ended by signal " << WTERMSIG(status));
  BOOST_TEST(WEXITSTATUS(status) == 0);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
