// SPDX-License-Identifier: Apache-2.0
// Pins and hostile pin pages against clients that set: pages of idle clients, pages full of numbers, and readers that
// hold more than their share.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "shm/layout.hpp"
#include "tests/hostile/namespaces.hpp"
#include "tests/hostile/siege.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

/// Attached clients without a connection: each keeps its page and writes arbitrary data into it.
class Pages {
 public:
  Pages(const std::string& socket, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      RawConnection raw(socket);
      raw.send(protocol::Hello{.attach = true});
      const auto reply = raw.receive();
      const bool attached = reply && std::holds_alternative<protocol::HelloOk>(*reply);
      BOOST_REQUIRE(attached);
      BOOST_REQUIRE(raw.descriptors().size() == 2u);
      pages_.push_back(std::move(raw.descriptors()[1]));
      if (i > 0) continue;
      bytes_ = std::get<protocol::HelloOk>(*reply).segment_bytes;
      segment_ = ::mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, raw.descriptors()[0].get(), 0);
      BOOST_REQUIRE(segment_ != MAP_FAILED);
    }
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() { ::munmap(segment_, bytes_); }

  template <class F>
  void fill(F&& number) {
    for (const UniqueFd& page : pages_) {
      std::vector<std::uint64_t> words((shm::kPageBytes - offsetof(shm::PinPage, lines)) / sizeof(std::uint64_t));
      for (auto& word : words) word = number();
      const auto size = static_cast<ssize_t>(words.size() * sizeof(std::uint64_t));
      const auto at = static_cast<off_t>(offsetof(shm::PinPage, lines));
      BOOST_REQUIRE(::pwrite(page.get(), words.data(), words.size() * sizeof(std::uint64_t), at) == size);
    }
  }

  /// The current blocks without a value, according to the chain: free ones, tables, records of evicted values.
  std::vector<shm::Offset> blocks_without_value() const {
    const auto* base = static_cast<const std::byte*>(segment_);
    const auto& header = *reinterpret_cast<const shm::Header*>(base);
    std::vector<shm::Offset> all;
    for (shm::Offset at = header.heap_offset; at < bytes_;) {
      const auto& entry = *reinterpret_cast<const shm::Entry*>(base + at);
      const std::uint64_t size = entry.block.size.load();
      if (entry.block.magic != shm::kBlockMagic || size == 0) break;  // it changes while we look
      if (entry.block.kind != shm::BlockKind::entry || entry.value_offset == 0) all.push_back(at);
      at += size;
    }
    return all;
  }

 private:
  std::vector<UniqueFd> pages_;
  void* segment_ = nullptr;
  std::uint64_t bytes_ = 0;
};

constexpr std::int64_t kSmall = 40;  // builds
constexpr std::int64_t kLarge = 41;

