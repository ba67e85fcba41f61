// SPDX-License-Identifier: Apache-2.0
// From the records of clients to a verdict: overlaps, the effect of a daemon's death, and rules for several keys.
#include "tests/history/history.hpp"

#include <boost/test/unit_test.hpp>
#include <deque>

using namespace stepstash::test;

namespace {

constexpr std::uint64_t kA = 0xA, kB = 0xB;

/// Records in order, and the lives of the daemons that they were sent to.
class Made {
 public:
  Record& add(Action action, std::int64_t begin, std::int64_t end, Answer answer = Answer::ok) {
    Record& record = records_.emplace_back();
    record.action = action;
    record.answer = answer;
    record.begin = begin;
    record.end = end;
    return record;
  }
  Record& set(std::int64_t begin, std::int64_t end, std::uint64_t value, std::uint64_t id, std::uint64_t revision,
              std::uint8_t name = 0) {
    Record& record = add(Action::set, begin, end);
    record.repeats = true;
    record.value = value;
    record.name = name;
    record.seen[0] = {value, id, revision, true};
    return record;
  }
  Record& get(std::int64_t begin, std::int64_t end, std::uint64_t value, std::uint64_t id = 0,
              std::uint64_t revision = 0, std::uint8_t name = 0) {
    Record& record = add(Action::get, begin, end);
    record.name = name;
    record.seen[0] = {value, id, revision, true};
    return record;
  }
  std::vector<std::string> check(std::vector<Life> lives = {{0, INT64_MAX}}, std::int64_t quiet = 1000) {
    Round round{{}, std::move(lives), quiet};
    for (const Record& record : records_) round.records.push_back(&record);
    return checker.check(round);
  }
  void next_round() { records_.clear(); }

  HistoryChecker checker{2};

