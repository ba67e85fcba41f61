// SPDX-License-Identifier: Apache-2.0
/// Makes allocations and disk I/O fail on request in daemons that are started while it exists (faults.c, which is
/// preloaded). Not with a sanitizer, which has its own allocator.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "base/unique_fd.hpp"
#include "tests/support/temp_dir.hpp"

namespace stepstash::test {

class Faults {
 public:
  Faults() {
    const std::string path = directory_.file("control");
    const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!fd || ::ftruncate(fd.get(), sizeof(Control)) != 0) throw std::runtime_error(path);
    void* at = ::mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (at == MAP_FAILED) throw std::runtime_error("mmap");
    control_ = static_cast<Control*>(at);
    ::setenv("LD_PRELOAD", STEPSTASH_FAULTS_PATH, 1);
    ::setenv("FAULTS_CONTROL", path.c_str(), 1);
  }
  ~Faults() {
    ::unsetenv("LD_PRELOAD");
    ::unsetenv("FAULTS_CONTROL");
    ::munmap(control_, sizeof(Control));
  }
  Faults(const Faults&) = delete;
  Faults& operator=(const Faults&) = delete;

  /// From now on the `nth` allocation fails. 0: none does.
  void fail_allocation(long nth) {
    control_->fail_at = 0;
    control_->allocations = 0;
    control_->fail_at = nth;
  }
  /// Allocations since the last call of fail_allocation().
  long allocations() const { return control_->allocations; }
  /// The errno of writes to the database; 0: they succeed.
  void fail_io(int error) { control_->io_errno = error; }
  /// The errno of reads from it, after `reads` successful ones.
  void fail_reads(int error, long reads = 0) {
    control_->reads_left = reads;
    control_->read_errno = error;
  }
  /// The errno of rename(2); -1: it blocks.
  void fail_renames(int error) { control_->rename_errno = error; }

 private:
  struct Control {
    std::atomic<long> allocations, fail_at, io_errno, read_errno, reads_left, rename_errno;
  };
  TempDir directory_;
  Control* control_ = nullptr;
};

}  // namespace stepstash::test