/// CPU time of the daemon's process, in seconds: other processes of the machine do not count.
double cpu_seconds(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(file, line);
  std::istringstream fields(line.substr(line.rfind(')') + 2));
  std::string skipped;
  for (int i = 3; i < 14; ++i) fields >> skipped;
  long user = 0, system = 0;
  fields >> user >> system;
  return static_cast<double>(user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

struct Speed {
  double sets_a_second = 0;
  double cpu_of_a_set = 0;  // of the daemon, in seconds
};

/// For one second sets values of `length` bytes under names most of which have been evicted.
Speed set_for_a_second(Siege& siege, std::int64_t build, std::uint64_t length) {
  static std::uint64_t number = 0;
  constexpr std::uint64_t kNames = 20'000;
  const std::string value = generated(length, 1);
  const bool durable = length >= kMiB;  // so that others need not wait for the disk because of them
  const auto set = [&] {
    siege.client.set(build, std::to_string(number++ % kNames), value, "", {.durable = durable, .deadline = 30s});
  };
  // Until the segment is full: then nearly every set replaces another value. If that takes this long, it is slow.
  const auto slow = std::chrono::steady_clock::now() + 5s * kScale;
  const std::uint64_t some = durable ? 10 : 2000;
  for (std::uint64_t evicted = 0; evicted < some / 2 && std::chrono::steady_clock::now() < slow;) {
    const std::uint64_t before = figure(siege.client, "evictions");
    for (std::uint64_t i = 0; i < some && std::chrono::steady_clock::now() < slow; ++i) set();
    evicted = figure(siege.client, "evictions") - before;
  }
  const auto start = std::chrono::steady_clock::now();
  const double cpu = cpu_seconds(siege.daemon.pid());
  const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  int sets = 0;
  while (passed() < 1.0 * kScale || sets < 2) {
    set();
    ++sets;
  }
  return {sets / passed(), (cpu_seconds(siege.daemon.pid()) - cpu) / sets};
}

}  // namespace

BOOST_AUTO_TEST_SUITE(pins)

/// A full segment, so that each set needs to evict. A reclaim reads the pages, and its cost may not grow with their
/// contents; a well-behaved client holds nothing, so its page may not add a cost to every set either.
BOOST_AUTO_TEST_CASE(pages_of_idle_clients_and_pages_full_of_numbers_do_not_slow_down_sets) {
  // Fewer with a sanitizer, whose daemon takes minutes to attach that many clients one by one.
  const std::size_t many = kScale > 1 ? 300 : 1000, most = kScale > 1 ? 300 : 2040;
  Siege siege({"--segment-size=64MiB", "--flush-interval=5ms"});
  for (int i = 0; i < 20'000; ++i) {
    siege.client.set(kSmall, std::to_string(i), generated(4000, 1), "", {.deadline = 30s});
  }
  struct Rates {
    Speed small;
    Speed large;
  };
  const auto better = [](const Speed& a, const Speed& b) {
    return Speed{std::max(a.sets_a_second, b.sets_a_second), std::min(a.cpu_of_a_set, b.cpu_of_a_set)};
  };
  const auto measure = [&](const char* what) {
    Rates rates;
    rates.small = set_for_a_second(siege, kSmall, 4000);
    rates.small = better(rates.small, set_for_a_second(siege, kSmall, 4000));
    rates.large = set_for_a_second(siege, kLarge, 2 * kMiB);
    rates.large = better(rates.large, set_for_a_second(siege, kLarge, 2 * kMiB));
    const auto print = [](const Speed& figures) {
      std::cout << static_cast<long>(figures.sets_a_second) << " (" << static_cast<long>(1e6 * figures.cpu_of_a_set)
                << " us of CPU each)";
    };
    std::cout << "sets a second into a full segment, " << what << ": of 4,000 bytes ";
    print(rates.small);
    std::cout << ", of 2 MiB ";
    print(rates.large);
    std::cout << "; the good client waited " << siege.slowest().count() << " ms at most" << std::endl;
    return rates;
  };
  (void)measure("at first");
  const Rates quiet = measure("quiet");
  // A machine that is busy with other work delays it without any attack.
  const auto within = std::max<std::chrono::milliseconds>(Siege::kServedWithin, 2 * siege.slowest());
  // By wall clock, or by the daemon's CPU time, because the machine may have been busy with other work.
  const auto near = [](const Speed& now, const Speed& then) {
    return now.sets_a_second * 12 >= then.sets_a_second || now.cpu_of_a_set <= 12 * then.cpu_of_a_set;
  };
  const auto bearable = [&](const Rates& rates, const char* what) {
    BOOST_TEST(near(rates.small, quiet.small), what);
    BOOST_TEST(near(rates.large, quiet.large), what);
  };
  {
    const Pages idle(siege.daemon.socket(), 100);
    bearable(measure("100 idle clients"), "100 idle clients");
  }
  {
    const Pages idle(siege.daemon.socket(), many);
    bearable(measure("1,000 idle clients"), "1,000 idle clients");
  }
  {
    Pages liar(siege.daemon.socket(), most);
    std::mt19937_64 random(7);
    liar.fill([&] { return random(); });
    bearable(measure("2,040 pages of garbage"), "2,040 pages of garbage");
    // Offsets in the segment at which blocks could begin.
    liar.fill([&] { return random() % (64 * kMiB) / 64 * 64 + 1; });
    bearable(measure("2,040 pages of places in the segment"), "2,040 pages of places in the segment");
    const std::vector<shm::Offset> blocks = liar.blocks_without_value();
    std::size_t next = 0;
    BOOST_REQUIRE(!blocks.empty());
    liar.fill([&] { return blocks[next++ % blocks.size()]; });
    bearable(measure("2,040 pages of blocks without value"), "2,040 pages of blocks without value");
  }
  siege.end(within);
}

namespace {

constexpr std::uint64_t kHeldBytes = 40'000;

/// In good faith or not: opens views of all resident values of a build, through as many clients as that takes.
class Greedy {
 public:
  explicit Greedy(const std::string& socket) : socket_(socket) {}

  void take_all(std::int64_t build, std::uint64_t names) {
    for (std::uint64_t i = 0; i < names; ++i) {
      if (views_.size() % 400 == 0) clients_.push_back(std::make_unique<Client>(socket_, 100ms));
      try {
        if (auto view = clients_.back()->get(build, std::to_string(i))) views_.emplace_back(i, std::move(*view));
      } catch (const Error& error) {
        // It has been evicted, and there is no room to reload it.
        require(error.code() == STEPSTASH_EFULL || error.code() == STEPSTASH_EDEADLINE, error.what());
      }
    }
  }
  std::size_t held() const { return views_.size(); }
  bool whole() const {
    return std::all_of(views_.begin(), views_.end(),
                       [](const auto& held) { return is_generated(held.second.bytes(), kHeldBytes, held.first); });
  }
  /// The result of a get now: 0, or an error's code; `message` is its text.
  int get(std::int64_t build, const std::string& name, std::string* message = nullptr) {
    try {
      return clients_.front()->get(build, name).has_value() ? 0 : 1;
    } catch (const Error& error) {
      if (message != nullptr) *message = error.what();
      return error.code();
    }
  }
  void release() { views_.clear(); }
  const std::string& socket() const { return socket_; }

 private:
  std::string socket_;
  std::vector<std::unique_ptr<Client>> clients_;
  std::vector<std::pair<std::uint64_t, View>> views_;
};

}  // namespace

/// A user that may only read holds views of the whole segment. They stay valid, others are served nevertheless, also
/// across a SIGKILL of the daemon, and only that user is told to release some.
BOOST_AUTO_TEST_CASE(a_reader_who_holds_everything_keeps_nobody_from_setting, *boost::unit_test::precondition(root)) {
  Served served({"--segment-size=64MiB", "--flush-interval=5ms", "--socket-mode=0666", "--read-users=60001"});
  std::filesystem::permissions(served.daemon.directory().path(), std::filesystem::perms{0755});
  Client& client = served.client;
  std::uint64_t names = 0;
  // Not after each set: statistics are updated ten times a second.
  while (names % 64 != 0 || figure(client, "evictions") == 0) {
    client.set(1, std::to_string(names), generated(kHeldBytes, names)), ++names;
  }
  client.flush();

  std::uint64_t next = 0;
  std::chrono::milliseconds slowest{0};
  const auto sets_a_second = [&](const char* what) {
    const auto start = std::chrono::steady_clock::now();
    const auto passed = [&](auto since) {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
    };
    slowest = 0ms;
    std::uint64_t sets = 0;
    for (; passed(start) < 1.0 * kScale; ++sets, ++next) {
      const auto begin = std::chrono::steady_clock::now();
      client.set(2, std::to_string(next % 1000), generated(kHeldBytes, next), "", {.deadline = 30s});
      slowest = std::max(slowest, std::chrono::milliseconds(static_cast<long>(1000 * passed(begin))));
    }
    std::cout << "sets a second of 40,000 bytes, " << what << ": "
              << static_cast<long>(static_cast<double>(sets) / passed(start)) << ", the slowest " << slowest.count()
              << " ms" << std::endl;
  };

  const Signal there, look, looked, release, released;
  Child reader([&] {
    require(::setgroups(0, nullptr) == 0 && ::setresgid(60'001, 60'001, 60'001) == 0 &&
                ::setresuid(60'001, 60'001, 60'001) == 0,
            "cannot become that user");
    Greedy greedy(served.daemon.socket());
    greedy.take_all(1, names);
    require(greedy.held() * 10 >= names * 9, "he holds only " + std::to_string(greedy.held()));
    there.raise();
    look.wait();
    std::string message;
    require(greedy.get(2, "0", &message) == STEPSTASH_ELIMIT, "his next get was not refused: " + message);
    require(message.find("user 60001") != std::string::npos, message);
    require(greedy.whole(), "his views show other bytes");
    looked.raise();
    release.wait();
    require(greedy.whole(), "his views show other bytes after the restart");
    greedy.release();
    require(eventually([&] { return greedy.get(2, "0") == 0; }), "he is not served again");
    released.raise();
    return 0;
  });
  BOOST_REQUIRE(there.wait());
  // Everything set from here on needs memory that this user holds.
  client.set(2, "first", generated(kHeldBytes, 1), "", {.deadline = 30s});
  sets_a_second("while one reader holds everything");
  BOOST_TEST((slowest < 1s * kScale));
  for (std::uint64_t i = next - std::min<std::uint64_t>(next, 200); i < next; ++i) {
    const auto view = client.get(2, std::to_string(i % 1000));
    BOOST_REQUIRE(view.has_value());
    BOOST_TEST(is_generated(view->bytes(), kHeldBytes, i));
  }
  nlohmann::json all = stats(client);
  BOOST_TEST(all.at("closed_users") == nlohmann::json::array({60'001}));
  BOOST_TEST(all.at("most_held_by_user") == 60'001);
  BOOST_TEST(all.at("most_held_bytes_of_a_user").get<std::uint64_t>() > 40 * kMiB);
  BOOST_TEST(all.at("segment").at("written_off_bytes").get<std::uint64_t>() > 0u);
  look.raise();
  BOOST_REQUIRE(looked.wait());

  served.daemon.kill();
  served.daemon.start();
  sets_a_second("after a SIGKILL, while he holds it still");
  BOOST_TEST((slowest < 5s * kScale));  // includes reconnecting
  release.raise();
  BOOST_REQUIRE(released.wait());
  BOOST_TEST(reader.join() == 0);
  sets_a_second("when he has released all");
  BOOST_TEST(eventually([&] {
    all = stats(client);
    return all.at("closed_users").empty() && all.at("segment").at("written_off_bytes") == 0 &&
           all.at("segment").at("retired_bytes") == 0;
  }));
  BOOST_TEST(all.at("segment").at("used_bytes").get<std::uint64_t>() <=
             all.at("segment").at("heap_bytes").get<std::uint64_t>());
  // No acknowledged data is missing, including this user's.
  for (std::uint64_t i = 0; i < names; ++i) {
    const auto view = client.get(1, std::to_string(i));
    BOOST_REQUIRE(view.has_value());
    BOOST_TEST(is_generated(view->bytes(), kHeldBytes, i));
  }
}

BOOST_AUTO_TEST_SUITE_END()
