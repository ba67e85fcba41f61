// SPDX-License-Identifier: Apache-2.0
/// A full memory fence, for the few places where the order of atomics alone is not enough.
#pragma once

#include <atomic>

namespace stepstash::shm {

inline void full_fence() noexcept {
#ifdef __SANITIZE_THREAD__
  // GCC's ThreadSanitizer does not model fences and warns about each. A read-modify-write of one shared word orders the
  // threads that call this with each other, which the tests rely on.
  static std::atomic<unsigned> everybody{0};
  everybody.fetch_add(1, std::memory_order_seq_cst);
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

}  // namespace stepstash::shm
