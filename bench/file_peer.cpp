// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "bench/peers.hpp"

namespace stepstash::bench {

File::File() {
  const std::string path = World::get().directories.shm + "/files";
  ::mkdir(path.c_str(), 0700);
  directory_ = ::open(path.c_str(), O_DIRECTORY | O_RDONLY | O_CLOEXEC);
  require(directory_ >= 0, "cannot open " + path);
}
File::~File() { ::close(directory_); }

void File::get(const Key& key) {
  const int file = ::openat(directory_, key.name, O_RDONLY | O_CLOEXEC);
  struct stat status;
  require(file >= 0 && ::fstat(file, &status) == 0, "file: open");
  const auto size = static_cast<std::size_t>(status.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0);
  require(data != MAP_FAILED, "file: mmap");
  ::close(file);
  benchmark::DoNotOptimize(data);
  ::munmap(data, size);
}

void File::set(const Key& key, std::span<const char> bytes) {
  const int file = ::openat(directory_, "new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  require(file >= 0, "file: create");
  while (!bytes.empty()) {
    const ssize_t written = ::write(file, bytes.data(), bytes.size());
    require(written > 0, "file: write");
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  ::close(file);
  require(::renameat(directory_, "new", directory_, key.name) == 0, "file: rename");
}

}  // namespace stepstash::bench
