// SPDX-License-Identifier: Apache-2.0
// Programs started with 0, 1 or 2 closed, in every combination: none of our descriptors may take those numbers, because
// output would go there.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <boost/test/unit_test.hpp>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/system/command.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

constexpr unsigned kAll = 8;  // combinations
constexpr unsigned kOut = 1U << STDOUT_FILENO;
constexpr unsigned kIn = 1U << STDIN_FILENO;

/// The request to drop build 7, as the bytes of a value: docs/protocol.md.
const std::string kDropSeven("\x08\0\0\0\x0c\0\0\0\x07\0\0\0\0\0\0\0", 16);

/// Whether all of 0, 1 and 2 that are in `closed` are closed now.
bool still_closed(unsigned closed) {
  for (int fd = 0; fd <= 2; ++fd) {
    if ((closed >> fd & 1U) != 0 && (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF)) return false;
  }
  return true;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(descriptors)

BOOST_AUTO_TEST_CASE(what_a_command_prints_goes_to_its_output_or_nowhere) {
  Command served;
  const std::string large = generated(3 * kMiB, 4);
  std::ofstream(served.file("large"), std::ios::binary) << large;
  BOOST_TEST_REQUIRE(served.cli({"set", "1", "drop"}, {.input = kDropSeven}).status == 0);
  BOOST_TEST_REQUIRE(served.cli({"set", "1", "large", served.file("large")}).status == 0);
  BOOST_TEST_REQUIRE(served.cli({"set", "7", "v"}, {.input = "v"}).status == 0);
  const std::vector<std::vector<std::string>> printing = {{"get", "1", "drop"},
                                                          {"get", "1", "large"},
                                                          {"stat", "1", "drop"},
                                                          {"stat", "1", "large", "--json"},
                                                          {"list", "1"},
                                                          {"stats"},
                                                          {"stats", "--json"},
                                                          {"doctor"},
                                                          {"drop", "8"},
                                                          {"--help"},
                                                          {"--version"},
                                                          {"prune", "--older-than", "1"},
                                                          {"get", "1", "drop", "-o", "/dev/stdout"}};
  for (unsigned closed = 0; closed < kAll; ++closed) {
    for (const auto& words : printing) {
      const Outcome outcome = served.cli(words, {.closed = closed});
      BOOST_TEST_CONTEXT("closed " << closed << ": " << words[0] << " " << words.back() << ": " << outcome.err) {
        if ((closed & kOut) == 0) {
          BOOST_TEST(outcome.status == 0);
          BOOST_TEST(!outcome.out.empty());
        } else if (words.back() == "/dev/stdout") {
          BOOST_TEST((outcome.status == 73 || outcome.status == 74), outcome.status);
        } else {
          BOOST_TEST(outcome.status == 74);
        }
      }
    }
    const std::vector<std::vector<std::string>> silent = {{"set", "2", "from file", served.file("large")},
                                                          {"get", "1", "large", "-o", served.file("out")},
                                                          {"finish", "2"},
                                                          {"hold", "2"},
                                                          {"unhold", "2"},
                                                          {"flush"}};
    for (const auto& words : silent) {
      const Outcome outcome = served.cli(words, {.closed = closed});
      BOOST_TEST(outcome.status == 0, "closed " << closed << ": " << words[0] << ": " << outcome.err);
    }
    BOOST_TEST((content(served.file("out")) == large));
    const Outcome outcome = served.cli({"set", "3", "from input"}, {.input = "value", .closed = closed});
    BOOST_TEST(outcome.status == ((closed & kIn) != 0 ? 74 : 0), outcome.err);
    BOOST_TEST(served.cli({"get", "3", "from input"}).status == ((closed & kIn) != 0 ? 1 : 0));
    served.cli({"drop", "3"});
    BOOST_TEST(served.cli({"get", "7", "v"}).out == "v");
  }
  BOOST_TEST(std::filesystem::is_symlink("/dev/stdout"));  // the machine's own name, not its target
}

BOOST_AUTO_TEST_CASE(a_daemon_opens_nothing_on_its_standard_descriptors) {
  for (unsigned closed = 0; closed < kAll; ++closed) {
    BOOST_TEST_CONTEXT("closed " << closed) {
      DaemonProcess daemon({"--flush-interval=10ms"});
      daemon.close_standard(closed);
      daemon.start();
      {
        Client client(daemon.socket());
        client.set(1, "small", "value");
        client.set(1, "large", generated(2 * kMiB, closed));
        client.flush();
        BOOST_TEST(is_generated(client.get(1, "large")->bytes(), 2 * kMiB, closed));
        for (int fd = 0; fd <= 2; ++fd) {
          const std::string place = "/proc/" + std::to_string(daemon.pid()) + "/fd/" + std::to_string(fd);
          const std::string target = std::filesystem::read_symlink(place);
          const std::string given = fd == 0 ? "/dev/null" : daemon.directory().file("daemon.log");
          BOOST_TEST(target == ((closed >> fd & 1U) != 0 ? "/" : given));
        }
      }
      daemon.kill();
      daemon.start();
      BOOST_TEST(Client(daemon.socket()).get(1, "small")->text() == "value");
      BOOST_TEST(daemon.terminate() == 0);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_daemon_that_cannot_print_what_it_was_asked_for_says_so) {
  for (const char* option : {"--help", "--version", "--print-config", "--check-config"}) {
    const std::vector<std::string> words = {DaemonProcess::program(), option, "--config=/dev/null"};
    BOOST_TEST(run(words).status == 0);
    const Outcome closed = run(words, {.closed = kOut});
    BOOST_TEST(closed.status == 74, option);
    BOOST_TEST(contains(closed.err, "standard output"), closed.err);
    BOOST_TEST(run(words, {.out_path = "/dev/full"}).status == 74, option);
  }
}

BOOST_AUTO_TEST_CASE(the_library_keeps_off_its_programs_standard_descriptors) {
  Served served;
  served.client.set(7, "v", "v");
  const std::string file = served.daemon.directory().file("file");
  std::ofstream(file, std::ios::binary) << generated(kMiB, 9);
  for (unsigned closed = 1; closed < kAll; ++closed) {
    Child child([&] {
      for (int fd = 0; fd <= 2; ++fd) {
        if ((closed >> fd & 1U) != 0) ::close(fd);
      }
      // Attaches, maps a ring, sets from a file of this program (possibly descriptor 0), waits, reconnects after a
      // fork.
      Client client(served.daemon.socket());
      if (!still_closed(closed)) return 1;
      client.set(1, "small", kDropSeven);
      client.set(1, "large", generated(2 * kMiB, closed));
      if (!still_closed(closed)) return 2;
      const int own = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
      client.set_fd(1, "file", own);
      ::close(own);
      if (!still_closed(closed)) return 3;
      {
        const auto view = client.get(1, "small");
        if (!view || view->text() != kDropSeven) return 4;
        if ((closed & kOut) != 0 && ::write(STDOUT_FILENO, view->text().data(), view->length()) >= 0) return 5;
      }
      if (!client.get(1, "file") || client.list(1).size() != 3) return 6;
      Child grandchild([&] {
        client.set(2, "from a grandchild", generated(kMiB, 3));
        return still_closed(closed) ? 0 : 7;
      });
      if (const int status = grandchild.join(); status != 0) return status;
      return still_closed(closed) ? 0 : 8;
    });
    BOOST_TEST(child.join() == 0, "closed " << closed);
    BOOST_TEST(served.client.get(7, "v").has_value());
  }
}

BOOST_AUTO_TEST_SUITE_END()
