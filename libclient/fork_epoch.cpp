// SPDX-License-Identifier: Apache-2.0
#include "libclient/fork_epoch.hpp"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>

namespace stepstash::client {
namespace {

std::atomic<std::uint64_t> plain_place{0};
std::atomic<std::uint64_t> last_epoch{0};  // inherited by a child, which continues the count

bool watch() noexcept {
  const long page = ::sysconf(_SC_PAGESIZE);
  void* at = page > 0 ? ::mmap(nullptr, static_cast<std::size_t>(page), PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                      : MAP_FAILED;
  if (at != MAP_FAILED && ::madvise(at, static_cast<std::size_t>(page), MADV_WIPEONFORK) == 0) {
    detail::epoch_place.store(new (at) std::atomic<std::uint64_t>(0));  // the page lives until the process ends
    return true;
  }
  if (at != MAP_FAILED) ::munmap(at, static_cast<std::size_t>(page));
  return ::pthread_atfork(nullptr, nullptr, [] { plain_place.store(0); }) == 0;
}

}  // namespace

namespace detail {

std::atomic<std::atomic<std::uint64_t>*> epoch_place{&plain_place};

std::uint64_t begin_epoch() noexcept {
  std::atomic<std::uint64_t>& place = *epoch_place.load();
  const std::uint64_t next = last_epoch.fetch_add(1) + 1;
  std::uint64_t current = 0;
  return place.compare_exchange_strong(current, next) ? next : current;
}

}  // namespace detail

void watch_for_forks() noexcept {
  static const bool watching = watch();
  static_cast<void>(watching);
}

}  // namespace stepstash::client
