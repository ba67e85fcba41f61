// SPDX-License-Identifier: Apache-2.0
// Exhausts every resource: shared memory, the segment, the disk, descriptors, address space, memory. The client that
// requested more gets an error; acknowledged data stays; freeing works; and no process dies of SIGBUS.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>

#include "tests/hostile/faults.hpp"
#include "tests/hostile/flood.hpp"
#include "tests/hostile/namespaces.hpp"
#include "tests/hostile/siege.hpp"
#include "tests/protocol/samples.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

/// Sets values of `bytes` bytes until one is refused; returns how many were accepted.
std::uint64_t fill(Client& client, std::int64_t build, std::uint64_t bytes, std::uint64_t most) {
  for (std::uint64_t i = 0; i < most; ++i) {
    try {
      client.set(build, std::to_string(i), generated(bytes, i), "", {.deadline = kFullAfter});
    } catch (const Error& error) {
      require(error.code() == STEPSTASH_EFULL, std::string("refused with ") + error.what());
      return i;
    }
  }
  throw std::runtime_error("it is never full\n");
}

void all_there(const Client& client, std::int64_t build, std::uint64_t bytes, std::uint64_t count) {
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto view = client.get(build, std::to_string(i));
    require(view && is_generated(view->bytes(), bytes, i), "value " + std::to_string(i) + " is not what was set");
  }
}

/// Whether a signal is pending for the process: ShdPnd of proc(5).
bool is_pending(pid_t pid, int signal) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("ShdPnd:")) return (std::stoull(line.substr(7), nullptr, 16) >> (signal - 1) & 1) != 0;
  }
  return false;
}

/// Gives the daemon a disk of 16 MiB for its database and returns its path. In the caller's mount namespace.
std::string small_disk(DaemonProcess& daemon) {
  std::string disk = daemon.directory().file("disk");
  require(::mkdir(disk.c_str(), 0700) == 0, disk);
  mount_tmpfs(disk, 16 * kMiB);
  daemon.use_db(disk + "/build_data.db");
  return disk;
}

