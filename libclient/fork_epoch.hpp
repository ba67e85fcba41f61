// SPDX-License-Identifier: Apache-2.0
/// Identifies the current process by a number that costs one load: a forked child sees another number than its parent.
///
/// getpid() is a system call since glibc 2.25, and a get must not make one (I6). The number lies in a page of its own
/// that the kernel zeroes in a child (MADV_WIPEONFORK, Linux 4.14), however it was forked. If the kernel lacks that, a
/// pthread_atfork handler does the same for fork(3).
#pragma once

#include <atomic>
#include <cstdint>

namespace stepstash::client {

namespace detail {
extern std::atomic<std::atomic<std::uint64_t>*> epoch_place;
std::uint64_t begin_epoch() noexcept;
}  // namespace detail

/// Creates the page. Call it before the first client exists; any number of times, from any thread.
void watch_for_forks() noexcept;

/// Never 0, and never that of a parent or another ancestor. Any thread.
inline std::uint64_t fork_epoch() noexcept {
  // Relaxed: the number publishes nothing else. The page's address is set before any client exists.
  const std::uint64_t epoch = detail::epoch_place.load(std::memory_order_relaxed)->load(std::memory_order_relaxed);
  return epoch != 0 ? epoch : detail::begin_epoch();
}

}  // namespace stepstash::client
