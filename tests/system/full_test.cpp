// SPDX-License-Identifier: Apache-2.0
// A segment full of values that the database does not accept: sets wait, then fail with numbers; freeing is never
// refused (I9).
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <regex>
#include <thread>

#include "tests/support/harness.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace stepstash::test {

/// A daemon whose segment is full of values that its database does not accept.
struct Full {
  explicit Full(const std::string& max_dirty) : daemon({"--segment-size=8MiB", "--flush-interval=10ms", max_dirty}) {
    daemon.start();
    Client client(daemon.socket());
    client.set(1, "flushed", "value");
    client.finish(1, epoch(1000));
    client.flush();
    lock = std::make_unique<WriteLock>(daemon.db());
    try {
      for (std::uint64_t i = 0; i < 20; ++i) {
        client.set(2 + static_cast<std::int64_t>(i) % 2, std::to_string(i), generated(kMiB, i), "",
                   {.deadline = kFullAfter});
        ++values;
      }
    } catch (const Error& error) {
      code = error.code();
      message = error.what();
    }
  }
  DaemonProcess daemon;
  std::unique_ptr<WriteLock> lock;
  std::uint64_t values = 0;
  int code = 0;
  std::string message;
};

}  // namespace stepstash::test

namespace {

const auto kBothLimits = boost::unit_test::data::make({"--max-dirty=8MiB", "--max-dirty=3MiB"});

std::size_t numbers_in(const std::string& text) {
  static const std::regex number("[0-9]+");
  return static_cast<std::size_t>(
      std::distance(std::sregex_iterator(text.begin(), text.end(), number), std::sregex_iterator()));
}

}  // namespace

BOOST_AUTO_TEST_SUITE(full)

BOOST_DATA_TEST_CASE(a_set_waits_for_room_until_its_deadline_and_then_says_what_is_full, kBothLimits, max_dirty) {
  Full full(max_dirty);
  BOOST_TEST(full.code == STEPSTASH_EFULL);
  BOOST_TEST(full.values >= 3u);
  BOOST_TEST(full.message.find(std::to_string(kMiB)) != full.message.npos, full.message);  // what was wanted
  BOOST_TEST(numbers_in(full.message) >= 5u, full.message);
  Client client(full.daemon.socket());
  const auto start = std::chrono::steady_clock::now();
  BOOST_CHECK_THROW(client.set(2, "more", generated(2 * kMiB, 1), "", {.deadline = 400ms}), Error);
  const auto waited = std::chrono::steady_clock::now() - start;
  BOOST_TEST((waited >= 400ms));
  BOOST_TEST((waited < 5s));
  BOOST_TEST(!client.get(2, "more"));
  BOOST_TEST(eventually([&] { return figure(client, "flush_errors") > 0; }));
  BOOST_TEST(!stats(client).at("last_flush_error").get<std::string>().empty());

  const Outcome outcome =
      run({STEPSTASH_CLI_PATH, "set", "--socket", full.daemon.socket(), "--timeout", "300ms", "2", "x"},
          {.input = generated(2 * kMiB, 1)});
  BOOST_TEST(outcome.status == 75);
  BOOST_TEST(numbers_in(outcome.err) >= 5u, outcome.err);
}

BOOST_DATA_TEST_CASE(a_set_that_waits_for_room_succeeds_when_the_database_takes_values_again, kBothLimits, max_dirty) {
  Full full(max_dirty);
  Client client(full.daemon.socket());
  Worker waiting([&] {
    Client setter(full.daemon.socket());
    setter.set(2, "waited", generated(2 * kMiB, 99), "", {.deadline = 60s});
  });
  BOOST_TEST(eventually([&] { return figure(client, "connections") >= 2; }));
  BOOST_TEST(!client.get(2, "waited"));
  full.lock.reset();
  waiting.join();
  BOOST_TEST(is_generated(client.get(2, "waited")->bytes(), 2 * kMiB, 99));
  BOOST_TEST(eventually([&] { return figure(client, "dirty_bytes") == 0; }));
  BOOST_TEST(stats(client).at("last_flush_error").get<std::string>().empty());
  for (std::uint64_t i = 0; i < full.values; ++i) {
    BOOST_TEST(is_generated(client.get(2 + static_cast<std::int64_t>(i) % 2, std::to_string(i))->bytes(), kMiB, i));
  }
}

