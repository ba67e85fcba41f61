// SPDX-License-Identifier: Apache-2.0
#include "shm/mapping.hpp"

#include <sys/mman.h>

#include <boost/interprocess/exceptions.hpp>
#include <cstring>
#include <new>
#include <utility>

namespace stepstash::shm {
namespace {

namespace bi = boost::interprocess;

/// The interface that mapped_region requires of a mappable object. Borrows the descriptor.
class BorrowedFd {
 public:
  explicit BorrowedFd(int fd) noexcept : handle_{fd, false} {}
  bi::mapping_handle_t get_mapping_handle() const noexcept { return handle_; }

 private:
  bi::mapping_handle_t handle_;
};

}  // namespace

Result<Mapping> Mapping::map(int fd, std::size_t bytes, Access access) {
  try {
    Mapping mapping;
    bi::mapped_region region(BorrowedFd(fd), access == Access::read_only ? bi::read_only : bi::read_write, 0, bytes);
    mapping.region_.swap(region);
    ::madvise(mapping.data(), mapping.size(), MADV_DONTDUMP);  // best effort: not every kernel has it
    return mapping;
  } catch (const bi::interprocess_exception& e) {
    return std::error_code(e.get_native_error(), std::system_category());
  }
}

bool Mapping::inherit(bool inherited) noexcept {
  return ::madvise(data(), size(), inherited ? MADV_DOFORK : MADV_DONTFORK) == 0;
}

bool Mapping::replace_by_zeros() noexcept {
  // Maps over the existing range, so that RLIMIT_AS does not count it twice. Atomic for all threads: a page fault in
  // between waits in the kernel.
  constexpr int kFlags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  if (::mmap(data(), size(), PROT_READ, kFlags, -1, 0) == MAP_FAILED) return false;
  ::madvise(data(), size(), MADV_DONTFORK);
  return true;
}

bool Mapping::replace(std::span<const std::byte> content) noexcept {
  void* fresh = ::mmap(nullptr, size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (fresh == MAP_FAILED) return false;
  std::memcpy(fresh, content.data(), content.size());
  ::madvise(fresh, size(), MADV_DONTFORK);
  // Atomic for all threads, content included: a page fault in between waits in the kernel.
  if (::mremap(fresh, size(), size(), MREMAP_MAYMOVE | MREMAP_FIXED, data()) != MAP_FAILED) return true;
  ::munmap(fresh, size());
  return false;
}

void Mapping::forget() noexcept {
  // The only way to keep a mapped_region from unmapping is never to destroy it.
  alignas(boost::interprocess::mapped_region) std::byte kept[sizeof(boost::interprocess::mapped_region)];
  new (kept) boost::interprocess::mapped_region(std::move(region_));
}

}  // namespace stepstash::shm
