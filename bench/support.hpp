// SPDX-License-Identifier: Apache-2.0
/// What every row needs: keys, bytes that vary, latencies, and an end when something fails that must not.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace stepstash::bench {

inline constexpr std::size_t kKiB = 1024;
inline constexpr std::size_t kMiB = 1024 * kKiB;

/// A figure of something broken is worse than none. The children of this process die with it (Process).
[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "stepstash-bench: %s\n", what.c_str());
  ::_exit(1);
}
inline void require(bool held, const std::string& what) {
  if (!held) fail(what);
}

/// A build and a name. LMDB takes both as one run of bytes; the servers and files the name alone, so names are unique.
struct Key {
  Key(std::int64_t of_build, const std::string& text) : build(of_build) {
    require(text.size() < sizeof name, "the name " + text + " is too long");
    std::memcpy(name, text.c_str(), text.size() + 1);
    length = static_cast<std::uint32_t>(text.size());
  }

  std::int64_t build;
  char name[20];
  std::uint32_t length;
};

/// Two buffers that differ in every page, in turn: no store finds the bytes it already has.
class Payload {
 public:
  explicit Payload(std::size_t bytes) {
    std::uint64_t word = 0x9e3779b97f4a7c15;
    for (std::vector<char>& buffer : buffers_) {
      buffer.resize(bytes);
      for (std::size_t at = 0; at < bytes; at += sizeof word) {
        word ^= word << 13, word ^= word >> 7, word ^= word << 17;
        std::memcpy(buffer.data() + at, &word, std::min(sizeof word, bytes - at));
      }
    }
  }
  std::span<const char> next() noexcept { return buffers_[turn_ ^= 1]; }

 private:
  std::array<std::vector<char>, 2> buffers_;
  std::size_t turn_ = 0;
};

/// Payloads of one size at a time, for making those of 256 MiB takes longer than setting them. For the main thread.
inline Payload& payload_of(std::size_t bytes) {
  static std::size_t made = 0;
  static std::unique_ptr<Payload> payload;
  if (made != bytes) {
    payload.reset();
    payload = std::make_unique<Payload>(bytes);
    made = bytes;
  }
  return *payload;
}

/// How often each latency occurred, in bins of 1.6 %: millions of gets need no memory, and an add costs 2 ns.
class Latencies {
 public:
  void add(std::chrono::nanoseconds latency) noexcept {
    const auto ns = static_cast<std::uint64_t>(latency.count());
    ++bins_[bin(ns)];
    ++count_;
    worst_ = std::max(worst_, ns);
  }
  /// In nanoseconds.
  double quantile(double part) const noexcept {
    auto left = static_cast<std::uint64_t>(part * static_cast<double>(count_));
    for (std::size_t i = 0; i < bins_.size(); ++i) {
      if (bins_[i] > left) return static_cast<double>(lowest(i));
      left -= bins_[i];
    }
    return worst();
  }
  double worst() const noexcept { return static_cast<double>(worst_); }

 private:
  static constexpr std::size_t kSteps = 64;  ///< bins for each power of two
  static std::size_t bin(std::uint64_t ns) noexcept {
    if (ns < kSteps) return ns;
    const int shift = static_cast<int>(std::bit_width(ns)) - 7;
    return kSteps * static_cast<std::size_t>(shift) + (ns >> shift);
  }
  static std::uint64_t lowest(std::size_t index) noexcept {
    if (index < 2 * kSteps) return index;
    const std::size_t shift = index / kSteps - 1;
    return std::uint64_t{index - kSteps * shift} << shift;
  }

  std::vector<std::uint64_t> bins_ = std::vector<std::uint64_t>(kSteps * 60);
  std::uint64_t count_ = 0;
  std::uint64_t worst_ = 0;
};

}  // namespace stepstash::bench
