// SPDX-License-Identifier: Apache-2.0
#include "daemon/connection.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "daemon/store.hpp"
#include "protocol/frame.hpp"
#include "shm/validate.hpp"

namespace stepstash::daemon {
namespace {

using namespace std::chrono_literals;

/// Receive buffer of an idle connection.
constexpr std::size_t kIdleBuffer = 4096;
/// How long an attaching client waits for its pin page on a full tmpfs: Hello carries no deadline, and the usual client
/// deadline is 10 s.
constexpr auto kPagePatience = 2s;

}  // namespace

Connection::Connection(Services& services, Socket socket, Peer peer, Right right)
    : services_(services),
      peer_(std::move(peer)),
      right_(right),
      link_(std::make_shared<Link>(services.loop, services.turns, services.config, std::move(socket), peer_.uid)),
      upload_(services, *link_) {}

awaitable<void> Connection::run() {
  link_->watch_for_hang_up();
  // Not one condition with an empty body: g++ 12 compiles that to an illegal instruction.
  for (bool go_on = true; go_on && !link_->closed();) {
    go_on = co_await read_frames();
  }
  link_->set_work(Link::Work::none);
  upload_.close();
  listing_.reset();
  if (!link_->closed()) co_await link_->take_leave();
  if (!link_->closed()) link_->close();
}

/// Reads once and handles every complete frame received, each when it is this connection's turn, and reads no more
/// until they are answered: sending ahead gains a client nothing. False when the connection is to end.
awaitable<bool> Connection::read_frames() {
  std::size_t wanted = kIdleBuffer;
  if (in_used_ >= protocol::kHeadBytes) {  // a partial frame: its head was checked below
    const auto head =
        protocol::decode_head(std::span<const std::byte, protocol::kHeadBytes>(in_.data(), protocol::kHeadBytes));
    wanted = std::max(wanted, protocol::kHeadBytes + head.value().payload_bytes);
  }
  if (in_.size() < wanted || (in_used_ == 0 && in_.size() > kIdleBuffer)) {
    in_.resize(wanted);
    in_.shrink_to_fit();
  }
  if (in_used_ == 0) {
    // Idling between frames is unlimited, except while reserved room may be needed by others.
    if (upload_.under_way()) {
      link_->limit(Upload::kIdle);
    } else {
      link_->end_limit();
    }
    frame_begun_ = false;
  } else if (!frame_begun_) {
    frame_begun_ = true;  // the limit is for the whole frame, however many reads it takes
    link_->limit(services_.config.frame_timeout);
  }
  boost::system::error_code error;
  const std::size_t got = co_await link_->socket().async_read_some(
      asio::buffer(in_.data() + in_used_, in_.size() - in_used_), asio::redirect_error(asio::use_awaitable, error));
  if (error) co_return false;
  in_used_ += got;

  std::size_t at = 0;
  bool go_on = true;
  while (go_on && in_used_ - at >= protocol::kHeadBytes) {
    const auto head =
        protocol::decode_head(std::span<const std::byte, protocol::kHeadBytes>(in_.data() + at, protocol::kHeadBytes));
    if (!head) {
      co_await link_->send(protocol::Reply(services_.failure(head.error())));
      co_return false;
    }
    const std::size_t frame = protocol::kHeadBytes + head.value().payload_bytes;
    if (in_used_ - at < frame) break;
    link_->end_limit();
    frame_begun_ = false;
    if (!upload_.has_pieces()) {  // consecutive pieces share a turn
      if (head.value().type == protocol::kPieceType) upload_.stop_clock();
      link_->set_work(Link::Work::queued);  // from here on it is answered, whatever else ends
      co_await link_->waiter().yield();
      if (link_->closed()) co_return false;
    }
    auto request = protocol::decode_request(
        head.value(), std::span(in_.data() + at + protocol::kHeadBytes, head.value().payload_bytes));
    if (!request) {
      co_await link_->send(protocol::Reply(services_.failure(request.error())));
      co_return false;
    }
    at += frame;
    if (const auto* piece = std::get_if<protocol::Piece>(&request.value())) {
      if (!upload_.under_way()) {
        co_await link_->send_failure(Errc::protocol_error, "Piece without SetBegin");
        co_return false;
      }
      // Pieces that arrived together are copied together.
      if (!upload_.add(*piece) && next_is_piece(at)) continue;
      go_on = co_await upload_.copy();
    } else {
      go_on = co_await handle(std::move(request).value());
    }
    link_->set_work(Link::Work::none);
  }
  std::memmove(in_.data(), in_.data() + at, in_used_ - at);
  in_used_ -= at;
  co_return go_on;
}

bool Connection::next_is_piece(std::size_t at) const noexcept {
  if (in_used_ - at < protocol::kHeadBytes) return false;
  const auto head =
      protocol::decode_head(std::span<const std::byte, protocol::kHeadBytes>(in_.data() + at, protocol::kHeadBytes));
  return head && head.value().type == protocol::kPieceType &&
         in_used_ - at >= protocol::kHeadBytes + head.value().payload_bytes;
}

awaitable<bool> Connection::handle(protocol::Request request) {
  if (const auto* hello = std::get_if<protocol::Hello>(&request)) co_return co_await on_hello(*hello);
  if (!greeted_) {
    co_await link_->send_failure(Errc::protocol_error, "the first message must be Hello");
    co_return false;
  }
  const bool of_staged = upload_.under_way() && (std::holds_alternative<protocol::SetCommit>(request) ||
                                                 std::holds_alternative<protocol::SetAbort>(request));
  if (link_->waiter().dismissed() && !of_staged) {
    co_await link_->send_failure(Errc::shutting_down, "the daemon is stopping");
    co_return false;
  }
  link_->set_work(Link::Work::answering);
  bool go_on = false;
  if (!std::holds_alternative<protocol::List>(request)) listing_.reset();
  if (auto* begin = std::get_if<protocol::SetBegin>(&request)) {
    go_on = co_await on_set_begin(std::move(*begin));
  } else {
    const protocol::Reply reply = co_await answer(request);
    go_on = co_await link_->send(reply);
  }
  link_->set_work(Link::Work::none);
  co_return go_on;
}

awaitable<protocol::Reply> Connection::answer(protocol::Request& request) {
  Store& store = services_.store;
  const auto refuse = [this](const char* what) {
    return protocol::Reply(protocol::Failure{
        Errc::not_permitted,
        fmt::format("user {} may not {}: see write and admin in the configuration", peer_.uid, what)});
  };
  if (auto* set = std::get_if<protocol::Set>(&request)) {
    if (!may(Right::write)) co_return refuse("set build data");
    const TimePoint deadline = deadline_after(set->params.deadline_ms);
    auto done = co_await store.set(set->params, set->value, link_->waiter(), deadline);
    if (!done) co_return services_.failure(done.error(), set->value.size());
    co_return done.value();
  }
  if (std::get_if<protocol::SetCommit>(&request) != nullptr) {
    if (!upload_.under_way()) co_return protocol::Failure{Errc::protocol_error, "SetCommit without SetBegin"};
    co_return co_await upload_.commit();
  }
  if (std::get_if<protocol::SetAbort>(&request) != nullptr) {
    upload_.abort();
    co_return protocol::Done{};
  }
  if (auto* load = std::get_if<protocol::Load>(&request)) {
    auto done = co_await store.load(load->build, load->name, link_->waiter(), deadline_after(load->deadline_ms));
    if (!done) co_return services_.failure(done.error());
    co_return protocol::Done{};
  }
  if (auto* wait = std::get_if<protocol::Wait>(&request)) {
    auto done = co_await store.wait(wait->build, wait->name, link_->waiter(), deadline_after(wait->deadline_ms));
    if (!done) co_return services_.failure(done.error());
    co_return protocol::Done{};
  }
  if (auto* list = std::get_if<protocol::List>(&request)) {
    auto page = store.list(*list, listing_);
    if (!page && page.error() == Errc::deadline_exceeded) {
      co_return protocol::Failure{Errc::deadline_exceeded,
                                  "the rest of the list was not asked for in time: begin the list again"};
    }
    if (!page) co_return services_.failure(page.error());
    co_return std::move(page).value();
  }
  if (auto* builds = std::get_if<protocol::Builds>(&request)) co_return store.builds().page(*builds);
  if (auto* finish = std::get_if<protocol::Finish>(&request)) {
    if (!may(Right::write)) co_return refuse("finish builds");
    auto at = store.builds().finish(finish->build, finish->complete_at);
    if (!at) co_return services_.failure(at.error());
    co_return protocol::Finished{at.value()};
  }
  if (auto* hold = std::get_if<protocol::HoldBuild>(&request)) {
    if (!may(Right::write)) co_return refuse("hold builds");
    auto done = store.builds().hold(hold->build, hold->held);
    if (!done) co_return services_.failure(done.error());
    co_return protocol::Done{};
  }
  if (auto* prune = std::get_if<protocol::Prune>(&request)) {
    if (!may(Right::admin)) co_return refuse("prune");
    auto count = co_await store.builds().prune(prune->older_than, link_->waiter(), deadline_after(0));
    if (!count) co_return services_.failure(count.error());
    co_return protocol::Count{count.value()};
  }
  if (auto* drop = std::get_if<protocol::Drop>(&request)) {
    if (!may(Right::admin)) co_return refuse("drop builds");
    auto count = co_await store.builds().drop(drop->build);
    if (!count) co_return services_.failure(count.error());
    co_return protocol::Count{count.value()};
  }
  if (auto* flush = std::get_if<protocol::Flush>(&request)) {
    const std::uint64_t place = services_.flusher.last_place();
    auto done = co_await services_.flusher.committed(place, link_->waiter(), deadline_after(flush->deadline_ms));
    if (!done) co_return services_.failure(done.error());
    co_return protocol::Done{};
  }
  const std::shared_ptr<const std::string> text = co_await services_.stats.get(link_->waiter());
  co_return protocol::Text{*text};
}

awaitable<bool> Connection::on_set_begin(protocol::SetBegin begin) {
  if (upload_.under_way()) {
    co_await link_->send_failure(Errc::protocol_error, "SetBegin before the former set ended");
    co_return false;
  }
  if (!may(Right::write)) {
    co_return co_await link_->send_failure(Errc::not_permitted,
                                           fmt::format("user {} may not set build data", peer_.uid));
  }
  co_return co_await upload_.begin(std::move(begin));
}

// ---- attaching -----------------------------------------------------------------------------------------------------

awaitable<bool> Connection::on_hello(const protocol::Hello& hello) {
  if (greeted_) {
    co_await link_->send_failure(Errc::protocol_error, "Hello comes once, and first");
    co_return false;
  }
  const auto version = protocol::common_version(hello.versions, protocol::kDaemonVersions);
  if (!version) {
    const bool daemon_is_older = hello.versions.oldest > protocol::kDaemonVersions.newest;
    co_await link_->send_failure(
        Errc::version_mismatch,
        fmt::format("the client speaks protocol {}, this daemon (stepstash {}) {}: upgrade {}", to_text(hello.versions),
                    STEPSTASH_VERSION, to_text(protocol::kDaemonVersions),
                    daemon_is_older ? "the daemon" : "the client's library"));
    co_return false;
  }
  greeted_ = true;
  if (*version < protocol::kVersion) ++services_.former_hellos;
  shm::Segment& segment = services_.segment;
  protocol::HelloOk ok;
  ok.version = *version;
  ok.segment_id = segment.header().segment_id;
  ok.segment_bytes = segment.bytes();
  ok.max_value_bytes = services_.store.room().max_value_bytes();
  ok.server_version = STEPSTASH_VERSION;
  if (!hello.attach) co_return co_await link_->send(protocol::Reply(ok));
  if (hello.resume_page != 0 && hello.resume_segment == ok.segment_id &&
      segment.pins().resumable(hello.resume_page, peer_.uid, ok.segment_id)) {
    ok.resumed = true;
    ok.pin_page = hello.resume_page;
    co_return co_await link_->send(protocol::Reply(ok));
  }
  // A client may keep its page as long as it likes, connected or not: pages have their own limit. Abandoned pages count
  // until the reaper finds them, ten times a second. Asking the kernel about each page is worthwhile only before a
  // refusal.
  const std::size_t per_user = 2 * std::size_t{services_.config.max_connections_per_user};
  const std::size_t in_all = 2 * std::size_t{services_.config.max_connections};
  if (segment.pins().pages_of(peer_.uid) >= per_user || segment.pins().pages() >= in_all) segment.pins().reap();
  if (segment.pins().pages_of(peer_.uid) >= per_user) {
    co_await link_->send_failure(Errc::too_many, fmt::format("clients of user {} hold {} pin pages; at most {} can",
                                                             peer_.uid, segment.pins().pages_of(peer_.uid), per_user));
    co_return false;
  }
  if (segment.pins().pages() >= in_all) {
    co_await link_->send_failure(
        Errc::too_many, fmt::format("{} clients hold a pin page each; at most {} can", segment.pins().pages(), in_all));
    co_return false;
  }
  auto readable = segment.open_for_client();
  const auto create = [&] {
    return readable ? segment.pins().create(ok.segment_id, peer_.pid, peer_.uid)
                    : Result<shm::PinRegistry::NewPage>(readable.error());
  };
  auto page = create();
  // A client that comes to free something when the tmpfs is full needs a page, too (I9).
  const TimePoint patience = std::chrono::steady_clock::now() + kPagePatience;
  while (!page && page.error() == std::errc::no_space_on_device) {
    if (!services_.page_reserve.free_page()) {
      auto again =
          co_await services_.store.room().wait_for_pages(page.error(), shm::kPageBytes, link_->waiter(), patience);
      if (!again) break;
    }
    page = create();
  }
  if (!page) {
    co_await link_->send_failure(page.error(), "no pin page: " + page.error().message());
    co_return false;
  }
  ok.pin_page = page.value().number;
  STEPSTASH_CRASH_POINT("daemon.hello.page.made");
  const int descriptors[] = {readable.value().get(), page.value().fd.get()};
  co_return co_await link_->send_with_descriptors(protocol::Reply(ok), descriptors);
}

}  // namespace stepstash::daemon