 private:
  std::deque<Record> records_;
};

bool finds(const std::vector<std::string>& problems, std::string_view what) {
  for (const std::string& problem : problems) {
    if (problem.find(what) != std::string::npos) return true;
  }
  return false;
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_history_that_keeps_all_promises_has_no_problems) {
  Made history;
  history.set(1, 2, kA, 1, 1);
  history.get(3, 4, kA, 1, 1);
  Record& list = history.add(Action::list, 5, 6);
  list.seen[0] = {kA, 1, 1, true};
  Record& drop = history.add(Action::drop, 7, 8);
  drop.count = 1;
  history.get(9, 10, 0);
  BOOST_TEST(history.check().empty());
  BOOST_TEST(history.checker.checked() == 5u);
}

BOOST_AUTO_TEST_CASE(a_lost_write_is_found) {
  Made history;
  history.set(1, 2, kA, 1, 1);
  history.get(3, 4, 0);
  BOOST_TEST(finds(history.check(), "no order explains"));
}

BOOST_AUTO_TEST_CASE(a_list_that_lacks_an_entry_is_found) {
  Made history;
  history.set(1, 2, kA, 1, 1, 3);
  history.add(Action::list, 3, 4);
  BOOST_TEST(finds(history.check(), "build 1, name 3: no order explains"));
}

BOOST_AUTO_TEST_CASE(a_value_is_remembered_over_rounds) {
  Made history;
  history.set(1, 2, kA, 1, 1);
  BOOST_TEST(history.check().empty());
  history.next_round();
  history.get(2001, 2002, 0);
  BOOST_TEST(finds(history.check({{0, INT64_MAX}}, 3000), "no order explains"));
}

BOOST_AUTO_TEST_CASE(torn_bytes_are_found) {
  Made history;
  history.set(1, 2, kA, 1, 1);
  history.get(3, 4, kA, 1, 1).seen[0].exact = false;
  BOOST_TEST(finds(history.check(), "torn"));
}

BOOST_AUTO_TEST_CASE(bytes_that_change_under_a_held_view_are_found) {
  Made history;
  history.set(1, 2, kA, 1, 1);
  BOOST_TEST(history.check().empty());
  Record& look = history.add(Action::look, 3, 4);
  look.seen[0] = {kA, 1, 1, false};
  BOOST_TEST(finds(history.check(), "torn"));
}

BOOST_AUTO_TEST_CASE(a_value_of_another_key_comes_out_of_thin_air) {
  Made history;
  history.set(1, 2, kA, 1, 1, 0);
  history.set(1, 2, kB, 2, 2, 1);
  history.get(3, 4, kB, 1, 3, 0);
  BOOST_TEST(finds(history.check(), "out of thin air"));
}

BOOST_AUTO_TEST_CASE(an_id_given_to_two_keys_is_found) {
  Made history;
  history.set(1, 2, kA, 1, 1, 0);
  history.set(3, 4, kB, 1, 2, 1);
  BOOST_TEST(finds(history.check(), "was given again"));
}

BOOST_AUTO_TEST_CASE(an_id_given_again_in_a_later_round_is_found) {
  Made history;
  history.set(1, 2, kA, 1, 1, 0);
  history.add(Action::drop, 3, 4).count = 1;
  BOOST_TEST(history.check().empty());
  history.next_round();
  history.set(2001, 2002, kB, 1, 2, 4);
  BOOST_TEST(finds(history.check({{0, INT64_MAX}}, 3000), "was given again"));
}

BOOST_AUTO_TEST_CASE(a_revision_given_to_two_values_is_found) {
  Made history;
  history.set(1, 2, kA, 1, 5, 0);
  history.set(3, 4, kB, 2, 5, 1);
  BOOST_TEST(finds(history.check(), "two values"));
}

BOOST_AUTO_TEST_CASE(a_deletion_that_counts_wrong_is_found) {
  Made history;
  history.set(1, 2, kA, 1, 1, 0);
  history.set(1, 2, kB, 2, 2, 1);
  history.add(Action::drop, 3, 4).count = 1;
  BOOST_TEST(finds(history.check(), "counted wrong: it can have deleted 2 to 2"));
}

BOOST_AUTO_TEST_CASE(a_deletion_beside_a_set_may_count_it_or_not) {
  for (const std::uint64_t count : {0u, 1u, 2u}) {
    Made history;
    history.set(1, 9, kA, 1, 1);
    history.add(Action::drop, 3, 4).count = count;
    BOOST_TEST(history.check().empty() == (count < 2));
  }
}

BOOST_AUTO_TEST_CASE(an_answer_that_nothing_explains_is_found) {
  Made history;
  history.add(Action::get, 1, 2, Answer::forbidden).code = -8;
  BOOST_TEST(finds(history.check(), "code -8"));
}

// ---- what is not known ---------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(a_set_without_an_answer_may_appear_while_its_daemon_lives) {
  for (const std::int64_t read_at : {30, 70}) {
    Made history;
    Record& unknown = history.set(1, 10, kA, 0, 0);
    unknown.answer = Answer::unknown;
    history.get(read_at - 5, read_at - 4, 0);
    history.get(read_at, read_at + 1, kA, 1, 1);
    // The daemon that got the request lived until 50: what was not done by then never is.
    BOOST_TEST(history.check({{0, 50}, {51, INT64_MAX}}).empty() == (read_at < 50));
  }
}

BOOST_AUTO_TEST_CASE(a_set_without_an_answer_may_have_been_done_and_must_then_stay) {
  Made history;
  history.set(1, 10, kA, 0, 0).answer = Answer::unknown;
  history.get(20, 21, kA, 1, 1);
  BOOST_TEST(history.check({{0, 15}, {16, INT64_MAX}}).empty());
  history.get(22, 23, 0);
  BOOST_TEST(!history.check({{0, 15}, {16, INT64_MAX}}).empty());
}

BOOST_AUTO_TEST_CASE(a_set_that_the_library_repeated_at_the_next_daemon_may_take_effect_twice) {
  for (const bool repeats : {true, false}) {
    Made history;
    Record& set = history.set(1, 40, kA, 1, 9);
    set.repeats = repeats;
    history.get(5, 6, kA, 1, 1);  // the first time, by the daemon that died at 10
    history.set(20, 21, kB, 1, 5);
    history.get(22, 23, kB, 1, 5);
    history.get(41, 42, kA, 1, 9);
    BOOST_TEST(history.check({{0, 10}, {11, INT64_MAX}}).empty() == repeats);
  }
}

