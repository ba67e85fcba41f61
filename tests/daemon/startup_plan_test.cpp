// SPDX-License-Identifier: Apache-2.0
// Every row of the two tables in daemon/startup_plan.hpp.
#include "daemon/startup_plan.hpp"

#include <boost/test/unit_test.hpp>

using namespace stepstash::daemon;

namespace {

using Make = Plan::Make;
using List = Plan::List;

constexpr std::uint64_t kConfigured = 1000;

Found found(Found::Segment segment, Found::Database database) {
  Found found;
  found.segment = segment;
  found.database = database;
  found.room.configured = kConfigured;
  found.room.list = 100;
  found.room.list_builds = 3;
  if (segment == Found::Segment::none) return found;
  found.room.segment = kConfigured;
  found.room.segment_builds = 5;
  return found;
}

Found sound(Found::Database database = Found::Database::same) { return found(Found::Segment::sound, database); }

Found sound_of_another_size() {
  Found found = sound();
  found.room.segment = 2 * kConfigured;
  found.room.segment_only = kConfigured;
  return found;
}

Found damaged(Found::Database database) {
  Found made = found(Found::Segment::damaged, database);
  made.room.both = 1100;
  return made;
}

constexpr Found::Database kDiffering[] = {Found::Database::older, Found::Database::other};
constexpr Found::Database kNotDiffering[] = {Found::Database::unknown, Found::Database::same};
constexpr Obstacle kObstacles[] = {Obstacle::not_made, Obstacle::left_out, Obstacle::list_too_long, Obstacle::failed};

void expect(const Plan& plan, const Plan& wanted) { BOOST_TEST((plan == wanted)); }

void expect(const std::optional<Plan>& plan, const Plan& wanted) {
  BOOST_REQUIRE(plan.has_value());
  expect(*plan, wanted);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(startup_plan)

// ---- decide --------------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(without_a_segment_one_is_created_and_gets_the_list) {
  const Found none = found(Found::Segment::none, Found::Database::unknown);
  expect(decide(none), {.make = Make::create, .list = List::add, .bytes = kConfigured, .builds = 3});
}

BOOST_AUTO_TEST_CASE(a_new_segment_has_room_for_the_list) {
  for (const Found::Segment segment : {Found::Segment::none, Found::Segment::damaged, Found::Segment::other_layout}) {
    Found large = found(segment, Found::Database::unknown);
    large.room.list = 5000;
    BOOST_TEST(decide(large).bytes == 5000u);
  }
}

BOOST_AUTO_TEST_CASE(a_sound_segment_of_this_database_is_kept_and_no_list_is_read) {
  expect(decide(sound()), {.make = Make::keep, .list = List::none});
}

BOOST_AUTO_TEST_CASE(what_attach_set_aside_is_looked_for_in_the_list) {
  Found taken_out = sound();
  taken_out.set_aside = true;
  expect(decide(taken_out), {.make = Make::keep, .list = List::add});
}

BOOST_AUTO_TEST_CASE(a_sound_segment_and_a_differing_database_are_verified_and_all_is_written) {
  for (const Found::Database database : kDiffering) {
    expect(decide(sound(database)), {.make = Make::keep, .list = List::verify, .all_dirty = true});
  }
}

BOOST_AUTO_TEST_CASE(a_sound_segment_of_another_size_than_configured_is_moved) {
  const Plan resized{.make = Make::resize, .list = List::add, .bytes = kConfigured, .builds = 5};
  expect(decide(sound_of_another_size()), resized);
  Found damaged_value = sound_of_another_size();  // which attach has named; nothing was taken out
  damaged_value.set_aside = true;
  expect(decide(damaged_value), resized);
}

BOOST_AUTO_TEST_CASE(a_segment_keeps_its_size_where_the_configured_one_has_no_room_for_what_only_it_has) {
  Found full = sound_of_another_size();
  full.room.segment_only = kConfigured + 1;
  expect(decide(full), {.make = Make::keep, .list = List::none});
}

BOOST_AUTO_TEST_CASE(a_segment_that_the_list_made_larger_keeps_its_size) {
  Found large = sound_of_another_size();
  large.room.list = kConfigured + 1;
  expect(decide(large), {.make = Make::keep, .list = List::none});
}

BOOST_AUTO_TEST_CASE(a_segment_keeps_its_size_until_the_list_was_asked_for_what_was_taken_out) {
  Found unsettled = sound_of_another_size();
  unsettled.set_aside = unsettled.unsettled = true;
  expect(decide(unsettled), {.make = Make::keep, .list = List::add});
}

BOOST_AUTO_TEST_CASE(a_segment_of_another_size_keeps_it_where_the_database_differs) {
  for (const Found::Database database : kDiffering) {
    Found other = sound_of_another_size();
    other.database = database;
    expect(decide(other), {.make = Make::keep, .list = List::verify, .all_dirty = true});
  }
}

BOOST_AUTO_TEST_CASE(of_a_damaged_segment_what_only_it_has_is_saved) {
  for (const Found::Segment segment : {Found::Segment::damaged, Found::Segment::other_layout}) {
    for (const Found::Database database : kNotDiffering) {
      const Plan plan = decide(found(segment, database));
      expect(plan, {.make = Make::salvage, .list = List::add, .bytes = kConfigured, .builds = 3});
      BOOST_TEST(plan.keeps_former());
    }
  }
}

BOOST_AUTO_TEST_CASE(of_a_damaged_segment_and_a_differing_database_all_is_saved_in_room_for_both) {
  for (const Found::Database database : kDiffering) {
    Found both = damaged(database);
    const Plan plan{.make = Make::salvage_all, .list = List::verify, .bytes = 1100, .builds = 8, .all_dirty = true};
    expect(decide(both), plan);
    both.room.both = 900;
    BOOST_TEST(decide(both).bytes == kConfigured);
    both.segment = Found::Segment::other_layout;  // whose header could be read nevertheless
    BOOST_TEST((decide(both).make == Make::salvage_all));
  }
}

BOOST_AUTO_TEST_CASE(only_a_segment_that_was_attached_stays_and_only_a_damaged_one_is_kept) {
  BOOST_TEST(!decide(sound()).replaces());
  BOOST_TEST(!decide(sound()).keeps_former());
  BOOST_TEST(decide(sound_of_another_size()).replaces());
  BOOST_TEST(!decide(sound_of_another_size()).keeps_former());
  BOOST_TEST(decide(damaged(Found::Database::other)).keeps_former());
}

// ---- decide_again --------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(what_no_plan_helps_against_fails_the_start) {
  for (const Found& found : {found(Found::Segment::none, Found::Database::unknown), sound(), sound_of_another_size(),
                             damaged(Found::Database::same), damaged(Found::Database::other)}) {
    BOOST_TEST(!decide_again(found, decide(found), Obstacle::failed).has_value());
  }
}

