// SPDX-License-Identifier: Apache-2.0
#include "daemon/page_reserve.hpp"

#include <fcntl.h>
#include <unistd.h>

#include "shm/layout.hpp"

namespace stepstash::daemon {

PageReserve::PageReserve(const std::string& directory)
    : file_(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)) {
  refill();
}

bool PageReserve::free_page() {
  if (bytes_ == 0) return false;
  bytes_ -= shm::kPageBytes;
  return ::ftruncate(file_.get(), static_cast<off_t>(bytes_)) == 0;
}

void PageReserve::refill() {
  constexpr std::uint64_t kFull = kPages * shm::kPageBytes;
  if (bytes_ == kFull || !file_) return;
  if (::posix_fallocate(file_.get(), 0, static_cast<off_t>(kFull)) == 0) bytes_ = kFull;
}

}  // namespace stepstash::daemon
