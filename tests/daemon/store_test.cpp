// SPDX-License-Identifier: Apache-2.0
// Set, load, evict, prune: where segment and database meet, on a database in memory that fails when it is told to.
#include "daemon/store.hpp"

#include <map>
#include <random>
#include <string>
#include <vector>

#include "daemon/metrics.hpp"
#include "daemon/services.hpp"
#include "tests/daemon/engine.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

struct Storing {
  MemoryStore disk;
  FaultyStore faulty{disk};
  ManualClock clock;
  TempDir directory;
  Engine engine{directory, faulty, clock};
  std::vector<std::unique_ptr<daemon::Waiter>> kept;

  /// Sets and flushes values of 200 KiB until `name` of build 1 is evicted.
  void fill_until_evicted(const std::string& name) {
    for (int i = 0; engine.value(1, name) != "(evicted)"; ++i) {
      BOOST_REQUIRE(i < 100);
      engine.set(99, "filler " + std::to_string(i), std::string(200 << 10, 'f'));
      engine.flush().value();
    }
  }
  /// The daemon's own pruning, once.
  static void prune_expired(Engine& in) {
    in.run([](daemon::Store& store) -> awaitable<bool> {
      co_await store.builds().prune_expired();
      co_return true;
    }(in.store()));
  }
  void prune_expired() { prune_expired(engine); }
  /// Changes a byte of a resident value behind the daemon's back.
  void damage(BuildId build, const std::string& name) {
    const auto value = shm::entry_value(*engine.segment().find(build, name));
    const_cast<std::byte&>(value[value.size() / 2]) ^= std::byte{1};
  }
  /// Runs the loop until a load is with the database, and stands still there.
  void stop_in_load() {
    const std::uint64_t before = faulty.loads();
    engine.run_until([&] { return faulty.loads() > before; });
    BOOST_REQUIRE(faulty.wait_until_blocked());
  }
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(store, Storing)

BOOST_AUTO_TEST_CASE(a_replaced_value_keeps_its_id_and_its_place_in_the_list) {
  const auto first = engine.set(1, "a", "1");
  engine.set(1, "b", "2");
  const auto again = engine.set(1, "a", "3");
  BOOST_TEST(again.id == first.id);
  BOOST_TEST(again.revision > first.revision);
  const auto page = engine.list(1);
  BOOST_REQUIRE(page.entries.size() == 2u);
  BOOST_TEST(page.entries[0].name == "a");
  BOOST_TEST(page.entries[0].revision == again.revision);
}

BOOST_AUTO_TEST_CASE(a_list_comes_in_pages) {
  for (int i = 0; i < 70; ++i) engine.set(1, std::to_string(i), "v");
  std::uint64_t after = 0;
  std::vector<std::size_t> pages;
  for (bool more = true; more;) {
    const auto page = engine.list(1, after);
    for (const auto& entry : page.entries) {
      BOOST_TEST(entry.id > after);
      after = entry.id;
    }
    pages.push_back(page.entries.size());
    more = page.more;
  }
  BOOST_TEST((pages == std::vector<std::size_t>{32, 32, 6}));
}

BOOST_AUTO_TEST_CASE(a_value_that_can_never_fit_is_refused_at_once) {
  const std::uint64_t most = engine.segment().max_value_bytes();
  std::optional<Result<daemon::OwnedDraft>> done;
  engine.start(engine.reserving(Engine::params(1, "v"), most + 1), done);
  engine.loop().poll();
  BOOST_REQUIRE(done.has_value());
  BOOST_TEST((done->error() == Errc::too_large));
  const std::string text = engine.explain(done->error(), most + 1);
  BOOST_TEST(text.find(std::to_string(most)) != std::string::npos);
  BOOST_TEST(text.find(std::to_string(most + 1)) != std::string::npos);
}

BOOST_AUTO_TEST_CASE(a_large_value_finds_room_in_a_segment_full_of_flushed_ones) {
  for (int i = 0; i < 150; ++i) {
    engine.set(1, std::to_string(i), std::string(25'000, 'x'));
    engine.flush().value();
  }
  const std::string large(engine.segment().max_value_bytes() / 3, 'L');
  BOOST_TEST(engine.try_set(Engine::params(2, "large"), large).has_value());
  BOOST_TEST((engine.value(2, "large") == large));
  BOOST_TEST(engine.store().catalog().evicted() > 10u);
  BOOST_TEST(engine.segment().index().entries() == 151u);
}

BOOST_AUTO_TEST_CASE(a_condition_that_ceased_to_hold_before_the_commit_gives_the_block_back) {
  auto params = Engine::params(1, "v");
  params.if_absent = true;
  auto draft = engine.run(engine.store().reserve(params, 100'000, engine.waiter(), in(10s)));
  BOOST_REQUIRE(draft.has_value());
  engine.segment().reserve(*draft.value(), 100'000).value();
  engine.set(1, "v", "came first");
  const std::uint64_t before = engine.used();
  const auto done =
      engine.run(engine.store().publish(params, std::move(draft).value(), 100'000, 0, engine.waiter(), in(10s)));
  BOOST_TEST((done.error() == Errc::condition_failed));
  BOOST_TEST(engine.value(1, "v") == "came first");
  BOOST_TEST(engine.used() + 100'000 <= before);
}

BOOST_AUTO_TEST_CASE(a_set_that_waits_for_the_dirty_limit_goes_on_after_a_flush) {
  engine.store().set_limits({{1000, 10s}, std::nullopt});
  engine.set(1, "a", std::string(900, 'a'));
  faulty.fail_commits(Errc::not_durable);
  const auto refused = engine.try_set(Engine::params(1, "b"), std::string(200, 'b'), 50ms);
  BOOST_TEST((refused.error() == Errc::dirty_limit));
  faulty.heal();
  BOOST_TEST(engine.try_set(Engine::params(1, "b"), std::string(200, 'b')).has_value());
  // One value may exceed the limit when nothing else waits.
  engine.flush().value();
  BOOST_TEST(engine.try_set(Engine::params(1, "c"), std::string(5000, 'c'), 50ms).has_value());
}

BOOST_AUTO_TEST_CASE(freeing_works_with_the_segment_full_and_the_database_failing) {
  engine.store().set_limits({{Engine::kSegmentBytes, 10s}, std::nullopt});
  faulty.fail_commits(Errc::not_durable);
  int values = 0;
  while (engine.try_set(Engine::params(1 + values % 2, std::to_string(values)), std::string(100'000, 'v'), 20ms)) {
    ++values;
  }
  BOOST_TEST(values > 20);
  while (engine.try_set(Engine::params(3, std::to_string(values)), std::string(50, 'v'), 20ms)) ++values;
  BOOST_TEST(engine.store().builds().finish(1, 100).has_value());
  BOOST_TEST(engine.store().builds().finish(77, 100).has_value());
  BOOST_TEST(engine.store().builds().hold(78, true).has_value());
  const std::uint64_t before = engine.used();
  BOOST_TEST(engine.prune(101) > 10u);
  BOOST_TEST(engine.drop(2) > 10u);
  engine.run_until(
      [&] { return engine.used() + 2'000'000 < before; });  // a failing commit holds what it tries to write
  BOOST_TEST(engine.try_set(Engine::params(4, "room again"), std::string(1'000'000, 'v'), 1s).has_value());
}

BOOST_AUTO_TEST_CASE(a_large_value_finds_room_where_free_memory_is_scattered) {
  // Twice as many values as fit, with long names: what stays of the evicted ones lies all over the segment.
  const auto name = [](int i) { return std::to_string(i) + std::string(200, 'n'); };
  for (int i = 0; i < 4000; ++i) {
    engine.set(1, name(i), std::string(2000, 'v'));
    if (i % 100 == 0) engine.flush().value();
  }
  engine.flush().value();
  engine.segment().reclaim();
  constexpr std::uint64_t large = 2'200'000;
  BOOST_TEST_REQUIRE(engine.segment().heap().largest_free() < large / 2);
  BOOST_TEST_REQUIRE(large < engine.segment().max_value_bytes());
  const auto set = engine.try_set(Engine::params(2, "large"), std::string(large, 'L'), 2s);
  BOOST_TEST(set.has_value(), engine.explain(set ? std::error_code() : set.error(), large));
  BOOST_TEST(engine.store().room().evictions().moves > 0u);
  for (int i = 0; i < 4000; i += 97) {
    BOOST_REQUIRE(engine.segment().find(1, name(i)) != nullptr);
    BOOST_TEST(engine.segment().find(1, name(i))->length == 2000u);
  }
  engine.drop(2);
  BOOST_TEST(engine.load(1, name(0)).has_value());
  BOOST_TEST(engine.value(1, name(0)) == std::string(2000, 'v'));
}

BOOST_AUTO_TEST_CASE(a_large_value_waits_for_what_readers_hold_and_moves_nothing_under_them) {
  const auto filler = [](int i) { return "filler " + std::to_string(i); };
  for (int i = 0; i < 19; ++i) engine.set(1, filler(i), std::string(200 << 10, 'f'));
  engine.flush().value();
  auto page = engine.segment().pins().create(engine.segment().header().segment_id, 0, 0).value();
  auto pins = shm::Mapping::map(page.fd.get(), shm::kPageBytes, shm::Mapping::Access::read_write).value();
  auto& pin = reinterpret_cast<shm::PinPage*>(pins.data())->lines[0].pins[0];
  pin = engine.segment().offset_of(*engine.segment().find(1, filler(9)));  // in the middle
  const std::string large(engine.segment().max_value_bytes() - (1 << 20), 'L');
  BOOST_TEST((engine.try_set(Engine::params(2, "large"), large, 200ms).error() == Errc::segment_full));
  BOOST_TEST(engine.value(1, filler(9)) == std::string(200 << 10, 'f'));
  pin = 0;
  BOOST_TEST(engine.try_set(Engine::params(2, "large"), large, 5s).has_value());
  BOOST_TEST((engine.value(2, "large") == large));
}

// ---- damage --------------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(a_value_damaged_before_its_flush_is_reported_and_never_replaced_by_an_older_one) {
  engine.set(1, "v", std::string(1000, 'a'));
  engine.flush().value();
  const auto newer = engine.set(1, "v", std::string(1000, 'b'));
  damage(1, "v");
  engine.flush().value();
  engine.flush().value();  // what was found is written, too
  BOOST_REQUIRE(engine.store().damage().lines().size() == 1u);
  BOOST_TEST(engine.store().damage().lines()[0].find("name \"v\"") != std::string::npos);
  BOOST_TEST((engine.load(1, "v").error() == Errc::corrupt_value));
  BOOST_TEST(engine.segment().find(1, "v")->id == newer.id);
  // A daemon that knows the database alone.
  const TempDir elsewhere;
  Engine cold(elsewhere, faulty, clock);
  BOOST_REQUIRE(cold.segment().find(1, "v") != nullptr);
  BOOST_TEST(cold.segment().find(1, "v")->revision == newer.revision);
  BOOST_TEST((cold.load(1, "v").error() == Errc::corrupt_value));
  const auto again = cold.set(1, "v", "sound");
  BOOST_TEST(again.id == newer.id);
  cold.flush().value();
  BOOST_TEST((rows(disk) == Rows{"1/v=sound"}));
}

BOOST_AUTO_TEST_CASE(a_durable_set_whose_bytes_change_before_they_are_written_is_not_acknowledged) {
  engine.set(1, "first", "in the way");
  faulty.block_commits();
  engine.flusher().kick();
  engine.run_until([&] { return faulty.commits() > 0; });
  BOOST_REQUIRE(faulty.wait_until_blocked());
  auto params = Engine::params(1, "v");
  params.durable = true;
  std::optional<Result<protocol::SetOk>> done;
  daemon::Waiter own(engine.loop());
  engine.start(engine.setting(params, std::string(1000, 'v'), own), done);
  engine.run_until([&] { return engine.segment().find(1, "v") != nullptr; });
  damage(1, "v");
  faulty.release();
  engine.run_until([&] { return done.has_value(); });
  BOOST_TEST((done->error() == Errc::corrupt_value));
}

// ---- eviction and reload -------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(a_dirty_value_is_never_evicted) {
  faulty.fail_commits(Errc::not_durable);
  engine.set(1, "dirty", std::string(1000, 'd'));
  while (engine.try_set(Engine::params(2, std::to_string(engine.store().sets())), std::string(100'000, 'v'), 20ms)) {
  }
  BOOST_TEST(engine.value(1, "dirty") == std::string(1000, 'd'));
  BOOST_TEST(engine.store().room().evictions().evictions == 0u);
}

BOOST_AUTO_TEST_CASE(an_evicted_value_comes_back_as_it_was) {
  const auto set = engine.set(1, "v", std::string(300'000, 'v'));
  engine.flush().value();
  fill_until_evicted("v");
  BOOST_TEST(engine.store().catalog().evicted() >= 1u);
  BOOST_TEST(engine.load(1, "v").has_value());
  BOOST_TEST((engine.value(1, "v") == std::string(300'000, 'v')));
  BOOST_TEST(engine.segment().find(1, "v")->id == set.id);
  BOOST_TEST(engine.segment().find(1, "v")->revision == set.revision);
  BOOST_TEST((engine.segment().find(1, "v")->state.load() == shm::EntryState::clean));
  BOOST_TEST(engine.store().reloader().counters().reloads == 1u);
}

BOOST_AUTO_TEST_CASE(many_that_ask_for_one_value_load_it_once) {
  engine.set(1, "v", std::string(300'000, 'v'));
  engine.flush().value();
  fill_until_evicted("v");
  const std::uint64_t loads = faulty.loads();
  std::vector<std::optional<Result<>>> done(10);
  std::vector<std::unique_ptr<daemon::Waiter>> waiters;
  for (auto& one : done) {
    waiters.push_back(std::make_unique<daemon::Waiter>(engine.loop()));
    engine.start(engine.loading(1, "v", *waiters.back()), one);
  }
  engine.run_until([&] { return std::all_of(done.begin(), done.end(), [](auto& one) { return one.has_value(); }); });
  for (auto& one : done) BOOST_TEST(one->has_value());
  BOOST_TEST(faulty.loads() == loads + 1);
  BOOST_TEST(engine.store().reloader().counters().reloads == 1u);
}

BOOST_AUTO_TEST_CASE(a_load_that_fails_says_so_and_can_be_tried_again) {
  engine.set(1, "v", std::string(1000, 'v'));
  engine.flush().value();
  fill_until_evicted("v");
  faulty.fail_loads(Errc::not_durable);
  BOOST_TEST((engine.load(1, "v").error() == Errc::not_durable));
  BOOST_TEST(engine.store().reloader().counters().errors == 1u);
  BOOST_TEST(engine.value(1, "v") == "(evicted)");
  faulty.heal();
  BOOST_TEST(engine.load(1, "v").has_value());
  BOOST_TEST(engine.value(1, "v") == std::string(1000, 'v'));
}

BOOST_AUTO_TEST_CASE(a_row_that_is_gone_is_damage_and_not_a_miss) {
  engine.set(1, "v", std::string(1000, 'v'));
  engine.flush().value();
  fill_until_evicted("v");
  persist::Batch batch;
  batch.builds.push_back({.buildid = 1, .complete_at = {}, .held = {}, .drop_upto = 1'000'000});
  disk.commit(batch).value();  // behind the daemon's back
  BOOST_TEST((engine.load(1, "v").error() == Errc::corrupt_value));
  BOOST_TEST((engine.load(1, "never set").error() == Errc::not_found));
}

BOOST_AUTO_TEST_CASE(a_value_dropped_while_it_is_loaded_stays_dropped) {
  engine.set(1, "v", std::string(1000, 'v'));
  engine.flush().value();
  fill_until_evicted("v");
  const std::uint64_t before = engine.used();
  std::optional<Result<>> done;
  faulty.block_loads();
  engine.start(engine.loading(1, "v", engine.waiter()), done);
  stop_in_load();
  BOOST_TEST(engine.drop(1) == 1u);
  faulty.release();
  engine.run_until([&] { return done.has_value(); });
  BOOST_TEST((done->error() == Errc::not_found));
  BOOST_TEST(engine.value(1, "v") == "(miss)");
  BOOST_TEST(engine.used() < before);
}

BOOST_AUTO_TEST_CASE(a_value_replaced_while_it_is_loaded_is_the_new_one) {
  engine.set(1, "v", std::string(1000, 'v'));
  engine.flush().value();
  fill_until_evicted("v");
  std::optional<Result<>> done;
  faulty.block_loads();
  engine.start(engine.loading(1, "v", engine.waiter()), done);
  stop_in_load();
  std::optional<Result<protocol::SetOk>> set;
  daemon::Waiter waiter(engine.loop());
  engine.start(engine.setting(Engine::params(1, "v"), "newer", waiter), set);
  engine.run_until([&] { return set.has_value(); });
  faulty.release();
  engine.run_until([&] { return done.has_value(); });
  BOOST_TEST(done->has_value());
  BOOST_TEST(engine.value(1, "v") == "newer");
  BOOST_TEST(engine.store().catalog().resident() + engine.store().catalog().evicted() ==
             engine.segment().index().entries());
}

// ---- waiting -------------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(a_wait_ends_with_the_set_of_its_name_alone) {
  std::optional<Result<>> done;
  engine.start(engine.awaiting(1, "v", engine.waiter(), 30s), done);
  daemon::Waiter own(engine.loop());
  const auto set = [&](const char* name) { engine.run(engine.setting(Engine::params(1, name), {}, own)).value(); };
  set("other");
  engine.loop().poll();
  BOOST_TEST(!done);
  set("v");
  engine.run_until([&] { return done.has_value(); });
  BOOST_TEST(done->has_value());
}

BOOST_AUTO_TEST_CASE(a_wait_ends_at_its_deadline_and_when_its_client_is_gone) {
  BOOST_TEST((engine.run(engine.awaiting(1, "v", engine.waiter(), 20ms)).error() == Errc::deadline_exceeded));
  std::optional<Result<>> done;
  daemon::Waiter gone(engine.loop());
  engine.start(engine.awaiting(1, "v", gone, 1h), done);
  engine.loop().poll();
  BOOST_TEST(!done);
  gone.hang_up();
  engine.run_until([&] { return done.has_value(); });
  BOOST_TEST((done->error() == Errc::deadline_exceeded));
}

// ---- builds --------------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(prune_takes_strictly_older_finished_builds_that_are_not_held) {
  for (BuildId build = 1; build <= 4; ++build) engine.set(build, "v", "v");
  engine.store().builds().finish(1, 99).value();
  engine.store().builds().finish(2, 100).value();
  engine.store().builds().finish(3, 99).value();
  engine.store().builds().hold(3, true).value();
  BOOST_TEST(engine.prune(100) == 1u);
  BOOST_TEST(engine.value(1, "v") == "(miss)");
  for (BuildId build = 2; build <= 4; ++build) BOOST_TEST(engine.value(build, "v") == "v");
}

/// What a client sees that looks into the segment by itself.
std::string found_by(const shm::Reader& reader, BuildId build, const std::string& name) {
  shm::Pinned view;
  const shm::Found found = reader.find(build, name, view);
  if (found != shm::Found::resident) return found == shm::Found::miss ? "(miss)" : "(other)";
  const auto bytes = view.value();
  const std::string value(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  view.release();
  return value;
}

BOOST_AUTO_TEST_CASE(a_prune_of_many_builds_is_one_instant_for_readers_of_the_segment_and_for_lists) {
  constexpr BuildId kBuilds = 6;
  for (BuildId build = 1; build <= kBuilds; ++build) {
    for (int i = 0; i < 400; ++i) engine.set(build, std::to_string(i), "v");
    engine.store().builds().finish(build, 100).value();
  }
  engine.store().builds().finish(7, 100).value();
  engine.set(8, "stays", "v");
  engine.flush().value();
  const shm::Reader reader = engine.reader();
  // How many of the builds' entries are there, by either way of asking: always all or none.
  const auto count = [&] {
    std::uint64_t read = 0, listed = 0;
    for (BuildId build = 1; build <= kBuilds; ++build) {
      for (int i = 0; i < 400; ++i) read += found_by(reader, build, std::to_string(i)) == "v";
      listed += engine.list(build).entries.size();
    }
    BOOST_TEST_REQUIRE((read == 0 || read == 400 * kBuilds), read << " of " << 400 * kBuilds << " entries are there");
    BOOST_TEST_REQUIRE((read == 0) == (listed == 0));
    return read;
  };
  BOOST_TEST_REQUIRE(count() == 400u * kBuilds);
  std::optional<Result<std::uint64_t>> pruned;
  engine.start(engine.pruning(200), pruned);
  int between = 0;  // looks while the deletion was under way
  while (!pruned) {
    engine.loop().run_one_for(5ms);
    if (count() == 0 && !pruned && ++between == 2) {
      // What is set from now on stays, also under a name of before; and is not counted.
      BOOST_TEST(engine.try_set(Engine::params(6, "399"), "new").has_value());
      BOOST_TEST(found_by(reader, 6, "399") == "new");
      break;
    }
  }
  BOOST_TEST(between >= 2);
  BOOST_TEST(engine.segment().header().deletions.load() == 1u);
  engine.run_until([&] { return pruned.has_value(); });
  BOOST_TEST(pruned->value() == 400u * kBuilds);
  BOOST_TEST(engine.segment().header().deletions.load() == 0u);
  BOOST_TEST(found_by(reader, 6, "399") == "new");
  BOOST_TEST(found_by(reader, 8, "stays") == "v");
  BOOST_TEST(engine.segment().index().entries() == 2u);
  engine.flush().value();
  BOOST_TEST((rows(disk) == Rows{"8/stays=v", "6/399=new"}));
}

BOOST_AUTO_TEST_CASE(what_is_held_when_a_prune_takes_effect_stays) {
  for (BuildId build = 1; build <= 2; ++build) {
    for (int i = 0; i < 600; ++i) engine.set(build, std::to_string(i), "v");
    engine.store().builds().finish(build, 100).value();
  }
  engine.set(3, "held", "v");
  engine.store().builds().finish(3, 100).value();
  engine.store().builds().hold(3, true).value();
  engine.flush().value();
  std::optional<Result<std::uint64_t>> pruned;
  engine.start(engine.pruning(200), pruned);
  engine.run_until([&] { return engine.list(1).entries.empty(); });
  BOOST_REQUIRE(!pruned);
  // Too late for what has been deleted, and right for what is set from now on.
  engine.store().builds().hold(2, true).value();
  engine.set(2, "new", "v");
  engine.run_until([&] { return pruned.has_value(); });
  BOOST_TEST(pruned->value() == 1200u);
  BOOST_TEST(engine.prune(200) == 0u);
  BOOST_TEST(engine.value(2, "new") == "v");
  BOOST_TEST(engine.value(3, "held") == "v");
}

BOOST_AUTO_TEST_CASE(two_deletions_of_one_build_count_each_entry_once) {
  for (int i = 0; i < 3000; ++i) engine.set(1, std::to_string(i), "v");
  std::optional<Result<std::uint64_t>> first, second, third;
  engine.start(engine.store().builds().drop(1), first);
  engine.run_until([&] { return engine.list(1).entries.empty(); });
  for (int i = 0; i < 3; ++i) engine.set(1, std::to_string(2900 + i), "again");
  BOOST_REQUIRE(!first);
  engine.start(engine.store().builds().drop(1), second);
  engine.start(engine.store().builds().drop(1), third);
  engine.run_until([&] { return first && second && third; });
  BOOST_TEST(first->value() == 3000u);
  BOOST_TEST(second->value() == 3u);
  BOOST_TEST(third->value() == 0u);
  BOOST_TEST(engine.segment().index().entries() == 0u);
  engine.flush().value();
  BOOST_TEST(rows(disk).empty());
}

// ---- lists of several pages ----------------------------------------------------------------------------------------

/// The whole of a list, its first pages made before `between`, the others after it: "name=revision".
std::vector<std::string> list_around(Engine& engine, std::size_t pages_before, const std::function<void()>& between) {
  daemon::Listings::Handle listing;
  std::vector<std::string> all;
  std::uint64_t after = 0;
  for (std::size_t page = 0;; ++page) {
    if (page == pages_before) between();
    const auto got = engine.store().list({1, std::nullopt, after}, listing).value();
    for (const EntryInfo& entry : got.entries) {
      BOOST_TEST_REQUIRE(entry.id > after);
      after = entry.id;
      all.push_back(entry.name + "=" + std::to_string(entry.revision));
    }
    if (!got.more) break;
  }
  BOOST_TEST(listing == nullptr);
  BOOST_TEST(engine.store().listings().under_way() == 0u);
  BOOST_TEST(engine.store().listings().kept_bytes() == 0u);
  return all;
}

BOOST_AUTO_TEST_CASE(a_list_of_several_pages_is_of_the_instant_of_its_first) {
  std::vector<std::string> then;
  for (int i = 0; i < 150; ++i) {
    const auto set = engine.set(1, std::to_string(i), "v");
    then.push_back(std::to_string(i) + "=" + std::to_string(set.revision));
  }
  engine.flush().value();
  const auto unchanged = [&](std::size_t pages, const std::function<void()>& between) {
    const auto now = list_around(engine, pages, between);
    BOOST_TEST(now == then, boost::test_tools::per_element());
  };
  unchanged(1, [] {});
  const auto set = [&](int i) {
    const auto revision = engine.set(1, std::to_string(i), "other").revision;
    return std::to_string(i) + "=" + std::to_string(revision);
  };
  // Replaced once and again, in front of the page that is next and behind it; and what is new has no place in it.
  std::string last;
  unchanged(1, [&] {
    for (const int i : {5, 40, 40, 149}) last = set(i);
    engine.set(1, "new", "v");
  });
  then = list_around(engine, 1, [] {});
  BOOST_TEST(then.size() == 151u);
  BOOST_TEST(then[149] == last);
  // Deleted, set again, and dropped twice.
  unchanged(2, [&] {
    BOOST_TEST(engine.drop(1) == 151u);
    for (const int i : {3, 100, 149}) set(i);
    BOOST_TEST(engine.drop(1) == 3u);
    engine.flush().value();
    BOOST_TEST(engine.segment().find_build(1) == nullptr);
    set(100);
  });
  then = list_around(engine, 0, [] {});
  BOOST_TEST(then.size() == 1u);
}

BOOST_AUTO_TEST_CASE(lists_that_began_at_different_times_each_tell_of_their_own) {
  for (int i = 0; i < 100; ++i) engine.set(1, std::to_string(i), "v");
  struct Under {
    daemon::Listings::Handle listing;
    std::vector<std::string> all;
    std::uint64_t after = 0;
    bool more = true;
  };
  const auto read_page = [&](Under& one) {
    const auto got = engine.store().list({1, std::nullopt, one.after}, one.listing).value();
    for (const EntryInfo& entry : got.entries) {
      one.after = entry.id;
      one.all.push_back(std::to_string(entry.revision));
    }
    one.more = got.more;
  };
  std::vector<std::vector<std::string>> expected;
  std::vector<Under> lists(5);
  for (Under& one : lists) {
    expected.emplace_back();
    daemon::Listings::Handle whole;
    for (std::uint64_t after = 0;;) {
      const auto got = engine.store().list({1, std::nullopt, after}, whole).value();
      for (const EntryInfo& entry : got.entries) expected.back().push_back(std::to_string(entry.revision));
      if (!got.more) break;
      after = got.entries.back().id;
    }
    read_page(one);
    for (int i = 0; i < 100; i += 3) engine.set(1, std::to_string(i), "other");
  }
  // The one in the middle is given up, and the last is the first to end.
  lists[2].listing.reset();
  for (const std::size_t i : {4u, 0u, 3u, 1u}) {
    while (lists[i].more) read_page(lists[i]);
    BOOST_TEST(lists[i].all == expected[i], boost::test_tools::per_element());
  }
  BOOST_TEST(engine.store().listings().under_way() == 0u);
  BOOST_TEST(engine.store().listings().kept_bytes() == 0u);
}

BOOST_AUTO_TEST_CASE(a_list_that_lies_too_long_is_cut_off_and_keeps_nothing) {
  for (int i = 0; i < 100; ++i) engine.set(1, std::to_string(i), "v");
  daemon::Listings::Handle listing;
  const auto page = engine.store().list({1, std::nullopt, 0}, listing).value();
  BOOST_TEST(page.more);
  BOOST_TEST(engine.drop(1) == 100u);
  BOOST_TEST(engine.store().listings().kept_bytes() > 0u);
  clock.advance(11s);
  engine.store().maintain();
  BOOST_TEST(engine.store().listings().kept_bytes() == 0u);
  const auto next = engine.store().list({1, std::nullopt, page.entries.back().id}, listing);
  BOOST_TEST((next.error() == Errc::deadline_exceeded));
  BOOST_TEST(engine.list(1).entries.empty());
}

BOOST_AUTO_TEST_CASE(a_large_build_is_dropped_while_others_are_served) {
  for (int i = 0; i < 3000; ++i) engine.set(1, std::to_string(i), "v");
  engine.flush().value();
  const std::uint64_t last = engine.set(1, "last", "v").id;
  std::optional<Result<std::uint64_t>> dropped;
  engine.start(engine.store().builds().drop(1), dropped);
  engine.run_until([&] { return engine.value(1, "0") == "(miss)"; });
  BOOST_REQUIRE(!dropped);
  BOOST_REQUIRE(engine.value(1, "last") == "v");  // still in the index
  // To a client of the daemon it is gone, and what is set now is not what is being deleted.
  BOOST_TEST(engine.list(1).entries.empty());
  BOOST_TEST((engine.load(1, "last").error() == Errc::not_found));
  auto params = Engine::params(1, "last");
  params.if_absent = true;
  const auto set = engine.try_set(params, "new");
  BOOST_REQUIRE(set.has_value());
  BOOST_TEST(set.value().id > last);
  engine.run_until([&] { return dropped.has_value(); });
  BOOST_TEST(dropped->value() == 3001u);
  BOOST_TEST(engine.value(1, "last") == "new");
  BOOST_TEST(engine.segment().index().entries() == 1u);
  engine.flush().value();
  BOOST_TEST((rows(disk) == Rows{"1/last=new"}));
  BOOST_TEST(engine.segment().find_build(1)->drop_upto.load() == 0u);
}

namespace {

/// What `builds` says, a page after the other.
std::vector<BuildInfo> builds_of(Engine& engine) {
  std::vector<BuildInfo> all;
  for (bool more = true; more;) {
    const auto page = engine.store().builds().page({all.empty() ? 0 : all.back().build});
    BOOST_TEST(page.builds.size() <= protocol::kBuildsPageRows);
    all.insert(all.end(), page.builds.begin(), page.builds.end());
    more = page.more;
  }
  return all;
}

/// The same from what the entries say, one by one.
std::vector<BuildInfo> builds_by_counting(Engine& engine) {
  std::map<BuildId, BuildInfo> all;
  engine.segment().for_each([&](const shm::Entry& entry) {
    BuildInfo& row = all[entry.buildid];
    row.build = entry.buildid;
    ++row.entries;
    (entry.value_offset != 0 ? row.resident_bytes : row.evicted_bytes) += entry.length;
  });
  std::vector<BuildInfo> rows;
  for (auto& [id, row] : all) {
    const shm::BuildRecord* record = engine.segment().find_build(id);
    const std::int64_t at = record->complete_at.load();
    if (at != shm::kNotComplete) row.complete_at = at;
    row.held = record->hold.load() == shm::Hold::held;
    rows.push_back(row);
  }
  return rows;
}

std::string text_of(const std::vector<BuildInfo>& builds) {
  std::string text;
  for (const BuildInfo& b : builds) {
    text += std::to_string(b.build) + ": " + std::to_string(b.entries) + " " + std::to_string(b.resident_bytes) + "+" +
            std::to_string(b.evicted_bytes) + " " + (b.complete_at ? std::to_string(*b.complete_at) : "running") +
            (b.held ? " held\n" : "\n");
  }
  return text;
}

}  // namespace

BOOST_AUTO_TEST_CASE(builds_say_what_their_entries_come_to_whatever_happened_to_them) {
  std::mt19937 random(42);
  const auto up_to = [&](int most) { return static_cast<int>(random() % static_cast<unsigned>(most)) + 1; };
  int evicted = 0;
  for (int step = 0; step < 600; ++step) {
    const BuildId build = up_to(6);
    const std::string name = std::to_string(up_to(16));
    switch (up_to(12)) {
      case 1:
        if (up_to(4) == 1) engine.drop(build);
        break;
      case 2:
        engine.store().builds().finish(build, up_to(1000)).value();
        break;
      case 3:
        engine.store().builds().hold(build, up_to(2) == 1).value();
        break;
      case 4:
        if (up_to(4) == 1) engine.prune(up_to(500));
        break;
      case 5:
        engine.flush().value();
        break;
      case 6:
        (void)engine.load(build, name).has_value();
        break;
      default:  // far more than 4 MiB in all: what is in the database leaves for what comes
        engine.set(build, name,
                   std::string(static_cast<std::size_t>(up_to(3) == 1 ? up_to(400'000) : up_to(300)), 'v'));
    }
    const auto counted = builds_by_counting(engine);
    BOOST_REQUIRE_EQUAL(text_of(builds_of(engine)), text_of(counted));
    for (const BuildInfo& row : counted) evicted += row.evicted_bytes > 0;
  }
  BOOST_TEST(evicted > 0);
  engine.flush().value();
  const TempDir elsewhere;
  Engine cold(elsewhere, faulty, clock);  // all evicted
  BOOST_TEST(text_of(builds_of(cold)) == text_of(builds_by_counting(cold)));
}

BOOST_AUTO_TEST_CASE(builds_come_in_pages_in_the_order_of_their_numbers) {
  for (BuildId build = 700; build > 0; --build) engine.set(build, "v", "v");
  engine.store().builds().finish(1000, 5).value();  // without data
  const auto all = builds_of(engine);
  BOOST_REQUIRE(all.size() == 700u);
  for (std::size_t i = 0; i < all.size(); ++i) BOOST_TEST(all[i].build == static_cast<BuildId>(i) + 1);
  const auto first = engine.store().builds().page({0});
  BOOST_TEST(first.more);
  BOOST_TEST(first.builds.size() == protocol::kBuildsPageRows);
  const auto last = engine.store().builds().page({444});
  BOOST_TEST(!last.more);
  BOOST_TEST(last.builds.size() == 256u);
  BOOST_TEST(engine.store().builds().page({700}).builds.empty());
  BOOST_TEST(engine.store().builds().page({INT64_MAX}).builds.empty());
  BOOST_TEST(engine.store().builds().page({INT64_MIN}).builds.size() == protocol::kBuildsPageRows);
}

BOOST_AUTO_TEST_CASE(a_build_that_is_being_dropped_is_not_listed_and_what_is_set_meanwhile_counts) {
  for (int i = 0; i < 3000; ++i) engine.set(1, std::to_string(i), "v");
  engine.set(2, "v", "value");
  std::optional<Result<std::uint64_t>> dropped;
  engine.start(engine.store().builds().drop(1), dropped);
  engine.run_until([&] { return engine.value(1, "0") == "(miss)"; });
  BOOST_REQUIRE(!dropped);
  BOOST_TEST(text_of(builds_of(engine)) == "2: 1 5+0 running\n");
  engine.set(1, "2999", "again");  // one that is still in the index
  engine.set(1, "new", "new");
  BOOST_REQUIRE(!dropped);
  BOOST_TEST(text_of(builds_of(engine)) == "1: 2 8+0 running\n2: 1 5+0 running\n");
  engine.run_until([&] { return dropped.has_value(); });
  BOOST_TEST(text_of(builds_of(engine)) == "1: 2 8+0 running\n2: 1 5+0 running\n");
  engine.drop(1);
  BOOST_TEST(text_of(builds_of(engine)) == "2: 1 5+0 running\n");
}

BOOST_AUTO_TEST_CASE(a_get_during_a_deletion_says_that_it_is_gone_and_not_that_it_is_damaged) {
  for (int i = 0; i < 8000; ++i) engine.set(1, std::to_string(i), "v");
  engine.flush().value();
  const TempDir elsewhere;
  Engine cold(elsewhere, faulty, clock);
  faulty.block_loads();
  std::optional<Result<>> loaded;
  daemon::Waiter waiter(cold.loop());
  cold.start(cold.loading(1, "7999", waiter), loaded);
  cold.run_until([&] { return faulty.loads() > 0; });
  std::optional<Result<std::uint64_t>> dropped;
  cold.start(cold.store().builds().drop(1), dropped);
  cold.flusher().kick();
  cold.run_until([&] { return rows(disk).empty(); });
  faulty.release();
  cold.run_until([&] { return loaded.has_value(); });
  BOOST_TEST((loaded->error() == Errc::not_found));
  BOOST_TEST(cold.store().reloader().counters().errors == 0u);
  cold.run_until([&] { return dropped.has_value(); });
}

BOOST_AUTO_TEST_CASE(a_second_deletion_is_not_over_before_the_first) {
  for (int i = 0; i < 3000; ++i) engine.set(1, std::to_string(i), "v");
  std::optional<Result<std::uint64_t>> first;
  engine.start(engine.store().builds().drop(1), first);
  engine.run_until([&] { return engine.value(1, "0") == "(miss)"; });
  BOOST_REQUIRE(!first);
  BOOST_TEST(engine.drop(1) == 0u);  // the first one counts them
  BOOST_TEST(engine.segment().index().entries() == 0u);
  engine.run_until([&] { return first.has_value(); });
  BOOST_TEST(first->value() == 3000u);
}

BOOST_AUTO_TEST_CASE(a_finish_that_only_the_database_remembers_counts) {
  persist::Batch batch;
  batch.builds.push_back({.buildid = 1, .complete_at = 100, .held = {}});
  batch.builds.push_back({.buildid = 2, .complete_at = 100, .held = true});
  disk.commit(batch).value();
  engine.set(1, "v", "v");
  engine.set(2, "v", "v");
  BOOST_TEST(engine.prune(101) == 1u);
  BOOST_TEST(engine.value(1, "v") == "(miss)");
  BOOST_TEST(engine.value(2, "v") == "v");
}

BOOST_AUTO_TEST_CASE(what_is_said_now_outweighs_what_the_database_remembers) {
  persist::Batch batch;
  batch.builds.push_back({.buildid = 1, .complete_at = 100, .held = true});
  disk.commit(batch).value();
  engine.set(1, "v", "v");
  engine.store().builds().finish(1, 500).value();
  engine.store().builds().hold(1, false).value();
  BOOST_TEST(engine.prune(101) == 0u);
  BOOST_TEST(engine.prune(501) == 1u);
}

BOOST_AUTO_TEST_CASE(a_build_that_is_reopened_stays_until_it_is_finished_again) {
  persist::Batch batch;
  batch.builds.push_back({.buildid = 1, .complete_at = 100, .held = {}});
  disk.commit(batch).value();
  engine.set(1, "v", "v");
  // Before the database has told when it finished.
  engine.store().builds().finish(1, shm::kReopened).value();
  BOOST_TEST(engine.prune(INT64_MAX) == 0u);
  BOOST_TEST(!engine.store().builds().page({0}).builds.at(0).complete_at.has_value());
  engine.flush().value();
  BOOST_TEST(disk.load_build(1).value()->complete_at.value() == shm::kReopened);
  engine.store().builds().finish(1, 500).value();
  BOOST_TEST(engine.prune(501) == 1u);
}

BOOST_AUTO_TEST_CASE(a_build_that_is_reopened_is_evicted_as_one_that_never_finished) {
  engine.set(2, "older", std::string(200 << 10, 'v'));
  engine.set(1, "newer", std::string(200 << 10, 'v'));
  engine.flush().value();
  for (const BuildId build : {2, 1}) engine.store().builds().finish(build, 100).value();
  engine.store().builds().finish(2, shm::kReopened).value();
  fill_until_evicted("newer");
  BOOST_TEST(engine.value(2, "older") != "(evicted)");
}

BOOST_AUTO_TEST_CASE(a_build_that_the_database_could_not_be_asked_about_is_pruned_once_it_answers) {
  persist::Batch batch;
  batch.builds.push_back({.buildid = 1, .complete_at = 100, .held = {}});
  disk.commit(batch).value();
  faulty.fail_loads(Errc::not_durable);
  engine.set(1, "v", "v");
  BOOST_TEST(engine.prune(101) == 0u);
  faulty.heal();
  engine.run_until([&] {
    clock.advance(2s);
    engine.store().maintain();
    return engine.prune(101) == 1;
  });
}

BOOST_AUTO_TEST_CASE(the_horizon_prunes_what_is_strictly_older) {
  engine.store().set_limits({{Engine::kSegmentBytes, 10s}, 1h});
  engine.set(1, "v", "v");
  engine.store().builds().finish(1, std::nullopt).value();  // now
  const std::int64_t now = clock.wall_seconds();
  BOOST_TEST(engine.prune(0) == 0u);  // waits for what the database knows of the build
  clock.set_wall(now + 3600);
  clock.advance(3600s);
  prune_expired();
  BOOST_TEST(engine.value(1, "v") == "v");
  clock.set_wall(now + 3601);
  clock.advance(1s);
  prune_expired();
  BOOST_TEST(engine.value(1, "v") == "(miss)");
  BOOST_TEST(engine.store().builds().counters().pruned == 1u);
}

BOOST_AUTO_TEST_CASE(a_wall_clock_that_jumps_ahead_prunes_no_build_that_has_just_finished) {
  engine.store().set_limits({{Engine::kSegmentBytes, 10s}, 1h});
  const std::int64_t now = clock.wall_seconds();
  engine.set(1, "finished just now", "v");
  engine.store().builds().finish(1, std::nullopt).value();
  engine.set(2, "said to have finished 50 minutes ago", "v");
  engine.store().builds().finish(2, now - 3000).value();
  engine.set(3, "said to have finished a day ago", "v");
  engine.store().builds().finish(3, now - 86400).value();
  engine.set(4, "running", "v");
  BOOST_TEST(engine.prune(0) == 0u);
  clock.set_wall(now + 10 * 365 * 86400LL);
  prune_expired();
  BOOST_TEST(engine.value(1, "finished just now") == "v");
  BOOST_TEST(engine.value(2, "said to have finished 50 minutes ago") == "v");
  BOOST_TEST(engine.value(3, "said to have finished a day ago") == "(miss)");
  clock.advance(601s);  // and stays there
  prune_expired();
  BOOST_TEST(engine.value(1, "finished just now") == "v");
  BOOST_TEST(engine.value(2, "said to have finished 50 minutes ago") == "(miss)");
  clock.advance(3000s);
  prune_expired();
  BOOST_TEST(engine.value(1, "finished just now") == "(miss)");
  BOOST_TEST(engine.value(4, "running") == "v");
}

BOOST_AUTO_TEST_CASE(a_wall_clock_that_jumped_while_the_machine_was_off_prunes_no_build_that_had_just_finished) {
  const std::int64_t now = clock.wall_seconds();
  engine.set(1, "finished just before", "v");
  engine.store().builds().finish(1, std::nullopt).value();
  engine.set(2, "finished a day before", "v");
  engine.store().builds().finish(2, now - 86400).value();
  engine.store().builds().finish(3, std::nullopt).value();
  engine.flush().value();
  disk.set_last_written(now + 60);
  clock.set_wall(now + 10 * 365 * 86400LL);
  const TempDir elsewhere;
  Engine cold(elsewhere, faulty, clock);
  cold.store().set_limits({{Engine::kSegmentBytes, 10s}, 1h});
  cold.set(3, "set after it had finished", "v");
  BOOST_TEST(cold.prune(0) == 0u);  // when the database has said what it knows of it
  prune_expired(cold);
  BOOST_TEST(cold.value(1, "finished just before") == "(evicted)");
  BOOST_TEST(cold.value(2, "finished a day before") == "(miss)");
  BOOST_TEST(cold.value(3, "set after it had finished") == "v");
  clock.advance(3541s);
  prune_expired(cold);
  BOOST_TEST(cold.value(1, "finished just before") == "(miss)");
  BOOST_TEST(cold.value(3, "set after it had finished") == "(miss)");
}

/// By a master on another host, or with --at.
BOOST_AUTO_TEST_CASE(a_wall_clock_that_is_ahead_prunes_no_build_whose_true_time_is_given) {
  const std::int64_t now = clock.wall_seconds();
  MemoryStore written_to_before;
  written_to_before.set_last_written(now);
  clock.set_wall(now + 10 * 365 * 86400LL);
  const TempDir elsewhere;
  Engine started_late(elsewhere, written_to_before, clock);
  for (Engine* in : {&engine, &started_late}) {
    in->store().set_limits({{Engine::kSegmentBytes, 10s}, 1h});
    in->set(1, "finished just now", "v");
    in->store().builds().finish(1, now).value();
    in->set(2, "finished a day ago", "v");
    in->store().builds().finish(2, now - 86400).value();
    BOOST_TEST(in->prune(0) == 0u);
    prune_expired(*in);
    BOOST_TEST(in->value(1, "finished just now") == "v");
    BOOST_TEST(in->value(2, "finished a day ago") == "(miss)");
  }
  clock.advance(3601s);
  for (Engine* in : {&engine, &started_late}) {
    prune_expired(*in);
    BOOST_TEST(in->value(1, "finished just now") == "(miss)");
  }
}

BOOST_AUTO_TEST_CASE(a_deadline_is_as_far_away_whatever_the_wall_clock_does) {
  const std::int64_t now = clock.wall_seconds();
  engine.store().set_limits({{1000, 10s}, std::nullopt});
  engine.set(1, "a", std::string(900, 'a'));
  faulty.fail_commits(Errc::not_durable);
  std::optional<Result<protocol::SetOk>> set;
  engine.start(engine.setting(Engine::params(1, "b"), std::string(200, 'b'), engine.waiter()), set);  // within 30 s
  for (const std::int64_t wall : {now + 10 * 365 * 86400LL, now - 10 * 365 * 86400LL}) {
    clock.set_wall(wall);
    const std::uint64_t failed = faulty.failed_commits();
    engine.run_until([&] { return faulty.failed_commits() > failed; });
    BOOST_TEST(!set.has_value());
    const auto refused = engine.try_set(Engine::params(1, "c"), std::string(200, 'c'), 50ms);
    BOOST_TEST((refused.error() == Errc::dirty_limit));
  }
  faulty.heal();
  engine.run_until([&] { return set.has_value(); });
  BOOST_TEST(set->has_value());
}

BOOST_AUTO_TEST_CASE(a_build_without_data_gives_up_its_record_when_the_database_has_its_facts) {
  engine.store().builds().finish(1, 100).value();
  BOOST_TEST(engine.segment().builds() == 1u);
  engine.flush().value();
  engine.run_until([&] { return engine.segment().builds() == 0; });
  engine.set(2, "v", "v");
  engine.drop(2);
  engine.flush().value();
  engine.run_until([&] { return engine.segment().builds() == 0; });
}

BOOST_AUTO_TEST_CASE(with_the_build_table_full_sets_are_refused_and_finishes_are_not) {
  faulty.fail_commits(Errc::not_durable);  // or finished builds without data would give up their records
  BuildId build = 0;
  for (;;) {
    const auto set = engine.try_set(Engine::params(++build, "v"), "v", 50ms);
    if (set) continue;
    BOOST_TEST((set.error() == Errc::too_many_builds));
    break;
  }
  const std::uint64_t capacity = engine.segment().builds_capacity();
  BOOST_TEST(static_cast<std::uint64_t>(build) > capacity / 2);
  BOOST_TEST(engine.try_set(Engine::params(1, "another of a known build"), "v").has_value());
  BOOST_TEST(engine.store().builds().finish(1, 100).has_value());
  BOOST_TEST(engine.store().builds().finish(build, 100).has_value());
  BOOST_TEST(engine.store().builds().hold(build + 1, true).has_value());
  BOOST_TEST(engine.prune(101) == 2u);
  faulty.heal();
  engine.flush().value();
  BOOST_TEST(engine.try_set(Engine::params(build, "v"), "v").has_value());
}

BOOST_AUTO_TEST_CASE(a_prune_does_not_wait_for_builds_that_came_after_it) {
  engine.set(1, "v", "value");
  engine.store().builds().finish(1, 100).value();
  engine.flush().value();
  faulty.hang_on_builds({5, 6});
  engine.set(5, "v", "value");  // the database is asked about it, and what it says matters to a prune
  std::optional<Result<std::uint64_t>> pruned;
  engine.start(engine.store().builds().prune(200, engine.waiter(), in(60s)), pruned);
  const auto later = in(50ms);
  engine.run_until([&] { return std::chrono::steady_clock::now() > later; });
  BOOST_TEST(!pruned.has_value());
  engine.set(6, "v", "value");  // and about this one, which is newer than the prune
  faulty.hang_on_builds({6});
  engine.run_until([&] { return pruned.has_value(); });
  BOOST_TEST(pruned->value() == 1u);
  BOOST_TEST(engine.value(1, "v") == "(miss)");
  faulty.release();
}

BOOST_AUTO_TEST_CASE(many_who_wait_for_room_look_for_it_in_turn) {
  faulty.block_commits();
  const std::string value(200 << 10, 'v');
  for (int i = 0; engine.try_set(Engine::params(1, std::to_string(i)), value, 1ms); ++i) BOOST_REQUIRE(i < 100);
  constexpr std::size_t kMany = 300;
  std::vector<std::optional<Result<protocol::SetOk>>> done(kMany);
  const std::uint64_t before = engine.store().room().counters().tries;
  for (std::size_t i = 0; i < kMany; ++i) {
    kept.push_back(std::make_unique<daemon::Waiter>(engine.loop()));
    engine.start(engine.setting(Engine::params(2, std::to_string(i)), value, *kept.back()), done[i]);
  }
  const auto start = std::chrono::steady_clock::now();
  engine.run_until([&] { return std::chrono::steady_clock::now() > start + 1s; });
  const std::uint64_t tries = engine.store().room().counters().tries - before;
  // One, and then another one every 50 ms; those who want as much are told.
  BOOST_TEST(tries >= 2u);
  BOOST_TEST(tries <= 2 * (1s / daemon::RoomQueue::kLookAgain));
  faulty.release();
  engine.run_until([&] { return std::ranges::all_of(done, [](const auto& one) { return one.has_value(); }); });
  for (const auto& one : done) BOOST_TEST(one->has_value());
}

BOOST_AUTO_TEST_CASE(a_small_value_does_not_wait_behind_large_ones) {
  faulty.block_commits();
  const std::string value(200 << 10, 'v');
  for (int i = 0; engine.try_set(Engine::params(1, std::to_string(i)), value, 1ms); ++i) BOOST_REQUIRE(i < 100);
  std::vector<std::optional<Result<protocol::SetOk>>> done(20);
  for (std::size_t i = 0; i < done.size(); ++i) {
    kept.push_back(std::make_unique<daemon::Waiter>(engine.loop()));
    engine.start(engine.setting(Engine::params(2, std::to_string(i)), value, *kept.back()), done[i]);
  }
  const auto start = std::chrono::steady_clock::now();
  engine.run_until([&] { return std::chrono::steady_clock::now() > start + 100ms; });
  BOOST_TEST(engine.try_set(Engine::params(3, "small"), "value", 10s).has_value());
  BOOST_TEST(std::ranges::none_of(done, [](const auto& one) { return one.has_value(); }));
  faulty.release();
  engine.run_until([&] { return std::ranges::all_of(done, [](const auto& one) { return one.has_value(); }); });
}

BOOST_AUTO_TEST_CASE(what_may_not_come_before_the_next_daemon_is_not_waited_for_when_this_one_stops) {
  faulty.block_commits();
  const std::string value(200 << 10, 'v');
  for (int i = 0; engine.try_set(Engine::params(1, std::to_string(i)), value, 1ms); ++i) BOOST_REQUIRE(i < 100);
  daemon::Waiter room(engine.loop()), name(engine.loop()), commit(engine.loop());
  std::optional<Result<protocol::SetOk>> set, durable;
  std::optional<Result<>> named;
  engine.start(engine.setting(Engine::params(2, "v"), value, room), set);
  engine.start(engine.awaiting(2, "v", name, 30s), named);
  protocol::SetParams params = Engine::params(3, "small");
  params.durable = true;
  engine.start(engine.setting(params, "value", commit), durable);
  engine.run_until([&] { return engine.value(3, "small") == "value"; });
  for (daemon::Waiter* waiter : {&room, &name, &commit}) waiter->dismiss();
  engine.run_until([&] { return set && named; });
  BOOST_TEST(set->error() == Errc::shutting_down);
  BOOST_TEST(named->error() == Errc::shutting_down);
  BOOST_TEST(!durable.has_value());  // it is set, and the stop writes it
  faulty.release();
  engine.run_until([&] { return durable.has_value(); });
  BOOST_TEST(durable->has_value());
}

BOOST_AUTO_TEST_CASE(a_disk_that_hangs_keeps_nobody_waiting_who_does_not_need_it) {
  engine.set(1, "clean", "value");
  engine.flush().value();
  daemon::Config config;
  daemon::Services services(engine.loop(), engine.store(), engine.flusher(), engine.database(), engine.segment(),
                            config, clock);
  faulty.hang();
  engine.run_until([&] { return faulty.wait_until_blocked(0ms); });
  const auto start = std::chrono::steady_clock::now();
  const std::string value(200 << 10, 'v');
  // Until the segment is full: what is clean may not be evicted for longer than the disk may take to answer.
  int sets = 0;
  for (; sets < 10; ++sets) engine.set(2, std::to_string(sets), value);
  for (int i = 0; engine.try_set(Engine::params(2, std::to_string(sets)), value, 1ms) && i < 100; ++i) ++sets;
  BOOST_TEST(engine.value(1, "clean") != "(miss)");
  BOOST_TEST(engine.value(2, "0") == value);
  daemon::Listings::Handle listing;
  BOOST_TEST(engine.store().list({2, std::nullopt, 0}, listing).value().entries.size() ==
             static_cast<std::size_t>(sets));
  const auto json = daemon::stats_json(services, engine.startup(), {});
  BOOST_TEST(json.find("\"seen_seconds_ago\"") != json.npos);
  BOOST_TEST(engine.store().builds().finish(2, 100).has_value());
  BOOST_TEST(engine.drop(2) == static_cast<std::uint64_t>(sets));
  engine.store().maintain();
  BOOST_TEST((std::chrono::steady_clock::now() - start < 1s));
  services.copiers.join();
  faulty.release();
}

BOOST_AUTO_TEST_CASE(nothing_is_evicted_while_the_database_is_not_in_its_place) {
  engine.set(1, "clean", std::string(200 << 10, 'c'));
  engine.flush().value();
  faulty.move_away(true);
  engine.run_until([&] { return engine.database().state() == daemon::Database::State::detached; });
  faulty.fail_commits(Errc::not_durable);
  const std::string value(200 << 10, 'v');
  for (int i = 0; engine.try_set(Engine::params(2, std::to_string(i)), value, 1ms); ++i) BOOST_REQUIRE(i < 100);
  BOOST_TEST(engine.value(1, "clean") == std::string(200 << 10, 'c'));
  BOOST_TEST(engine.store().catalog().evicted() == 0u);
  faulty.move_away(false);
  faulty.heal();
  engine.run_until([&] { return engine.database().state() == daemon::Database::State::ready; });
  BOOST_TEST(engine.try_set(Engine::params(3, "v"), value).has_value());
}

BOOST_AUTO_TEST_CASE(who_waits_for_room_gets_it_in_turn_with_other_users) {
  daemon::Turns turns(engine.loop(), clock);
  daemon::RoomQueue queue;
  std::vector<std::string> tried;
  const auto wait = [&](std::string who, daemon::Waiter& waiter, std::uint64_t bytes) -> awaitable<bool> {
    daemon::RoomQueue::Place place(queue, waiter, {bytes, 0});
    while (co_await place.turn(in(30s))) {
      tried.push_back(who);
      if (who.back() != '!') co_return true;
      queue.no_room_for({bytes, 0}, Errc::segment_full, false);
      place.failed();
    }
    co_return false;
  };
  std::vector<std::optional<bool>> done(6);
  const std::pair<const char*, std::uint64_t> all[] = {{"a1", 5}, {"a2", 5}, {"a3!", 7},
                                                       {"b1", 5}, {"b2", 9}, {"c1", 5}};
  queue.notify_all();
  for (std::size_t i = 0; i < std::size(all); ++i) {
    const auto uid = static_cast<uid_t>(all[i].first[0]);
    kept.push_back(std::make_unique<daemon::Waiter>(engine.loop(), turns, uid));
    engine.start(wait(all[i].first, *kept.back(), all[i].second), done[i]);
  }
  engine.loop().poll();
  BOOST_TEST(tried.empty());
  queue.notify_all();
  engine.run_until([&] { return tried.size() >= 5; });
  // Users in turn; once a3 has not found 7, 9 are not looked for.
  BOOST_TEST(tried[0].front() == 'a');
  BOOST_TEST(tried[1].front() == 'b');
  BOOST_TEST(tried[2].front() == 'c');
  kept[2]->hang_up();
  engine.run_until([&] { return done[2] && done[4]; });
  BOOST_TEST(std::ranges::count(tried, "b2") == 1);
  BOOST_TEST(queue.waiting() == 0u);
}

BOOST_AUTO_TEST_SUITE_END()
