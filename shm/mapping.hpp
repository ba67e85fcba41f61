/// Owner of one mapping of a descriptor, made by Boost.Interprocess. Moved-from is empty.
#pragma once

#include <boost/interprocess/mapped_region.hpp>
#include <cstddef>
#include <cstdint>

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

 private:
  boost::interprocess::mapped_region region_;
};

}  // namespace stepstash::shm
