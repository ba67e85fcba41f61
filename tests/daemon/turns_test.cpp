// SPDX-License-Identifier: Apache-2.0
// Who shares the loop with whom: turns of users, and texts that are put together once for many.
#include "daemon/turns.hpp"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/test/unit_test.hpp>
#include <string>
#include <vector>

#include "daemon/shared_text.hpp"
#include "tests/support/manual_clock.hpp"

using namespace stepstash;
using namespace std::chrono_literals;
using daemon::awaitable;
using daemon::Turns;
using daemon::Waiter;
namespace asio = boost::asio;

namespace {

struct Loop {
  /// Each of `uid` takes so many turns, one after the other, and uses the loop for `busy` in each.
  void add(uid_t uid, std::size_t connections, std::size_t requests, std::chrono::microseconds busy) {
    const auto serve = [this, uid, requests, busy]() -> awaitable<void> {
      for (std::size_t i = 0; i < requests; ++i) {
        co_await turns.next(uid);
        taken.push_back(uid);
        clock.advance(busy);
      }
    };
    for (std::size_t i = 0; i < connections; ++i) asio::co_spawn(loop, serve, asio::detached);
  }
  /// The turns of others before the last one of `uid`.
  std::size_t others_before_last_of(uid_t uid) const {
    std::size_t others = 0, at_last = 0;
    for (const uid_t one : taken) {
      others += one != uid;
      if (one == uid) at_last = others;
    }
    return at_last;
  }

  asio::io_context loop{1};
  test::ManualClock clock;  // whatever else the machine does
  Turns turns{loop, clock};
  std::vector<uid_t> taken;
};

awaitable<void> ask(daemon::SharedText& text, Waiter& waiter, std::vector<std::string>& got) {
  got.push_back(*co_await text.get(waiter));
}

}  // namespace

BOOST_AUTO_TEST_SUITE(turns)

BOOST_FIXTURE_TEST_CASE(one_with_many_connections_gets_as_much_as_one_with_few, Loop) {
  add(1, 200, 5, 50us);
  add(2, 1, 10, 50us);
  loop.run();
  BOOST_TEST(taken.size() == 1010u);
  BOOST_TEST(turns.taken() == 1010u);
  // A quantum is five such turns; then it is the other one's turn.
  BOOST_TEST(others_before_last_of(2) <= 11 * 6u);
}

BOOST_FIXTURE_TEST_CASE(who_asks_for_dear_things_waits_for_those_who_do_not, Loop) {
  add(1, 10, 5, 2ms);
  add(2, 1, 50, 10us);
  loop.run();
  // One of 2 ms is paid off in eight rounds, in which the other one has its quantum each.
  BOOST_TEST(others_before_last_of(2) <= 12u);
}

BOOST_FIXTURE_TEST_CASE(the_connections_of_a_user_take_turns_too, Loop) {
  std::vector<int> order;
  const auto serve = [&](int connection) -> awaitable<void> {
    for (int i = 0; i < 3; ++i) {
      co_await turns.next(1);
      order.push_back(connection);
    }
  };
  for (const int connection : {1, 2, 3}) asio::co_spawn(loop, serve(connection), asio::detached);
  loop.run();
  BOOST_TEST(order == (std::vector<int>{1, 2, 3, 1, 2, 3, 1, 2, 3}), boost::test_tools::per_element());
}

BOOST_FIXTURE_TEST_CASE(who_was_alone_owes_nothing, Loop) {
  add(1, 1, 1, 50ms);
  loop.run();
  loop.restart();
  taken.clear();
  add(1, 1, 1, 1us);
  add(2, 1, 200, 1us);
  loop.run();
  BOOST_TEST(taken.front() == 1u);
}

BOOST_FIXTURE_TEST_CASE(others_have_the_loop_between_turns, Loop) {
  add(1, 10, 100, 100us);
  std::size_t when = 0;
  const auto other = [&]() -> awaitable<void> {
    co_await turns.next(2);
    for (int i = 0; i < 5; ++i) co_await asio::post(loop, asio::use_awaitable);
    when = taken.size();
  };
  asio::co_spawn(loop, other, asio::detached);
  loop.run();
  BOOST_TEST(when > 0u);
  BOOST_TEST(when <= 100u);  // of 1,000: five slices of ten
}

BOOST_AUTO_TEST_CASE(a_text_is_put_together_once_for_all_who_asked_meanwhile) {
  asio::io_context loop{1};
  daemon::SharedText text;
  int made = 0;
  text.make = [&] { return std::to_string(++made); };
  std::vector<std::unique_ptr<Waiter>> waiters;
  std::vector<std::string> got;
  const auto many = [&](std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      waiters.push_back(std::make_unique<Waiter>(loop));
      asio::co_spawn(loop, ask(text, *waiters.back(), got), asio::detached);
    }
  };
  const auto start = std::chrono::steady_clock::now();
  many(1);
  loop.run();
  BOOST_TEST(got == (std::vector<std::string>{"1"}), boost::test_tools::per_element());
  got.clear();
  loop.restart();
  many(500);
  loop.run();
  // They asked after the first was made, so none of them gets that.
  BOOST_TEST(got.size() == 500u);
  BOOST_TEST(std::count(got.begin(), got.end(), "1") == 0);
  const auto pauses = (std::chrono::steady_clock::now() - start) / daemon::SharedText::kPause;
  BOOST_TEST(pauses >= 1);
  BOOST_TEST(text.times_made() <= 1 + static_cast<std::uint64_t>(pauses));  // 2, where nothing holds the test up
}

BOOST_AUTO_TEST_CASE(who_hangs_up_waits_for_no_text) {
  asio::io_context loop{1};
  daemon::SharedText text;
  text.make = [] { return std::string("text"); };
  Waiter first(loop), second(loop);
  std::vector<std::string> got;
  asio::co_spawn(loop, ask(text, first, got), asio::detached);
  loop.run();
  loop.restart();
  asio::co_spawn(loop, ask(text, second, got), asio::detached);
  loop.poll();
  second.hang_up();
  loop.run();
  BOOST_TEST(got == (std::vector<std::string>{"text", ""}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_SUITE_END()
