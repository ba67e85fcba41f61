// SPDX-License-Identifier: Apache-2.0
// Clients that die, stall or lie about what they hold, and clients in separate namespaces. What they held is freed
// within five seconds, without a restart, and is visible in `stats`; others read exact bytes throughout.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <map>
#include <memory>
#include <random>

#include "shm/layout.hpp"
#include "tests/hostile/namespaces.hpp"
#include "tests/hostile/siege.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

constexpr auto kGivenBackWithin = 5s;

/// An attached client that writes arbitrary data into its pin page.
class Liar {
 public:
  explicit Liar(const std::string& socket) : raw_(socket) {
    raw_.send(protocol::Hello{.attach = true});
    const auto reply = raw_.receive();
    BOOST_REQUIRE((reply && std::holds_alternative<protocol::HelloOk>(*reply)));
    BOOST_REQUIRE(raw_.descriptors().size() == 2u);
    bytes_ = std::get<protocol::HelloOk>(*reply).segment_bytes;
    segment_ = ::mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, raw_.descriptors()[0].get(), 0);
    page_ = ::mmap(nullptr, shm::kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, raw_.descriptors()[1].get(), 0);
    BOOST_REQUIRE((segment_ != MAP_FAILED && page_ != MAP_FAILED));
  }
  ~Liar() {
    ::munmap(segment_, bytes_);
    ::munmap(page_, shm::kPageBytes);
  }
  shm::PinPage& page() { return *static_cast<shm::PinPage*>(page_); }
  int page_fd() { return raw_.descriptors()[1].get(); }
  std::uint64_t bytes() const { return bytes_; }
  /// The current block offsets, according to the chain.
  std::vector<shm::Offset> blocks() const {
    const auto* base = static_cast<const std::byte*>(segment_);
    const auto& header = *reinterpret_cast<const shm::Header*>(base);
    std::vector<shm::Offset> all;
    for (shm::Offset at = header.heap_offset; at < bytes_;) {
      const auto& block = *reinterpret_cast<const shm::BlockHeader*>(base + at);
      const std::uint64_t size = block.size.load();
      if (block.magic != shm::kBlockMagic || size == 0) break;  // it changes while we look
      all.push_back(at);
      at += size;
    }
    return all;
  }
  template <class Next>
  void fill(Next next) {
    for (shm::PinLine& line : page().lines) {
      for (auto& pin : line.pins) pin.store(next());
      line.recent.store(next());
    }
  }

 private:
  RawConnection raw_;
  std::uint64_t bytes_ = 0;
  void* segment_ = nullptr;
  void* page_ = nullptr;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(clients)

// ---- death ---------------------------------------------------------------------------------------------------------

namespace {

/// What `stats` reports about resources held by clients.
std::map<std::string, std::uint64_t> held(const Client& client) {
  const nlohmann::json all = stats(client);
  std::map<std::string, std::uint64_t> figures;
  for (const char* name : {"connections", "descriptors", "pin_pages", "staging_rings", "open_views"}) {
    figures[name] = all.at(name);
  }
  for (const char* name : {"retired_blocks", "used_bytes"}) figures[name] = all.at("segment").at(name);
  return figures;
}

std::string text_of(const std::map<std::string, std::uint64_t>& figures) {
  std::string text;
  for (const auto& [name, figure] : figures) text += name + " " + std::to_string(figure) + ", ";
  return text;
}

}  // namespace

