// SPDX-License-Identifier: Apache-2.0
// Tests the checker of one key on made-up histories. A checker that accepts everything is worse than none: it must find
// each kind of broken promise, and must not report what concurrency allows.
#include "tests/history/register.hpp"

#include <boost/test/unit_test.hpp>
#include <random>

using namespace stepstash::test;
using Kind = KeyOperation::Kind;

namespace {

constexpr std::uint64_t kA = 0xA, kB = 0xB, kC = 0xC;

KeyOperation set(std::int64_t begin, std::int64_t end, std::uint64_t value, std::uint64_t id = 0,
                 std::uint64_t revision = 0) {
  KeyOperation made;
  made.kind = Kind::set;
  made.value = value;
  made.id = id;
  made.revision = revision;
  made.begin = begin;
  made.end = end;
  return made;
}

KeyOperation read(std::int64_t begin, std::int64_t end, std::uint64_t value, std::uint64_t id = 0,
                  std::uint64_t revision = 0) {
  KeyOperation made = set(begin, end, value, id, revision);
  made.kind = Kind::read;
  return made;
}

KeyOperation plain(Kind kind, std::int64_t begin, std::int64_t end, std::int64_t at = 0) {
  KeyOperation made;
  made.kind = kind;
  made.begin = begin;
  made.end = end;
  made.at = at;
  return made;
}

KeyOperation perhaps(KeyOperation made) {
  made.optional = true;
  return made;
}

KeyOperation if_absent(KeyOperation made) {
  made.kind = Kind::set_if_absent;
  return made;
}

bool good(std::vector<KeyOperation> operations) { return explain_key({KeyState{}}, std::move(operations)).explained; }

}  // namespace

// ---- what a register may do ----------------------------------------------------------------------------------------

BOOST_AUTO_TEST_SUITE(good_histories)

BOOST_AUTO_TEST_CASE(a_read_sees_the_last_set) {
  BOOST_TEST(
      good({read(0, 1, 0), set(2, 3, kA, 1, 1), read(4, 5, kA, 1, 1), set(6, 7, kB, 1, 2), read(8, 9, kB, 1, 2)}));
}

BOOST_AUTO_TEST_CASE(a_read_during_a_set_sees_either) {
  BOOST_TEST(good({set(0, 10, kA), read(1, 2, 0), read(3, 4, kA)}));
  BOOST_TEST(good({set(0, 1, kA), set(2, 10, kB), read(3, 4, kA), read(5, 6, kB)}));
}

BOOST_AUTO_TEST_CASE(sets_at_the_same_time_may_come_in_either_order) {
  BOOST_TEST(good({set(0, 10, kA), set(0, 10, kB), read(11, 12, kA)}));
  BOOST_TEST(good({set(0, 10, kA), set(0, 10, kB), read(11, 12, kB)}));
  BOOST_TEST(good({set(0, 10, kA), set(0, 10, kB), read(2, 3, kA), read(4, 5, kB), read(11, 12, kB)}));
}

BOOST_AUTO_TEST_CASE(an_unknown_set_may_appear_late_or_never) {
  const auto unknown = perhaps(set(0, 100, kB));
  BOOST_TEST(good({set(0, 1, kA), unknown, read(10, 11, kA), read(50, 51, kB), read(60, 61, kB)}));
  BOOST_TEST(good({set(0, 1, kA), unknown, read(10, 11, kA), read(200, 201, kA)}));
  BOOST_TEST(good({set(0, 1, kA), unknown, set(20, 21, kC), read(30, 31, kC), read(40, 41, kB)}));
}

BOOST_AUTO_TEST_CASE(a_set_that_the_library_repeated_may_take_effect_twice) {
  BOOST_TEST(good({perhaps(set(0, 10, kA)), set(0, 30, kA, 1, 9), read(5, 6, kA), set(7, 11, kB, 1, 5),
                   read(12, 13, kB, 1, 5), read(31, 32, kA, 1, 9)}));
}