/// 0: it runs; otherwise the signal that ended it, or 1000 + its exit status.
int fate(const DaemonProcess& daemon) {
  siginfo_t info{};
  if (::waitid(P_PID, static_cast<id_t>(daemon.pid()), &info, WEXITED | WNOHANG | WNOWAIT) != 0) return -1;
  if (info.si_pid == 0) return 0;
  return info.si_code == CLD_EXITED ? 1000 + info.si_status : info.si_status;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(exhaustion)

// ---- shared memory -------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(a_full_dev_shm_is_an_error_to_who_wanted_more, *boost::unit_test::precondition(may_mount)) {
  with_small_shm(16 * kMiB, [] {
    // Twice the available size: allocated on demand. Nothing is clean, so nothing can be evicted.
    DaemonProcess daemon({"--segment-size=32MiB", "--max-dirty=32MiB", "--flush-interval=1h"});
    daemon.start();
    Client client(daemon.socket());
    client.set(3, "other", "value");
    client.finish(3, epoch(1000));
    {
      const WriteLock lock(daemon.db());
      const std::uint64_t small = fill(client, 1, 60'000, 1000);
      require(small > 20, "small values: " + std::to_string(small));
      all_there(client, 1, 60'000, small);
      const Filler filler("/dev/shm");
      require(fill(client, 2, 500'000, 10) == 0, "a large value found room");
      // Dozens more can attach, whatever frees the memory; then there is not even a page left for one.
      std::vector<Client> more;
      int code = 0;
      while (code == 0 && more.size() < 1000) {
        try {
          more.emplace_back(daemon.socket());
          require(more.back().get(1, "0").has_value(), "a client that came late");
        } catch (const Error& error) {
          code = error.code();
        }
      }
      require(code == STEPSTASH_EFULL, "refused with " + std::to_string(code));
      require(more.size() >= 32, std::to_string(more.size()) + " clients found a page");
      all_there(client, 1, 60'000, small);
      client.finish(1, epoch(1000));
      client.finish(12'345, epoch(1000));
      client.hold(2);
      client.unhold(2);
      require(client.prune(epoch(2000)) == small + 1, "prune");
      require(client.drop(1) == 0, "drop");
      // Freed memory can be reused although the file system is still full.
      client.set(4, "again", generated(100'000, 7));
      require(is_generated(client.get(4, "again")->bytes(), 100'000, 7), "set again");
    }
    client.flush();
    require(query(daemon.db(), "SELECT count(*) FROM build_data") == 1, "rows");
    require(daemon.terminate() == 0, "the daemon's end");
  });
}

BOOST_AUTO_TEST_CASE(on_a_full_dev_shm_values_come_back_in_place_of_others,
                     *boost::unit_test::precondition(may_mount)) {
  with_small_shm(16 * kMiB, [] {
    DaemonProcess daemon({"--segment-size=32MiB", "--flush-interval=10ms"});
    daemon.start();
    Client client(daemon.socket());
    for (std::uint64_t i = 0; i < 30; ++i) client.set(1, std::to_string(i), generated(300'000, i));
    client.flush();
    const Filler filler("/dev/shm");
    for (std::uint64_t i = 0; i < 10; ++i) client.set(2, std::to_string(i), generated(300'000, 100 + i));
    client.flush();
    require(figure(client, "evictions") >= 10, "nothing was evicted");
    for (int round = 0; round < 3; ++round) all_there(client, 1, 300'000, 30);
    require(figure(client, "reloads") >= 10, "nothing was brought back");
    require(figure(client, "reload_errors") == 0, "reload_errors");
    require(daemon.terminate() == 0, "the daemon's end");
  });
}

BOOST_AUTO_TEST_CASE(a_full_dev_shm_survives_a_restart, *boost::unit_test::precondition(may_mount)) {
  with_small_shm(8 * kMiB, [] {
    DaemonProcess daemon({"--segment-size=16MiB", "--max-dirty=16MiB", "--flush-interval=1h"});
    daemon.start();
    std::uint64_t count = 0;
    {
      Client client(daemon.socket());
      const WriteLock lock(daemon.db());
      count = fill(client, 1, 60'000, 1000);
    }
    const Filler filler("/dev/shm");
    daemon.kill();
    daemon.start();
    Client client(daemon.socket());
    require(client.list(1).size() == count, "entries");
    client.flush();
    require(query(daemon.db(), "SELECT count(*) FROM build_data") == static_cast<std::int64_t>(count), "rows");
    require(client.drop(1) == count, "drop");
    require(daemon.terminate() == 0, "the daemon's end");
  });
}

BOOST_AUTO_TEST_CASE(an_older_database_whose_list_finds_no_room_keeps_no_value_from_its_readers,
                     *boost::unit_test::precondition(may_mount)) {
  with_small_shm(16 * kMiB, [] {
    DaemonProcess daemon({"--segment-size=12MiB", "--flush-interval=10ms"});
    daemon.start();
    constexpr std::uint64_t kListed = 6000;
    {
      Client client(daemon.socket());
      for (std::uint64_t i = 0; i < kListed; ++i) client.set(1, std::to_string(i), "v");
    }
    require(daemon.terminate() == 0, "the first end");
    const std::string older = daemon.db() + ".older";
    std::filesystem::copy_file(daemon.db(), older);
    daemon.start();
    std::uint64_t resident = 0;
    {
      Client client(daemon.socket());
      require(client.drop(1) == kListed, "drop");
      for (std::uint64_t i = 0; i < 40; ++i) client.set(2, std::to_string(i), generated(400'000, i));
      client.flush();
      require(figure(client, "evictions") > 0, "the segment is not full");
      resident = figure(client, "values_resident");
      require(resident > 20, std::to_string(resident) + " values are resident");
    }
    require(daemon.terminate() == 0, "the second end");
    std::filesystem::copy_file(older, daemon.db(), std::filesystem::copy_options::overwrite_existing);
    const auto found = [](Client& client) {
      std::uint64_t count = 0;
      for (const auto& row : client.list(2)) {
        const std::uint64_t seed = std::stoul(row.name);
        try {
          const auto view = client.get(2, row.name);
          if (view && is_generated(view->bytes(), 400'000, seed)) ++count;
        } catch (const Error&) {  // evicted into the newer copy
        }
      }
      return count;
    };
    for (int start = 0; start < 2; ++start) {
      daemon.start();
      Client client(daemon.socket());
      require(stats(client).at("database").at("state") == "absent", "the database's state");
      require(contains(stats(client).at("database").at("reason").get<std::string>(), "enlarge /dev/shm"), "the reason");
      require(found(client) == resident, "values found without the database");
      daemon.kill();
    }
    require(::mount(nullptr, "/dev/shm", nullptr, MS_REMOUNT, "size=64m") == 0, "mount(2)");
    daemon.start();
    Client client(daemon.socket());
    require(stats(client).at("database").at("state") == "ready", "the database's state with room");
    require(found(client) == resident, "values found");
    require(client.list(1).size() == kListed, "entries of the older copy");
    client.flush(30s);
    require(query(daemon.db(), "SELECT count(*) FROM build_data") == static_cast<std::int64_t>(kListed + resident),
            "rows");
    require(daemon.terminate() == 0, "the daemon's end");
  });
}

BOOST_AUTO_TEST_CASE(a_segment_that_finds_no_room_for_its_new_size_serves_on,
                     *boost::unit_test::precondition(may_mount)) {
  with_small_shm(8 * kMiB + 64 * kKiB, [] {
    DaemonProcess daemon({"--flush-interval=1h", "--segment-size=8MiB"});
    daemon.start();
    constexpr std::uint64_t kEntries = 6000;
    {
      Client client(daemon.socket());
      for (std::uint64_t i = 0; i < kEntries; ++i) client.set(1, std::to_string(i), generated(100, i));
      for (std::uint64_t i = 0; i < 95; ++i) client.set(2, std::to_string(i), generated(60'000, i));
      client.flush();
    }
    require(daemon.terminate() == 0, "the daemon's end");
    for (int start = 0; start < 2; ++start) {
      daemon.start({"--flush-interval=1h", "--segment-size=7MiB"});
      Client client(daemon.socket());
      require(stats(client).at("segment").at("total_bytes") == 8 * kMiB, "the size");
      all_there(client, 1, 100, kEntries);
      all_there(client, 2, 60'000, 95);
      require(client.set(3, "new", "value").has_value(), "a set");
      require(daemon.terminate() == 0, "the daemon's end");
    }
  });
}

BOOST_AUTO_TEST_CASE(of_a_damaged_segment_what_only_it_has_is_saved_first, *boost::unit_test::precondition(may_mount)) {
  with_small_shm(20 * kMiB, [] {
    DaemonProcess daemon({"--segment-size=16MiB", "--max-dirty=16MiB", "--flush-interval=1h"});
    daemon.start();
    {
      Client client(daemon.socket());
      for (std::uint64_t i = 0; i < 20; ++i) client.set(1, std::to_string(i), generated(300'000, i));
      client.flush();
      for (std::uint64_t i = 0; i < 16; ++i) client.set(2, std::to_string(i), generated(300'000, i));
    }
    daemon.kill();
    const UniqueFd segment(::open(daemon.segment_path().c_str(), O_WRONLY | O_CLOEXEC));
    require(::pwrite(segment.get(), "x", 1, 0) == 1, "the damage");
    daemon.use_db(daemon.directory().file("other.db"));
    daemon.start();
    const Client client(daemon.socket());
    all_there(client, 2, 300'000, 16);
    // The damaged one is kept, so there is not enough room for all; entries that do not fit are named.
    const std::size_t clean = client.list(1).size();
    require(clean > 0 && clean < 20, std::to_string(clean) + " clean values");
    require(contains(daemon.log(), "could not be saved"), daemon.log());
  });
}

BOOST_AUTO_TEST_CASE(what_finds_no_room_beside_a_damaged_segment_goes_to_the_database_or_is_named,
                     *boost::unit_test::precondition(may_mount)) {
  // With the list, or by themselves, the dirty values do not fit.
  for (const auto& [listed, disk_full] : {std::pair{8000u, false}, {8000u, true}, {10u, false}}) {
    with_small_shm(20 * kMiB, [listed = listed, disk_full = disk_full] {
      DaemonProcess daemon({"--segment-size=16MiB", "--max-dirty=16MiB", "--flush-interval=1h"});
      const std::string disk = disk_full ? small_disk(daemon) : "";
      daemon.start();
      constexpr std::uint64_t kDirty = 180;
      {
        Client client(daemon.socket());
        for (std::uint64_t i = 0; i < listed; ++i) client.set(1, std::to_string(i), generated(100, i));
        client.set(3, "dropped", "value");
        client.set(2, "0", "older");
        client.flush();
        client.drop(3);
        for (std::uint64_t i = 0; i < kDirty; ++i) client.set(2, std::to_string(i), generated(60'000, i));
      }
      daemon.kill();
      const UniqueFd segment(::open(daemon.segment_path().c_str(), O_WRONLY | O_CLOEXEC));
      require(::pwrite(segment.get(), "x", 1, 0) == 1, "the damage");
      std::optional<Filler> filler;
      if (disk_full) filler.emplace(disk);
      // Killed in between as well, but not if the log of that one start has to name something.
      bool ready = false;
      for (auto time = 2ms; !ready && !disk_full && time < 60ms; time += 4ms) ready = daemon.start_killed_after(time);
      if (!ready) daemon.start();
      const Client client(daemon.socket());
      require(client.list(1).size() == listed, "the list of the database");
      require(client.list(3).empty(), "what was dropped");
      std::uint64_t saved = 0;
      std::uint64_t named = 0;
      for (const auto& entry : client.list(2)) saved += entry.length == 60'000 ? 1 : 0;
      for (std::uint64_t i = 0; i < kDirty; ++i) {
        named += contains(daemon.log(), "build 2, name \"" + std::to_string(i) + "\"") ? 1 : 0;
      }
      const std::string figures = std::to_string(saved) + " saved, " + std::to_string(named) + " named";
      require(saved + named == kDirty && (disk_full ? saved > 20 : named == 0), figures);
      all_there(client, 2, 60'000, disk_full ? 0 : 5);
      const std::int64_t rows = query(daemon.db(), "SELECT count(*) FROM build_data WHERE length = 60000");
      require(rows == (disk_full ? 0 : static_cast<std::int64_t>(kDirty)), std::to_string(rows) + " rows");
    });
  }
}

BOOST_AUTO_TEST_CASE(a_dev_shm_too_small_for_a_segment_is_an_error_at_the_start,
                     *boost::unit_test::precondition(may_mount)) {
  with_small_shm(64 * kKiB, [] {
    DaemonProcess daemon({"--segment-size=64MiB"});
    require(daemon.start_refused() == 73, daemon.log());
    require(contains(daemon.log(), daemon.segment_path()), daemon.log());
  });
}

// ---- a tmpfs that is smaller than the segment
// ------------------------------------------------------------------------

namespace {

/// A client that constantly sets and gets something small; records the longest wait for one round.
class GoodClient {
 public:
  explicit GoodClient(const std::string& socket)
      : worker_([this, socket] {
          Client own(socket);
          for (std::uint64_t i = 0; !over_; ++i) {
            const auto start = std::chrono::steady_clock::now();
            const std::string value = "small " + std::to_string(i);
            own.set(99, "small", value);
            require(own.get(99, "small")->text() == value, "the good client got something else");
            const auto took = std::chrono::steady_clock::now() - start;
            slowest_ = std::max(slowest_.load(), std::chrono::duration_cast<std::chrono::milliseconds>(took));
            std::this_thread::sleep_for(1ms);
          }
        }) {}
  ~GoodClient() { over_ = true; }
  std::chrono::milliseconds stop() {
    over_ = true;
    worker_.join();
    return slowest_;
  }

 private:
  std::atomic<bool> over_{false};
  std::atomic<std::chrono::milliseconds> slowest_{0ms};
  Worker worker_;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Sets ten values of `bytes` bytes sequentially, then ten concurrently, and gets all of them in and out of order;
/// prints how long that took.
void set_and_get(const DaemonProcess& daemon, const char* what, std::uint64_t bytes) {
  Client client(daemon.socket());
  GoodClient good(daemon.socket());
  const auto start = std::chrono::steady_clock::now();
  for (std::uint64_t i = 0; i < 10; ++i) client.set(1, std::to_string(i), generated(bytes, i));
  const double one_by_one = seconds_since(start);
  const auto together = std::chrono::steady_clock::now();
  {
    std::vector<Worker> workers;
    for (std::uint64_t i = 0; i < 10; ++i) {
      workers.emplace_back([&daemon, bytes, i] {
        Client own(daemon.socket());
        own.set(2, std::to_string(i), generated(bytes, 100 + i), "", {.deadline = 30s});
      });
    }
    for (Worker& worker : workers) worker.join();
  }
  const double at_once = seconds_since(together);
  const auto reading = std::chrono::steady_clock::now();
  for (int round = 0; round < 2; ++round) {
    all_there(client, 1, bytes, 10);
    for (std::uint64_t i = 10; i-- > 0;) {
      const auto view = client.get(2, std::to_string(i));
      require(view && is_generated(view->bytes(), bytes, 100 + i), "value " + std::to_string(i) + " of build 2");
    }
  }
  const double read = seconds_since(reading);
  const auto slowest = good.stop();
  std::printf(
      "%s: ten sets of %llu MiB in %.2f s, ten at once in %.2f s, 40 gets in %.2f s; a good client waited %lld "
      "ms at most\n",
      what, static_cast<unsigned long long>(bytes / kMiB), one_by_one, at_once, read,
      static_cast<long long>(slowest.count()));
  std::fflush(stdout);
  require(slowest < 1s * kScale, "the good client waited for " + std::to_string(slowest.count()) + " ms");
  require(figure(client, "reload_errors") == 0, "reload_errors");
}

}  // namespace

BOOST_AUTO_TEST_CASE(on_a_tmpfs_smaller_than_the_segment_sets_wait_and_values_come_back,
                     *boost::unit_test::precondition(may_mount)) {
  for (const auto& [what, bytes] : {std::pair{"a tmpfs of 1 GiB", 1024 * kMiB}, {"a tmpfs of 64 MiB", 64 * kMiB}}) {
    with_small_shm(bytes, [what = what, small = bytes < 1024 * kMiB] {
      DaemonProcess daemon({"--segment-size=768MiB"});
      daemon.start();
      set_and_get(daemon, what, 20 * kMiB);
      require(contains(daemon.log(), "smaller than the segment") == small, daemon.log());
      const Client client(daemon.socket());
      require((figure(client, "evictions") > 0) == small, "evictions");
      require(figure(client, "segment.tmpfs_bytes") == (small ? 64 * kMiB : 1024 * kMiB), "tmpfs_bytes");
      require(figure(client, "segment.tmpfs_free_bytes") <= figure(client, "segment.tmpfs_bytes"), "tmpfs_free_bytes");
      const Outcome doctor = run({STEPSTASH_CLI_PATH, "doctor", "--socket", daemon.socket()});
      require(contains(doctor.out, "smaller than the segment") == small, doctor.out);
      require(daemon.terminate() == 0, "the daemon's end");
    });
  }
}

BOOST_AUTO_TEST_CASE(values_of_unknown_length_find_room_on_a_small_tmpfs, *boost::unit_test::precondition(may_mount)) {
  with_small_shm(64 * kMiB, [] {
    DaemonProcess daemon({"--segment-size=768MiB"});
    daemon.start();
    Client client(daemon.socket());
    const std::string piece = generated(kMiB, 1);
    for (std::uint64_t i = 0; i < 8; ++i) {
      auto writer = client.begin(1, std::to_string(i));
      for (int n = 0; n < 20; ++n) writer->write(piece);
      writer->commit();
    }
    for (std::uint64_t i = 0; i < 8; ++i) {
      const auto view = client.get(1, std::to_string(i));
      require(view && view->bytes().size() == 20 * kMiB, "value " + std::to_string(i));
      require(is_generated(view->bytes().subspan(19 * kMiB), kMiB, 1), "the end of value " + std::to_string(i));
    }
    require(daemon.terminate() == 0, "the daemon's end");
  });
}

BOOST_AUTO_TEST_CASE(small_values_that_lie_scattered_leave_a_small_tmpfs_for_a_large_one,
                     *boost::unit_test::precondition(may_mount)) {
  with_small_shm(32 * kMiB, [] {
    DaemonProcess daemon({"--segment-size=256MiB", "--flush-interval=10ms"});
    daemon.start();
    Client client(daemon.socket());
    // Far more than fits; every other value is read last, so that evicting the rest leaves holes.
    constexpr std::uint64_t kValues = 16'000 / kScale;
    for (std::uint64_t i = 0; i < kValues; ++i) client.set(1, std::to_string(i), generated(3000, i));
    client.flush();
    for (std::uint64_t i = kValues / 2; i < kValues; i += 2) (void)client.get(1, std::to_string(i));
    client.set(2, "large", generated(20 * kMiB, 1));
    require(is_generated(client.get(2, "large")->bytes(), 20 * kMiB, 1), "the large value");
    all_there(client, 1, 3000, kValues);
    require(is_generated(client.get(2, "large")->bytes(), 20 * kMiB, 1), "the large value again");
    require(figure(client, "reload_errors") == 0, "reload_errors");
    require(daemon.terminate() == 0, "the daemon's end");
  });
}

BOOST_AUTO_TEST_CASE(where_others_fill_the_tmpfs_sets_and_gets_wait_until_they_leave_it,
                     *boost::unit_test::precondition(may_mount)) {
  with_small_shm(64 * kMiB, [] {
    DaemonProcess daemon({"--segment-size=128MiB", "--flush-interval=10ms"});
    daemon.start();
    Client client(daemon.socket());
    client.set(1, "evicted", generated(10 * kMiB, 7));
    client.flush();
    client.set(2, "large", generated(55 * kMiB, 8));  // replaces the other one
    require(figure(client, "evictions") == 1, "evictions");
    client.drop(2);
    client.flush();
    const WriteLock lock(daemon.db());  // nothing set from here on can be evicted
    client.set(3, "dirty", generated(20 * kMiB, 9));
    require(eventually([&] { return figure(client, "segment.retired_blocks") == 0; }), "the room of what was dropped");
    std::vector<Worker> waiting;
    {
      std::optional<Filler> filler(std::in_place, "/dev/shm");
      const auto start = std::chrono::steady_clock::now();
      std::string message;
      try {
        // More than what is free in the segment and has pages.
        client.set(3, "no room", generated(60 * kMiB, 1), "", {.deadline = 700ms});
      } catch (const Error& error) {
        require(error.code() == STEPSTASH_EFULL, error.what());
        message = error.what();
      }
      require(contains(message, "/dev/shm") && contains(message, "--shm-size"), "advice: " + message);
      require(!contains(message, "--segment-size"), "advice: " + message);
      require(std::chrono::steady_clock::now() - start >= 600ms, "it did not wait: " + message);
      filler.reset();
      filler.emplace("/dev/shm");  // also what has just been freed
      for (std::uint64_t i = 0; i < 4; ++i) {
        waiting.emplace_back([&daemon, i] {
          Client own(daemon.socket());
          own.set(4, std::to_string(i), generated(5 * kMiB, i), "", {.deadline = 60s});
        });
      }
      waiting.emplace_back([&daemon] {
        Client own(daemon.socket(), 60s);
        const auto view = own.get(1, "evicted");
        require(view && is_generated(view->bytes(), 10 * kMiB, 7), "what was evicted");
      });
      require(eventually([&] { return figure(client, "connections") >= 6; }), "those who wait");
      const auto ticks = [&] {  // utime and stime of proc(5)
        std::ifstream stat("/proc/" + std::to_string(daemon.pid()) + "/stat");
        std::string word;
        std::uint64_t sum = 0;
        for (int n = 1; stat >> word && n <= 15; ++n) sum += n >= 14 ? std::stoull(word) : 0;
        return sum;
      };
      const std::uint64_t before = ticks();
      std::this_thread::sleep_for(1s);  // a measurement
      const std::uint64_t used = ticks() - before;
      require(used < static_cast<std::uint64_t>(::sysconf(_SC_CLK_TCK)) / 2, "it spins: " + std::to_string(used));
      require(stats(client).at("pid") == daemon.pid(), "another client");
      require(client.list(4).empty(), "a value found room on a full tmpfs: " + client.stats());
    }
    for (Worker& worker : waiting) worker.join();
    for (std::uint64_t i = 0; i < 4; ++i) {
      require(is_generated(client.get(4, std::to_string(i))->bytes(), 5 * kMiB, i), "value " + std::to_string(i));
    }
    require(is_generated(client.get(3, "dirty")->bytes(), 20 * kMiB, 9), "what was there before");
  });
}

BOOST_AUTO_TEST_CASE(a_value_larger_than_the_tmpfs_is_refused_at_once_with_both_sizes,
                     *boost::unit_test::precondition(may_mount)) {
  with_small_shm(32 * kMiB, [] {
    DaemonProcess daemon({"--segment-size=256MiB"});
    daemon.start();
    Client client(daemon.socket());
    const std::uint64_t most = figure(client, "segment.max_value_bytes");
    require(most < 32 * kMiB && most > 24 * kMiB, std::to_string(most));
    const auto start = std::chrono::steady_clock::now();
    try {
      client.set(1, "v", generated(most + 1, 1));
      throw std::runtime_error("it was taken\n");
    } catch (const Error& error) {
      require(error.code() == STEPSTASH_ETOOLARGE, error.what());
      const std::string message = error.what();
      require(contains(message, std::to_string(32 * kMiB)) && contains(message, "--shm-size"), message);
    }
    require(std::chrono::steady_clock::now() - start < 5s, "it waited");
    client.set(1, "largest", generated(most, 2));
    require(is_generated(client.get(1, "largest")->bytes(), most, 2), "the largest");
    client.set(1, "largest again", generated(most, 3));
    require(is_generated(client.get(1, "largest")->bytes(), most, 2), "the largest, again");
    require(daemon.terminate() == 0, "the daemon's end");
  });
}

// ---- the disk ------------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(a_full_disk_delays_what_is_written_and_loses_nothing, *boost::unit_test::precondition(may_mount)) {
  with_small_shm(64 * kMiB, [] {
    DaemonProcess daemon({"--segment-size=32MiB", "--flush-interval=10ms"});
    const std::string disk = small_disk(daemon);
    daemon.start();
    Client client(daemon.socket());
    for (std::uint64_t i = 0; i < 10; ++i) client.set(9, std::to_string(i), generated(500'000, i));
    client.flush();
    client.finish(9, epoch(1000));
    std::uint64_t count = 0;
    {
      const Filler filler(disk);
      for (std::uint64_t i = 0; i < 3; ++i) client.set(5, std::to_string(i), generated(500'000, i));
      count = fill(client, 1, 500'000, 100);
      require(count > 20, "values beyond the disk: " + std::to_string(count));
      require(eventually([&] { return figure(client, "flush_errors") > 0; }), "no commit failed");
      require(!stats(client).at("last_flush_error").get<std::string>().empty(), "no error is named");
      try {
        client.set(1, "0", "durable", "", {.durable = true, .deadline = 200ms});
        throw std::runtime_error("a durable set on a full disk\n");
      } catch (const Error& error) {
        require(error.code() == STEPSTASH_EIO || error.code() == STEPSTASH_EFULL, error.what());
      }
      client.finish(1, epoch(1000));
      client.finish(777);
      client.hold(1);
      // With segment and disk full.
      require(client.prune(epoch(2000)) == 10, "prune");
      require(client.drop(777) == 0, "drop of nothing");
      require(client.drop(5) == 3, "drop");
      client.set(2, "there is room", generated(500'000, 1), "", {.deadline = 5s});
    }
    client.set(1, "0", generated(500'000, 0));
    client.unhold(1);
    // Half of it, because the disk holds 16 MiB.
    for (std::uint64_t i = 15; i < count; ++i) client.set(1, std::to_string(i), "");
    client.flush(30s);
    require(figure(client, "dirty_bytes") == 0, "something is dirty");
    require(stats(client).at("last_flush_error").get<std::string>().empty(), "an error stays");
    require(query(daemon.db(), "SELECT count(*) FROM build_data") == static_cast<std::int64_t>(count) + 1, "rows");
    require(daemon.terminate() == 0, "the daemon's end");
    daemon.remove_segment();  // read from the disk only
    daemon.start();
    Client again(daemon.socket());
    all_there(again, 1, 500'000, 15);
    require(is_generated(again.get(2, "there is room")->bytes(), 500'000, 1), "the value set meanwhile");
  });
}

// A sanitizer brings its own allocator and cannot be used with the preloaded library.
BOOST_AUTO_TEST_CASE(io_errors_delay_what_is_written_and_lose_nothing, *boost::unit_test::enable_if<kScale == 1>()) {
  Faults faults;
  Served served({"--flush-interval=10ms"});
  Client& client = served.client;
  client.set(1, "before", "value", "", {.durable = true});
  faults.fail_io(EIO);
  client.set(1, "meanwhile", generated(kMiB, 1));
  BOOST_TEST(eventually([&] { return figure(client, "flush_errors") > 0; }));
  BOOST_TEST(is_generated(client.get(1, "meanwhile")->bytes(), kMiB, 1));
  BOOST_CHECK_EXCEPTION(client.set(1, "durable", "v", "", {.durable = true, .deadline = 200ms}), Error,
                        [](const Error& error) { return error.code() == STEPSTASH_EIO; });
  client.set(2, "gone", "v");
  client.finish(2, epoch(1000));
  BOOST_TEST(client.prune(epoch(2000)) == 1u);
  // Also across a daemon that dies meanwhile.
  served.daemon.kill();
  faults.fail_io(0);
  served.daemon.start();
  client.flush(30s);
  BOOST_TEST(query(served.daemon.db(), "SELECT count(*) FROM build_data") == 3);
  faults.fail_io(EIO);
  client.set(3, "n", "v");
  BOOST_TEST(eventually([&] { return figure(client, "flush_errors") > 0; }));
  faults.fail_io(0);
  client.flush(30s);  // without a restart
  BOOST_TEST(query(served.daemon.db(), "SELECT count(*) FROM build_data") == 4);
}

BOOST_AUTO_TEST_CASE(what_cannot_be_read_just_now_is_an_error_and_comes_back,
                     *boost::unit_test::enable_if<kScale == 1>()) {
  Faults faults;
  Served served({"--flush-interval=5ms", "--segment-size=16MiB"});
  Client& client = served.client;
  const auto set_all = [&](std::int64_t build) {
    for (std::uint64_t i = 0; i < 60; ++i) client.set(build, std::to_string(i), generated(300'000, 100 * build + i));
    client.flush();
  };
  set_all(1);
  set_all(2);
  BOOST_REQUIRE(figure(client, "values_evicted") > 60u);
  faults.fail_reads(EIO);
  // None of the evicted values can be read, and all of the others.
  std::uint64_t had = 0, failed = 0;
  for (std::uint64_t i = 0; i < 60; ++i) {
    for (const std::int64_t build : {1, 2}) {
      try {
        const auto view = client.get(build, std::to_string(i));
        BOOST_REQUIRE(view.has_value());
        BOOST_TEST(is_generated(view->bytes(), 300'000, 100 * build + i));
        ++had;
      } catch (const Error& error) {
        BOOST_TEST(error.code() == STEPSTASH_EIO, error.what());
        ++failed;
      }
    }
  }
  BOOST_TEST(had > 10u);
  BOOST_TEST(failed > 10u);
  BOOST_TEST(figure(client, "reload_errors") > 0u);
  client.set(3, "meanwhile", "value");
  // A start waits for it, with the segment and without, wherever it occurs. Returns whether it had to.
  const auto serves = [&] {
    try {
      return Client(served.daemon.socket(), 100ms).get(1, "0").has_value();
    } catch (const Error&) {
      return false;
    }
  };
  const auto starts_late = [&](long reads) {
    served.daemon.kill();
    const std::size_t before = served.daemon.log().size();
    faults.fail_reads(EIO, reads);
    served.daemon.start_unready();
    const auto waits = [&] { return contains(served.daemon.log().substr(before), "trying again"); };
    BOOST_REQUIRE_MESSAGE(
        eventually([&] { return waits() || contains(served.daemon.log().substr(before), "listening"); }),
        reads << " reads: " << served.daemon.log());
    faults.fail_reads(0);
    BOOST_REQUIRE_MESSAGE(eventually(serves), reads << " reads: " << served.daemon.log());
    return waits();
  };
  long reads = 0;
  for (; starts_late(reads); reads += 1 + reads / 2) continue;
  BOOST_TEST_MESSAGE("a start reads up to " << reads << " times from the database");
  BOOST_TEST(reads > 1);
  for (std::uint64_t i = 0; i < 60; ++i) {
    BOOST_TEST(is_generated(client.get(1, std::to_string(i))->bytes(), 300'000, 100 + i));
  }
  BOOST_TEST(client.get(3, "meanwhile")->text() == "value");
  client.flush();
  // A start from the database alone reads more, and fails in the middle of the list of entries as well.
  for (reads = 0;; reads += 1 + reads / 2) {
    served.daemon.kill();
    served.daemon.remove_segment();
    if (!starts_late(reads)) break;
    BOOST_TEST(figure(client, "entries") == 121u, reads << " reads");
  }
  BOOST_TEST_MESSAGE("and with no segment up to " << reads << " times");
  BOOST_TEST(reads > 2);
  BOOST_TEST(client.get(3, "meanwhile")->text() == "value");
  BOOST_TEST(stats(client).at("kept_aside").empty());  // not mistaken for damage
}

BOOST_AUTO_TEST_CASE(a_damaged_database_that_cannot_be_set_aside_costs_the_service_no_more_than_its_database,
                     *boost::unit_test::enable_if<kScale == 1>()) {
  Faults faults;
  Served served({"--flush-interval=10ms", "--segment-size=16MiB"});
  DaemonProcess& daemon = served.daemon;
  Client& client = served.client;
  for (std::uint64_t i = 0; i < 20; ++i) client.set(1, std::to_string(i), generated(i * 1000, i));
  client.flush();
  faults.fail_renames(EACCES);
  damage_schema(daemon.db());
  client.set(2, "meets it", "value");
  BOOST_TEST(eventually([&] { return contains(daemon.log(), "cannot be renamed"); }), daemon.log());
  for (std::uint64_t i = 0; i < 20; ++i) {
    BOOST_TEST(is_generated(client.get(1, std::to_string(i))->bytes(), i * 1000, i));
  }
  client.set(3, "meanwhile", "value");
  BOOST_CHECK_EXCEPTION(client.set(3, "durable", "v", "", {.durable = true, .deadline = 200ms}), Error,
                        [](const Error& error) { return contains(error.what(), "cannot be renamed"); });
  BOOST_TEST(contains(stats(client).at("database").at("reason").get<std::string>(), "cannot be renamed"));
  daemon.kill();
  daemon.start();  // no more than that, again
  BOOST_TEST(client.get(2, "meets it")->text() == "value");
  BOOST_TEST(daemon.terminate() == 74);
  faults.fail_renames(0);
  daemon.start();
  client.flush(30s);
  BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data") == 23);
  BOOST_TEST(std::filesystem::exists(daemon.db() + ".damaged-1"));
}

BOOST_AUTO_TEST_CASE(a_stop_that_is_asked_for_while_the_daemon_starts_over_is_done_in_order,
                     *boost::unit_test::enable_if<kScale == 1>()) {
  Faults faults;
  Served served({"--flush-interval=10ms", "--segment-size=16MiB"});
  DaemonProcess& daemon = served.daemon;
  for (std::uint64_t i = 0; i < 20; ++i) served.client.set(1, std::to_string(i), generated(i * 1000, i));
  served.client.flush();
  faults.fail_renames(-1);
  damage_schema(daemon.db());
  served.client.set(2, "meets it", "value");
  BOOST_TEST(eventually([&] { return contains(daemon.log(), "starts again"); }), daemon.log());
  ::kill(daemon.pid(), SIGHUP);
  ::kill(daemon.pid(), SIGTERM);
  BOOST_TEST(eventually([&] { return is_pending(daemon.pid(), SIGTERM); }));
  BOOST_TEST(fate(daemon) == 0);  // data acknowledged as durable is now in no database
  faults.fail_renames(0);
  BOOST_TEST(daemon.terminate() == 0, daemon.log());
  BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data") == 21);
}

BOOST_AUTO_TEST_CASE(damage_is_told_from_an_error_of_the_disk_that_was_before_it,
                     *boost::unit_test::enable_if<kScale == 1>()) {
  Faults faults;
  Served served({"--flush-interval=10ms", "--segment-size=16MiB"});
  DaemonProcess& daemon = served.daemon;
  Client& client = served.client;
  client.set(1, "n", "value");
  client.flush();
  damage_schema(daemon.db());
  const std::string kept = daemon.db() + ".damaged-1";
  faults.fail_reads(EIO, 0);
  faults.fail_io(EIO);
  client.set(2, "meets it", "value");
  BOOST_TEST(eventually([&] { return figure(client, "flush_errors") > 3; }));
  BOOST_TEST(!std::filesystem::exists(kept));  // the state of the disk is unknown
  faults.fail_reads(0, 0);
  faults.fail_io(0);
  BOOST_TEST(eventually([&] { return std::filesystem::exists(kept); }), daemon.log());
  client.flush(30s);
  BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data") == 2);
}

BOOST_AUTO_TEST_CASE(a_new_database_without_room_is_waited_for_and_clients_read_on,
                     *boost::unit_test::precondition(may_mount)) {
  with_small_shm(64 * kMiB, [] {
    DaemonProcess daemon({"--segment-size=32MiB", "--flush-interval=10ms"});
    const std::string disk = small_disk(daemon);
    const auto wait_for = [&](const char* text) {
      require(eventually([&] { return contains(daemon.log(), text); }), text + daemon.log());
    };
    daemon.start();
    Client client(daemon.socket());
    for (std::uint64_t i = 0; i < 20; ++i) client.set(1, std::to_string(i), generated(50'000, i));
    client.flush();
    {
      damage_schema(daemon.db());
      require(std::filesystem::remove(daemon.db() + "-reserve"), "the reserve, which would do");
      const Filler filler(disk);
      client.set(2, "meets it", "value");
      wait_for("trying again");
      all_there(client, 1, 50'000, 20);
      require(daemon.terminate() == 128 + SIGTERM, "told to end while it waits");
      daemon.start_unready();
      wait_for("trying again");
      all_there(client, 1, 50'000, 20);
    }
    client.set(3, "then", "value", "", {.durable = true, .deadline = 30s});
    client.flush();
    require(query(daemon.db(), "SELECT count(*) FROM build_data") == 22, "rows");
    require(std::filesystem::exists(daemon.db() + ".damaged-1"), "what was damaged is kept");
    require(!std::filesystem::exists(daemon.db() + ".damaged-2"), "and nothing else");
    require(daemon.terminate() == 0, "the daemon's end");
  });
}

BOOST_AUTO_TEST_CASE(with_segment_dev_shm_and_disk_full_at_once_freeing_works_and_nothing_is_lost,
                     *boost::unit_test::precondition(may_mount)) {
  with_small_shm(16 * kMiB, [] {
    DaemonProcess daemon({"--segment-size=32MiB", "--max-dirty=32MiB", "--flush-interval=10ms"});
    const std::string disk = small_disk(daemon);
    daemon.start();
    Client client(daemon.socket());
    for (std::uint64_t i = 0; i < 10; ++i) client.set(9, std::to_string(i), generated(300'000, i));
    client.flush();
    client.finish(9, epoch(1000));
    std::uint64_t count = 0;
    {
      const Filler disk_filler(disk);
      for (std::uint64_t i = 0; i < 5; ++i) client.set(3, std::to_string(i), generated(300'000, i));
      count = fill(client, 1, 300'000, 100);
      require(count > 10, "values: " + std::to_string(count));
      const Filler shm_filler("/dev/shm");
      require(fill(client, 2, 300'000, 10) == 0, "a value found room");
      // A daemon that dies of it returns to the same state.
      daemon.kill();
      daemon.start();
      all_there(client, 1, 300'000, count);
      client.finish(1, epoch(1000));
      client.hold(1);
      require(client.prune(epoch(2000)) == 10, "prune");
      require(client.drop(3) == 5, "drop");
      client.unhold(1);
      client.finish(777, epoch(1000));
      require(client.drop(777) == 0, "drop of nothing");
      // Freed memory can be reused.
      client.set(1, "0", generated(300'000, 0), "", {.deadline = 5s});
      all_there(client, 1, 300'000, count);
    }
    client.flush(30s);
    require(query(daemon.db(), "SELECT count(*) FROM build_data") == static_cast<std::int64_t>(count), "rows");
    require(client.prune(epoch(2000)) == count, "prune of the rest");
    client.flush(30s);
    require(query(daemon.db(), "SELECT count(*) FROM build_data") == 0, "rows in the end");
    require(daemon.terminate() == 0, "the daemon's end");
  });
}

// ---- limits of the process -----------------------------------------------------------------------------------------

// Not with the sanitizers: UBSan uses a pipe to find out whether it may read an object, and considers every object
// invalid if it has no descriptor for it.
BOOST_AUTO_TEST_CASE(without_descriptors_others_are_told_and_those_inside_are_served,
                     *boost::unit_test::enable_if<kScale == 1>()) {
  Siege siege;
  const rlimit few{siege.before().descriptors + 24, 20'000};
  rlimit former{};
  BOOST_REQUIRE(::prlimit(siege.daemon.pid(), RLIMIT_NOFILE, &few, &former) == 0);
  {
    std::vector<RawConnection> many;
    for (int i = 0; i < 100; ++i) {
      many.emplace_back(siege.daemon.socket());
      many.back().send(protocol::Hello{.attach = i % 2 == 0});
    }
    int served = 0, told = 0;
    // Ten are refused per second: the first few of the queue are sufficient.
    for (std::size_t i = 0; i < 40 && told < 3; ++i) {
      const auto reply = many[i].receive();
      if (!reply) continue;
      served += std::holds_alternative<protocol::HelloOk>(*reply) ? 1 : 0;
      const auto* failure = std::get_if<protocol::Failure>(&*reply);
      if (failure != nullptr) BOOST_TEST((failure->code == Errc::too_many), failure->message);
      // Others are connected, but get no pin page.
      told += failure != nullptr && contains(failure->message, "LimitNOFILE") ? 1 : 0;
    }
    BOOST_TEST(served > 5);
    BOOST_TEST(told >= 3);
    // Connected clients are served; a request that needs a descriptor is refused with a reason.
    siege.client.set(5, "small", "v");
    BOOST_TEST(siege.client.get(5, "small")->text() == "v");
    siege.client.finish(5, epoch(1000));
    BOOST_TEST(siege.client.drop(5) == 1u);
    // It does not spin: a tenth of a second between two attempts.
    BOOST_TEST(figure(siege.client, "connections_refused") < 200u);
  }
  BOOST_REQUIRE(::prlimit(siege.daemon.pid(), RLIMIT_NOFILE, &former, nullptr) == 0);
  siege.lift();
}

BOOST_AUTO_TEST_CASE(without_address_space_requests_fail_and_nothing_is_lost,
                     *boost::unit_test::enable_if<kScale == 1>()) {
  DaemonProcess daemon({"--segment-size=256MiB", "--ring-size=64MiB", "--flush-interval=1h"});
  daemon.start();
  std::map<std::string, std::uint64_t> acknowledged;
  Client client(daemon.socket());
  {
    for (std::uint64_t i = 0; i < 20; ++i) {
      client.set(1, std::to_string(i), generated(30'000, i));
      acknowledged[std::to_string(i)] = i;
    }
    const std::uint64_t bytes = kib_of(daemon.pid(), "VmSize") * 1024 + 24 * kMiB;
    const rlimit limit{bytes, bytes};
    BOOST_REQUIRE(::prlimit(daemon.pid(), RLIMIT_AS, &limit, nullptr) == 0);
    // A staging ring of 64 MiB cannot be mapped any more: the client that requests it gets an error.
    const int code = [&] {
      try {
        client.set(1, "large", generated(kMiB, 1), "", {.deadline = 2s});
        return 0;
      } catch (const Error& error) {
        return error.code();
      }
    }();
    BOOST_TEST(code == STEPSTASH_EFULL);
    client.set(1, "small", generated(30'000, 99));
    acknowledged["small"] = 99;
  }
  // Connections until there is no memory for another: it is refused, or the daemon exits and is restarted.
  std::vector<RawConnection> many;
  std::vector<std::byte> half = protocol::frame_of(protocol::Request(protocol::Hello{}));
  half.resize(half.size() + 60'000);
  const std::string begun = head(60'000, 2);
  std::memcpy(half.data() + half.size() - 60'000, begun.data(), begun.size());
  half.resize(half.size() - 1000);
  for (int i = 0; i < 1000 && fate(daemon) == 0; ++i) {
    UniqueFd connected(connect_to(daemon.socket()));
    if (!connected) break;  // the daemon has just exited
    many.emplace_back(std::move(connected));
    ::fcntl(many.back().fd(), F_SETFL, O_NONBLOCK);
    many.back().send(half);
  }
  // Until all of them were accepted or refused, or were too many.
  BOOST_TEST(eventually([&] {
    if (fate(daemon) != 0) return true;
    try {
      return figure(client, "connections_accepted") + figure(client, "connections_refused") > many.size();
    } catch (const Error&) {
      return false;  // no memory to answer the request
    }
  }));
  const int end = fate(daemon);
  BOOST_TEST((end == 0 || end == SIGABRT), "the daemon ended with " << end);
  daemon.kill();
  many.clear();
  daemon.start();
  for (const auto& [name, seed] : acknowledged) BOOST_TEST(is_generated(client.get(1, name)->bytes(), 30'000, seed));
}

// ---- memory --------------------------------------------------------------------------------------------------------

namespace {

/// A client's request; each uses one connection. Returns whether it was acknowledged.
using Request = std::function<bool(RawConnection&)>;

template <class Ok>
bool acknowledged(RawConnection& raw) {
  const auto reply = raw.receive();
  return reply && std::holds_alternative<Ok>(*reply);
}

bool set_large(RawConnection& raw, const protocol::SetParams& params, const std::string& value) {
  raw.send(protocol::SetBegin{params, value.size()});
  const auto reply = raw.receive();
  const auto* ready = reply ? std::get_if<protocol::SetReady>(&*reply) : nullptr;
  if (ready == nullptr || raw.descriptors().empty()) return false;
  void* ring = ::mmap(nullptr, ready->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, raw.descriptors()[0].get(), 0);
  if (ring == MAP_FAILED) return false;
  std::memcpy(ring, value.data(), value.size());
  ::munmap(ring, ready->ring_bytes);
  raw.send(protocol::Piece{0, static_cast<std::uint32_t>(value.size())});
  raw.send(protocol::SetCommit{});
  return acknowledged<protocol::PieceDone>(raw) && acknowledged<protocol::SetOk>(raw);
}

}  // namespace

BOOST_AUTO_TEST_CASE(any_allocation_may_fail_and_nothing_acknowledged_is_lost,
                     *boost::unit_test::enable_if<kScale == 1>()) {
  Faults faults;
  DaemonProcess daemon({"--segment-size=16MiB", "--flush-interval=1h"});
  daemon.start();
  std::map<std::string, std::string> expected;  // of build 1
  std::map<std::string, std::vector<std::string>> possible;
  {
    Client client(daemon.socket());
    client.set(1, "first", "value");
    client.set(8, "n", "v");
    client.finish(8, epoch(1000));
  }
  expected["first"] = "value";
  std::uint64_t number = 0;
  const auto value_of = [&](std::uint64_t bytes) { return generated(bytes, ++number); };
  const auto setting = [&](const std::string& name, std::uint64_t bytes, bool durable) {
    return [&, name, bytes, durable](RawConnection& raw) {
      const std::string value = value_of(bytes);
      possible[name].push_back(value);
      protocol::SetParams params = params_of(1, name);
      params.durable = durable;
      bool done = false;
      if (bytes > protocol::kInlineBytes) {
        done = set_large(raw, params, value);
      } else {
        raw.send(protocol::Set{params, std::as_bytes(std::span(value))});
        done = acknowledged<protocol::SetOk>(raw);
      }
      if (done) {
        expected[name] = value;
        possible[name].clear();
      }
      return done;
    };
  };
  const auto asking = [](protocol::Request request) {
    return [request](RawConnection& raw) {
      raw.send(request);
      const auto reply = raw.receive();
      return reply && !std::holds_alternative<protocol::Failure>(*reply);
    };
  };
  const std::vector<std::pair<const char*, Request>> requests = {
      {"set", setting("small", 3000, false)},
      {"durable set", setting("durable", 3000, true)},
      {"staged set", setting("large", 100'000, false)},
      {"set of a new build", asking(protocol::Set{params_of(8, "another"), {}})},
      {"list", asking(protocol::List{1, std::nullopt, 0})},
      {"builds", asking(protocol::Builds{0})},
      {"finish", asking(protocol::Finish{8, 1000})},
      {"hold", asking(protocol::HoldBuild{9, false})},
      {"flush", asking(protocol::Flush{1000})},
      {"drop", asking(protocol::Drop{8})},
      {"prune", asking(protocol::Prune{2000})},
      {"stats", asking(protocol::Stats{})}};
  int deaths = 0, refusals = 0, failures = 0;
  for (const auto& [what, request] : requests) {
    // N = 1, 2, ... until the request needs fewer than N allocations.
    long last = 0;
    for (long nth = 1;; ++nth) {
      faults.fail_allocation(nth);
      bool done = false;
      {
        RawConnection raw(daemon.socket());
        raw.send(protocol::Hello{.attach = nth % 2 == 0});
        done = acknowledged<protocol::HelloOk>(raw) && request(raw);
      }
      const bool reached = faults.allocations() >= nth;
      faults.fail_allocation(0);
      failures += reached ? 1 : 0;
      // A process takes a moment to exit, even after its sockets are closed.
      const auto lives = [&] {
        try {
          return !Client(daemon.socket(), 500ms).stats().empty();
        } catch (const Error&) {
          return false;
        }
      };
      const auto expect_all = [&] {
        const Client client(daemon.socket());
        for (const auto& [name, value] : expected) {
          const auto view = client.get(1, name);
          BOOST_REQUIRE_MESSAGE(view.has_value(), what << ", allocation " << nth << ": " << name << " is gone");
          const auto& others = possible[name];
          const bool fine =
              view->text() == value || std::find(others.begin(), others.end(), view->text()) != others.end();
          BOOST_TEST(fine, what << ", allocation " << nth << ": " << name << " is another");
        }
      };
      for (bool settled = false; !settled;) {
        BOOST_REQUIRE_MESSAGE(eventually([&] { return fate(daemon) != 0 || lives(); }),
                              what << ", allocation " << nth << ": the daemon neither serves nor ends; its log:\n"
                                   << daemon.log());
        const int end = fate(daemon);
        BOOST_TEST((end == 0 || end == SIGABRT), what << ", allocation " << nth << ": the daemon ended with " << end);
        if (end != 0) {
          ++deaths;
          daemon.kill();
          daemon.start();
        } else if (!done) {
          ++refusals;
        }
        try {
          expect_all();
          settled = true;
        } catch (const Error& error) {  // another thread was ending the process while the loop still answered
          BOOST_REQUIRE_MESSAGE(eventually([&] { return fate(daemon) != 0; }), error.what());
        }
      }
      last = nth;
      if (!reached && done) break;
      BOOST_REQUIRE_MESSAGE(nth < 5000, what << ": there is no end to its allocations");
    }
    BOOST_TEST_MESSAGE(what << ": " << last << " allocations");
    BOOST_TEST(last > 5, what << " needs " << last << " allocations");
  }
  BOOST_TEST_MESSAGE(failures << " allocations failed: " << deaths << " daemons ended, " << refusals << " refused");
  BOOST_TEST(failures > 100);
  Client client(daemon.socket());
  client.flush();
  BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data WHERE buildid = 1") ==
             static_cast<std::int64_t>(expected.size()));
}

BOOST_AUTO_TEST_SUITE_END()
