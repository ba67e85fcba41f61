// What clients hold, and what they write into their pin pages, against those who set: pages of clients that do nothing,
// pages full of numbers, and readers that hold more than their share.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iostream>
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

/// Attached clients without a connection: each keeps its page, and writes what it likes into it.
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

  /// Blocks in which no value lies, as the chain says at this moment: free ones, tables, records of evicted values.
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

/// What the daemon's process has used, in seconds: other processes of the machine do not count.
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

struct Figures {
  double sets_a_second = 0;
  double cpu_of_a_set = 0;  // of the daemon's, in seconds
};

/// Sets for a second values of `length` bytes under names of which most have been evicted.
Figures set_for_a_second(Siege& siege, std::int64_t build, std::uint64_t length) {
  static std::uint64_t number = 0;
  constexpr std::uint64_t kNames = 20'000;
  const std::string value = generated(length, 1);
  const bool durable = length >= kMiB;  // so that others need not wait for the disk because of them
  const auto set = [&] {
    siege.client.set(build, std::to_string(number++ % kNames), value, "", {.durable = durable, .deadline = 30s});
  };
  // Until the segment is full: nearly each set takes another value's place. Where that takes so long, it is slow.
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

/// A full segment, so that each set needs what others give up. A reclaim reads the pages, and nothing in it may grow
/// with what stands in them; as a clean client holds nothing, its page may not count for every set either.
BOOST_AUTO_TEST_CASE(pages_of_idle_clients_and_pages_full_of_numbers_do_not_slow_down_sets) {
  // Fewer with a sanitizer, whose daemon takes the attaching clients one by one in minutes.
  const std::size_t many = kScale > 1 ? 300 : 1000, most = kScale > 1 ? 300 : 2040;
  Siege siege({"--segment-size=64MiB", "--flush-interval=5ms"});
  for (int i = 0; i < 20'000; ++i) {
    siege.client.set(kSmall, std::to_string(i), generated(4000, 1), "", {.deadline = 30s});
  }
  struct Rates {
    Figures small;
    Figures large;
  };
  const auto better = [](const Figures& a, const Figures& b) {
    return Figures{std::max(a.sets_a_second, b.sets_a_second), std::min(a.cpu_of_a_set, b.cpu_of_a_set)};
  };
  const auto measure = [&](const char* what) {
    Rates rates;
    rates.small = set_for_a_second(siege, kSmall, 4000);
    rates.small = better(rates.small, set_for_a_second(siege, kSmall, 4000));
    rates.large = set_for_a_second(siege, kLarge, 2 * kMiB);
    rates.large = better(rates.large, set_for_a_second(siege, kLarge, 2 * kMiB));
    const auto print = [](const Figures& figures) {
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
  // By the clock, or by what the daemon used, for the machine may have had other things to do.
  const auto near = [](const Figures& now, const Figures& then) {
    return now.sets_a_second * 8 >= then.sets_a_second || now.cpu_of_a_set <= 8 * then.cpu_of_a_set;
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
    // Places in the segment in which blocks could begin.
    liar.fill([&] { return random() % (64 * kMiB) / 64 * 64 + 1; });
    bearable(measure("2,040 pages of places in the segment"), "2,040 pages of places in the segment");
    const std::vector<shm::Offset> blocks = liar.blocks_without_value();
    std::size_t next = 0;
    BOOST_REQUIRE(!blocks.empty());
    liar.fill([&] { return blocks[next++ % blocks.size()]; });
    bearable(measure("2,040 pages of blocks without value"), "2,040 pages of blocks without value");
  }
  siege.end();
}

BOOST_AUTO_TEST_SUITE_END()
