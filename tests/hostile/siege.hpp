// SPDX-License-Identifier: Apache-2.0
/// A daemon under attack and a well-behaved client that is served throughout. Afterwards it compares memory,
/// descriptors, connections, rings, pin pages and room in the segment with their values before.
#pragma once

#include <sys/resource.h>

#include <atomic>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/harness.hpp"
#include "tests/support/raw_connection.hpp"

namespace stepstash::test {

/// A field of /proc/PID/status, in KiB: "VmRSS", "RssShmem".
inline std::uint64_t kib_of(pid_t pid, std::string_view field) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(std::string(field) + ":")) return std::stoull(line.substr(field.size() + 1));
  }
  return 0;
}

inline std::size_t descriptors_of(pid_t pid) {
  const std::filesystem::directory_iterator all("/proc/" + std::to_string(pid) + "/fd");
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

/// Raises the descriptor limit as far as possible: every connection of a flood is one of ours as well.
inline void raise_descriptor_limit() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

/// What an attack must not change.
struct Account {
  std::size_t descriptors = 0;
  std::uint64_t connections = 0;
  std::uint64_t rings = 0;
  std::uint64_t pages = 0;
  std::uint64_t views = 0;
  std::uint64_t retired = 0;
  std::uint64_t used = 0;
  bool operator==(const Account&) const = default;

  static Account of(const DaemonProcess& daemon, const Client& client) {
    const nlohmann::json all = stats(client);
    return {descriptors_of(daemon.pid()),
            all.at("connections"),
            all.at("staging_rings"),
            all.at("pin_pages"),
            all.at("open_views"),
            all.at("segment").at("retired_blocks"),
            all.at("segment").at("used_bytes")};
  }
};

inline std::ostream& operator<<(std::ostream& out, const Account& a) {
  return out << a.descriptors << " descriptors, " << a.connections << " connections, " << a.rings << " rings, "
             << a.pages << " pin pages, " << a.views << " views, " << a.retired << " retired blocks, " << a.used
             << " bytes";
}

class Siege : public Served {
 public:
  /// Maximum time for any request of the good client.
  static constexpr auto kServedWithin = 1s * (kScale > 1 ? 5 : 1);
  /// How much the process may grow: buffers of the allocator after first use.
  static constexpr std::uint64_t kGrowthKib = 16 * 1024;
  /// No bit flip in a small number gives this build.
  static constexpr std::int64_t kGoodBuild = 0x5EED'5EED'5EED;

  explicit Siege(std::vector<std::string> options = {}) : Served(std::move(options)) {
    raise_descriptor_limit();
    // All first-time work is done before the measurement: threads, rings, the index.
    for (std::uint64_t i = 0; i < 8; ++i) one_round(client, i);
    client.flush();
    before_ = Account::of(daemon, client);
    private_kib_ = kib_of(daemon.pid(), "VmRSS") - kib_of(daemon.pid(), "RssShmem");
    pid_ = daemon.pid();
    good_.emplace([this] {
      Client own(daemon.socket());
      for (std::uint64_t i = 0; !over_; ++i) {
        const auto start = std::chrono::steady_clock::now();
        one_round(own, i);
        const auto took = std::chrono::steady_clock::now() - start;
        slowest_ = std::max(slowest_.load(), std::chrono::duration_cast<std::chrono::milliseconds>(took));
        ++rounds_;
        std::this_thread::sleep_for(1ms);  // a client with other work to do
      }
    });
    // Connected before the attack begins.
    BOOST_REQUIRE(eventually([&] { return rounds_ >= 1; }));
  }

  /// Also stops the good client of a test that ended early.
  ~Siege() { over_ = true; }

  std::chrono::milliseconds slowest() const { return slowest_; }

  /// Ends the attack and checks that the good client was served throughout; does not compare the account.
  void end(std::chrono::milliseconds within = kServedWithin) {
    // However short the attack was, the good client has run.
    BOOST_TEST(eventually([&] { return rounds_ >= 5; }));
    over_ = true;
    try {
      good_->join();
    } catch (const std::exception& error) {
      BOOST_FAIL("the good client was not served: " << error.what() << "; the daemon's log:\n" << daemon.log());
    }
    BOOST_TEST((slowest_.load() < within), "the good client waited for " << slowest_.load().count() << " ms");
    BOOST_TEST(stats(client).at("pid") == pid_);
  }

  /// Ends the attack and compares the account. Call it last, after everything the attacker has is closed.
  void lift() {
    end();
    BOOST_TEST(eventually([&] { return settle() == before_; }, 10s), "it was " << before_ << ", now it is " << settle()
                                                                               << "; the daemon's log:\n"
                                                                               << daemon.log());
    const std::uint64_t now = kib_of(pid_, "VmRSS") - kib_of(pid_, "RssShmem");
    // A sanitizer keeps freed memory for a while.
    if (kScale == 1) BOOST_TEST(now <= private_kib_ + kGrowthKib);
    BOOST_TEST(client.get(kGoodBuild, "small")->text().starts_with("small "));
  }

  std::uint64_t private_kib() const { return kib_of(pid_, "VmRSS") - kib_of(pid_, "RssShmem"); }
  std::uint64_t private_kib_before() const { return private_kib_; }
  const Account& before() const { return before_; }

 private:
  static void one_round(Client& own, std::uint64_t i) {
    own.set(kGoodBuild, "small", "small " + std::to_string(i), "", {.deadline = 10s});
    if (own.get(kGoodBuild, "small")->text() != "small " + std::to_string(i)) throw std::runtime_error("another value");
    own.set(kGoodBuild, "large", generated(200 * kKiB, i), "", {.deadline = 10s});
    if (!is_generated(own.get(kGoodBuild, "large")->bytes(), 200 * kKiB, i)) throw std::runtime_error("other bytes");
  }
  /// Drops what attackers managed to set, as an operator would.
  Account settle() {
    for (std::int64_t build = 1; build <= 50; ++build) client.drop(build);
    client.flush();
    return Account::of(daemon, client);
  }

  Account before_;
  std::uint64_t private_kib_ = 0;
  pid_t pid_ = 0;
  std::atomic<bool> over_{false};
  std::atomic<std::uint64_t> rounds_{0};
  std::atomic<std::chrono::milliseconds> slowest_{0ms};
  std::optional<Worker> good_;
};

}  // namespace stepstash::test
