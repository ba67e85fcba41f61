// SPDX-License-Identifier: Apache-2.0
#include "bench/world.hpp"

#include <unistd.h>

#include <thread>

#include "bench/support.hpp"

namespace stepstash::bench {
namespace {

World* the_world = nullptr;

void await_socket(const std::string& path) {
  for (int i = 0; i < 1000 && ::access(path.c_str(), F_OK) != 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

}  // namespace

World::World()
    : daemon(directories, "main", "2GiB"),
      client(daemon.connect()),
      redis_socket(directories.shm + "/redis.socket"),
      memcached_socket(directories.shm + "/memcached.socket") {
  // Redis' server, checker of dumps and checker of logs are one program, which goes by its name. Debian has it under
  // that of a checker in redis-tools, a package that starts no service.
  if (installed("redis-check-rdb")) {
    redis_ = Process("redis-check-rdb",
                     {"redis-server", "--port", "0", "--unixsocket", redis_socket, "--save", "", "--appendonly", "no",
                      "--dir", directories.disk},
                     directories.disk + "/redis.log");
    await_socket(redis_socket);
  }
  if (installed("memcached")) {
    std::vector<std::string> arguments = {"memcached", "-s", memcached_socket, "-m", "3072", "-I", "300m"};
    if (::geteuid() == 0) arguments.insert(arguments.end(), {"-u", "root"});
    memcached_ = Process("memcached", arguments, directories.disk + "/memcached.log");
    await_socket(memcached_socket);
  }
  the_world = this;
}

World& World::get() {
  require(the_world != nullptr, "no world was made");
  return *the_world;
}

}  // namespace stepstash::bench