BOOST_AUTO_TEST_CASE(what_a_client_held_comes_back_wherever_it_was_killed) {
  Served served({"--segment-size=64MiB", "--flush-interval=1h"});
  DaemonProcess& daemon = served.daemon;
  Client& client = served.client;
  client.set(7, "viewed", generated(kMiB, 1));
  client.set(8, "half", generated(3 * kMiB, 2));  // all first-time work is done
  client.drop(8);
  client.drop(7);
  client.set(7, "viewed", generated(kMiB, 1));
  client.flush();
  enum Stage { connected, view, most_views, replaced_view, begun, half, whole, committed, stages };
  // Without a restart; and when the client dies while no daemon is running.
  for (const bool while_down : {false, true}) {
    if (while_down) {
      daemon.kill();
      daemon.start();
      BOOST_TEST(client.get(7, "viewed").has_value());  // it is connected
    }
    BOOST_REQUIRE(eventually([&] { return held(client).at("open_views") == 0; }));
    const auto baseline = held(client);
    BOOST_TEST(baseline.at("connections") == 1u);
    for (int stage = connected; stage < stages; ++stage) {
      const Signal there;
      Child child([&] {
        Client own(daemon.socket());
        std::vector<View> views;
        if (stage == view || stage == replaced_view) views.push_back(own.get(7, "viewed").value());
        while (stage == most_views && views.size() < shm::kPinsPerPage) {
          views.push_back(own.get(7, "viewed").value());
        }
        if (stage == replaced_view) own.set(7, "viewed", generated(kMiB, 1));
        std::optional<stepstash::Writer> writer;
        if (stage >= begun) writer = own.begin(8, "half", 3 * kMiB);
        if (stage == half) writer->write(generated(kMiB, 2));
        if (stage >= whole) writer->write(generated(3 * kMiB, 2));
        if (stage == committed) writer->commit();
        there.raise();
        for (;;) ::pause();
        return 0;
      });
      BOOST_REQUIRE(there.wait());
      // What it holds is visible.
      const auto now = held(client);
      BOOST_TEST(now.at("connections") == 2u);
      BOOST_TEST(now.at("descriptors") > baseline.at("descriptors"));
      BOOST_TEST(now.at("pin_pages") == 2u);
      BOOST_TEST(now.at("open_views") ==
                 (stage == most_views ? shm::kPinsPerPage : stage == view || stage == replaced_view));
      BOOST_TEST(figure(client, "most_views_of_a_client") == now.at("open_views"));
      BOOST_TEST(figure(client, "max_views_per_client") == shm::kPinsPerPage);
      if (stage >= begun && stage < committed) BOOST_TEST(now.at("staging_rings") == baseline.at("staging_rings") + 1);
      if (while_down) daemon.kill();
      child.kill();
      if (while_down) daemon.start();
      if (auto kept = client.get(8, "half")) {
        BOOST_TEST(stage == committed);
        BOOST_TEST(is_generated(kept->bytes(), 3 * kMiB, 2));
        kept.reset();
        client.drop(8);
      } else {
        BOOST_TEST(stage != committed);
      }
      BOOST_TEST(is_generated(client.get(7, "viewed")->bytes(), kMiB, 1));
      client.flush();  // its own block is freed once the drop has been written
      BOOST_TEST(eventually([&] { return held(client) == baseline; }, kGivenBackWithin),
                 (while_down ? "daemon down, stage " : "stage ")
                     << stage << ": it was " << text_of(baseline) << "and is " << text_of(held(client)));
    }
  }
}

