// SPDX-License-Identifier: Apache-2.0
// `set` with a file whose size changes between the moment at which it is told and the end of its reading, by the
// command and by the library. They run against a daemon of the test's own, which knows when that moment has passed:
// when the set is announced.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <fstream>
#include <mutex>
#include <stepstash/client.hpp>
#include <utility>

#include "tests/support/fake_daemon.hpp"

namespace stepstash::cli {
namespace {

using test::FakeDaemon;
using Peer = FakeDaemon::Peer;

constexpr std::size_t kRing = 64 * 1024;

std::string pattern(std::size_t bytes) {
  std::string out(bytes, 0);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = static_cast<char>(i * 2654435761u >> 11);
  return out;
}

bool set_by_the_command(const std::string& socket, const std::string& path) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::execl(STEPSTASH_CLI_PATH, "stepstash", "set", "7", "n", path.c_str(), "--socket", socket.c_str(), nullptr);
    ::_exit(99);
  }
  int status = 0;
  return ::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool set_by_the_library(const std::string& socket, const std::string& path) {
  Client client(socket);
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  try {
    return client.set_fd(7, "n", fd.get()).has_value();
  } catch (const Error& error) {
    BOOST_TEST_MESSAGE(error.what());
    return false;
  }
}

void write_file(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(input)

BOOST_DATA_TEST_CASE(a_file_that_grows_or_shrinks_while_it_is_read_is_set_as_it_is_then,
                     boost::unit_test::data::make({100, 70'000, 299'999, 300'001, 900'000}) *
                         boost::unit_test::data::make({"command", "library"}),
                     then, by) {
  const test::TempDir directory;
  const std::string path = directory.file("input");
  write_file(path, pattern(300'000));
  const std::string expected = pattern(static_cast<std::size_t>(then));
  test::FakeSegment segment(1);
  std::mutex mutex;
  std::vector<std::uint64_t> announced;
  std::string value = "(nothing was set)";
  FakeDaemon daemon;
  daemon.serve([&](Peer& peer) {
    FakeDaemon::greet(peer, segment);
    UniqueFd ring;
    shm::Mapping mapping;
    std::string staged;
    for (;;) {
      const auto request = peer.read();
      const std::lock_guard lock(mutex);
      if (const auto* begin = std::get_if<protocol::SetBegin>(&request)) {
        if (announced.empty()) write_file(path, expected);  // its size has been asked for, and nothing was read
        announced.push_back(begin->length);
        staged.clear();
        protocol::SetReady ready{kRing, kRing / 4, !ring};
        if (ring) {
          peer.send(ready);
          continue;
        }
        ring = test::make_ring(kRing);
        mapping = shm::Mapping::map(ring.get(), kRing, shm::Mapping::Access::read_only).value();
        peer.send(ready, {ring.get()});
      } else if (const auto* piece = std::get_if<protocol::Piece>(&request)) {
        staged.append(reinterpret_cast<const char*>(mapping.data()) + piece->ring_offset, piece->bytes);
        peer.send(protocol::PieceDone{staged.size()});
      } else if (const auto* set = std::get_if<protocol::Set>(&request)) {
        value.assign(reinterpret_cast<const char*>(set->value.data()), set->value.size());
        peer.send(protocol::SetOk{1, 2});
      } else if (std::holds_alternative<protocol::SetCommit>(request)) {
        value = staged;
        peer.send(protocol::SetOk{1, 2});
      } else {
        peer.send(protocol::Done{});
      }
    }
  });
  const bool command = std::string_view(by) == "command";
  BOOST_TEST((command ? set_by_the_command(daemon.socket(), path) : set_by_the_library(daemon.socket(), path)));
  const std::lock_guard lock(mutex);
  BOOST_TEST((value == expected), "a value of " << value.size() << " bytes");
  BOOST_TEST_REQUIRE(!announced.empty());
  BOOST_TEST(announced[0] == 300'000u);  // the announced length, used at first
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace stepstash::cli
