// SPDX-License-Identifier: Apache-2.0
#include "libclient/channel.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>

#include <boost/test/unit_test.hpp>
#include <utility>

#include "libclient/explain.hpp"
#include "tests/support/fake_daemon.hpp"

namespace stepstash::client {
namespace {

using test::FakeDaemon;
using namespace std::chrono_literals;

Deadline in(std::chrono::milliseconds wait) { return std::chrono::steady_clock::now() + wait; }

std::size_t open_descriptors() {
  std::size_t count = 0;
  DIR* directory = ::opendir("/proc/self/fd");
  while (::readdir(directory) != nullptr) ++count;
  ::closedir(directory);
  return count;
}

struct Connected {
  FakeDaemon daemon;
  DescriptorTable table;
  std::unique_ptr<Channel> channel;

  explicit Connected(FakeDaemon::Script script) {
    daemon.serve(std::move(script));
    channel = Channel::open(Address::of(daemon.socket()).value(), table).value();
  }
  Result<protocol::Reply> ask() { return channel->call(protocol::Stats{}, in(20s)); }
};

std::vector<std::byte> frame_of(const protocol::Reply& reply) {
  std::vector<std::byte> frame;
  protocol::encode(reply, frame);
  return frame;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(channel)

BOOST_AUTO_TEST_CASE(a_path_that_no_unix_socket_can_have_is_refused) {
  BOOST_TEST(Address::of(std::string(107, 'x')).has_value());
  BOOST_TEST((Address::of(std::string(108, 'x')).error() == Errc::invalid_argument));
  BOOST_TEST((Address::of("").error() == Errc::invalid_argument));
  BOOST_TEST((Address::of(std::string("a\0b", 3)).error() == Errc::invalid_argument));
}

BOOST_AUTO_TEST_CASE(a_reply_that_comes_byte_by_byte_is_read) {
  Connected c([](FakeDaemon::Peer& peer) {
    peer.read();
    for (const std::byte b : frame_of(protocol::Text{"{\"a\":1}"})) peer.send_bytes(std::span(&b, 1));
    peer.read();
  });
  const auto reply = c.ask();
  BOOST_TEST(std::get<protocol::Text>(reply.value()).text == "{\"a\":1}");
}

BOOST_AUTO_TEST_CASE(replies_that_come_together_are_read_one_by_one) {
  Connected c([](FakeDaemon::Peer& peer) {
    peer.read();
    auto two = frame_of(protocol::PieceDone{1});
    const auto second = frame_of(protocol::PieceDone{2});
    two.insert(two.end(), second.begin(), second.end());
    peer.send_bytes(two);
    peer.read();
  });
  BOOST_TEST(std::get<protocol::PieceDone>(c.ask().value()).received == 1u);
  BOOST_TEST(std::get<protocol::PieceDone>(c.channel->receive(in(20s)).value()).received == 2u);
  BOOST_TEST(c.channel->idle_and_alive());
}

BOOST_AUTO_TEST_CASE(a_reply_of_the_largest_size_is_read) {
  Connected c([](FakeDaemon::Peer& peer) {
    peer.read();
    peer.send(protocol::Text{std::string(protocol::kMaxPayload, 'x')});
    peer.read();
  });
  BOOST_TEST(std::get<protocol::Text>(c.ask().value()).text.size() == protocol::kMaxPayload - 4);
}

BOOST_AUTO_TEST_CASE(what_is_no_stepstash_daemon_is_told_apart) {
  Connected c([](FakeDaemon::Peer& peer) {
    peer.read();
    peer.send_bytes(std::as_bytes(std::span(std::string_view("HTTP/1.1 400 Bad Request\r\n\r\n"))));
    peer.read();
  });
  BOOST_TEST((c.ask().error() == Errc::protocol_error));
}

BOOST_AUTO_TEST_CASE(an_end_in_the_middle_of_a_reply_is_a_broken_connection) {
  const auto whole = frame_of(protocol::SetOk{1, 2});
  for (std::size_t length = 0; length < whole.size(); ++length) {
    Connected c([&](FakeDaemon::Peer& peer) {
      peer.read();
      peer.send_bytes(std::span(whole).first(length));
    });
    BOOST_TEST((c.ask().error() == Errc::unavailable), "after " << length << " bytes");
  }
}

BOOST_AUTO_TEST_CASE(no_answer_ends_at_the_deadline) {
  Connected c([](FakeDaemon::Peer& peer) {
    peer.read();
    peer.read();
  });
  BOOST_TEST((c.channel->call(protocol::Stats{}, in(20ms)).error() == Errc::deadline_exceeded));
}

BOOST_AUTO_TEST_CASE(descriptors_nobody_asked_for_are_refused_and_closed) {
  const std::size_t before = open_descriptors();
  for (const int count : {1, 2, 3, 8}) {
    Connected c([&](FakeDaemon::Peer& peer) {
      peer.read();
      const auto frame = frame_of(protocol::Done{});
      switch (count) {
        case 1:
          peer.send_bytes(frame, {0});
          break;
        case 2:
          peer.send_bytes(frame, {0, 0});
          break;
        case 3:
          peer.send_bytes(frame, {0, 0, 0});
          break;
        default:
          peer.send_bytes(frame, {0, 0, 0, 0, 0, 0, 0, 0});
          break;
      }
      peer.read();
    });
    BOOST_TEST((c.ask().error() == Errc::protocol_error), count << " descriptors");
  }
  BOOST_TEST(open_descriptors() == before);
}

BOOST_AUTO_TEST_CASE(a_ring_that_was_announced_must_come) {
  Connected c([](FakeDaemon::Peer& peer) {
    peer.read();
    peer.send(protocol::SetReady{4096, 4096, true});
    peer.read();
  });
  BOOST_TEST((c.ask().error() == Errc::protocol_error));
}

BOOST_AUTO_TEST_CASE(a_ring_that_may_shrink_or_is_too_small_is_refused) {
  struct Case {
    std::size_t bytes;
    bool sealed;
    protocol::SetReady ready;
    bool accepted;
  };
  const Case cases[] = {{8192, true, {8192, 4096, true}, true},   {8192, false, {8192, 4096, true}, false},
                        {4096, true, {8192, 4096, true}, false},  {8192, true, {8192, 0, true}, false},
                        {8192, true, {8192, 16384, true}, false}, {8192, true, {0, 4096, true}, false}};
  for (const Case& one : cases) {
    Connected c([&](FakeDaemon::Peer& peer) {
      peer.read();
      const UniqueFd ring = test::make_ring(one.bytes, one.sealed);
      peer.send(one.ready, {ring.get()});
      peer.read();
    });
    const auto reply = c.ask();
    const auto adopted = c.channel->adopt_ring(std::get<protocol::SetReady>(reply.value()));
    BOOST_TEST(adopted.has_value() == one.accepted, one.bytes << " bytes, announced " << one.ready.ring_bytes);
  }
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // UBSan wants a pipe for each of its checks
BOOST_AUTO_TEST_CASE(a_lack_of_descriptors_is_this_processes_own_and_not_the_daemons_fault) {
  rlimit before{};
  BOOST_REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  const auto limit = [&](rlim_t most) {
    const rlimit few{most, before.rlim_max};
    BOOST_REQUIRE(::setrlimit(RLIMIT_NOFILE, &few) == 0);
  };
  Connected c([&](FakeDaemon::Peer& peer) {
    peer.read();
    const UniqueFd ring = test::make_ring(8192);
    const rlimit few{3, before.rlim_max};
    ::setrlimit(RLIMIT_NOFILE, &few);
    peer.send(protocol::SetReady{8192, 4096, true}, {ring.get()});
    peer.read();
  });
  const auto reply = c.ask();  // the kernel leaves out the descriptor that came with it
  limit(before.rlim_cur);
  BOOST_REQUIRE(!reply.has_value());
  BOOST_TEST((reply.error() == std::errc::too_many_files_open), reply.error().message());
  const std::string said = explanation(reply.error());
  BOOST_TEST(said.find("this process has no file descriptors left: it may have 3") == 0u, said);

  limit(3);
  const auto opened = Channel::open(Address::of(c.daemon.socket()).value(), c.table);
  limit(before.rlim_cur);
  BOOST_REQUIRE(!opened.has_value());
  BOOST_TEST((opened.error() == std::errc::too_many_files_open), opened.error().message());
  BOOST_TEST(std::string(explanation(opened.error())).starts_with("this process has no file descriptors left"));
}
#endif

BOOST_AUTO_TEST_CASE(a_refusal_that_comes_before_the_request_is_read) {
  FakeDaemon daemon;
  daemon.serve([](FakeDaemon::Peer& peer) { peer.send(protocol::Failure{Errc::not_permitted, "not you"}); });
  DescriptorTable table;
  const auto channel = Channel::open(Address::of(daemon.socket()).value(), table).value();
  const auto reply = channel->call(protocol::Hello{}, in(20s));
  BOOST_TEST((std::get<protocol::Failure>(reply.value()).code == Errc::not_permitted));
}

BOOST_AUTO_TEST_CASE(the_table_of_descriptors_has_an_end_and_gives_places_back) {
  FakeDaemon daemon;
  daemon.serve([](FakeDaemon::Peer& peer) { peer.read(); });
  const Address address = Address::of(daemon.socket()).value();
  auto table = std::make_unique<DescriptorTable>();
  std::vector<std::atomic<int>*> places;
  while (std::atomic<int>* place = table->put(4711)) places.push_back(place);
  BOOST_TEST(places.size() == DescriptorTable::kSlots);
  BOOST_TEST((Channel::open(address, *table).error() == Errc::too_many));
  places[100]->store(-1);
  BOOST_TEST(Channel::open(address, *table).has_value());  // and closed at once
  BOOST_TEST(Channel::open(address, *table).has_value());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace stepstash::client