BOOST_AUTO_TEST_CASE(a_segment_that_cannot_be_moved_is_kept) {
  for (const Obstacle obstacle : {Obstacle::not_made, Obstacle::left_out, Obstacle::list_too_long}) {
    Found found = sound_of_another_size();
    expect(decide_again(found, decide(found), obstacle), {.make = Make::keep, .list = List::none});
    found.set_aside = true;
    expect(decide_again(found, decide(found), obstacle), {.make = Make::keep, .list = List::add});
  }
}

BOOST_AUTO_TEST_CASE(a_segment_that_the_list_does_not_fit_is_enlarged) {
  Found found = sound();
  found.set_aside = true;
  found.room.list = 1500;
  expect(decide_again(found, decide(found), Obstacle::list_too_long),
         {.make = Make::enlarge, .list = List::add, .bytes = 1500});
  for (const Found::Database database : kDiffering) {
    const Found differing = sound(database);
    const Plan plan{.make = Make::enlarge, .list = List::verify, .bytes = kConfigured, .all_dirty = true};
    expect(decide_again(differing, decide(differing), Obstacle::list_too_long), plan);
  }
}

BOOST_AUTO_TEST_CASE(what_has_no_room_next_to_the_list_of_its_own_database_is_written_to_it) {
  for (const Found::Database database : kNotDiffering) {
    const Found found = damaged(database);
    for (const Obstacle obstacle : {Obstacle::left_out, Obstacle::list_too_long}) {
      const auto plan = decide_again(found, decide(found), obstacle);
      expect(plan, {.make = Make::write_out, .list = List::none, .bytes = kConfigured, .builds = 3});
      BOOST_TEST(plan->keeps_former());
      BOOST_TEST(plan->reads_list());
    }
    BOOST_TEST(!decide_again(found, decide(found), Obstacle::not_made).has_value());
  }
}

BOOST_AUTO_TEST_CASE(sizes_read_from_a_damaged_header_do_not_fail_the_start) {
  for (const Found::Database database : kDiffering) {
    const Found found = damaged(database);
    const Plan smaller{
        .make = Make::salvage_all, .list = List::verify, .bytes = kConfigured, .builds = 3, .all_dirty = true};
    expect(decide_again(found, decide(found), Obstacle::not_made), smaller);
    BOOST_TEST(!decide_again(found, smaller, Obstacle::not_made).has_value());
  }
}

BOOST_AUTO_TEST_CASE(where_the_list_of_a_differing_database_has_no_room_it_goes_first) {
  for (const Found::Database database : kDiffering) {
    const Found found = damaged(database);
    const auto plan = decide_again(found, decide(found), Obstacle::list_too_long);
    expect(plan, {.make = Make::write_out, .list = List::verify, .bytes = 1100, .builds = 3, .all_dirty = true});
  }
}

BOOST_AUTO_TEST_CASE(after_the_last_plan_the_start_fails) {
  const Found none = found(Found::Segment::none, Found::Database::unknown);
  for (const Obstacle obstacle : kObstacles) {
    BOOST_TEST(!decide_again(none, decide(none), obstacle).has_value());
    BOOST_TEST(!decide_again(sound(), {.make = Make::enlarge}, obstacle).has_value());
    BOOST_TEST(!decide_again(damaged(Found::Database::same), {.make = Make::write_out}, obstacle).has_value());
  }
  BOOST_TEST(!decide_again(sound(), decide(sound()), Obstacle::not_made).has_value());
  const Found both = damaged(Found::Database::other);
  BOOST_TEST(!decide_again(both, decide(both), Obstacle::left_out).has_value());
}

BOOST_AUTO_TEST_CASE(every_start_ends_whatever_its_obstacles) {
  for (const Found::Segment segment :
       {Found::Segment::none, Found::Segment::sound, Found::Segment::damaged, Found::Segment::other_layout}) {
    for (const Found::Database database :
         {Found::Database::unknown, Found::Database::same, Found::Database::older, Found::Database::other}) {
      Found start = found(segment, database);
      start.room.segment = 2 * kConfigured;
      start.room.both = 3 * kConfigured;
      for (const Obstacle first : kObstacles) {
        for (const Obstacle then : kObstacles) {
          std::optional<Plan> plan = decide(start);
          int plans = 0;
          for (Obstacle obstacle = first; plan; obstacle = then) {
            BOOST_REQUIRE(++plans <= 3);
            plan = decide_again(start, *plan, obstacle);
          }
        }
      }
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()
