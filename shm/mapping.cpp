#include "shm/mapping.hpp"

#include <sys/mman.h>

#include <boost/interprocess/exceptions.hpp>

namespace stepstash::shm {
namespace {

namespace bi = boost::interprocess;

/// What mapped_region asks of a mappable object: a handle. It is borrowed.
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
    ::madvise(mapping.data(), mapping.size(), MADV_DONTDUMP);  // advice: a kernel without it serves all the same
    return mapping;
  } catch (const bi::interprocess_exception& e) {
    return std::error_code(e.get_native_error(), std::system_category());
  }
}

}  // namespace stepstash::shm
