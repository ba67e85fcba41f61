// SPDX-License-Identifier: Apache-2.0
/// A set of block offsets: the result of scanning the pin pages.
///
/// One bit for each offset at which a block can begin, in chunks of one cache line that exist only where something was
/// inserted. An insertion therefore costs about the same whichever offsets clients choose: there are no collisions to
/// provoke, at most one line to zero, and the memory is reused from scan to scan. Offsets as far apart as possible, one
/// for each of 65,536 places in a segment of 128 GiB, take 1 ms (130 ms with page-sized chunks that were allocated and
/// freed for each scan). 900,000 pins (2,040 full pages) take 3 ms when they lie close together, 9 ms spread evenly
/// over 128 GiB, and 80 ms at random offsets there, where each is a cache miss or two (4, 190 and 270 ms before).
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "shm/layout.hpp"

namespace stepstash::shm {

/// Thread safety: one thread.
class BlockSet {
 public:
  /// For the blocks of a segment of `bytes` bytes.
  explicit BlockSet(std::uint64_t bytes)
      : numbers_(bytes / kChunkBytes + 1),
        chunk_of_(static_cast<std::uint32_t*>(std::calloc(numbers_, sizeof(std::uint32_t)))) {
    if (chunk_of_ == nullptr) throw std::bad_alloc();
  }

  /// Inserts `at`; ignores offsets at which no block of this segment can begin. Returns whether it is new.
  bool insert(Offset at) {
    const std::uint64_t number = at / kChunkBytes;
    if (at % kBlockAlign != 0 || number >= numbers_) return false;
    if (chunk_of_[number] == 0) touch(number);
    std::uint64_t& word = words_[chunk_of_[number] - 1][word_of(at)];
    const std::uint64_t bit = bit_of(at);
    const bool fresh = (word & bit) == 0;
    word |= bit;
    return fresh;
  }

  bool contains(Offset at) const noexcept {
    const std::uint64_t number = at / kChunkBytes;
    if (at % kBlockAlign != 0 || number >= numbers_ || chunk_of_[number] == 0) return false;
    return (words_[chunk_of_[number] - 1][word_of(at)] & bit_of(at)) != 0;
  }

  bool empty() const noexcept { return touched_.empty(); }

  /// Calls `each` with every offset, in no particular order.
  template <class F>
  void for_each(F&& each) const {
    for (std::size_t chunk = 0; chunk < touched_.size(); ++chunk) {
      for (std::size_t i = 0; i < kWords; ++i) {
        for (std::uint64_t word = words_[chunk][i]; word != 0; word &= word - 1) {
          each(touched_[chunk] * kChunkBytes + (i * 64 + static_cast<unsigned>(std::countr_zero(word))) * kBlockAlign);
        }
      }
    }
  }

  /// O(non-empty chunks). Keeps their memory for the next scan.
  void clear() noexcept {
    for (const std::uint64_t number : touched_) chunk_of_[number] = 0;
    touched_.clear();
    words_.clear();
  }

 private:
  static constexpr std::size_t kWords = 8;
  static constexpr std::uint64_t kChunkBytes =
      kWords * 64 * kBlockAlign;  // of the segment: 64 bytes of bits cover 32 KiB

  struct Free {
    void operator()(std::uint32_t* memory) const noexcept { std::free(memory); }
  };
  using Words = std::array<std::uint64_t, kWords>;

  static std::size_t word_of(Offset at) noexcept { return at % kChunkBytes / (64 * kBlockAlign); }
  static std::uint64_t bit_of(Offset at) noexcept { return std::uint64_t{1} << (at / kBlockAlign % 64); }
  void touch(std::uint64_t number) {
    words_.emplace_back(Words{});
    touched_.push_back(number);
    chunk_of_[number] = static_cast<std::uint32_t>(words_.size());
  }

  std::uint64_t numbers_;  // chunks in the segment
  /// By chunk number: 1 + its index in words_; 0: none. From calloc(3), so that untouched parts have no memory: at most
  /// 4 bytes per 32 KiB of the segment.
  std::unique_ptr<std::uint32_t[], Free> chunk_of_;
  std::vector<Words> words_;            // never more than the offsets inserted at one time
  std::vector<std::uint64_t> touched_;  // the chunk numbers of words_
};

}  // namespace stepstash::shm