BOOST_AUTO_TEST_CASE(a_deleted_key_is_absent_until_it_is_set_again_with_a_new_id) {
  BOOST_TEST(
      good({set(0, 1, kA, 1, 1), plain(Kind::remove, 2, 3), read(4, 5, 0), set(6, 7, kB, 5, 5), read(8, 9, kB, 5, 5)}));
}

BOOST_AUTO_TEST_CASE(a_prune_deletes_what_was_complete_before_its_time_and_nothing_else) {
  const auto history = [](std::int64_t older_than, std::uint64_t then) {
    return good(
        {set(0, 1, kA), plain(Kind::finish, 2, 3, 100), plain(Kind::prune, 4, 5, older_than), read(6, 7, then)});
  };
  BOOST_TEST(history(101, 0));
  BOOST_TEST(!history(101, kA));
  BOOST_TEST(history(100, kA));
  BOOST_TEST(!history(100, 0));
  BOOST_TEST(good({set(0, 1, kA), plain(Kind::prune, 4, 5, 100), read(6, 7, kA)}));
  BOOST_TEST(!good({set(0, 1, kA), plain(Kind::prune, 4, 5, 100), read(6, 7, 0)}));
}

BOOST_AUTO_TEST_CASE(a_prune_passes_by_what_is_held) {
  const auto history = [](std::int64_t held, std::uint64_t then) {
    return good({set(0, 1, kA), plain(Kind::finish, 2, 3, 100), plain(Kind::hold, 4, 5, held),
                 plain(Kind::prune, 6, 7, 101), read(8, 9, then)});
  };
  BOOST_TEST(history(1, kA));
  BOOST_TEST(!history(1, 0));
  BOOST_TEST(history(0, 0));
  BOOST_TEST(!history(0, kA));
}

BOOST_AUTO_TEST_CASE(whether_a_deletion_found_something_is_told_where_it_is_certain) {
  auto removal = plain(Kind::remove, 4, 5);
  removal.label = 7;
  auto verdict = explain_key({KeyState{}}, {set(0, 1, kA), removal});
  BOOST_TEST((verdict.removals[7].perhaps_something && !verdict.removals[7].perhaps_nothing));
  verdict = explain_key({KeyState{}}, {removal});
  BOOST_TEST((!verdict.removals[7].perhaps_something && verdict.removals[7].perhaps_nothing));
  verdict = explain_key({KeyState{}}, {set(0, 10, kA), removal});
  BOOST_TEST((verdict.removals[7].perhaps_something && verdict.removals[7].perhaps_nothing));
}

BOOST_AUTO_TEST_CASE(what_the_key_can_hold_in_the_end_begins_the_next_round) {
  const auto first = explain_key({KeyState{}}, {set(0, 10, kA), set(0, 10, kB)});
  BOOST_TEST(first.finals.size() == 2u);
  const auto second = explain_key(first.finals, {read(20, 21, kB, 3, 4)});
  BOOST_REQUIRE(second.finals.size() == 1u);
  BOOST_TEST(second.finals[0].id == 3u);
  BOOST_TEST(second.finals[0].revision == 4u);
}

