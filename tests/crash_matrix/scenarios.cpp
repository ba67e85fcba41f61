// SPDX-License-Identifier: Apache-2.0
#include "tests/crash_matrix/scenarios.hpp"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "shm/hash.hpp"
#include "shm/validate.hpp"
#include "tests/support/harness.hpp"

namespace stepstash::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// Nothing is flushed or freed unless the script says so: every run passes the same points.
Run::Options options(const std::string& segment_size, const Run::Options& more = {}) {
  Run::Options all = {"--flush-interval=1h", "--punch-after=1h", "--ring-size=256KiB",
                      "--segment-size=" + segment_size};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

/// A sample of everything: small, empty, chunked in the database, replaced, finished, held.
void some_data(Run& run) {
  run.set(1, "small", 500);
  run.set(1, "empty", 0);
  run.set(1, "replaced", 3000);
  run.set(1, "replaced", 4000, {.source = "again"});
  run.staged(1, "large", 400'000);
  run.set(2, "other", 900);
  run.finish(1, 1'000'000);
  run.hold(2);
}

/// The very first life: no database, no segment, and then every kind of request.
void first_life(Run& run) {
  run.start_armed(options("8MiB"));
  some_data(run);
  run.set(1, "small", 700, {.if_absent = true});  // refused
  run.set(1, "absent", 700, {.if_absent = true});
  run.staged(3, "of unknown length", 1'700'000, {}, /*unknown=*/true);
  // Another block follows, so this one has to be moved to grow.
  run.staged(3, "moved", 1'200'000, {}, /*unknown=*/true, [&run] {
    Session other(run.daemon().socket(), false);
    const Value value{70, 60'000, "step"};
    const std::string bytes = generated(value.length, value.seed);
    run.promises().will_set(3, "in the way", value);
    protocol::SetParams params;
    params.build = 3;
    params.name = "in the way";
    params.source = value.source;
    const protocol::Reply reply = other.ask(protocol::Set{params, std::as_bytes(std::span(bytes))});
    const auto& ok = std::get<protocol::SetOk>(reply);
    run.promises().was_set(3, "in the way", ok.id, ok.revision);
  });
  run.set(3, "durable", 5000, {.durable = true});
  run.list(1);
  run.flush();
  run.staged(1, "large", 300'000, {.source = "of other length"});  // its chunks in the database are replaced
  run.hold(2, false);
  run.flush();
  run.drop(3);
  run.prune(2'000'000);  // build 1
  run.flush();
  run.set(2, "after", 100);
  run.finish(2, 3'000'000);
  run.until([](const json& now) { return now.at("dirty_values") == 1; }, "one dirty value");
  run.flush();
  run.terminate();
}

/// Values that take several transactions.
void huge_values(Run& run) {
  run.start_armed(options("64MiB"));
  run.staged(1, "huge", 20'000'000);
  run.flush();
  run.staged(1, "huge", 18'500'000);
  run.flush();
  run.drop(1);
  run.set(2, "small", 100);
  run.flush();
  run.terminate();
}

/// A daemon that was killed with dirty values, a pending deletion and an open view.
void warm_restart(Run& run) {
  run.start(options("8MiB"));
  some_data(run);
  run.set(4, "to be dropped", 1000);
  run.set(4, "this, too", 70'000 - 10'000);
  run.flush();
  run.set(1, "replaced", 6000);
  run.set(5, "dirty", 2000);
  run.view(1, "large");
  run.view(1, "replaced");
  run.set(1, "replaced", 7000);
  run.kill();
  run.start(options("8MiB"), "daemon.drop.fact.stored:1");
  run.attach();
  try {
    run.drop(4);
  } catch (const Gone&) {
    run.detach();
  }
  run.kill();
  run.start_armed(options("8MiB"));
  run.attach();
  run.set(6, "new", 100);
  run.staged(1, "large", 500'000);
  run.drop(5);
  run.flush();
  run.detach();
  run.terminate();
}

/// A daemon that was killed while it marked builds for a prune, and one that was killed after the prune had taken
/// effect but before any build recorded it.
void deletion_cut_short(Run& run) {
  run.start(options("8MiB"));
  some_data(run);
  for (const BuildId build : {4, 5}) {
    run.set(build, "to be pruned", 1000);
    run.set(build, "this, too", 2000);
    run.finish(build, 1000);
  }
  run.flush();
  run.kill();
  for (const char* at : {"shm.deletion.build.marked:1", "shm.deletion.effective:1"}) {
    run.start(options("8MiB"), at);
    run.attach();
    try {
      run.prune(2000);
    } catch (const Gone&) {
      run.detach();
    }
    run.kill();
  }
  run.start_armed(options("8MiB"));
  run.attach();
  run.set(6, "new", 100);
  run.prune(2000);
  run.flush();
  run.detach();
  run.terminate();
}

/// As after a reboot: only the database is left.
void cold_start(Run& run) {
  run.start(options("8MiB"));
  some_data(run);
  run.finish(7, 1'234'567);  // only in the database once it is written
  run.hold(7);
  run.flush();
  run.terminate();
  run.daemon().remove_segment();
  run.start_armed(options("8MiB"));
  run.load(1, "large");
  run.load(1, "small");
  run.set(7, "of a known build", 800);
  run.until([](const json& now) { return now.at("gets_asked") == 2; }, "two loads");
  run.set(1, "small", 900);
  run.flush();
  run.terminate();
}

/// More data than memory: eviction, reload, and returning memory.
void eviction(Run& run) {
  run.start_armed(options("4MiB", {"--punch-after=1ms"}));
  for (int i = 0; i < 12; ++i) {
    run.staged(1 + i % 2, "value " + std::to_string(i), 500'000 + static_cast<std::uint64_t>(i));
    run.flush();
  }
  run.finish(1, 1'000'000);
  run.until([](const json& now) { return now.at("evictions") > 0; }, "an eviction");
  run.load(1, "value 0");
  run.load(2, "value 1");
  run.staged(2, "value 1", 450'000);
  const auto allocated = [&run] {
    struct stat status {};
    return ::stat(run.daemon().segment_path().c_str(), &status) == 0 ? status.st_blocks : 0;
  };
  const auto before = allocated();
  run.drop(1);
  run.flush();
  run.until([&](const json&) { return allocated() < before; }, "memory given back");
  run.terminate();
}

/// Enough room, but scattered: neighbours are evicted or moved to form one run.
void scattered_room(Run& run) {
  run.start_armed(options("4MiB"));
  for (int i = 0; i < 58; ++i) run.set(1 + i % 2, "value " + std::to_string(i), 60'000);
  run.flush();
  run.drop(1);
  run.staged(3, "large", 700'000);
  run.load(2, "value 1");
  run.flush();
  run.terminate();
}

/// The index grows, is cleaned, and is cleaned again into a former table.
void index_growth(Run& run) {
  run.start_armed(options("4MiB"));
  const auto fill = [&run](BuildId build, int count) {
    for (int i = 0; i < count; ++i) run.set(build, std::to_string(i), static_cast<std::uint64_t>(i % 5));
  };
  run.set(1, "stays", 100);
  fill(2, 660);
  run.drop(2);
  for (BuildId build = 3; build < 15; ++build) {  // dropped entries leave slots behind, some of which are reused
    fill(build, 750);
    run.drop(build);
  }
  run.flush();
  run.terminate();
}

/// A different size is configured.
void resize(Run& run) {
  run.start(options("4MiB"));
  some_data(run);
  run.flush();
  run.staged(3, "dirty", 100'000);
  run.set(1, "small", 510);
  run.drop(2);
  run.view(3, "dirty");
  run.kill();
  run.start_armed(options("8MiB"));
  run.set(3, "new", 100);
  run.load(1, "large");
  run.terminate();
}

/// The segment's header is damaged: sound entries are salvaged.
void damaged_segment(Run& run) {
  run.start(options("8MiB"));
  some_data(run);
  run.flush();
  run.staged(3, "dirty", 100'000);
  run.set(1, "small", 510);
  run.finish(3, 77);
  run.kill();
  run.expect_damage();
  run.poke([](std::byte* at, std::size_t) { reinterpret_cast<shm::Header*>(at)->header_hash ^= 1; });
  run.start_armed(options("8MiB"));
  run.set(3, "new", 100);
  run.terminate();
}

/// Single bytes are damaged: an unflushed value, a build record, slots.
void damaged_values(Run& run) {
  run.start(options("8MiB"));
  some_data(run);
  run.set(3, "moved slot", 100);
  run.flush();
  run.set(3, "damaged", 1000);
  run.set(3, "damaged later", 1000);
  run.kill();
  run.expect_damage();
  const auto find = [](std::byte* at, BuildId build, std::string_view name) -> std::pair<std::atomic<shm::Slot>*, int> {
    const shm::IndexWord word = reinterpret_cast<shm::Header*>(at)->index.load();
    auto* slots = reinterpret_cast<std::atomic<shm::Slot>*>(at + shm::index_slots_offset(word));
    const std::uint64_t count = std::uint64_t{1} << shm::index_log2_slots(word);
    const std::uint64_t hash = shm::key_hash(shm::table_secret(at, shm::index_slots_offset(word)), build, name);
    for (std::uint64_t i = 0; i < count; ++i) {
      auto& slot = slots[(hash + i) % count];
      if (slot.load() == shm::kEmptySlot) break;
      if (!shm::slot_matches(slot.load(), hash)) continue;
      if (shm::entry_name(*reinterpret_cast<shm::Entry*>(at + shm::slot_offset(slot.load()))) != name) continue;
      return {slots, static_cast<int>((hash + i) % count)};
    }
    throw Broken("the test finds no slot of its own");
  };
  const auto spoil = [&find](std::byte* at, std::string_view name) {
    const auto [slots, i] = find(at, 3, name);
    auto* entry = reinterpret_cast<shm::Entry*>(at + shm::slot_offset(slots[i].load()));
    reinterpret_cast<std::byte*>(entry)[entry->value_offset + 5] ^= std::byte{1};
  };
  run.poke([&](std::byte* at, std::size_t) {
    spoil(at, "damaged");
    const auto [its_slots, its] = find(at, 3, "damaged later");
    reinterpret_cast<shm::Entry*>(at + shm::slot_offset(its_slots[its].load()))->record.store(77);  // another build's
    const auto [slots, i] = find(at, 3, "moved slot");
    // After an empty slot, where no probe for it arrives.
    int to = i + 2;
    while (slots[to % 1024].load() != shm::kEmptySlot || slots[(to + 1023) % 1024].load() != shm::kEmptySlot) ++to;
    slots[to % 1024].store(slots[i].exchange(shm::kTombstone));
    while (slots[to % 1024].load() != shm::kEmptySlot) ++to;
    slots[to % 1024].store(0x1234'0000'0000'0040);  // refers to no block
    auto* builds = reinterpret_cast<shm::BuildRecord*>(at + shm::kPageBytes);
    int unused = 0;
    while (builds[unused].buildid.load() != 0) ++unused;
    builds[unused].buildid.store(-5);
  });
  for (const char* name : {"damaged", "damaged later"}) run.promises().build(3).data.at(name).damaged = true;
  run.start_armed(options("8MiB"));
  run.poke([&](std::byte* at, std::size_t) { spoil(at, "damaged later"); });
  run.set(3, "new", 100);
  run.flush();
  run.terminate();
}

/// The database is damaged: it is quarantined, and resident values are written to a new one.
void damaged_database(Run& run) {
  run.start(options("8MiB"));
  some_data(run);
  run.flush();
  run.set(3, "dirty", 3000);
  run.kill();
  run.expect_damage();
  for (const char* companion : {"-wal", "-shm"}) fs::remove(run.daemon().db() + companion);
  {
    std::fstream file(run.daemon().db(), std::ios::in | std::ios::out | std::ios::binary);
    file << "this is no database, and nothing in it can be trusted";
  }
  run.start_armed(options("8MiB"));
  run.set(3, "new", 100);
  run.flush();
  run.terminate();
}

/// What a start reads of the database is intact, but not what the next commit needs.
void database_damaged_in_use(Run& run) {
  run.start_armed(options("8MiB"));
  some_data(run);
  run.flush();
  run.expect_damage();
  damage_schema(run.daemon().db());
  run.set(3, "dirty", 3000);
  const auto unless_dead = [&run](const std::function<bool()>& does) {
    try {
      return does();
    } catch (const Gone&) {  // it restarts, or was killed
      run.detach();
      if (run.dead()) throw;
      return false;
    }
  };
  unless_dead([&run] {
    run.flush();
    return true;
  });
  const auto replaced = [&run] { return !run.stats().at("kept_aside").empty(); };
  if (!eventually([&] { return unless_dead(replaced); })) throw Broken("the database is not replaced");
  run.set(3, "new", 100);
  run.flush();
  run.terminate();
}

/// Another database than the one the segment was written to; it has the same ids for other names.
void other_database(Run& run) {
  run.start(options("4MiB"));
  for (int i = 0; i < 20; ++i) run.set(11, "theirs " + std::to_string(i), 1000);
  run.finish(11, 5000);
  run.hold(11);
  run.terminate();
  run.daemon().remove_segment();
  const std::string theirs = run.daemon().db();
  run.daemon().use_db(run.daemon().directory().file("other.db"));
  run.promises().ids_may_change();
  run.start(options("4MiB"));
  run.attach();
  run.set(12, "ours", 1000);
  run.set(12, "also", 1500);
  run.flush();
  for (int i = 0; i < 12; ++i) {
    const std::string name = "value " + std::to_string(i);
    run.staged(13, name, 500'000);
    run.flush();
  }
  // Evicted values are only in that database.
  for (int i = 0; i < 12; ++i) {
    const std::string name = "value " + std::to_string(i);
    shm::Pinned pinned;
    const shm::Found found = run.session().reader().find(13, name, pinned);
    run.promises().build(13).data.at(name).lost = found == shm::Found::evicted;
    pinned.release();
  }
  for (const char* name : {"ours", "also"}) {
    shm::Pinned pinned;
    const shm::Found found = run.session().reader().find(12, name, pinned);
    run.promises().build(12).data.at(name).lost = found == shm::Found::evicted;
    pinned.release();
  }
  run.detach();
  run.kill();
  run.expect_damage();
  run.daemon().use_db(theirs);
  run.start_armed(options("4MiB"));
  run.set(12, "new", 100);
  run.flush();
  run.terminate();
}

/// An older copy of the database, without the rows of values that exist nowhere else.
void older_copy(Run& run) {
  run.start(options("4MiB"));
  run.set(1, "in both", 1000);
  run.flush();
  run.terminate();
  const std::string copy = run.daemon().directory().file("copy.db");
  fs::copy(run.daemon().db(), copy);
  run.start(options("4MiB"));
  run.attach();
  for (int i = 0; i < 12; ++i) {
    run.staged(2, "value " + std::to_string(i), 500'000);
    run.flush();
  }
  for (auto& [name, datum] : run.promises().build(2).data) {
    shm::Pinned pinned;
    datum.lost = run.session().reader().find(2, name, pinned) == shm::Found::evicted;
    pinned.release();
  }
  run.detach();
  run.kill();
  run.expect_damage();
  for (const char* companion : {"-wal", "-shm"}) fs::remove(run.daemon().db() + companion);
  fs::rename(copy, run.daemon().db());
  run.start_armed(options("4MiB"));
  run.set(3, "new", 100);
  run.flush();
  run.terminate();
}

/// The range of ids reserved by the database is nearly exhausted.
void ids_run_out(Run& run) {
  run.start_armed(options("4MiB"));
  run.set(1, "first", 1000);
  run.poke([](std::byte* at, std::size_t) {
    auto& header = *reinterpret_cast<shm::Header*>(at);
    header.id_limit.store(header.next_id.load() + 3);
  });
  run.set(1, "second", 1000);
  run.flush();
  for (int i = 0; i < 5; ++i) run.set(2, "beyond " + std::to_string(i), 10);
  run.terminate();
}

/// Pin pages: of clients that exit, of one that exited together with the daemon, of one that truncates its page.
void pin_pages(Run& run) {
  run.start(options("4MiB"));
  run.set(1, "viewed", 5000);
  run.view(1, "viewed");
  run.attach();
  run.stats();
  const int page = ::fcntl(run.session().pin_page_fd(), F_DUPFD_CLOEXEC, 3);
  const UniqueFd keeps_it_locked(page);
  run.kill();
  {
    const Session leaves_with_the_daemon = [&run] {
      run.start(options("4MiB"));
      return Session(run.daemon().socket(), true);
    }();
    run.kill();
  }
  run.start_armed(options("4MiB"));
  run.attach();
  run.set(1, "viewed", 6000);
  if (::ftruncate(run.session().pin_page_fd(), 0) != 0) throw Broken("a client cannot cut its page short");
  run.until(
      [&run](const json&) {
        struct stat status {};
        return ::fstat(run.session().pin_page_fd(), &status) == 0 && status.st_size == 4096;
      },
      "the page's return");
  const auto pages = run.stats().at("pin_pages").get<int>();
  run.detach();
  run.until([&](const json& now) { return now.at("pin_pages") == pages - 1; }, "the end of a page");
  run.terminate();
}

/// Another user holds views of most of the segment while values need room: that user's pages are closed.
void hold_nearly_all(Run& run) {
  fs::permissions(run.daemon().directory().path(), fs::perms{0755});
  for (int i = 0; i < 9; ++i) run.staged(1, std::to_string(i), 350'000);
  run.flush();
  {
    struct Other {
      Other() {
        if (::seteuid(60'001) != 0) throw Broken("cannot become another user");
      }
      ~Other() { static_cast<void>(::seteuid(0)); }
    };
    const Other user;
    for (int i = 0; i < 9; ++i) run.view(1, std::to_string(i));
  }
  for (int i = 0; i < 3; ++i) run.staged(2, std::to_string(i), 350'000);
  run.flush();
}

void release_nearly_all(Run& run) {
  const auto attached = run.release_views();  // their pages still exist and are reopened
  run.until([](const json& now) { return now.at("closed_users").empty(); }, "the opening of pages");
  run.staged(4, "after", 350'000);
  run.terminate();
}

void greedy_reader(Run& run) {
  run.start_armed(options("4MiB", {"--socket-mode=0666"}));
  hold_nearly_all(run);
  release_nearly_all(run);
}

/// The next daemon reopens that user's pages, and closes them when there is no room again.
void greedy_reader_lives_on(Run& run) {
  const Run::Options open_to_all = options("4MiB", {"--socket-mode=0666"});
  run.start(open_to_all);
  hold_nearly_all(run);
  run.kill();
  run.start_armed(open_to_all);
  for (int i = 0; i < 4; ++i) run.staged(3, std::to_string(i), 350'000);
  run.flush();
  release_nearly_all(run);
}

/// Puts the database on a file system of 12 MiB.
void use_small_disk(Run& run) {
  const std::string disk = run.daemon().directory().file("disk");
  fs::create_directory(disk);
  if (::mount("stepstash-test", disk.c_str(), "tmpfs", 0, "size=12m") != 0) throw Broken("no tmpfs can be mounted");
  struct Unmount {
    std::string at;
    ~Unmount() { ::umount2(at.c_str(), MNT_DETACH); }
  };
  run.keep_until_the_end(std::shared_ptr<Unmount>(new Unmount{disk}));
  run.daemon().use_db(disk + "/build_data.db");
}

/// Fills it until the armed life is over.
void fill_small_disk(Run& run) {
  const std::string ballast = run.daemon().directory().file("disk/ballast");
  run.before_judging([ballast] { fs::remove(ballast); });
  std::ofstream file(ballast, std::ios::binary);
  const std::string piece(4096, 'x');
  std::uint64_t written = 0;
  while (file.write(piece.data(), 4096).flush()) {
    if ((written += 4096) > 16 * kMiB) throw Broken("the small disk does not become full");
  }
}

/// The disk is full, and a deletion frees space.
void full_disk(Run& run) {
  use_small_disk(run);
  run.start_armed(options("16MiB"));
  run.set(1, "kept", 1000);
  run.staged(2, "dropped", 3'000'000);
  run.flush();
  fill_small_disk(run);
  run.drop(2);
  run.flush();
  run.terminate();
}

/// A daemon of an earlier version had its objects directly in /dev/shm, and one of its clients is alive.
void former_names(Run& run) {
  run.start(options("8MiB"));
  some_data(run);
  run.view(1, "small");
  run.kill();
  run.daemon().flatten_segment();
  run.start_armed(options("8MiB"));
  run.set(1, "small", 800);
  run.terminate();
}

/// The disk is full when the daemon starts.
void full_disk_at_start(Run& run) {
  use_small_disk(run);
  run.start(options("16MiB"));
  run.set(1, "kept", 1000);
  run.staged(2, "dropped", 3'000'000);
  run.flush();
  run.set(1, "dirty", 1000);
  run.kill();
  fs::remove(run.daemon().db() + "-shm");  // SQLite needs space for it before anything else
  fill_small_disk(run);
  run.start_armed(options("16MiB"));
  run.drop(2);
  run.flush();
  run.terminate();
}

}  // namespace

const std::vector<Scenario>& scenarios() {
  static const std::vector<Scenario> all = {
      {"first_life", "no database and no segment yet; sets of all kinds, list, flush, finish, hold, drop, prune, stop",
       first_life},
      {"huge_values", "values that take several transactions are written, replaced and dropped", huge_values},
      {"warm_restart", "after a kill, with dirty values, a deletion under way and open views", warm_restart},
      {"deletion_cut_short", "after a kill while a prune marked its builds, and one when it had just taken effect",
       deletion_cut_short},
      {"cold_start", "as after a reboot: filled from the database, values come back as they are asked for", cold_start},
      {"eviction", "more data than memory: eviction, reload, memory given back", eviction},
      {"scattered_room", "room is scattered, and made one run", scattered_room},
      {"index_growth", "the index grows, and is cleaned twice", index_growth},
      {"resize", "another segment size is configured", resize},
      {"damaged_segment", "the segment is refused as a whole, what is sound is saved out of it", damaged_segment},
      {"damaged_values", "a value's bytes, a build's record and slots are damaged", damaged_values},
      {"damaged_database", "the database is set aside, a new one is filled from the segment", damaged_database},
      {"database_damaged_in_use", "a commit meets damage; the same process starts again with a new database",
       database_damaged_in_use},
      {"other_database", "the segment was written to another database, which gave the same ids", other_database},
      {"older_copy", "an older copy of the database took its place", older_copy},
      {"ids_run_out", "the range of ids that was reserved is nearly used up", ids_run_out},
      {"pin_pages", "clients that go, go with the daemon, cut their pin page short", pin_pages},
      {"former_names", "an earlier version left its objects in /dev/shm itself", former_names},
      {"greedy_reader", "another user holds most of the segment, and others set", greedy_reader, /*needs_root=*/true},
      {"greedy_reader_lives_on", "the same with a daemon that was killed meanwhile", greedy_reader_lives_on,
       /*needs_root=*/true},
      {"full_disk", "no room for the database; a deletion makes some", full_disk, /*needs_root=*/true},
      {"full_disk_at_start", "no room for the database at the start", full_disk_at_start, /*needs_root=*/true},
  };
  return all;
}

}  // namespace stepstash::test
