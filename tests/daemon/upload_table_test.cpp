// SPDX-License-Identifier: Apache-2.0
// Which uploads may be ended for the room or the ring that they hold, and when.
#include "daemon/upload_table.hpp"

#include <sys/socket.h>

#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "daemon/services.hpp"
#include "protocol/frame.hpp"
#include "tests/daemon/engine.hpp"

using namespace stepstash;
using namespace stepstash::test;
using daemon::Link;
using daemon::UploadTable;

namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::chrono::nanoseconds kBudget = UploadTable::kBudget;

struct Uploads {
  /// A connection's link and row, and its client's end of the socket.
  struct Connected {
    Connected(Uploads& all, UploadTable& table) {
      int ends[2];
      BOOST_TEST_REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
      client = UniqueFd(ends[0]);
      daemon::Socket socket(all.engine.loop());
      socket.assign(boost::asio::local::stream_protocol(), ends[1]);
      link = std::make_shared<Link>(all.engine.loop(), all.turns, all.config, std::move(socket), 7);
      row.emplace(table, *link);
    }
    /// What has been sent to the client; nothing after the end of the stream or before the first byte.
    std::optional<protocol::Reply> reply() const {
      std::vector<std::byte> bytes(4096);
      const ssize_t got = ::recv(client.get(), bytes.data(), bytes.size(), 0);
      if (got < static_cast<ssize_t>(protocol::kHeadBytes)) return std::nullopt;
      const auto head = protocol::decode_head(std::span<const std::byte, protocol::kHeadBytes>(bytes.data(), 8));
      return protocol::decode_reply(head.value(), std::span(bytes).subspan(8, head.value().payload_bytes)).value();
    }

    UniqueFd client;
    std::shared_ptr<Link> link;
    std::optional<UploadTable::Row> row;
  };

  Connected& connect() { return *connected.emplace_back(std::make_unique<Connected>(*this, table)); }
  /// Connects, and begins an upload of `bytes` bytes.
  Connected& begin(std::uint64_t bytes = 64 << 10) {
    Connected& made = connect();
    made.row->begin(draft(bytes));
    return made;
  }
  daemon::OwnedDraft draft(std::uint64_t bytes) {
    return engine.run(engine.reserving(Engine::params(2, std::to_string(++drafts)), bytes)).value();
  }
  /// Until the next look, and then some more: a look without success has others wait.
  bool abort_after(std::chrono::nanoseconds wait) {
    clock.advance(wait);
    return table.abort_stalled();
  }
  std::uint64_t staged() { return engine.store().room().staged_bytes(); }

  MemoryStore disk;
  ManualClock clock;
  TempDir directory;
  Engine engine{directory, disk, clock};
  daemon::Config config;
  daemon::Turns turns{engine.loop(), clock};
  UploadTable table{clock};
  std::vector<std::unique_ptr<Connected>> connected;
  int drafts = 0;
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(uploads, Uploads)

BOOST_AUTO_TEST_CASE(a_stalled_upload_keeps_its_room_until_somebody_needs_it) {
  auto& upload = begin();
  BOOST_TEST(staged() >= 64u << 10);
  clock.advance(1h);
  BOOST_TEST(!upload.row->failure().has_value());
  BOOST_TEST(staged() >= 64u << 10);
  BOOST_TEST(table.abort_stalled());
  BOOST_TEST_REQUIRE(upload.row->failure().has_value());
  BOOST_TEST(upload.row->failure()->code == Errc::segment_full);
  BOOST_TEST(upload.row->under_way());  // its owner has yet to find the failure
  BOOST_TEST(!upload.link->closed());
  BOOST_TEST(staged() == 0u);
  clock.advance(1h);
  BOOST_TEST(!table.abort_stalled());  // nothing is left to free
}

BOOST_AUTO_TEST_CASE(an_upload_is_not_stalled_before_its_budget_is_used_up) {
  auto& upload = begin();
  BOOST_TEST(!abort_after(kBudget));
  BOOST_TEST(!upload.row->failure().has_value());
  BOOST_TEST(abort_after(UploadTable::kLookAgain));
}

BOOST_AUTO_TEST_CASE(the_time_until_a_piece_is_copied_does_not_count) {
  auto& upload = begin();
  clock.advance(3s);
  upload.row->stop_clock();
  BOOST_TEST(!abort_after(1h));
  upload.row->stop_clock();
  upload.row->start_clock();
  BOOST_TEST(!abort_after(2s));
  BOOST_TEST(abort_after(UploadTable::kLookAgain));
}

BOOST_AUTO_TEST_CASE(each_mebibyte_gives_back_a_second_up_to_the_whole_budget) {
  auto& slow = begin();
  clock.advance(4s);
  slow.row->stop_clock();
  slow.row->add(2 * kMiB);
  slow.row->start_clock();
  BOOST_TEST(!abort_after(3s - 1ms));
  slow.row->stop_clock();
  slow.row->add(100 * kMiB);
  slow.row->start_clock();
  BOOST_TEST(slow.row->bytes() == 102 * kMiB);
  BOOST_TEST(!abort_after(kBudget));
  BOOST_TEST(abort_after(UploadTable::kLookAgain));
}

BOOST_AUTO_TEST_CASE(of_several_stalled_uploads_the_one_that_connected_first_is_aborted_and_no_other) {
  auto& first = connect();
  auto& second = begin();
  first.row->begin(draft(1000));
  clock.advance(kBudget + 1s);
  BOOST_TEST(table.abort_stalled());
  BOOST_TEST(first.row->failure().has_value());
  BOOST_TEST(!second.row->failure().has_value());
  BOOST_TEST(table.abort_stalled());  // after a success nobody waits
  BOOST_TEST(second.row->failure().has_value());
}

BOOST_AUTO_TEST_CASE(a_look_without_success_is_repeated_a_tenth_of_a_second_later) {
  begin();
  BOOST_TEST(!abort_after(kBudget));
  BOOST_TEST(!abort_after(UploadTable::kLookAgain - 1ms));
  BOOST_TEST(abort_after(1ms));
}

BOOST_AUTO_TEST_CASE(an_upload_that_has_ended_is_not_aborted) {
  auto& committed = begin();
  begin().row.reset();
  clock.advance(1h);
  committed.row->end();
  BOOST_TEST(staged() == 0u);
  BOOST_TEST(!table.abort_stalled());
}

BOOST_AUTO_TEST_CASE(a_set_without_room_aborts_a_stalled_upload_and_no_other) {
  UploadTable& uploads = engine.store().room().uploads();
  auto& upload = *connected.emplace_back(std::make_unique<Connected>(*this, uploads));
  upload.row->begin(draft(3 * kMiB));
  const std::string value(2 * kMiB, 'v');
  BOOST_TEST(engine.try_set(Engine::params(1, "large"), value, 200ms).error() == Errc::segment_full);
  BOOST_TEST(!upload.row->failure().has_value());
  clock.advance(kBudget + UploadTable::kLookAgain);
  BOOST_TEST(engine.try_set(Engine::params(1, "large"), value).has_value());
  BOOST_TEST(upload.row->failure().has_value());
}

// ---- rings ---------------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(rings_are_counted_until_their_connections_end) {
  auto& one = connect();
  auto& two = connect();
  one.row->set_ring(true);
  one.row->set_ring(true);
  two.row->set_ring(true);
  BOOST_TEST(table.rings() == 2u);
  one.row->set_ring(false);
  BOOST_TEST(table.rings() == 1u);
  two.row.reset();
  BOOST_TEST(table.rings() == 0u);
}

