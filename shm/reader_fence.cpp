// SPDX-License-Identifier: Apache-2.0
#include "shm/reader_fence.hpp"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>
#if __has_include(<sys/single_threaded.h>)
#include <sys/single_threaded.h>
#endif

#include <atomic>
#include <cerrno>

#include "base/errc.hpp"

namespace stepstash::shm {
namespace {

/// This process, or the one that forked it: then it may have to be done again, which is fast where it need not.
std::atomic<bool> registered{false};

long membarrier(int command) noexcept { return ::syscall(SYS_membarrier, command, 0, 0); }

}  // namespace

bool can_fence_readers() noexcept {
#ifdef __SANITIZE_THREAD__
  return false;
#else
  static const long commands = membarrier(MEMBARRIER_CMD_QUERY);
  return commands > 0 && (commands & MEMBARRIER_CMD_GLOBAL_EXPEDITED) != 0;
#endif
}

Result<> fence_readers() noexcept {
  if (membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED) != 0) return last_errno();
  return success();
}

void fence_all_threads() noexcept {
  if (membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0) return;
  if (membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0) membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
}

bool register_reader() noexcept {
  if (!can_fence_readers() || membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED) != 0) return false;
  registered.store(true, std::memory_order_relaxed);  // a hint
  return true;
}

bool registers_fast() noexcept {
#if __has_include(<sys/single_threaded.h>)
  if (__libc_single_threaded != 0) return true;
#endif
  return registered.load(std::memory_order_relaxed);
}

}  // namespace stepstash::shm
