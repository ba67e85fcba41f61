// SPDX-License-Identifier: Apache-2.0
/// Everything that runs while rows are measured. main makes it before the first row and ends it after the last.
#pragma once

#include <memory>
#include <string>

#include "bench/daemon.hpp"
#include "bench/directories.hpp"
#include "bench/process.hpp"

namespace stepstash::bench {

struct World {
  World();
  static World& get();  ///< the one that main made

  Directories directories;
  Daemon daemon;
  Client client;  ///< used by all threads: the library allows that
  std::string redis_socket;
  std::string memcached_socket;
  /// The daemon with a million entries; fill_many makes it, when the first row asks for it.
  std::unique_ptr<Daemon> many;

 private:
  Process redis_;
  Process memcached_;
};

}  // namespace stepstash::bench