BOOST_AUTO_TEST_CASE(the_ring_of_an_idle_connection_goes_before_that_of_a_stalled_upload) {
  auto& stalled = begin();
  stalled.row->set_ring(true);
  auto& without = connect();
  auto& idle = connect();
  idle.row->set_ring(true);
  clock.advance(1h);
  BOOST_TEST(table.free_ring());
  BOOST_TEST(idle.link->closed());
  BOOST_TEST(!without.link->closed());
  BOOST_TEST(!stalled.row->failure().has_value());
  BOOST_TEST(table.free_ring());
  BOOST_TEST(stalled.link->closed());
  BOOST_TEST(staged() == 0u);
  clock.advance(1h);
  BOOST_TEST(!table.free_ring());  // both are about to end
  BOOST_TEST(!without.link->closed());
}

BOOST_AUTO_TEST_CASE(a_connection_with_a_request_is_not_idle) {
  auto& asks = connect();
  asks.row->set_ring(true);
  for (const auto work : {Link::Work::queued, Link::Work::answering}) {
    asks.link->set_work(work);
    clock.advance(1h);
    BOOST_TEST(!table.free_ring());
  }
  asks.link->set_work(Link::Work::none);
  BOOST_TEST(::send(asks.client.get(), "x", 1, 0) == 1);
  clock.advance(1h);
  BOOST_TEST(!table.free_ring());
  BOOST_TEST(!asks.link->closed());
}

BOOST_AUTO_TEST_CASE(an_upload_that_is_not_stalled_keeps_its_ring) {
  auto& upload = begin();
  upload.row->set_ring(true);
  clock.advance(kBudget);
  BOOST_TEST(!table.free_ring());
  BOOST_TEST(!upload.link->closed());
}

BOOST_AUTO_TEST_CASE(who_loses_the_ring_reads_why_unless_another_reply_is_due) {
  auto& told = begin();
  auto& asks = begin();
  told.row->set_ring(true);
  asks.row->set_ring(true);
  asks.link->set_work(Link::Work::answering);
  clock.advance(1h);
  BOOST_TEST(table.free_ring());
  BOOST_TEST(table.free_ring());
  const auto reply = told.reply();
  BOOST_TEST_REQUIRE((reply && std::holds_alternative<protocol::Failure>(*reply)));
  BOOST_TEST(std::get<protocol::Failure>(*reply).code == Errc::segment_full);
  BOOST_TEST(!asks.reply().has_value());
  BOOST_TEST(asks.link->closed());
}

BOOST_AUTO_TEST_CASE(a_ring_is_waited_for_until_there_is_one_or_the_wait_is_over) {
  auto& busy = connect();
  busy.row->set_ring(true);
  busy.link->set_work(Link::Work::answering);
  BOOST_TEST(engine.run(table.wait_for_ring(2, engine.waiter(), in(30s))).has_value());
  BOOST_TEST(engine.run(table.wait_for_ring(1, engine.waiter(), in(20ms))).error() == Errc::too_many);
  std::optional<Result<>> found;
  engine.start(table.wait_for_ring(1, engine.waiter(), in(30s)), found);
  engine.loop().poll();
  BOOST_TEST(!found.has_value());
  busy.row->set_ring(false);
  engine.loop().poll();  // it is woken: it need not wait for its next look
  BOOST_TEST_REQUIRE(found.has_value());
  BOOST_TEST(found->has_value());
  busy.row->set_ring(true);
  daemon::Waiter stopping(engine.loop());
  stopping.dismiss();
  BOOST_TEST(engine.run(table.wait_for_ring(1, stopping, in(30s))).error() == Errc::shutting_down);
}

BOOST_AUTO_TEST_SUITE_END()
