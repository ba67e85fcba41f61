// SPDX-License-Identifier: Apache-2.0
// The way of what is dirty to the database: queue, batches, failures, barriers.
#include "daemon/flusher.hpp"

#include "daemon/id_range.hpp"
#include "tests/daemon/engine.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

struct Flushing {
  MemoryStore disk;
  FaultyStore faulty{disk};
  ManualClock clock;
  TempDir directory;
  Engine engine{directory, faulty, clock};

  daemon::Waiter waiter{engine.loop()};

  /// Begins a durable set of build 1, "v", and runs the loop until "newer" is there for everybody, and not committed.
  void start_durable(std::optional<Result<protocol::SetOk>>& set) {
    auto params = Engine::params(1, "v");
    params.durable = true;
    engine.start(engine.setting(params, "newer", waiter), set);
    engine.run_until([&] { return engine.value(1, "v") == "newer"; });
  }

  /// Asks for a flush and runs the loop until the commit has begun, and stands still.
  void stop_in_commit() {
    faulty.block_commits();
    const std::uint64_t before = faulty.commits();
    engine.flusher().kick();
    engine.run_until([&] { return faulty.commits() > before; });
    BOOST_REQUIRE(faulty.wait_until_blocked());
  }
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(flusher, Flushing)

BOOST_AUTO_TEST_CASE(values_stay_dirty_when_the_commit_fails) {
  engine.set(1, "v", "value");
  faulty.fail_commits(Errc::not_durable);
  BOOST_TEST((engine.flush(50ms).error() == Errc::not_durable));
  BOOST_TEST(engine.flusher().dirty_values() == 1u);
  BOOST_TEST(engine.flusher().dirty_bytes() == 5u);
  BOOST_TEST(engine.flusher().counters().flush_errors >= 1u);
  BOOST_TEST(engine.flusher().counters().flushes == 0u);
  BOOST_TEST((engine.database().state() == daemon::Database::State::stalled));
  BOOST_TEST(!engine.database().reason().empty());
  BOOST_TEST((engine.segment().find(1, "v")->state.load() == shm::EntryState::dirty));
  BOOST_TEST((rows(disk) == Rows{}));
}

BOOST_AUTO_TEST_CASE(a_failed_commit_is_tried_again_until_it_succeeds) {
  engine.set(1, "v", "value");
  faulty.fail_nth_commit(1, Errc::not_durable);
  BOOST_TEST(engine.flush().has_value());
  BOOST_TEST((rows(disk) == Rows{"1/v=value"}));
  BOOST_TEST(engine.flusher().dirty_values() == 0u);
  BOOST_TEST(engine.flusher().dirty_bytes() == 0u);
  BOOST_TEST(engine.flusher().empty());
  BOOST_TEST(engine.flusher().counters().flush_errors == 1u);
  BOOST_TEST((engine.database().state() == daemon::Database::State::ready));
  BOOST_TEST(engine.database().reason().empty());
  BOOST_TEST((engine.segment().find(1, "v")->state.load() == shm::EntryState::clean));
}

BOOST_AUTO_TEST_CASE(a_commit_that_landed_although_it_failed_is_repeated_without_harm) {
  engine.set(1, "v", "value");
  engine.store().builds().finish(1, 100).value();
  faulty.fail_nth_commit(1, Errc::not_durable, /*landed=*/true);
  BOOST_TEST(engine.flush().has_value());
  BOOST_TEST((rows(disk) == Rows{"1/v=value"}));
  BOOST_TEST(disk.load_build(1).value()->complete_at.value() == 100);
}

BOOST_AUTO_TEST_CASE(a_value_replaced_before_its_turn_is_written_once) {
  engine.set(1, "v", "first");
  engine.set(1, "v", "second value");
  BOOST_TEST(engine.flusher().dirty_values() == 1u);
  BOOST_TEST(engine.flusher().dirty_bytes() == 12u);
  engine.flush().value();
  BOOST_TEST(engine.flusher().counters().flushed_values == 1u);
  BOOST_TEST(engine.flusher().counters().flushed_bytes == 12u);
  BOOST_TEST((rows(disk) == Rows{"1/v=second value"}));
}

BOOST_AUTO_TEST_CASE(a_value_replaced_while_its_former_state_is_committed_is_written_again) {
  engine.set(1, "v", "first");
  stop_in_commit();
  engine.set(1, "v", "second");
  faulty.release();
  engine.flush().value();
  BOOST_TEST((rows(disk) == Rows{"1/v=second"}));
  BOOST_TEST(engine.flusher().dirty_values() == 0u);
  BOOST_TEST(engine.flusher().dirty_bytes() == 0u);
  BOOST_TEST((engine.segment().find(1, "v")->state.load() == shm::EntryState::clean));
}

BOOST_AUTO_TEST_CASE(what_the_commit_of_a_replaced_value_leaves_is_dirty_not_clean) {
  engine.set(1, "v", "first");
  stop_in_commit();
  engine.set(1, "v", "second");
  faulty.release();
  engine.run_until([&] { return engine.flusher().counters().flushes == 1; });
  BOOST_TEST((rows(disk) == Rows{"1/v=first"}));
  BOOST_TEST((engine.segment().find(1, "v")->state.load() == shm::EntryState::dirty));
  BOOST_TEST(engine.flusher().dirty_values() == 1u);
}

BOOST_AUTO_TEST_CASE(a_value_replaced_during_a_commit_that_fails_is_written_in_its_last_state) {
  engine.set(1, "v", "first");
  engine.set(1, "w", "other");
  stop_in_commit();
  engine.set(1, "v", "second");
  faulty.fail_nth_commit(0, {});
  faulty.fail_commits(Errc::not_durable);
  faulty.release();
  engine.run_until([&] { return engine.flusher().counters().flush_errors > 0; });
  BOOST_TEST(engine.flusher().dirty_values() == 2u);
  BOOST_TEST(engine.flusher().dirty_bytes() == 11u);
  faulty.heal();
  engine.flush().value();
  BOOST_TEST((rows(disk) == Rows{"1/v=second", "1/w=other"}));
  BOOST_TEST(engine.flusher().empty());
}

BOOST_AUTO_TEST_CASE(a_build_dropped_while_its_values_are_committed_leaves_no_row) {
  engine.set(1, "v", "value");
  engine.set(1, "w", "value");
  stop_in_commit();
  BOOST_TEST(engine.drop(1) == 2u);
  BOOST_TEST(engine.flusher().dirty_values() == 0u);
  engine.set(1, "new", "set after the drop");
  faulty.release();
  engine.flush().value();
  BOOST_TEST((rows(disk) == Rows{"1/new=set after the drop"}));
  BOOST_TEST(engine.flusher().empty());
}

BOOST_AUTO_TEST_CASE(a_second_drop_during_the_commit_of_the_first_is_not_lost) {
  engine.set(1, "a", "1");
  engine.flush().value();
  engine.drop(1);
  stop_in_commit();
  engine.set(1, "b", "2");
  engine.drop(1);
  engine.set(1, "c", "3");
  faulty.release();
  engine.flush().value();
  BOOST_TEST((rows(disk) == Rows{"1/c=3"}));
  BOOST_TEST(engine.segment().find_build(1)->drop_upto.load() == 0u);
}

BOOST_AUTO_TEST_CASE(values_taken_to_the_database_in_the_middle_of_their_deletion_leave_no_row) {
  for (int i = 0; i < 6000; ++i) engine.set(1, std::to_string(i), "v");
  std::optional<Result<std::uint64_t>> dropped;
  engine.start(engine.store().builds().drop(1), dropped);
  engine.run_until([&] { return engine.value(1, "0") == "(miss)"; });
  faulty.block_commits();
  const std::uint64_t before = faulty.commits();
  engine.flusher().kick();
  // The batch is taken on the loop, between two slices of the deletion; when its commit begins on the other thread, the
  // deletion may be over.
  for (int handlers = 0; handlers < 10; ++handlers) engine.loop().run_one_for(5ms);
  BOOST_TEST(!dropped);
  engine.run_until([&] { return faulty.commits() > before && dropped.has_value(); });
  faulty.release();
  engine.flush().value();
  BOOST_TEST((rows(disk) == Rows{}));
  BOOST_TEST(engine.flusher().empty());
}

BOOST_AUTO_TEST_CASE(what_makes_room_on_a_full_disk_does_not_wait_for_values) {
  engine.set(1, "v", "value");
  engine.flush().value();
  faulty.fail_values(Errc::not_durable);
  engine.set(2, "w", "value");
  BOOST_TEST(engine.drop(1) == 1u);
  engine.store().builds().finish(3, 100).value();
  engine.flusher().kick();
  engine.run_until([&] { return rows(disk).empty(); });
  engine.run_until([&] { return engine.segment().find_build(1) == nullptr; });
  BOOST_TEST(disk.load_build(3).value()->complete_at.value() == 100);
  BOOST_TEST(engine.flusher().dirty_values() == 1u);
  BOOST_TEST(!engine.flusher().empty());
  faulty.heal();
  engine.flush().value();
  BOOST_TEST((rows(disk) == Rows{"2/w=value"}));
}

BOOST_AUTO_TEST_CASE(to_a_damaged_database_nothing_more_is_written) {
  faulty.fail_nth_commit(1, Errc::corrupt_database);
  engine.set(1, "v", "value");
  engine.store().builds().finish(3, 100).value();
  engine.flusher().kick();
  engine.run_until([&] { return engine.database().state() == daemon::Database::State::damaged; });
  engine.set(1, "w", "later");
  BOOST_TEST(!engine.flush(300ms));
  BOOST_TEST(faulty.commits() == 1u);
  BOOST_TEST((engine.segment().find(1, "v")->state.load() == shm::EntryState::dirty));
  BOOST_TEST(!disk.load_build(3).value().has_value());
}

BOOST_AUTO_TEST_CASE(a_reservation_that_succeeds_in_the_end_leaves_the_database_ready) {
  faulty.fail_reservations(Errc::not_durable);
  engine.segment().header().id_limit.store(engine.segment().header().next_id.load());
  engine.flusher().kick();
  engine.run_until([&] { return engine.database().state() == daemon::Database::State::stalled; });
  faulty.heal();
  engine.run_until([&] { return engine.database().state() == daemon::Database::State::ready; });
}

BOOST_AUTO_TEST_CASE(what_cannot_be_written_is_deleted_and_the_database_is_ready_again) {
  faulty.fail_values(Errc::not_durable);
  engine.set(1, "v", "value");
  engine.flusher().kick();
  engine.run_until([&] { return engine.database().state() == daemon::Database::State::stalled; });
  engine.drop(1);
  engine.run_until([&] { return engine.database().state() == daemon::Database::State::ready; });
}

BOOST_AUTO_TEST_CASE(at_a_stop_a_file_that_comes_back_in_time_is_still_written) {
  faulty.move_away(true);
  engine.run_until([&] { return engine.database().state() == daemon::Database::State::detached; });
  engine.set(1, "v", "value");
  engine.flusher().stop(in(30s));
  const auto later = in(300ms);
  engine.run_until([&] { return daemon::expired(later); });
  BOOST_TEST(engine.flushing());
  faulty.move_away(false);
  engine.run_until([&] { return !engine.flushing(); });
  BOOST_TEST((rows(disk) == Rows{"1/v=value"}));
}

BOOST_AUTO_TEST_CASE(at_a_stop_a_damaged_database_is_not_waited_for) {
  faulty.fail_nth_commit(1, Errc::corrupt_database);
  engine.set(1, "v", "value");
  engine.flusher().kick();
  engine.run_until([&] { return engine.database().state() == daemon::Database::State::damaged; });
  const auto start = std::chrono::steady_clock::now();
  engine.flusher().stop(in(20s));
  engine.run_until([&] { return !engine.flushing(); });
  BOOST_TEST((std::chrono::steady_clock::now() - start < 5s));
}

BOOST_AUTO_TEST_CASE(a_value_forgotten_before_its_turn_is_never_written) {
  engine.set(1, "v", "value");
  engine.drop(1);
  BOOST_TEST(engine.flusher().dirty_bytes() == 0u);
  engine.flush().value();
  BOOST_TEST(engine.flusher().counters().flushed_values == 0u);
  BOOST_TEST((rows(disk) == Rows{}));
}

BOOST_AUTO_TEST_CASE(a_barrier_waits_for_all_that_came_before_however_many_batches_that_takes) {
  const std::size_t count = daemon::Flusher::kBatchItems + 100;
  for (std::size_t i = 0; i < count; ++i) engine.set(1, std::to_string(i), "v");
  engine.flush().value();
  BOOST_TEST(engine.flusher().empty());
  BOOST_TEST(engine.flusher().counters().flushes >= 2u);
  BOOST_TEST(rows(disk).size() == count);
}

BOOST_AUTO_TEST_CASE(a_barrier_does_not_wait_for_what_came_after) {
  engine.set(1, "before", "v");
  stop_in_commit();
  std::optional<Result<>> done;
  engine.start(engine.flusher().committed(engine.flusher().last_place(), engine.waiter(), in(30s)), done);
  engine.set(1, "after", "v");
  faulty.fail_nth_commit(1, Errc::not_durable);  // the next one, with what came after
  faulty.release();
  engine.run_until([&] { return done.has_value(); });
  BOOST_TEST(done->has_value());
  BOOST_TEST((rows(disk) == Rows{"1/before=v"}));
}

BOOST_AUTO_TEST_CASE(a_durable_set_that_is_replaced_before_its_commit_is_done_all_the_same) {
  faulty.fail_commits(Errc::not_durable);
  auto durable = Engine::params(1, "v");
  durable.durable = true;
  std::optional<Result<protocol::SetOk>> done;
  engine.start(engine.setting(durable, "first", engine.waiter()), done);
  engine.run_until([&] { return engine.flusher().counters().flush_errors > 0; });
  engine.set(1, "v", "second");
  BOOST_TEST(!done);
  BOOST_TEST((rows(disk) == Rows{}));
  faulty.heal();
  engine.run_until([&] { return done.has_value(); });
  BOOST_TEST(done->has_value());
  BOOST_TEST(rows(disk).size() == 1u);
  engine.flush().value();
  BOOST_TEST((rows(disk) == Rows{"1/v=second"}));
}

BOOST_AUTO_TEST_CASE(a_durable_set_that_is_dropped_while_its_commit_fails_waits_for_the_deletion) {
  engine.set(1, "v", "older");
  engine.flush().value();
  faulty.fail_commits(Errc::not_durable);
  std::optional<Result<protocol::SetOk>> set;
  start_durable(set);
  stop_in_commit();
  engine.drop(1);
  faulty.release();
  const std::uint64_t failed = faulty.failed_commits();
  engine.run_until([&] { return faulty.failed_commits() > failed + 1; });
  BOOST_TEST(!set.has_value());
  BOOST_TEST((rows(disk) == Rows{"1/v=older"}));
  faulty.heal();
  engine.run_until([&] { return set.has_value(); });
  BOOST_TEST((rows(disk) == Rows{}));
}

BOOST_AUTO_TEST_CASE(a_place_that_a_deletion_takes_over_is_kept_when_builds_alone_cannot_be_written) {
  engine.set(1, "v", "older");
  engine.flush().value();
  faulty.fail_commits(Errc::not_durable);
  std::optional<Result<protocol::SetOk>> set;
  start_durable(set);
  engine.store().builds().finish(1, 100).value();  // a later place
  const std::uint64_t failed = faulty.failed_commits();
  engine.run_until([&] { return faulty.failed_commits() > failed; });  // all of it
  stop_in_commit();                                                    // the build alone
  engine.drop(1);
  faulty.release();
  const std::uint64_t again = faulty.failed_commits();
  engine.run_until([&] { return faulty.failed_commits() > again + 1; });
  BOOST_TEST(!set.has_value());
  faulty.heal();
  engine.run_until([&] { return set.has_value(); });
  BOOST_TEST((rows(disk) == Rows{}));
}

BOOST_AUTO_TEST_CASE(a_durable_set_of_a_damaged_value_waits_for_what_replaces_it) {
  const auto damage = [&] {
    const auto value = shm::entry_value(*engine.segment().find(1, "v"));
    const_cast<std::byte&>(value[0]) ^= std::byte{1};
  };
  for (const bool replaced : {true, false}) {
    engine.set(1, "v", "older");
    engine.flush().value();
    engine.set(2, "sound", std::to_string(replaced));  // so that there is something to commit
    std::optional<Result<protocol::SetOk>> set;
    start_durable(set);
    damage();
    stop_in_commit();
    if (replaced) {
      engine.set(1, "v", "newest");
    } else {
      engine.drop(1);
    }
    const std::uint64_t commits = faulty.commits();
    faulty.release();
    BOOST_REQUIRE(faulty.wait_for_commits(commits));
    faulty.fail_commits(Errc::not_durable);  // the next ones
    const std::uint64_t failed = faulty.failed_commits();
    engine.run_until([&] { return faulty.failed_commits() > failed + 1; });
    BOOST_TEST(!set.has_value());
    BOOST_TEST(rows(disk)[0] == "1/v=older");
    faulty.heal();
    engine.run_until([&] { return set.has_value(); });
    BOOST_TEST(rows(disk)[0] == (replaced ? "1/v=newest" : "2/sound=0"));
  }
}

BOOST_AUTO_TEST_CASE(the_age_of_what_waits_longest_is_told) {
  BOOST_TEST((engine.flusher().oldest_age() == 0ns));
  engine.set(1, "old", "v");
  clock.advance(3s);
  engine.set(1, "young", "v");
  clock.advance(2s);
  BOOST_TEST((engine.flusher().oldest_age() == 5s));
  engine.flush().value();
  BOOST_TEST((engine.flusher().oldest_age() == 0ns));
}

BOOST_AUTO_TEST_CASE(a_flush_is_due_after_its_interval_whatever_the_wall_clock_does) {
  const std::int64_t now = clock.wall_seconds();
  const auto look = [&] {  // wakes the flusher, which begins a batch if it is time
    engine.flusher().set_interval(1h);
    engine.loop().poll();
  };
  engine.set(1, "a", "set before");
  clock.set_wall(now + 10 * 365 * 86400LL);
  look();
  engine.set(1, "b", "set when it was ahead");
  clock.set_wall(now - 10 * 365 * 86400LL);
  look();
  BOOST_TEST((engine.flusher().oldest_age() == 0ns));
  clock.advance(59min);
  look();
  engine.set(1, "c", "set when it was behind");
  clock.advance(1min);
  look();
  engine.run_until([&] { return engine.flusher().counters().flushes > 0; });
  // One batch, and not before.
  BOOST_TEST((rows(disk) == Rows{"1/a=set before", "1/b=set when it was ahead", "1/c=set when it was behind"}));
}

BOOST_AUTO_TEST_CASE(a_deletion_is_as_late_as_the_value_that_it_deletes) {
  engine.set(1, "v", "what the database has");
  BOOST_TEST(engine.flush().has_value());
  engine.set(1, "v", "what it is to have");
  clock.advance(3s);
  engine.set(2, "another", "value");
  engine.drop(1);
  clock.advance(1s);
  // Were the power to fail now, the database would say what was so more than four seconds ago.
  BOOST_TEST((rows(disk) == Rows{"1/v=what the database has"}));
  BOOST_TEST((engine.flusher().oldest_age() == 4s));
  BOOST_TEST(engine.flush().has_value());
  BOOST_TEST((rows(disk) == Rows{"2/another=value"}));
  BOOST_TEST(engine.flusher().empty());
}

BOOST_AUTO_TEST_CASE(a_deletion_during_a_commit_is_as_late_as_what_was_set_during_it) {
  engine.set(1, "v", "being written");
  stop_in_commit();
  engine.set(1, "v", "set meanwhile");
  clock.advance(2s);
  engine.drop(1);
  faulty.release();
  engine.run_until([&] { return engine.flusher().counters().flushes == 1; });
  BOOST_TEST((engine.flusher().oldest_age() == 2s));
  BOOST_TEST(engine.flush().has_value());
  BOOST_TEST((rows(disk) == Rows{}));
  BOOST_TEST(engine.flusher().empty());
}

BOOST_AUTO_TEST_CASE(a_value_that_was_damaged_in_memory_is_not_written) {
  engine.set(1, "before", "sound");
  engine.set(1, "bad", "damaged");
  engine.set(1, "after", "sound");
  const auto bytes = shm::entry_value(*engine.segment().find(1, "bad"));
  const_cast<std::byte&>(bytes[3]) ^= std::byte{1};
  engine.flush().value();
  engine.flush().value();  // what was found is written, too
  BOOST_TEST((rows(disk) == Rows{"1/before=sound", "1/bad=(value does not match its checksum)", "1/after=sound"}));
  BOOST_REQUIRE(engine.store().damage().lines().size() == 1u);
  BOOST_TEST(engine.store().damage().lines()[0].find("\"bad\"") != std::string::npos);
  BOOST_TEST(engine.flusher().dirty_values() == 0u);
  BOOST_TEST((engine.load(1, "bad").error() == Errc::corrupt_value));
  engine.set(1, "bad", "set again");
  engine.flush().value();
  BOOST_TEST((rows(disk) == Rows{"1/before=sound", "1/bad=set again", "1/after=sound"}));
}

BOOST_AUTO_TEST_CASE(a_damaged_value_is_not_replaced_by_the_older_one_of_the_database) {
  engine.set(1, "v", "older");
  engine.flush().value();
  engine.set(1, "v", "newer");
  const auto bytes = shm::entry_value(*engine.segment().find(1, "v"));
  const_cast<std::byte&>(bytes[0]) ^= std::byte{1};
  engine.flush().value();
  BOOST_TEST((engine.load(1, "v").error() == Errc::corrupt_value));
}

BOOST_AUTO_TEST_CASE(ids_run_out_while_the_database_reserves_none_and_come_again) {
  shm::Header& header = engine.segment().header();
  const std::uint64_t limit = header.id_limit.load();
  faulty.fail_reservations(Errc::not_durable);
  header.next_id.store(limit - 1);
  BOOST_TEST(engine.set(1, "last", "v").id == limit - 1);
  BOOST_TEST((engine.try_set(Engine::params(1, "none"), "v").error() == Errc::out_of_ids));
  BOOST_TEST(engine.value(1, "none") == "(miss)");
  faulty.heal();
  engine.run_until([&] { return header.id_limit.load() > limit; });
  BOOST_TEST(engine.set(1, "again", "v").id >= limit);
}

BOOST_AUTO_TEST_CASE(ids_are_reserved_before_they_run_out) {
  shm::Header& header = engine.segment().header();
  const std::uint64_t limit = header.id_limit.load();
  header.next_id.store(limit - daemon::IdRange::kCount / 2 + 1);
  engine.set(1, "v", "v");
  engine.flush().value();
  engine.run_until([&] { return header.id_limit.load() > limit; });
}

BOOST_AUTO_TEST_CASE(a_finish_during_the_commit_of_another_is_written_as_well) {
  engine.store().builds().finish(1, 100).value();
  stop_in_commit();
  engine.store().builds().finish(1, 200).value();
  faulty.release();
  engine.flush().value();
  BOOST_TEST(disk.load_build(1).value()->complete_at.value() == 200);
  BOOST_TEST(engine.segment().find_build(1) == nullptr);  // the database knows it all
}

BOOST_AUTO_TEST_SUITE_END()