/// A register that really is atomic, used concurrently: all of its answers are valid.
BOOST_AUTO_TEST_CASE(whatever_an_atomic_register_does_is_explained) {
  for (unsigned seed = 1; seed <= 200; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](int bound) { return static_cast<int>(random() % static_cast<unsigned>(bound)); };
    std::vector<KeyOperation> history;
    std::uint64_t value = 0, id = 0, revision = 0, next = 1;
    std::int64_t complete_at = kUnfinished;
    bool held = false;
    for (std::int64_t instant = 0; instant < 3000; instant += 10) {
      KeyOperation operation;
      operation.begin = instant - below(40);
      operation.end = instant + below(40);
      switch (below(13)) {
        case 0:
          operation.kind = Kind::remove;
          value = id = revision = 0;
          break;
        case 1:
          operation.kind = Kind::finish;
          complete_at = operation.at = below(50);
          break;
        case 2:
          operation.kind = Kind::prune;
          operation.at = below(20);
          if (complete_at != kUnfinished && complete_at < operation.at && !held) value = id = revision = 0;
          break;
        case 12:
          operation.kind = Kind::hold;
          held = below(2) == 0;
          operation.at = held ? 1 : 0;
          break;
        case 3:
        case 4:
        case 5:
        case 6: {
          if (below(4) == 0) {
            operation.optional = true;
            operation.kind = Kind::set;
            operation.value = next;
            if (below(2) == 0) {
              history.push_back(operation);  // and it never took effect
              ++next;
              break;
            }
          }
          operation.kind = Kind::set;
          operation.value = value = revision = next++;
          if (id == 0) id = revision;
          if (!operation.optional) operation.id = id, operation.revision = revision;
          break;
        }
        default:
          operation.kind = Kind::read;
          operation.value = value;
          operation.id = id;
          operation.revision = revision;
      }
      history.push_back(operation);
    }
    const KeyVerdict verdict = explain_key({KeyState{}}, history);
    BOOST_REQUIRE_MESSAGE(verdict.explained, "seed " << seed << ": " << verdict.why);
  }
}

BOOST_AUTO_TEST_SUITE_END()

// ---- what it may not do --------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_SUITE(bad_histories)

BOOST_AUTO_TEST_CASE(a_lost_write) {
  BOOST_TEST(!good({set(0, 1, kA), read(2, 3, 0)}));
  BOOST_TEST(!good({set(0, 1, kA), set(2, 3, kB), read(4, 5, kA)}));
}

BOOST_AUTO_TEST_CASE(a_stale_read) {
  BOOST_TEST(!good({set(0, 1, kA), set(2, 10, kB), read(3, 4, kB), read(5, 6, kA)}));
}

BOOST_AUTO_TEST_CASE(an_overwritten_value_that_returns) {
  BOOST_TEST(!good({set(0, 1, kA), set(2, 3, kB), read(4, 5, kB), read(6, 7, kA)}));
  // An unknown set that was seen, and overwritten after its last possible effect.
  BOOST_TEST(!good({perhaps(set(0, 10, kA)), read(2, 3, kA), set(11, 12, kB), read(13, 14, kA)}));
}

BOOST_AUTO_TEST_CASE(an_unknown_set_that_appears_after_its_daemon_died) {
  BOOST_TEST(!good({perhaps(set(0, 10, kA)), read(11, 12, 0), read(20, 21, kA)}));
}

BOOST_AUTO_TEST_CASE(a_value_before_it_was_set) { BOOST_TEST(!good({read(0, 1, kA), set(2, 3, kA)})); }

BOOST_AUTO_TEST_CASE(a_value_that_nobody_set) { BOOST_TEST(!good({set(0, 1, kA), read(2, 3, kC)})); }

BOOST_AUTO_TEST_CASE(a_deleted_value_that_returns) {
  BOOST_TEST(!good({set(0, 1, kA), plain(Kind::remove, 2, 3), read(4, 5, kA)}));
  BOOST_TEST(!good({set(0, 1, kA), plain(Kind::remove, 2, 3), read(4, 5, 0), read(6, 7, kA)}));
}

BOOST_AUTO_TEST_CASE(a_deletion_that_nobody_asked_for) {
  BOOST_TEST(!good({set(0, 1, kA), read(2, 3, kA), read(4, 5, 0)}));
}

BOOST_AUTO_TEST_CASE(two_readers_that_see_two_sets_in_different_orders) {
  BOOST_TEST(!good({set(0, 20, kA), set(0, 20, kB), read(1, 2, kA), read(3, 4, kB), read(5, 6, kA)}));
}