// ---- standing still ------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(a_stopped_holder_keeps_exact_bytes_under_pressure) {
  Served served({"--segment-size=16MiB", "--flush-interval=5ms"});
  Client& client = served.client;
  constexpr std::uint64_t kHeld = 8;
  for (std::uint64_t i = 0; i < kHeld; ++i) client.set(1, std::to_string(i), generated(300'000, i));
  client.flush();
  const Signal there, look, looked;
  Child holder([&] {
    Client own(served.daemon.socket());
    std::vector<View> views;
    for (std::uint64_t i = 0; i < kHeld; ++i) views.push_back(*own.get(1, std::to_string(i)));
    there.raise();
    look.wait();
    for (std::uint64_t i = 0; i < kHeld; ++i) {
      if (!is_generated(views[i].bytes(), 300'000, i)) return 1;
    }
    looked.raise();
    for (;;) ::pause();
    return 0;
  });
  BOOST_REQUIRE(there.wait());
  ::kill(holder.pid(), SIGSTOP);
  // Replaced, dropped, evicted, and followed by three segments' worth of other values.
  for (std::uint64_t i = 0; i < kHeld; i += 2) client.set(1, std::to_string(i), "replaced");
  client.set(2, "n", "v");
  for (std::uint64_t i = 0; i < 160; ++i) client.set(3, std::to_string(i), generated(300'000, 1000 + i));
  BOOST_TEST(client.drop(1) == kHeld);
  BOOST_TEST(figure(client, "evictions") > 0u);
  BOOST_TEST(figure(client, "open_views") == kHeld);
  BOOST_TEST(figure(client, "segment.retired_bytes") >= kHeld * 300'000);
  served.daemon.kill();  // and the next daemon has no more information
  served.daemon.start();
  for (std::uint64_t i = 0; i < 60; ++i) client.set(4, std::to_string(i), generated(300'000, 2000 + i));
  ::kill(holder.pid(), SIGCONT);
  look.raise();
  BOOST_TEST(looked.wait());
  ::kill(holder.pid(), SIGSTOP);
  holder.kill();  // stopped or not
  BOOST_TEST(
      eventually([&] { return figure(client, "segment.retired_bytes") == 0 && figure(client, "open_views") == 0; },
                 kGivenBackWithin));
}

// ---- lies ----------------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(garbage_in_a_pin_page_harms_nobody) {
  Siege siege({"--segment-size=16MiB", "--flush-interval=5ms"});
  std::mt19937_64 random(11);
  {
    Liar liar(siege.daemon.socket());
    const std::uint64_t most = shm::kPinsPerPage;
    for (int round = 0; round < 30; ++round) {
      const std::vector<shm::Offset> blocks = liar.blocks();
      std::size_t next = 0;
      switch (round % 6) {
        case 0:
          liar.fill([&] { return random(); });
          break;
        case 1:
          liar.fill([&] { return random() % liar.bytes(); });
          break;
        case 2:  // every existing block, free ones and tables included
          liar.fill([&] { return blocks[next++ % blocks.size()]; });
          break;
        case 3:
          liar.fill([&] { return random() % liar.bytes() / 64 * 64; });
          break;
        case 4:
          liar.fill([&] { return UINT64_MAX; });
          break;
        default:  // the page's head as well: owner, segment, and that another segment serves
          for (std::size_t i = 0; i < shm::kPageBytes / 8; ++i)
            reinterpret_cast<std::uint64_t*>(&liar.page())[i] = random();
          break;
      }
      for (std::uint64_t i = 0; i < 20; ++i) {
        const std::string name = std::to_string(i);
        siege.client.set(9, name, generated(200'000, i + 100u * static_cast<unsigned>(round)));
      }
      for (std::uint64_t i = 0; i < 20; ++i) {
        const auto view = siege.client.get(9, std::to_string(i));
        BOOST_REQUIRE(view.has_value());
        BOOST_TEST(is_generated(view->bytes(), 200'000, i + 100u * static_cast<unsigned>(round)));
      }
      // What one client can hold is bounded, and visible.
      const nlohmann::json all = stats(siege.client);
      BOOST_TEST(all.at("open_views").get<std::uint64_t>() <= most + 2);
      if (round % 6 == 4) BOOST_TEST(all.at("open_views").get<std::uint64_t>() >= most);
      BOOST_TEST(all.at("segment").at("retired_blocks").get<std::uint64_t>() <= most + 64);
      // An object whose length was changed gets its length back; its owner loses at most its pins.
      if (round % 3 == 0) BOOST_TEST(::ftruncate(liar.page_fd(), (round % 2 == 0) ? 0 : 1 << 20) == 0);
      BOOST_TEST(eventually([&] {
        struct stat status {};
        return ::fstat(liar.page_fd(), &status) == 0 && status.st_size == static_cast<off_t>(shm::kPageBytes);
      }));
    }
  }
  siege.lift();
}

namespace {

/// Takes the free space of the tmpfs through a page whose length stays the same. Returns how much.
std::int64_t take_all(int page) {
  std::int64_t taken = 0;
  for (const ::off_t step : {1 << 20, 1 << 16, 1 << 12}) {
    while (::fallocate(page, FALLOC_FL_KEEP_SIZE, static_cast<::off_t>(shm::kPageBytes) + taken, step) == 0)
      taken += step;
  }
  return taken;
}

std::uint64_t free_bytes_of(const std::string& directory) { return std::filesystem::space(directory).available; }

}  // namespace

BOOST_AUTO_TEST_CASE(a_client_that_takes_the_whole_tmpfs_through_its_page_has_it_for_a_moment,
                     *boost::unit_test::precondition(may_mount)) {
  with_small_shm(64 * kMiB, [] {
    Served served({"--segment-size=32MiB", "--flush-interval=5ms"});
    Client& client = served.client;
    Liar liar(served.daemon.socket());
    const std::uint64_t before = free_bytes_of("/dev/shm");
    const auto given_back = [&] {
      return eventually([&] { return free_bytes_of("/dev/shm") + kMiB >= before; }, 1s * kScale);
    };
    for (int round = 0; round < 10; ++round) {
      require(take_all(liar.page_fd()) > 0, "nothing could be taken");
      require(given_back(), "the room is not there again");
      client.set(1, "n", generated(300 * kKiB, 1));
      client.drop(1);
      client.flush();
    }
    // Without the lock by which the daemon recognises that a client has the page.
    struct flock unlock {};
    unlock.l_type = F_UNLCK;
    require(::fcntl(liar.page_fd(), F_OFD_SETLK, &unlock) == 0, "the lock could not be given up");
    std::this_thread::sleep_for(300ms);  // time for a daemon to forget the page
    require(take_all(liar.page_fd()) > 0, "nothing could be taken without the lock");
    require(given_back(), "the room is not there again from who gave up the lock");
    // While no daemon is running, repeatedly.
    served.daemon.kill();
    require(take_all(liar.page_fd()) > 0, "nothing could be taken without a daemon");
    served.daemon.start();
    require(given_back(), "the room is not there again after a restart");
    for (int i = 0; i < 300; ++i) {
      (void)take_all(liar.page_fd());
      std::this_thread::sleep_for(1ms);
    }
    require(given_back(), "the room is not there again in the end");
    for (std::uint64_t i = 0; i < 40; ++i) client.set(2, std::to_string(i), generated(300 * kKiB, i));
    for (std::uint64_t i = 0; i < 40; ++i) {
      require(is_generated(client.get(2, std::to_string(i))->bytes(), 300 * kKiB, i), "another value");
    }
  });
}

BOOST_AUTO_TEST_CASE(a_pin_page_full_of_lies_does_not_confuse_the_next_daemon) {
  Served served({"--segment-size=16MiB"});
  Client& client = served.client;
  for (std::uint64_t i = 0; i < 30; ++i) client.set(1, std::to_string(i), generated(100'000, i));
  const std::uint64_t used = figure(client, "segment.used_bytes");
  {
    Liar liar(served.daemon.socket());
    const std::vector<shm::Offset> blocks = liar.blocks();
    for (int round = 0; round < 4; ++round) {
      std::mt19937_64 random(static_cast<unsigned>(round));
      std::size_t next = 0;
      liar.fill(
          [&] { return round % 2 == 0 ? random() % liar.bytes() : blocks[next++ % blocks.size()] + round / 2 * 64; });
      served.daemon.kill();
      served.daemon.start();
      for (std::uint64_t i = 0; i < 30; ++i) {
        BOOST_TEST(is_generated(client.get(1, std::to_string(i))->bytes(), 100'000, i));
      }
      BOOST_TEST(stats(client).at("last_recovery").at("entries_set_aside") == 0);
    }
  }
  BOOST_TEST(eventually([&] { return figure(client, "segment.retired_blocks") == 0; }, kGivenBackWithin));
  BOOST_TEST(figure(client, "segment.used_bytes") <= used);
  BOOST_TEST(client.drop(1) == 30u);
}

BOOST_AUTO_TEST_CASE(a_ring_whose_pages_are_taken_away_harms_its_owner_only) {
  Siege siege;
  for (int round = 0; round < 20; ++round) {
    RawConnection raw(siege.daemon.socket());
    raw.greet();
    raw.send(protocol::SetBegin{params_of(6, "punched"), 4 * kMiB});
    const auto reply = raw.receive();
    BOOST_REQUIRE((reply && std::holds_alternative<protocol::SetReady>(*reply)));
    const int ring = raw.descriptors().at(0).get();
    BOOST_TEST(::ftruncate(ring, 0) != 0);
    BOOST_TEST(::ftruncate(ring, 1 << 30) != 0);
    for (std::uint32_t at = 0; at < 4 * kMiB; at += 1 << 20) {
      (void)::fallocate(ring, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 8 << 20);
      raw.send(protocol::Piece{at, 1 << 20});
      (void)::fallocate(ring, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, 1 << 20);
    }
    raw.send(protocol::SetCommit{});
    for (int i = 0; i < 4; ++i) BOOST_TEST(std::holds_alternative<protocol::PieceDone>(raw.receive().value()));
    BOOST_TEST(std::holds_alternative<protocol::SetOk>(raw.receive().value()));
    BOOST_TEST(siege.client.get(6, "punched")->length() == 4 * kMiB);
  }
  siege.lift();
}

// ---- namespaces ----------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(who_reserves_memory_and_does_not_fill_it_keeps_nobody_from_it_for_long) {
  constexpr std::uint64_t kBytes = 60'000;
  constexpr std::uint64_t kReserved = 14 * kMiB;
  Served served({"--segment-size=64MiB"});
  Client& good = served.client;
  for (std::uint64_t i = 0; i < 300; ++i) good.set(1, std::to_string(i), generated(kBytes, i));
  good.flush();
  {
    // One that does nothing, one that was fast and then stalled, one that sends other requests meanwhile.
    Client idle(served.daemon.socket());
    Client stopped(served.daemon.socket());
    RawConnection asks(served.daemon.socket());
    auto reserved = idle.begin(2, "idle", kReserved);
    auto begun = stopped.begin(2, "stopped", kReserved);
    begun->write(generated(12 * kMiB, 1));
    asks.greet();
    asks.send(protocol::SetBegin{params_of(2, "asks"), kReserved});
    BOOST_REQUIRE(std::holds_alternative<protocol::SetReady>(asks.receive().value()));
    asks.send(protocol::Wait{2, "never", UINT32_MAX});
    BOOST_TEST(figure(good, "staged_bytes") >= 3 * kReserved);
    for (std::uint64_t i = 0; i < 300; ++i) {  // what was evicted is reloaded
      BOOST_TEST(is_generated(good.get(1, std::to_string(i))->bytes(), kBytes, i));
    }
    good.set(1, "small", generated(kBytes, 1), "", {.deadline = 1s * kScale});
    good.set(1, "large", generated(50 * kMiB, 2), "", {.deadline = 30s});
    BOOST_TEST(is_generated(good.get(1, "large")->bytes(), 50 * kMiB, 2));
    const auto given_up = [](const Error& error) {
      return error.code() == STEPSTASH_EFULL && contains(error.what(), "was given up");
    };
    BOOST_CHECK_EXCEPTION((reserved->write(generated(kReserved, 1)), reserved->commit()), Error, given_up);
    BOOST_CHECK_EXCEPTION((begun->write(generated(2 * kMiB, 1)), begun->commit()), Error, given_up);
  }
  BOOST_TEST(eventually([&] { return figure(good, "staged_bytes") == 0; }));
}

BOOST_AUTO_TEST_CASE(who_takes_rings_and_does_not_use_them_keeps_nobody_from_one_for_long) {
  Served served({"--segment-size=64MiB", "--max-rings=3"});
  std::vector<Client> hogs;
  std::vector<std::optional<Writer>> sets;
  for (int i = 0; i < 3; ++i) {
    sets.push_back(hogs.emplace_back(served.daemon.socket()).begin(2, std::to_string(i), 70'000));
  }
  BOOST_TEST(figure(served.client, "staging_rings") == 3);
  served.client.set(1, "large", generated(kMiB, 1), "", {.deadline = 30s});
  BOOST_TEST(is_generated(served.client.get(1, "large")->bytes(), kMiB, 1));
  BOOST_TEST(figure(served.client, "staging_rings") <= 3);
  int given_up = 0;
  for (auto& set : sets) {
    try {
      set->write(generated(70'000, 1));
      set->commit();
    } catch (const Error& error) {
      BOOST_TEST(contains(error.what(), "was given up"), error.what());
      ++given_up;
    }
  }
  BOOST_TEST(given_up == 1);
}

BOOST_AUTO_TEST_CASE(sets_that_the_daemon_holds_back_are_not_given_up) {
  Served served({"--segment-size=64MiB", "--max-dirty=64MiB", "--flush-interval=10ms"});
  constexpr std::uint64_t kBytes = 12 * kMiB;
  std::vector<std::unique_ptr<Worker>> workers;
  std::atomic<int> set{0};
  {
    const WriteLock lock(served.daemon.db());
    served.client.set(4, "cannot be written now", generated(40 * kMiB, 1), "", {.deadline = 60s});
    for (std::uint64_t i = 0; i < 2; ++i) {
      workers.push_back(std::make_unique<Worker>([&, i] {
        Client client(served.daemon.socket());
        auto writer = client.begin(3, std::to_string(i), Client::kUnknownLength, "", {.deadline = 60s});
        const std::string bytes = generated(kBytes, i);
        for (std::uint64_t at = 0; at < kBytes; at += kMiB) writer->write(bytes.substr(at, kMiB));
        writer->commit();
        ++set;
      }));
    }
    BOOST_TEST(eventually([&] { return figure(served.client, "staged_bytes") >= 2 * kMiB; }));
    // Longer than a client may keep others waiting, while another client waits for room.
    BOOST_CHECK_EXCEPTION(served.client.set(5, "n", generated(20 * kMiB, 1), "", {.deadline = 7s}), Error,
                          [](const Error& error) { return error.code() == STEPSTASH_EFULL; });
  }
  for (auto& worker : workers) worker->join();
  BOOST_TEST(set == 2);
}

BOOST_AUTO_TEST_CASE(a_client_in_a_pid_namespace_holds_and_gives_back, *boost::unit_test::precondition(may_mount)) {
  Served served({"--segment-size=16MiB", "--flush-interval=5ms"});
  Client& client = served.client;
  client.set(1, "v", generated(kMiB, 1));
  const Signal there, go_on, looked;
  Child outer([&] {
    require(::unshare(CLONE_NEWPID) == 0, "unshare(2)");
    Child inner([&] {  // process 1 of its own PID namespace
      require(::getpid() == 1, "the pid");
      Client own(served.daemon.socket());
      const auto view = own.get(1, "v");
      there.raise();
      go_on.wait();
      require(is_generated(view->bytes(), kMiB, 1), "the view");
      own.set(2, "from inside", generated(300 * kKiB, 3));
      looked.raise();
      for (;;) ::pause();
      return 0;
    });
    return inner.join();
  });
  BOOST_REQUIRE(there.wait());
  client.set(1, "v", "replaced");
  for (std::uint64_t i = 0; i < 60; ++i) client.set(3, std::to_string(i), generated(300'000, i));
  BOOST_TEST(figure(client, "open_views") == 1u);
  go_on.raise();
  BOOST_REQUIRE(looked.wait());
  BOOST_TEST(is_generated(client.get(2, "from inside")->bytes(), 300 * kKiB, 3));
  outer.kill();  // the kernel then kills its child
  BOOST_TEST(eventually([&] { return figure(client, "open_views") == 0 && figure(client, "pin_pages") == 1; },
                        kGivenBackWithin));
}

BOOST_AUTO_TEST_CASE(a_container_needs_the_socket_alone, *boost::unit_test::precondition(may_mount)) {
  Served served({"--segment-size=16MiB"});
  Client& client = served.client;
  client.set(1, "v", generated(kMiB, 1));
  Child child([&] {
    enter_namespace(CLONE_NEWIPC);
    mount_tmpfs("/dev/shm", 4096);
    require(std::filesystem::is_empty("/dev/shm"), "there is something in /dev/shm");
    Client own(served.daemon.socket());
    require(is_generated(own.get(1, "v")->bytes(), kMiB, 1), "get");
    own.set(2, "small", "value");
    own.set(2, "large", generated(2 * kMiB, 2));
    require(is_generated(own.get(2, "large")->bytes(), 2 * kMiB, 2), "get of its own");
    require(own.list(2).size() == 2, "list");
    require(std::filesystem::is_empty("/dev/shm"), "it has made something in /dev/shm");
    return 0;
  });
  BOOST_TEST(child.join() == 0);
  BOOST_TEST(is_generated(client.get(2, "large")->bytes(), 2 * kMiB, 2));
}

BOOST_AUTO_TEST_CASE(an_exec_gives_back_what_was_held) {
  Served served;
  Client& client = served.client;
  client.set(1, "v", "value");
  BOOST_TEST(client.get(1, "v")->text() == "value");
  const std::size_t before = descriptors_of(served.daemon.pid());
  int ends[2];
  BOOST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd from(ends[0]);
  UniqueFd to(ends[1]);
  Child child([&] {
    Client own(served.daemon.socket());
    const auto view = own.get(1, "v");
    own.set(1, "large", generated(300 * kKiB, 1));
    // Only the exec closes the pipe.
    ::execlp("sleep", "sleep", "60", nullptr);
    return 1;
  });
  to.reset();
  char byte = 0;
  BOOST_TEST(::read(from.get(), &byte, 1) == 0);
  BOOST_TEST(eventually(
      [&] {
        return figure(client, "open_views") == 0 && figure(client, "pin_pages") == 1 &&
               figure(client, "connections") == 1 && descriptors_of(served.daemon.pid()) <= before;
      },
      kGivenBackWithin));
  child.kill();
}

BOOST_AUTO_TEST_SUITE_END()
