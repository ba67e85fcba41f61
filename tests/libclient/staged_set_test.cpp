// SPDX-License-Identifier: Apache-2.0
#include "libclient/staged_set.hpp"

#include <boost/test/unit_test.hpp>
#include <cstring>
#include <mutex>
#include <utility>

#include "libclient/explain.hpp"
#include "tests/support/fake_daemon.hpp"

namespace stepstash::client {
namespace {

using test::FakeDaemon;
using test::FakeSegment;
using namespace std::chrono_literals;
using Peer = FakeDaemon::Peer;

std::vector<std::byte> pattern(std::size_t bytes) {
  std::vector<std::byte> out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = static_cast<std::byte>(i * 2654435761u >> 11);
  return out;
}

struct Seen {
  std::vector<std::byte> value;  // of the last set that was committed
  std::vector<std::byte> inline_value;
  std::uint64_t announced = 0;
  int begins = 0, aborts = 0, commits = 0, inline_sets = 0;
};

/// The daemon's side of staged sets: collects what the pieces say, late, as a slow copier does.
struct Stage {
  std::size_t ring_bytes = 64 * 1024;
  std::uint32_t piece_bytes = 16 * 1024;
  FakeSegment segment{1};
  int break_at_piece = -1;  // counts down; the connection breaks there
  int fail_at_piece = -1;

  std::mutex mutex;
  Seen now;  // what serve() has collected

  FakeDaemon daemon;  // behind what its threads use
  std::unique_ptr<Client> client;

  Seen seen() {
    const std::lock_guard lock(mutex);
    return now;
  }

  void start() {
    daemon.serve([this](Peer& peer) { serve(peer); });
    client = Client::connect(Address::of(daemon.socket()).value(), 20s).value();
  }

  void serve(Peer& peer) {
    FakeDaemon::greet(peer, segment);
    UniqueFd ring;
    shm::Mapping mapping;
    std::vector<std::byte> staged;
    for (;;) {
      const auto request = peer.read();
      const std::lock_guard lock(mutex);
      if (const auto* set = std::get_if<protocol::Set>(&request)) {
        ++now.inline_sets;
        now.inline_value.assign(set->value.begin(), set->value.end());
        peer.send(protocol::SetOk{1, 2});
      } else if (const auto* begin = std::get_if<protocol::SetBegin>(&request)) {
        ++now.begins;
        now.announced = begin->length;
        staged.clear();
        protocol::SetReady ready{static_cast<std::uint32_t>(ring_bytes), piece_bytes, !ring};
        if (!ring) {
          ring = test::make_ring(ring_bytes);
          mapping = shm::Mapping::map(ring.get(), ring_bytes, shm::Mapping::Access::read_only).value();
          peer.send(ready, {ring.get()});
        } else {
          peer.send(ready);
        }
      } else if (const auto* piece = std::get_if<protocol::Piece>(&request)) {
        if (break_at_piece >= 0 && break_at_piece-- == 0) throw std::runtime_error("break");
        if (fail_at_piece >= 0 && fail_at_piece-- == 0) {
          peer.send(protocol::Failure{Errc::segment_full, "no room for the rest"});
          throw std::runtime_error("as a daemon that answers nothing more");
        }
        const std::byte* from = mapping.data() + piece->ring_offset;
        staged.insert(staged.end(), from, from + piece->bytes);
        peer.send(protocol::PieceDone{staged.size()});
      } else if (std::holds_alternative<protocol::SetCommit>(request)) {
        ++now.commits;
        now.value = staged;
        peer.send(protocol::SetOk{3, 4});
      } else if (std::holds_alternative<protocol::SetAbort>(request)) {
        ++now.aborts;
        peer.send(protocol::Done{});
      } else {
        throw std::runtime_error("unexpected");
      }
    }
  }

