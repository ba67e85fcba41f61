// SPDX-License-Identifier: Apache-2.0
/// Owns one mapping of a descriptor, made by Boost.Interprocess. Moved-from is empty.
#pragma once

#include <boost/interprocess/mapped_region.hpp>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.hpp"

namespace stepstash::shm {

class Mapping {
 public:
  enum class Access { read_only, read_write };

  Mapping() noexcept = default;

  /// Maps `bytes` bytes of `fd` shared, from its start. The descriptor may be closed afterwards. The mapping is
  /// excluded from core dumps (MADV_DONTDUMP), which would otherwise contain every build's values. Errors: those of
  /// mmap(2).
  static Result<Mapping> map(int fd, std::size_t bytes, Access access);

  std::byte* data() const noexcept { return static_cast<std::byte*>(region_.get_address()); }
  std::size_t size() const noexcept { return region_.get_size(); }

  /// Sets whether a child of fork(2) inherits it; the default is yes. Returns false if the kernel refuses the advice.
  bool inherit(bool inherited) noexcept;
  /// Replaces the mapping in place with read-only zero pages, which need no other addresses and no memory. Releases the
  /// object; every address stays valid, also for threads that read there concurrently. Returns false if the kernel
  /// refuses (a limit was lowered); nothing has changed then.
  bool replace_by_zeros() noexcept;
  /// The same with a writable copy of `content`, which is as long as the mapping and at most one page. Needs room for
  /// one more page, which RLIMIT_AS and vm.max_map_count may refuse.
  bool replace(std::span<const std::byte> content) noexcept;
  /// Releases ownership without unmapping: for a child that did not inherit the mapping.
  void forget() noexcept;

 private:
  boost::interprocess::mapped_region region_;
};

}  // namespace stepstash::shm
