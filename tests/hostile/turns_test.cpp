// SPDX-License-Identifier: Apache-2.0
// One user's requests, however many and however expensive, and another user who is served meanwhile: measures how long
// a set of the second takes with and without load, in one run, and prints the figures.
#include "tests/hostile/flood.hpp"
#include "tests/hostile/siege.hpp"
#include "tests/protocol/samples.hpp"
#include "tests/support/raw_connection.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

constexpr uid_t kReader = 60'001;
constexpr uid_t kWriter = 60'002;
constexpr uid_t kNobody = 60'003;
constexpr auto kPhase = 1s;

std::string text(const protocol::Request& request) {
  const auto bytes = protocol::frame_of(request);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// A siege by other users, who may connect.
struct Crowd : Siege {
  explicit Crowd(std::vector<std::string> options = {}) : Siege(with_users(std::move(options))) {
    std::filesystem::permissions(daemon.directory().path(), std::filesystem::perms{0755});
    BOOST_TEST_MESSAGE("quiet: " << Latency::of(client, kPhase));
  }
  static std::vector<std::string> with_users(std::vector<std::string> options) {
    options.insert(options.begin(), {"--socket-mode=0666", "--read-users=60001", "--write-users=60002",
                                     "--max-connections-per-user=1200"});
    return options;
  }
  /// With `count` connections of `uid` that each repeat `again` continuously.
  void endure(const char* what, uid_t uid, std::size_t count, const protocol::Request& again) {
    Flood flood(daemon.socket(), uid, count, text(protocol::Hello{}), text(again));
    const Latency latency = Latency::of(client, kPhase);
    BOOST_TEST_MESSAGE(what << ", " << count << " connections: " << latency);
    BOOST_TEST(latency.worst < 1e6 * std::chrono::duration<double>(kServedWithin).count(), what << ": " << latency);
    flood.end();
    BOOST_TEST(eventually([&] { return figure(client, "connections") <= before().connections + 2; }));
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(hostile_turns, *boost::unit_test::precondition(root))

BOOST_AUTO_TEST_CASE(who_asks_for_figures_all_the_time_keeps_nobody_waiting) {
  Crowd crowd;
  crowd.endure("stats", kReader, 100, protocol::Stats{});
  crowd.endure("stats", kReader, 1000, protocol::Stats{});
  crowd.lift();
}

BOOST_AUTO_TEST_CASE(whatever_one_asks_for_all_the_time_another_is_served) {
  Crowd crowd;
  for (int i = 0; i < 1000; ++i) crowd.client.set(49, std::string(200, 'n') + std::to_string(i), "v");
  crowd.endure("list", kReader, 1000, protocol::List{49, std::nullopt, 0});
  crowd.endure("flush", kReader, 1000, protocol::Flush{1000});
  crowd.endure("wait for what is set all the time", kReader, 1000, protocol::Wait{50, "latency", 1000});
  crowd.endure("sets", kWriter, 300, protocol::Set{params_of(48, "mine"), {}});
  crowd.endure("durable sets", kWriter, 300, [] {
    protocol::SetParams params = params_of(48, "mine");
    params.durable = true;
    return protocol::Set{params, {}};
  }());
  crowd.lift();
}

BOOST_AUTO_TEST_CASE(who_comes_and_goes_all_the_time_keeps_nobody_waiting) {
  Crowd crowd;
  protocol::Hello attach;
  attach.attach = true;
  for (const bool allowed : {true, false}) {
    const Signal there;
    std::vector<std::unique_ptr<Child>> processes;
    for (int i = 0; i < 2; ++i) {
      processes.push_back(std::make_unique<Child>([&] {
        become(allowed ? kReader : kNobody);
        const std::string hello = text(attach);
        std::vector<int> open(500, -1);  // they stay a while; those beyond the limit are refused
        for (std::size_t n = 0;; ++n) {
          int& place = open[n % open.size()];
          if (place >= 0) ::close(place);
          place = connect_to(crowd.daemon.socket());
          if (place >= 0) (void)::send(place, hello.data(), hello.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
          if (n == open.size()) there.raise();
        }
        return 0;
      }));
    }
    for (std::size_t i = 0; i < processes.size(); ++i) BOOST_REQUIRE(there.wait());
    const Latency latency = Latency::of(crowd.client, kPhase);
    BOOST_TEST_MESSAGE((allowed ? "attaching" : "refused") << " all the time: " << latency);
    BOOST_TEST(latency.worst < 1e6 * std::chrono::duration<double>(Siege::kServedWithin).count(), latency);
    // A new client is served as well, after all earlier ones.
    for (int i = 0; i < 5; ++i) {
      const auto start = std::chrono::steady_clock::now();
      Client newcomer(crowd.daemon.socket());
      newcomer.set(50, "latency", "value");
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      BOOST_TEST_MESSAGE("a new client: " << took.count() << " s");
      BOOST_TEST(took.count() < std::chrono::duration<double>(Siege::kServedWithin).count());
    }
    processes.clear();
    BOOST_TEST(eventually([&] { return figure(crowd.client, "connections") <= crowd.before().connections + 2; }));
  }
  crowd.lift();
}

BOOST_AUTO_TEST_CASE(a_request_that_waits_for_its_turn_is_answered_though_its_ring_is_wanted) {
  DaemonProcess daemon({"--socket-mode=0666", "--write-users=60002", "--max-rings=1"});
  daemon.start();
  std::filesystem::permissions(daemon.directory().path(), std::filesystem::perms{0755});
  // It keeps its ring after a set.
  std::optional<RawConnection> idle(std::in_place, daemon.socket());
  idle->greet();
  idle->send(protocol::SetBegin{params_of(48, "large"), 0});
  BOOST_REQUIRE(std::holds_alternative<protocol::SetReady>(*idle->receive()));
  idle->send(protocol::SetCommit{});
  BOOST_REQUIRE(std::holds_alternative<protocol::SetOk>(*idle->receive()));
  // Others of the same user are ahead of it, so that the turn of the connection that wants a ring comes first.
  std::vector<std::unique_ptr<RawConnection>> others;
  for (int i = 0; i < 50; ++i) {
    others.push_back(std::make_unique<RawConnection>(daemon.socket()));
    others.back()->greet();
  }
  const Signal ready, go, begun;
  Child wants([&] {
    become(kWriter);
    const int fd = connect_to(daemon.socket());
    const std::string hello = text(protocol::Hello{});
    char reply[4096];
    require(::send(fd, hello.data(), hello.size(), MSG_NOSIGNAL) > 0 && ::recv(fd, reply, sizeof reply, 0) > 0,
            "hello");
    ready.raise();
    require(go.wait(), "go");
    const std::string begin = text(protocol::SetBegin{params_of(48, "other"), 0});
    require(::send(fd, begin.data(), begin.size(), MSG_NOSIGNAL) > 0, "begin");
    begun.raise();
    require(::recv(fd, reply, sizeof reply, 0) > 0, "no answer");
    return 0;
  });
  BOOST_REQUIRE(ready.wait());
  daemon.stop();
  for (const auto& other : others) other->send(protocol::Stats{});
  go.raise();
  BOOST_REQUIRE(begun.wait());
  idle->send(protocol::Drop{48});
  daemon.resume();
  const auto answer = idle->receive();
  BOOST_REQUIRE(answer.has_value());
  BOOST_TEST(std::holds_alternative<protocol::Count>(*answer));
  idle.reset();
  BOOST_TEST(wants.join() == 0);
}

BOOST_AUTO_TEST_SUITE_END()
