// SPDX-License-Identifier: Apache-2.0
/// Owner of one mapping of a descriptor, made by Boost.Interprocess. Moved-from is empty.
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

  /// Maps `bytes` bytes of `fd` shared, from its start. The descriptor may be closed afterwards.
  /// The mapping is left out of core dumps (MADV_DONTDUMP): they would hold every build's values.
  /// Errors: those of mmap(2).
  static Result<Mapping> map(int fd, std::size_t bytes, Access access);

  std::byte* data() const noexcept { return static_cast<std::byte*>(region_.get_address()); }
  std::size_t size() const noexcept { return region_.get_size(); }

  /// Whether a child of fork(2) gets it, too. At first it does. False when the kernel does not take the advice.
  bool inherit(bool inherited) noexcept;
  /// Puts zeros in its place, which can be read only, and need no other addresses and no memory. The object is given
  /// back, and every address stays valid, also for threads that look there meanwhile. False when the kernel refuses (a
  /// limit has been lowered); then nothing has changed.
  bool replace_by_zeros() noexcept;
  /// The same with a copy of `content`, as long as the mapping and a page at most, that can be written. Needs room for
  /// one page more: RLIMIT_AS and vm.max_map_count may refuse that.
  bool replace(std::span<const std::byte> content) noexcept;
  /// Owns nothing any more, and leaves the addresses alone: in a child that did not inherit it.
  void forget() noexcept;

 private:
  boost::interprocess::mapped_region region_;
};

}  // namespace stepstash::shm