BOOST_AUTO_TEST_CASE(a_set_within_one_life_of_the_daemon_takes_effect_once) {
  Made history;
  history.set(1, 40, kA, 1, 9);
  history.get(5, 6, kA);
  history.set(20, 21, kB, 1, 5);
  history.get(22, 23, kB);
  history.get(41, 42, kA);
  BOOST_TEST(!history.check({{0, INT64_MAX}}).empty());
}

BOOST_AUTO_TEST_CASE(a_set_that_failed_never_appears) {
  Made history;
  Record& failed = history.set(1, 2, kA, 0, 0);
  failed.answer = Answer::failed;
  failed.repeats = false;
  history.get(3, 4, 0);
  BOOST_TEST(history.check().empty());
  history.get(5, 6, kA, 1, 1);
  BOOST_TEST(finds(history.check(), "no order explains"));
}

BOOST_AUTO_TEST_CASE(a_client_that_was_killed_may_have_set_until_all_is_quiet) {
  for (const std::int64_t quiet : {25, 35}) {
    Made history;
    history.set(10, 0, kA, 0, 0).answer = Answer::pending;
    history.get(27, 28, 0);
    history.get(30, 31, kA, 1, 1);
    BOOST_TEST(history.check({{0, INT64_MAX}}, quiet).empty() == (quiet > 30));
  }
}

BOOST_AUTO_TEST_CASE(a_drop_without_an_answer_deletes_or_does_not) {
  for (const std::uint64_t value : {std::uint64_t{0}, kA}) {
    Made history;
    history.set(1, 2, kA, 1, 1);
    history.add(Action::drop, 3, 4, Answer::unknown);
    history.get(20, 21, value);
    BOOST_TEST(history.check({{0, 10}, {11, INT64_MAX}}).empty());
    history.get(22, 23, value == 0 ? kA : 0);
    BOOST_TEST(!history.check({{0, 10}, {11, INT64_MAX}}).empty());
  }
}

BOOST_AUTO_TEST_CASE(a_drop_without_an_answer_that_deleted_one_of_two_is_found) {
  for (const Action action : {Action::drop, Action::prune}) {
    Made history;
    history.add(Action::finish, 0, 1).at = 100;
    history.set(1, 2, kA, 1, 1, 0);
    history.set(1, 2, kB, 2, 2, 1);
    history.add(action, 3, 4, Answer::unknown).at = 101;
    history.get(20, 21, 0, 0, 0, 0);
    history.get(20, 21, kB, 2, 2, 1);
    BOOST_TEST(finds(history.check({{0, 10}, {11, INT64_MAX}}), "half a deletion: build 1"));
  }
}

BOOST_AUTO_TEST_CASE(a_drop_without_an_answer_that_deleted_all_or_nothing_is_good) {
  for (const bool deleted : {true, false}) {
    Made history;
    history.set(1, 2, kA, 1, 1, 0);
    history.set(1, 2, kB, 2, 2, 1);
    history.add(Action::drop, 3, 4, Answer::unknown);
    history.get(20, 21, deleted ? 0 : kA, 0, 0, 0);
    history.get(20, 21, deleted ? 0 : kB, 0, 0, 1);
    BOOST_TEST(history.check({{0, 10}, {11, INT64_MAX}}).empty());
  }
}

BOOST_AUTO_TEST_CASE(a_finish_that_the_database_does_not_have_is_found) {
  Made history;
  history.add(Action::finish, 1, 2).at = 100;
  history.add(Action::completion, 3, 4).at = 100;
  BOOST_TEST(history.check().empty());
  history.next_round();
  history.add(Action::completion, 2003, 2004).at = kUnfinished;
  BOOST_TEST(!history.check({{0, INT64_MAX}}, 3000).empty());
}

