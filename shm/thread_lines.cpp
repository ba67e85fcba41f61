// SPDX-License-Identifier: Apache-2.0
#include "shm/thread_lines.hpp"

#include <pthread.h>

#include <bit>
#include <utility>

namespace stepstash::shm {
namespace {

constexpr std::uint64_t kAll = (std::uint64_t{1} << kOwnLines) - 1;

std::atomic<std::uint64_t> taken{0};

/// The end of a thread. Pins of views that others hold on to may be left in its lines: the next owner finds them in
/// use.
void give_back(void* /*lines*/) {
  // Release pairs with take_another(): what this thread stored into its lines comes first.
  taken.fetch_and(~thread_lines.mine, std::memory_order_release);
  thread_lines = {};
}

/// Without a key, lines are not given back.
void watch_end() noexcept {
  static const auto key = [] {
    pthread_key_t made{};
    return std::pair(::pthread_key_create(&made, give_back) == 0, made);
  }();
  if (key.first) ::pthread_setspecific(key.second, &thread_lines);
}

}  // namespace

constinit thread_local ThreadLines thread_lines [[gnu::tls_model("initial-exec")]];

bool ThreadLines::take_another() noexcept {
  std::uint64_t seen = taken.load(std::memory_order_relaxed);
  std::uint64_t line = 0;
  do {
    line = ~seen & kAll & -(~seen & kAll);  // the lowest free one
    if (line == 0) return false;
  } while (!taken.compare_exchange_weak(seen, seen | line, std::memory_order_acquire, std::memory_order_relaxed));
  mine |= line;
  current = static_cast<std::uint32_t>(std::countr_zero(line));
  watch_end();
  return true;
}

void ThreadLines::forked() noexcept { taken.store(thread_lines.mine, std::memory_order_relaxed); }

}  // namespace stepstash::shm