  protocol::SetParams params() const { return {.build = 42, .name = "v", .source = ""}; }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(staged_set)

BOOST_AUTO_TEST_CASE(values_far_larger_than_the_ring_arrive_whole) {
  Stage stage;
  stage.start();
  for (const std::size_t bytes : {std::size_t{65'537}, std::size_t{16'384 * 5}, std::size_t{3'000'001}}) {
    const auto value = pattern(bytes);
    BOOST_TEST(set_value(*stage.client, stage.params(), value, 20s).value().id == 3u);
    BOOST_TEST((stage.seen().value == value), bytes << " bytes");
    BOOST_TEST(stage.seen().announced == bytes);
  }
  BOOST_TEST(stage.daemon.connections() == 1);  // and one ring for all of them
}

BOOST_AUTO_TEST_CASE(a_ring_of_odd_sizes_is_used_within_its_bounds) {
  for (const std::size_t ring : {std::size_t{1}, std::size_t{7}, std::size_t{1000}, std::size_t{65'536}}) {
    Stage stage;
    stage.ring_bytes = ring;
    stage.piece_bytes = static_cast<std::uint32_t>(std::min<std::size_t>(ring, 999));
    stage.start();
    const auto value = pattern(ring < 100 ? 65'540 : 200'000);
    BOOST_TEST(set_value(*stage.client, stage.params(), value, 20s).has_value());
    BOOST_TEST((stage.seen().value == value), "a ring of " << ring << " bytes");
  }
}

BOOST_AUTO_TEST_CASE(a_small_value_of_unknown_length_travels_inline) {
  Stage stage;
  stage.start();
  auto staged = StagedSet::begin(*stage.client, stage.params(), protocol::kUnknownLength, 20s).value();
  const auto value = pattern(protocol::kInlineBytes);
  staged->write(std::span(value).first(1000)).value();
  staged->write(std::span(value).subspan(1000)).value();
  BOOST_TEST(staged->commit().value().id == 1u);
  BOOST_TEST((stage.seen().inline_value == value));
  BOOST_TEST(stage.seen().begins == 0);
}

BOOST_AUTO_TEST_CASE(one_byte_more_goes_through_the_ring_from_the_first) {
  Stage stage;
  stage.start();
  auto staged = StagedSet::begin(*stage.client, stage.params(), protocol::kUnknownLength, 20s).value();
  const auto value = pattern(protocol::kInlineBytes + 1);
  staged->write(value).value();
  BOOST_TEST(staged->commit().value().id == 3u);
  BOOST_TEST((stage.seen().value == value));
  BOOST_TEST(stage.seen().announced == protocol::kUnknownLength);
  BOOST_TEST(stage.seen().inline_sets == 0);
}

BOOST_AUTO_TEST_CASE(room_is_never_empty_and_never_more_than_is_missing) {
  Stage stage;
  stage.start();
  const auto value = pattern(100'001);
  auto staged = StagedSet::begin(*stage.client, stage.params(), value.size(), 20s).value();
  for (std::size_t at = 0; at < value.size();) {
    const auto room = staged->buffer().value();
    BOOST_TEST_REQUIRE(!room.empty());
    BOOST_TEST_REQUIRE(room.size() <= value.size() - at);
    const std::size_t part = std::min<std::size_t>(room.size(), 777);
    std::memcpy(room.data(), value.data() + at, part);
    staged->advance(part).value();
    at += part;
  }
  BOOST_TEST((staged->buffer().error() == Errc::invalid_argument));
  BOOST_TEST((staged->advance(1).error() == Errc::invalid_argument));
  BOOST_TEST(staged->commit().has_value());
  BOOST_TEST((stage.seen().value == value));
}

BOOST_AUTO_TEST_CASE(advancing_past_the_room_is_refused) {
  Stage stage;
  stage.start();
  auto staged = StagedSet::begin(*stage.client, stage.params(), 1'000'000, 20s).value();
  const auto room = staged->buffer().value();
  BOOST_TEST((staged->advance(room.size() + 1).error() == Errc::invalid_argument));
  BOOST_TEST(staged->advance(room.size()).has_value());
}

BOOST_AUTO_TEST_CASE(fewer_bytes_than_announced_are_not_committed) {
  Stage stage;
  stage.start();
  for (const std::size_t announced : {std::size_t{100}, std::size_t{100'000}}) {
    auto staged = StagedSet::begin(*stage.client, stage.params(), announced, 20s).value();
    staged->write(pattern(99)).value();
    BOOST_TEST((staged->commit().error() == Errc::invalid_argument));
  }
  BOOST_TEST(stage.seen().commits == 0);
  BOOST_TEST(stage.seen().inline_sets == 0);
}

BOOST_AUTO_TEST_CASE(an_abandoned_set_is_aborted_and_its_connection_used_again) {
  Stage stage;
  stage.start();
  {
    auto staged = StagedSet::begin(*stage.client, stage.params(), 100'000, 20s).value();
    staged->write(pattern(50'000)).value();
  }
  BOOST_TEST(stage.seen().aborts == 1);
  const auto value = pattern(70'000);
  BOOST_TEST(set_value(*stage.client, stage.params(), value, 20s).has_value());
  BOOST_TEST((stage.seen().value == value));
  BOOST_TEST(stage.daemon.connections() == 1);
}

BOOST_AUTO_TEST_CASE(what_the_daemon_says_of_a_piece_is_the_sets_answer) {
  for (const int at : {0, 1, 5, 12}) {
    Stage stage;
    stage.fail_at_piece = at;
    stage.start();
    const auto set = set_value(*stage.client, stage.params(), pattern(16'384 * 12 + 1), 20s);
    BOOST_TEST((set.error() == Errc::segment_full), "piece " << at);
    BOOST_TEST(std::string(last_explanation()) == "no room for the rest");
    BOOST_TEST(stage.seen().commits == 0);
    BOOST_TEST(set_value(*stage.client, stage.params(), pattern(70'000), 20s).has_value());  // on another connection
  }
}

BOOST_AUTO_TEST_CASE(a_set_from_memory_is_repeated_when_the_connection_breaks) {
  for (const int at : {0, 1, 5}) {
    Stage stage;
    stage.break_at_piece = at;
    stage.start();
    const auto value = pattern(16'384 * 12);
    BOOST_TEST(set_value(*stage.client, stage.params(), value, 20s).has_value());
    BOOST_TEST((stage.seen().value == value));
    BOOST_TEST(stage.seen().begins == 2);
  }
}

BOOST_AUTO_TEST_CASE(a_conditional_set_from_memory_is_repeated_only_before_its_commit) {
  Stage stage;
  stage.break_at_piece = 0;
  stage.start();
  auto params = stage.params();
  params.if_absent = true;
  // More than the ring holds: the break is noticed while the commit has not been sent.
  const auto value = pattern(16'384 * 64);
  BOOST_TEST(set_value(*stage.client, params, value, 20s).has_value());
  BOOST_TEST(stage.seen().begins == 2);
}

BOOST_AUTO_TEST_CASE(a_stream_is_not_repeated) {
  Stage stage;
  stage.break_at_piece = 0;
  stage.start();
  auto staged = StagedSet::begin(*stage.client, stage.params(), 16'384 * 64, 20s).value();
  const auto written = staged->write(pattern(16'384 * 64));
  const auto committed = staged->commit();
  BOOST_TEST((!written && written.error() == Errc::unavailable));
  BOOST_TEST((committed.error() == Errc::unavailable));
  BOOST_TEST(stage.seen().begins == 1);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace stepstash::client
