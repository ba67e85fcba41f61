// SPDX-License-Identifier: Apache-2.0
#include "shm/served.hpp"

#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <new>
#include <system_error>

#include "base/crash_point.hpp"
#include "base/signals_blocked.hpp"

namespace stepstash::shm {

/// What the kernel walks: the head, one entry, and back. The word lies `futex_offset` from its entry.
struct Served::List {
  robust_list_head head;
  robust_list entry;
};

Served::Served(Header& header) : header_(header) {
  void* place = ::mmap(nullptr, sizeof(List), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (place == MAP_FAILED) return;
  list_ = new (place) List{};
  list_->head.list.next = &list_->entry;
  list_->entry.next = &list_->head.list;
  list_->head.futex_offset = static_cast<long>(reinterpret_cast<std::uintptr_t>(&header_.served) -
                                               reinterpret_cast<std::uintptr_t>(&list_->entry));
  // A dedicated thread: in every other one glibc has registered a list for its robust mutexes.
  try {
    const SignalsBlocked in_thread;
    thread_ = std::thread([this] { hold(*list_); });
  } catch (const std::system_error&) {  // no thread: clients see the segment as not served
  }
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return held_ || !thread_.joinable(); });
}

Served::~Served() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  if (list_ != nullptr) ::munmap(list_, sizeof(List));
}

void Served::hold(List& list) {
  const bool registered = ::syscall(SYS_set_robust_list, &list.head, sizeof list.head) == 0;
  // The thread's number as the kernel compares it: the one in its PID namespace.
  const auto self = static_cast<std::uint32_t>(::syscall(SYS_gettid));
  // Release: pairs with Reader::served().
  if (registered) header_.served.store(self, std::memory_order_release);
  STEPSTASH_CRASH_POINT("shm.served.begun");
  std::unique_lock lock(mutex_);
  held_ = true;
  changed_.notify_all();
  changed_.wait(lock, [this] { return over_; });
  header_.served.store(0, std::memory_order_release);
  STEPSTASH_CRASH_POINT("shm.served.ended");
  list.head.list.next = &list.head.list;  // an empty list: its memory may be freed before this thread ends
}

}  // namespace stepstash::shm
