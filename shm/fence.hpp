// SPDX-License-Identifier: Apache-2.0
/// A full memory fence, for the few places where atomics alone do not order what has to be ordered.
#pragma once

#include <atomic>

namespace stepstash::shm {

inline void full_fence() noexcept {
#ifdef __SANITIZE_THREAD__
  // GCC's ThreadSanitizer does not model fences, and warns of each. An exchange with one word that all of them share
  // orders the threads that call this among each other, which is what the tests need to say so, too.
  static std::atomic<unsigned> everybody{0};
  everybody.fetch_add(1, std::memory_order_seq_cst);
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

}  // namespace stepstash::shm
