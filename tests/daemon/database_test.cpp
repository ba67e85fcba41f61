// SPDX-License-Identifier: Apache-2.0
// The database's state: what leads to each one, and what it allows.
#include "daemon/database.hpp"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/test/unit_test.hpp>
#include <functional>

#include "base/errc.hpp"
#include "tests/support/faulty_store.hpp"
#include "tests/support/memory_store.hpp"

namespace stepstash::test {
namespace {

using namespace std::chrono_literals;
using daemon::Database;
using State = Database::State;
using Use = Database::Use;

struct Watched {
  MemoryStore disk;
  FaultyStore faulty{disk};
  boost::asio::io_context loop{1};
  Database database{loop, {std::shared_ptr<void>(), &faulty}};

  Watched() {
    boost::asio::co_spawn(
        loop, [this] { return database.watch(); }, boost::asio::detached);
  }
  ~Watched() {
    faulty.release();
    bool done = false;
    const auto stop = [&]() -> daemon::awaitable<void> {
      co_await database.stop_watching();
      done = true;
    };
    boost::asio::co_spawn(loop, stop, boost::asio::detached);
    run_until([&] { return done; });
    database.stop_threads();
  }
  void run_until(const std::function<bool()>& condition) {
    const auto work = boost::asio::make_work_guard(loop);
    const auto give_up = std::chrono::steady_clock::now() + 30s;
    while (!condition() && std::chrono::steady_clock::now() < give_up) loop.run_one_for(5ms);
    BOOST_TEST_REQUIRE(condition());
  }
  void reach(State state) {
    run_until([&] { return database.state() == state; });
  }
};

BOOST_FIXTURE_TEST_SUITE(database, Watched)

BOOST_AUTO_TEST_CASE(each_state_allows_what_the_table_says) {
  const struct {
    State state;
    const char* name;
    bool commit, load, evict, identify;
  } table[] = {
      {State::ready, "ready", true, true, true, true},       {State::stalled, "stalled", true, true, true, true},
      {State::hung, "hung", true, true, false, true},        {State::detached, "detached", false, true, false, true},
      {State::damaged, "damaged", false, true, false, true}, {State::absent, "absent", false, false, false, false},
  };
  for (const auto& row : table) {
    BOOST_TEST_CONTEXT(row.name) {
      BOOST_TEST(Database::name_of(row.state) == row.name);
      BOOST_TEST(Database::allows(row.state, Use::commit) == row.commit);
      BOOST_TEST(Database::allows(row.state, Use::load) == row.load);
      BOOST_TEST(Database::allows(row.state, Use::evict) == row.evict);
      BOOST_TEST(Database::allows(row.state, Use::identify) == row.identify);
    }
  }
}

BOOST_AUTO_TEST_CASE(a_failed_commit_stalls_it_and_only_a_proof_makes_it_ready) {
  BOOST_TEST((database.state() == State::ready));
  BOOST_TEST(database.reason().empty());
  database.report(Errc::not_durable, false);
  BOOST_TEST((database.state() == State::stalled));
  BOOST_TEST(!database.reason().empty());
  database.report(success(), false);
  BOOST_TEST((database.state() == State::stalled));
  database.report(success(), true);
  BOOST_TEST((database.state() == State::ready));
  BOOST_TEST(database.reason().empty());
}

BOOST_AUTO_TEST_CASE(damage_is_for_good) {
  database.report(Errc::corrupt_database, false);
  BOOST_TEST((database.state() == State::damaged));
  database.report(success(), true);
  BOOST_TEST((database.state() == State::damaged));
  faulty.move_away(true);
  run_until([&] { return !database.files().in_place; });
  BOOST_TEST((database.state() == State::damaged));
}

BOOST_AUTO_TEST_CASE(a_file_that_comes_back_leaves_it_as_it_was_before) {
  database.report(Errc::not_durable, false);
  const std::string before = database.reason();
  faulty.move_away(true);
  reach(State::detached);
  BOOST_TEST(database.reason().find("deleted") != std::string::npos);
  faulty.move_away(false);
  reach(State::stalled);
  BOOST_TEST(database.reason() == before);
}

BOOST_AUTO_TEST_CASE(a_disk_that_does_not_answer_is_hung_until_it_does) {
  const auto start = std::chrono::steady_clock::now();
  faulty.hang();
  reach(State::hung);
  BOOST_TEST((std::chrono::steady_clock::now() - start >= Database::kDiskAnswers - 200ms));
  BOOST_TEST((database.files_age() >= Database::kDiskAnswers));
  BOOST_TEST(database.reason().find("no answer") != std::string::npos);
  faulty.release();
  reach(State::ready);
}

BOOST_AUTO_TEST_CASE(a_change_wakes_those_who_wait_for_one) {
  daemon::Waiter waiter(loop);
  bool woken = false;
  const auto wait = [&]() -> daemon::awaitable<void> {
    co_await database.changed().wait(waiter, daemon::TimePoint::max());
    woken = true;
  };
  boost::asio::co_spawn(loop, wait, boost::asio::detached);
  loop.poll();
  BOOST_TEST(!woken);
  database.report(Errc::not_durable, false);
  run_until([&] { return woken; });
}

BOOST_AUTO_TEST_CASE(without_a_store_it_is_absent_and_says_why) {
  Database none(loop, Database::Absence{Errc::newer_database, "/x/y.db: schema 9"});
  BOOST_TEST((none.state() == State::absent));
  BOOST_TEST((none.absence() == Errc::newer_database));
  BOOST_TEST(none.reason().find("/x/y.db: schema 9") != std::string::npos);
  BOOST_TEST(none.commit_count() == 0u);
  none.stop_threads();
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
