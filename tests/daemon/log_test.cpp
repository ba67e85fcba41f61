// SPDX-License-Identifier: Apache-2.0
// The log: a writer waits for nobody, and the number of dropped lines is logged.
#include "daemon/log.hpp"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <csignal>
#include <string>
#include <thread>

#include "base/unique_fd.hpp"

using namespace stepstash;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kPipeBytes = 4096;

/// A log into a pipe of 4 KiB, which keeps 10 KiB of lines back.
struct Piped {
  Piped() {
    int ends[2];
    BOOST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    read.reset(ends[0]);
    write.reset(ends[1]);
    ::fcntl(write.get(), F_SETPIPE_SZ, static_cast<int>(kPipeBytes));
    sink = std::make_shared<daemon::LogWriter>(write.get(), 10'000);
    logger = std::make_shared<spdlog::logger>("test", sink);
    logger->set_pattern("<%l> %v");
  }
  ~Piped() {
    logger.reset();
    sink.reset();
    ::close(read.release());
    // The writer's thread is none of ours, and may be about to use this descriptor: it stays open.
    (void)write.release();
  }
  std::string take(std::size_t bytes) {
    std::string text(bytes, '\0');
    std::size_t at = 0;
    while (at < bytes) {
      const ssize_t got = ::read(read.get(), text.data() + at, bytes - at);
      BOOST_REQUIRE(got > 0);
      at += static_cast<std::size_t>(got);
    }
    return text;
  }
  std::string line() {
    std::string text;
    do text += take(1);
    while (text.back() != '\n');
    return text;
  }

  UniqueFd read, write;
  std::shared_ptr<daemon::LogWriter> sink;
  std::shared_ptr<spdlog::logger> logger;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(log_lines)

BOOST_FIXTURE_TEST_CASE(lines_come_in_order_and_whole, Piped) {
  for (int i = 0; i < 100; ++i) logger->info("line {}", i);
  for (int i = 0; i < 100; ++i) BOOST_TEST(line() == "<info> line " + std::to_string(i) + "\n");
  BOOST_TEST(sink->wait_written(10s));
  BOOST_TEST(sink->dropped() == 0u);
}

BOOST_FIXTURE_TEST_CASE(a_pipe_that_nobody_reads_keeps_nobody_waiting, Piped) {
  const std::string long_line(500, 'x');
  // Full from the beginning: otherwise lines come and go while others are dropped.
  BOOST_REQUIRE(::write(write.get(), std::string(kPipeBytes, '-').data(), kPipeBytes) == ssize_t{kPipeBytes});
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 1000; ++i) logger->warn("{} {}", i, long_line);
  BOOST_TEST((std::chrono::steady_clock::now() - start < 5s));
  BOOST_TEST(!sink->wait_written(50ms));
  const std::uint64_t dropped = sink->dropped();
  BOOST_TEST(dropped > 900u);
  // Somebody reads again: what was kept comes, and then how many did not.
  BOOST_TEST(take(kPipeBytes) == std::string(kPipeBytes, '-'));
  int kept = 0;
  for (std::uint64_t i = 0; i < 1000 - dropped; ++i, ++kept)
    BOOST_TEST(line().starts_with("<warning> " + std::to_string(i) + " "));
  BOOST_TEST(sink->wait_written(10s));
  logger->error("after");
  BOOST_TEST(line() == "<warning> " + std::to_string(dropped) + " lines of this log were dropped: nobody took them\n");
  BOOST_TEST(line() == "<error> after\n");
  logger->error("and once only");
  BOOST_TEST(line() == "<error> and once only\n");
  BOOST_TEST(sink->dropped() == dropped);
}

BOOST_FIXTURE_TEST_CASE(lines_that_nobody_will_read_are_counted, Piped) {
  struct sigaction ignore {
  }, former{};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &ignore, &former);
  read.reset();
  logger->info("into nothing");
  BOOST_TEST(sink->wait_written(10s));
  BOOST_TEST(sink->dropped() == 1u);
  ::sigaction(SIGPIPE, &former, nullptr);
}

BOOST_FIXTURE_TEST_CASE(a_non_blocking_pipe_loses_nothing_that_is_read_in_the_end, Piped) {
  ::fcntl(write.get(), F_SETFL, O_NONBLOCK);
  const std::string long_line(2000, 'x');
  for (int i = 0; i < 4; ++i) logger->info("{} {}", i, long_line);
  BOOST_TEST(!sink->wait_written(50ms));
  for (int i = 0; i < 4; ++i) BOOST_TEST(line() == "<info> " + std::to_string(i) + " " + long_line + "\n");
  BOOST_TEST(sink->wait_written(10s));
  BOOST_TEST(sink->dropped() == 0u);
}

BOOST_AUTO_TEST_SUITE_END()
