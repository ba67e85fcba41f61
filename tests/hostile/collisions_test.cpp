// SPDX-License-Identifier: Apache-2.0
// Chosen keys from an attacker who reads the segment: all of them fall into the same part of the current table. The
// attacker's sets take as long as any others, except those that wait for a rebuild; a restart takes as long as with any
// other keys, and others are served.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>

#include "shm/mapping.hpp"
#include "shm/validate.hpp"
#include "tests/hostile/namespaces.hpp"
#include "tests/hostile/siege.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

/// STEPSTASH_COLLIDING_KEYS=100000 for measurements.
std::uint64_t count_of_keys() {
  const char* wanted = std::getenv("STEPSTASH_COLLIDING_KEYS");
  return wanted != nullptr ? std::stoull(wanted) : 24'000 / kScale;
}

/// What every client has mapped.
class Segment {
 public:
  explicit Segment(const std::string& path) {
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat status {};
    BOOST_REQUIRE(::fstat(fd.get(), &status) == 0);
    mapping_ =
        shm::Mapping::map(fd.get(), static_cast<std::size_t>(status.st_size), shm::Mapping::Access::read_only).value();
  }
  shm::IndexWord word() const { return reinterpret_cast<const shm::Header*>(mapping_.data())->index.load(); }
  shm::HashSecret secret() const { return shm::table_secret(mapping_.data(), shm::index_slots_offset(word())); }

 private:
  shm::Mapping mapping_;
};

/// Names of one build that fall into 1024 neighbouring slots of the table that is current at the time of the call.
class Chosen {
 public:
  explicit Chosen(const Segment& segment) : segment_(segment) {}
  std::string next() {
    if (segment_.word() != word_) {
      word_ = segment_.word();
      secret_ = segment_.secret();
      ++tables_;
    }
    const std::uint64_t mask = (std::uint64_t{1} << shm::index_log2_slots(word_)) - 1;
    for (;; ++i_) {
      const std::string name = "chosen " + std::to_string(i_);
      if ((shm::key_hash(secret_, 1, name) & mask) >= 1024) continue;
      ++i_;
      return name;
    }
  }
  int tables() const { return tables_; }

 private:
  const Segment& segment_;
  shm::IndexWord word_ = 0;
  shm::HashSecret secret_;
  std::uint64_t i_ = 0;
  int tables_ = 0;
};

struct Figures {
  double set_us = 0;      // a set, in the median
  double all_ms = 0;      // all sets, including waits for a rebuild
  double start_ms = 0;    // of the daemon, after a kill
  double slowest_ms = 0;  // the slowest request of another client
};

double ms(std::chrono::steady_clock::duration took) { return std::chrono::duration<double, std::milli>(took).count(); }

/// Sets that many keys, each from `name`, while another client is served; then kills the daemon, restarts it and finds
/// them all.
Figures set_and_restart(Served& served, std::uint64_t count, const std::function<std::string()>& name) {
  Figures figures;
  std::atomic<bool> over{false};
  std::atomic<std::uint64_t> rounds{0};
  double slowest = 0;
  std::optional<Worker> good(std::in_place, [&] {
    Client own(served.daemon.socket());
    for (std::uint64_t i = 0; !over; ++i) {
      const auto start = std::chrono::steady_clock::now();
      own.set(7, "good " + std::to_string(i % 500), "v");
      require(own.get(7, "good " + std::to_string(i % 500)).has_value(), "the good client's value");
      slowest = std::max(slowest, ms(std::chrono::steady_clock::now() - start));
      ++rounds;
      std::this_thread::sleep_for(1ms);  // a client with other work to do
    }
  });
  std::vector<std::string> names;
  std::vector<double> took;
  for (std::uint64_t i = 0; i < count; ++i) {
    names.push_back(name());  // the attacker's own time
    const auto start = std::chrono::steady_clock::now();
    served.client.set(1, names.back(), "");
    took.push_back(ms(std::chrono::steady_clock::now() - start));
    figures.all_ms += took.back();
  }
  BOOST_TEST(eventually([&] { return rounds >= 5; }));
  over = true;
  good->join();
  std::nth_element(took.begin(), took.begin() + static_cast<std::ptrdiff_t>(count / 2), took.end());
  figures.set_us = 1000 * took[count / 2];
  figures.slowest_ms = slowest;
  served.daemon.kill();
  const auto start = std::chrono::steady_clock::now();
  served.daemon.start();
  figures.start_ms = ms(std::chrono::steady_clock::now() - start);
  for (const std::string& one : names) BOOST_TEST_REQUIRE(served.client.stat(1, one).has_value());
  return figures;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(collisions)

BOOST_AUTO_TEST_CASE(keys_that_were_chosen_to_collide_slow_nobody_down) {
  const std::uint64_t count = count_of_keys();
  const std::vector<std::string> options{"--segment-size=64MiB", "--flush-interval=1h"};
  Figures quiet;
  {
    Served served(options);
    std::uint64_t i = 0;
    quiet = set_and_restart(served, count, [&] { return "quiet " + std::to_string(i++); });
  }
  Served served(options);
  const Segment segment(served.daemon.segment_path());
  Chosen chosen(segment);
  const Figures attacked = set_and_restart(served, count, [&] { return chosen.next(); });
  const auto print = [count](const char* which, const Figures& of) {
    std::printf("%llu %s keys: %.0f us a set, %.0f ms all, start %.0f ms, slowest of others %.0f ms\n",
                static_cast<unsigned long long>(count), which, of.set_us, of.all_ms, of.start_ms, of.slowest_ms);
  };
  print("quiet", quiet);
  print("colliding", attacked);
  std::printf("%d tables\n", chosen.tables());
  BOOST_TEST(chosen.tables() > 1);
  BOOST_TEST(attacked.set_us < 3 * quiet.set_us + 50);
  BOOST_TEST(attacked.start_ms < 3 * quiet.start_ms + 300);
  BOOST_TEST(attacked.slowest_ms < 1000.0 * (kScale > 1 ? 5 : 1));
}

BOOST_AUTO_TEST_SUITE_END()