BOOST_AUTO_TEST_CASE(a_hold_that_the_database_does_not_have_and_a_prune_of_what_is_held_are_found) {
  Made history;
  history.add(Action::hold, 1, 2).at = 1;
  history.add(Action::holding, 3, 4).at = 1;
  BOOST_TEST(history.check().empty());
  history.next_round();
  history.add(Action::holding, 2003, 2004).at = 0;
  BOOST_TEST(!history.check({{0, INT64_MAX}}, 3000).empty());

  Made pruned;
  pruned.set(1, 2, kA, 1, 1);
  pruned.add(Action::finish, 3, 4).at = 100;
  pruned.add(Action::hold, 3, 4).at = 1;
  Record& prune = pruned.add(Action::prune, 5, 6);
  prune.at = 101;
  prune.count = 1;
  pruned.get(7, 8, 0);
  BOOST_TEST(!pruned.check().empty());
}

BOOST_AUTO_TEST_CASE(a_prune_counts_what_it_deleted_over_all_builds) {
  Made history;
  history.set(1, 2, kA, 1, 1);
  Record& second = history.set(1, 2, kB, 2, 2);
  second.build = 1;
  history.add(Action::finish, 3, 4).at = 100;
  Record& prune = history.add(Action::prune, 5, 6);
  prune.at = 101;
  prune.count = 1;
  history.get(7, 8, 0);
  Record& kept = history.get(7, 8, kB, 2, 2);
  kept.build = 1;
  BOOST_TEST(history.check().empty());
}

// ---- all keys of a build at one instant ----------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(a_list_that_saw_half_of_a_drop_is_found) {
  for (const bool half : {false, true}) {
    Made history;
    history.set(1, 2, kA, 1, 1, 0);
    history.set(3, 4, kB, 2, 2, 1);
    history.add(Action::drop, 10, 30).count = 2;
    Record& list = history.add(Action::list, 12, 28);
    if (half) list.seen[1] = {kB, 2, 2, true};
    const auto problems = history.check();
    BOOST_TEST(finds(problems, "build 1: as one instant for all keys") == half);
    BOOST_TEST(problems.empty() == !half);
  }
}

/// A list whose two pages are of different instants: the second key was set before the first was set again.
BOOST_AUTO_TEST_CASE(a_list_whose_pages_are_of_two_instants_is_found) {
  for (const bool torn : {false, true}) {
    Made history;
    history.set(1, 2, kA, 1, 1, 0);
    history.set(1, 2, kB, 2, 2, 1);
    history.set(11, 12, 0xC, 1, 3, 0);
    history.set(13, 14, 0xD, 2, 4, 1);
    Record& list = history.add(Action::list, 10, 20);
    list.seen[0] = torn ? Sight{kA, 1, 1, true} : Sight{0xC, 1, 3, true};
    list.seen[1] = {0xD, 2, 4, true};
    const auto problems = history.check();
    BOOST_TEST(finds(problems, "as one instant") == torn);
    BOOST_TEST(problems.empty() == !torn);
  }
}

BOOST_AUTO_TEST_CASE(two_lists_that_saw_two_sets_in_different_orders_are_found) {
  Made history;
  history.set(10, 40, kA, 1, 1, 0);
  history.set(10, 40, kB, 2, 2, 1);
  history.add(Action::list, 20, 30).seen[0] = {kA, 1, 1, true};
  history.add(Action::list, 20, 30).seen[1] = {kB, 2, 2, true};
  BOOST_TEST(finds(history.check(), "as one instant"));
}

BOOST_AUTO_TEST_CASE(a_build_is_remembered_over_rounds) {
  Made history;
  history.set(1, 2, kA, 1, 1, 0);
  history.set(1, 2, kB, 2, 2, 1);
  BOOST_TEST(history.check().empty());
  history.next_round();
  history.add(Action::drop, 2010, 2030).count = 2;
  history.add(Action::list, 2012, 2028).seen[0] = {kA, 1, 1, true};
  BOOST_TEST(finds(history.check({{0, INT64_MAX}}, 3000), "as one instant"));
  BOOST_TEST(history.checker.judged() == 4u);
}
