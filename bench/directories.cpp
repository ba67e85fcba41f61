// SPDX-License-Identifier: Apache-2.0
#include "bench/directories.hpp"

#include <cstdlib>
#include <filesystem>

#include "bench/support.hpp"

namespace stepstash::bench {
namespace {

std::string make_below(const char* variable, const char* otherwise) {
  const char* parent = std::getenv(variable);
  std::string path = std::string(parent != nullptr ? parent : otherwise) + "/stepstash-bench.XXXXXX";
  require(::mkdtemp(path.data()) != nullptr, "cannot make a directory " + path);
  return path;
}

const char* temporary() {
  const char* path = std::getenv("TMPDIR");
  return path != nullptr ? path : "/tmp";
}

}  // namespace

Directories::Directories()
    : shm(make_below("STEPSTASH_BENCH_SHM", "/dev/shm")), disk(make_below("STEPSTASH_BENCH_DISK", temporary())) {}

Directories::~Directories() {
  std::error_code ignored;
  std::filesystem::remove_all(shm, ignored);
  std::filesystem::remove_all(disk, ignored);
}

}  // namespace stepstash::bench