BOOST_AUTO_TEST_CASE(an_id_that_changes_without_a_deletion) {
  BOOST_TEST(!good({set(0, 1, kA, 1, 1), set(2, 3, kB, 2, 2)}));
  BOOST_TEST(!good({set(0, 1, kA, 1, 1), read(2, 3, kA, 7, 1)}));
}

BOOST_AUTO_TEST_CASE(an_id_that_is_given_again_after_a_deletion) {
  BOOST_TEST(!good({set(0, 1, kA, 1, 1), plain(Kind::remove, 2, 3), set(4, 5, kB, 1, 5)}));
  BOOST_TEST(!good({set(0, 1, kA, 3, 4), plain(Kind::remove, 2, 3), set(4, 5, kB, 2, 5)}));
}

BOOST_AUTO_TEST_CASE(a_revision_that_is_not_newer) {
  BOOST_TEST(!good({set(0, 1, kA, 1, 5), set(2, 3, kB, 1, 4)}));
  BOOST_TEST(!good({set(0, 1, kA, 1, 5), read(2, 3, kA, 1, 6)}));
}

BOOST_AUTO_TEST_CASE(a_set_if_absent_that_replaced_something) {
  BOOST_TEST(good({if_absent(set(0, 1, kA)), read(2, 3, kA)}));
  BOOST_TEST(!good({set(0, 1, kA), if_absent(set(2, 3, kB))}));
}

BOOST_AUTO_TEST_CASE(a_set_if_absent_that_was_refused_where_nothing_was) {
  BOOST_TEST(good({set(0, 1, kA), plain(Kind::present, 2, 3)}));
  BOOST_TEST(!good({plain(Kind::present, 2, 3)}));
  BOOST_TEST(!good({set(0, 1, kA), plain(Kind::remove, 2, 3), plain(Kind::present, 4, 5)}));
}

BOOST_AUTO_TEST_CASE(a_finish_that_was_lost) {
  BOOST_TEST(good({plain(Kind::finish, 0, 1, 100), plain(Kind::read_complete, 2, 3, 100)}));
  BOOST_TEST(!good({plain(Kind::finish, 0, 1, 100), plain(Kind::read_complete, 2, 3, kUnfinished)}));
  BOOST_TEST(
      !good({plain(Kind::finish, 0, 1, 100), plain(Kind::finish, 2, 3, 50), plain(Kind::read_complete, 4, 5, 100)}));
}

BOOST_AUTO_TEST_CASE(a_hold_that_was_lost) {
  BOOST_TEST(good({plain(Kind::read_held, 0, 1, 0), plain(Kind::hold, 2, 3, 1), plain(Kind::read_held, 4, 5, 1)}));
  BOOST_TEST(!good({plain(Kind::hold, 0, 1, 1), plain(Kind::read_held, 2, 3, 0)}));
  BOOST_TEST(!good({plain(Kind::hold, 0, 1, 1), plain(Kind::hold, 2, 3, 0), plain(Kind::read_held, 4, 5, 1)}));
}

BOOST_AUTO_TEST_CASE(a_history_too_wild_to_judge_is_not_called_good) {
  std::vector<KeyOperation> history;
  for (std::uint64_t i = 1; i <= 70; ++i) history.push_back(perhaps(set(0, 100, i)));
  const KeyVerdict verdict = explain_key({KeyState{}}, history);
  BOOST_TEST(!verdict.explained);
  BOOST_TEST(verdict.why.find("given up") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(the_report_names_the_operation_and_what_could_be_there) {
  auto lost = read(2, 3, 0);
  lost.label = 42;
  const KeyVerdict verdict = explain_key({KeyState{}}, {set(0, 1, kA, 1, 1), lost});
  BOOST_TEST(verdict.why.find("operation 42") != std::string::npos, verdict.why);
  BOOST_TEST(verdict.why.find("000000000000000a, id 1, revision 1") != std::string::npos, verdict.why);
}

BOOST_AUTO_TEST_SUITE_END()
