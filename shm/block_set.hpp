// SPDX-License-Identifier: Apache-2.0
/// A set of blocks, by their offsets: what a scan of the pin pages finds.
///
/// One bit for each place at which a block can begin, in chunks of a cache line each that exist only where something
/// was inserted. So a number costs about the same, no matter who chose it: no collisions that somebody could provoke, a
/// line to be zeroed, and memory that is there from one scan to the next. For numbers as far apart as possible, one for
/// each of 65,536 places in a segment of 128 GiB, that is 1 ms here (and was 130 with chunks of a page, made and freed
/// for each scan). 900,000 pins (2,040 full pages) that lie close together are 3 ms, spread evenly over 128 GiB 9 ms,
/// and at random there, where each number is a cache miss or two, 80 ms (were 4, 190 and 270).
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
  /// For blocks of a segment of `bytes` bytes.
  explicit BlockSet(std::uint64_t bytes)
      : numbers_(bytes / kChunkBytes + 1),
        chunk_of_(static_cast<std::uint32_t*>(std::calloc(numbers_, sizeof(std::uint32_t)))) {
    if (chunk_of_ == nullptr) throw std::bad_alloc();
  }

  /// Inserts `at`; what is no place for a block of this segment is ignored. Returns whether it is new.
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

  /// O(chunks with something in them). Their memory stays for the next scan.
  void clear() noexcept {
    for (const std::uint64_t number : touched_) chunk_of_[number] = 0;
    touched_.clear();
    words_.clear();
  }

 private:
  static constexpr std::size_t kWords = 8;
  static constexpr std::uint64_t kChunkBytes = kWords * 64 * kBlockAlign;  // of the segment: 32 KiB in 64 bytes of bits

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

  std::uint64_t numbers_;  // of chunks that the segment has
  /// By number: which of words_ it is, counted from 1; 0: none. From calloc(3), so that what nobody asks for has no
  /// memory: 4 bytes for 32 KiB of the segment at most.
  std::unique_ptr<std::uint32_t[], Free> chunk_of_;
  std::vector<Words> words_;            // no more of them than numbers were ever inserted at one time
  std::vector<std::uint64_t> touched_;  // the numbers of words_
};

}  // namespace stepstash::shm