BOOST_DATA_TEST_CASE(freeing_is_not_refused, kBothLimits, max_dirty) {
  Full full(max_dirty);
  Client client(full.daemon.socket());
  client.finish(2, epoch(1000));
  client.finish(12345);  // of which nothing exists
  client.hold(3);
  client.unhold(3);
  const std::uint64_t used = figure(client, "segment.used_bytes");
  BOOST_TEST(client.prune(epoch(1001)) == 1 + (full.values + 1) / 2);
  BOOST_TEST(figure(client, "segment.used_bytes") < used);  // at once
  BOOST_TEST(!client.get(1, "flushed"));
  BOOST_TEST(client.drop(3) == full.values / 2);
  BOOST_TEST(figure(client, "dirty_bytes") == 0u);
  client.set(4, "there is room again", generated(2 * kMiB, 5), "", {.deadline = 5s});
  full.lock.reset();
  client.flush();
  BOOST_TEST(query(full.daemon.db(), "SELECT count(*) FROM build_data") == 1);
}

BOOST_AUTO_TEST_CASE(what_could_not_be_flushed_survives_the_end_of_the_daemon) {
  Full full("--max-dirty=8MiB");
  full.daemon.kill();
  full.lock.reset();
  full.daemon.start();
  Client client(full.daemon.socket());
  client.flush();
  BOOST_TEST(query(full.daemon.db(), "SELECT count(*) FROM build_data") == 1 + static_cast<std::int64_t>(full.values));
}

BOOST_AUTO_TEST_CASE(a_durable_set_says_when_the_database_does_not_take_it) {
  DaemonProcess daemon({"--flush-interval=10ms"});
  daemon.start();
  Client client(daemon.socket());
  auto lock = std::make_unique<WriteLock>(daemon.db());
  std::string message;
  try {
    client.set(1, "v", "value", "", {.durable = true, .deadline = 300ms});
  } catch (const Error& error) {
    BOOST_TEST((error.code() == STEPSTASH_EIO || error.code() == STEPSTASH_EDEADLINE));
    message = error.what();
  }
  BOOST_TEST(!message.empty());
  BOOST_TEST(client.get(1, "v")->text() == "value");  // it is set, and will be written
  lock.reset();
  BOOST_TEST(eventually([&] { return query(daemon.db(), "SELECT count(*) FROM build_data") == 1; }));
}

BOOST_AUTO_TEST_CASE(a_value_that_can_never_fit_is_refused_at_once_with_both_sizes) {
  DaemonProcess daemon({"--segment-size=8MiB"});
  daemon.start();
  Client client(daemon.socket());
  const std::uint64_t most = figure(client, "segment.max_value_bytes");
  const auto refused = [&](std::uint64_t length, auto&& body) {
    const auto start = std::chrono::steady_clock::now();
    try {
      body();
      BOOST_ERROR(length << " bytes were taken");
    } catch (const Error& error) {
      const std::string message = error.what();
      BOOST_TEST(error.code() == STEPSTASH_ETOOLARGE);
      BOOST_TEST(message.find(std::to_string(most)) != message.npos, message);
      BOOST_TEST(message.find(std::to_string(length)) != message.npos, message);
    }
    BOOST_TEST((std::chrono::steady_clock::now() - start < 5s));  // the deadline is 10 s
  };
  refused(9 * kMiB, [&] { client.set(1, "v", generated(9 * kMiB, 1)); });
  refused(std::uint64_t{1} << 40, [&] { client.begin(1, "v", std::uint64_t{1} << 40); });
  refused(std::uint64_t{1} << 63, [&] { client.begin(1, "v", std::uint64_t{1} << 63); });
  refused(most + 1, [&] { client.begin(1, "v", most + 1); });

  // Of unknown length: fails as soon as it is too long.
  auto writer = client.begin(1, "v");
  const std::string piece = generated(kMiB, 1);
  BOOST_CHECK_EXCEPTION(for (int i = 0; i < 64; ++i) writer->write(piece), Error,
                        [](const Error& error) { return error.code() == STEPSTASH_ETOOLARGE; });
  writer.reset();
  BOOST_TEST(!client.get(1, "v"));

  // The largest value that is reported to fit does fit.
  client.set(1, "largest", generated(most, 2));
  BOOST_TEST(is_generated(client.get(1, "largest")->bytes(), most, 2));
  client.drop(1);
  client.flush();
  client.set(1, "largest again", generated(most, 3));
  BOOST_TEST(is_generated(client.get(1, "largest again")->bytes(), most, 3));
}

BOOST_AUTO_TEST_SUITE_END()
