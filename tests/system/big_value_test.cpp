// SPDX-License-Identifier: Apache-2.0
// One value beyond SQLite's 10^9 bytes: streamed in, written to the database, and reloaded after a cold start.
//
// Needs 2.5 GB of disk and 1.1 GB of /dev/shm, and some seconds. Exit status 77 means that the machine lacks the space.
#include <sys/statvfs.h>

#include <cstdio>
#include <exception>
#include <stdexcept>

#include "shm/hash.hpp"
#include "tests/support/harness.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

constexpr std::uint64_t kBytes = 1'000'000'000 + 12'345;

std::uint64_t free_bytes(const char* path) {
  struct statvfs status {};
  return ::statvfs(path, &status) == 0 ? status.f_bavail * status.f_frsize : 0;
}

struct Failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check(bool right, const char* what) {
  if (!right) throw Failed(what);
}

int run_test() {
  DaemonProcess daemon({"--segment-size=2GiB", "--max-dirty=2GiB"});
  if (free_bytes("/dev/shm") < kBytes + 200 * kMiB || free_bytes(daemon.directory().path().c_str()) < 3 * kBytes) {
    std::printf("skipped: /dev/shm or %s has too little room\n", daemon.directory().path().c_str());
    return 77;
  }
  daemon.start();
  shm::StreamHash hash;
  std::uint64_t id = 0;
  {
    Client client(daemon.socket(), 120s);
    auto writer = client.begin(1, "big", kBytes, "generated");
    for (std::uint64_t at = 0; at < kBytes;) {
      auto room = writer->buffer();
      room = room.first(std::min<std::uint64_t>(room.size(), kBytes - at));
      generate(room, 1, at);
      hash.update(room);
      writer->advance(room.size());
      at += room.size();
    }
    id = writer->commit()->id;
    client.set(1, "small", "beside it");
    client.flush(300s);
    check(query(daemon.db(), "SELECT length FROM build_data WHERE name = 'big'") == kBytes, "the row tells its length");
  }
  check(daemon.terminate() == 0, "the daemon ends well");
  daemon.remove_segment();
  daemon.start();
  Client client(daemon.socket(), 300s);
  const auto stat = client.stat(1, "big");
  check(stat && stat->length() == kBytes && stat->id() == id, "stat knows it before it is loaded");
  check(figure(client, "values_resident") == 0, "nothing was loaded at the start");
  const auto view = client.get(1, "big");
  check(view.has_value(), "it is there");
  check(view->length() == kBytes && view->source() == "generated", "it is whole");
  shm::StreamHash found;
  found.update(view->bytes());
  check(found.digest() == hash.digest(), "its bytes are those that were set");
  check(client.get(1, "small")->text() == "beside it", "others are there, too");
  check(client.drop(1) == 2, "it can be dropped");
  client.flush(300s);
  check(query(daemon.db(), "SELECT count(*) FROM build_data") == 0, "its row is gone");
  return 0;
}

}  // namespace

int main() {
  try {
    return run_test();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "failed: %s\n", error.what());
    return 1;
  }
}
