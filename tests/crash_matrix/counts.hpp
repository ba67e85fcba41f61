// SPDX-License-Identifier: Apache-2.0
/// The file in which a process with crash points counts them: an unordered array, unused entries zero.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace stepstash::test {

struct Counted {
  char name[56];  ///< NUL-terminated; valid only if `count` is not 0
  std::atomic<std::uint64_t> count;
};
static_assert(sizeof(Counted) == 64 && std::atomic<std::uint64_t>::is_always_lock_free);

inline constexpr std::size_t kCounted = 1024;

}  // namespace stepstash::test
