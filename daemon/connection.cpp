// SPDX-License-Identifier: Apache-2.0
#include "daemon/connection.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/write.hpp>
#include <cstring>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "daemon/explain.hpp"
#include "shm/validate.hpp"

namespace stepstash::daemon {
namespace {

using namespace std::chrono_literals;

/// A piece is this fraction of the ring: while one is copied out, others are filled.
constexpr std::uint32_t kPiecesPerRing = 8;
/// Copied and hashed in slices that fit the second-level cache, so that hashing does not fetch them again.
constexpr std::size_t kSlice = 128 * 1024;
/// Initial room for a value of unknown length.
constexpr std::uint64_t kFirstGuess = 1 << 20;
/// Receive buffer of an idle connection.
constexpr std::size_t kIdleBuffer = 4096;
/// A set that receives nothing for this long is aborted: it occupies room that others may need.
constexpr auto kStagedIdle = 5min;
/// How often a set waiting for a ring looks for a connection that keeps one unused.
constexpr auto kRingPause = 100ms;
/// How long an attaching client waits for its pin page on a full tmpfs: Hello carries no deadline, and the usual client
/// deadline is 10 s.
constexpr auto kPagePatience = 2s;
constexpr std::uint32_t kDefaultDeadlineMs = 10'000;

TimePoint deadline_after(std::uint32_t ms) {
  return std::chrono::steady_clock::now() + std::chrono::milliseconds(ms == 0 ? kDefaultDeadlineMs : ms);
}

Errc wire_code(std::error_code error) {
  if (error.category() == category()) return static_cast<Errc>(error.value());
  if (error == std::errc::no_space_on_device || error == std::errc::not_enough_memory) return Errc::segment_full;
  if (error == std::errc::too_many_files_open || error == std::errc::too_many_files_open_in_system) {
    return Errc::too_many;
  }
  return Errc::not_durable;
}

}  // namespace

Result<Peer> Peer::of(int socket) {
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) return last_errno();
  Peer peer{credentials.pid, credentials.uid, {}};
  peer.groups.resize(32);
  for (;;) {
    size = static_cast<socklen_t>(peer.groups.size() * sizeof(gid_t));
    if (::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, peer.groups.data(), &size) == 0) break;
    if (errno != ERANGE) return last_errno();
    peer.groups.resize(size / sizeof(gid_t));  // at most NGROUPS_MAX, 65536
  }
  peer.groups.resize(size / sizeof(gid_t));
  peer.groups.push_back(credentials.gid);
  return peer;
}

awaitable<void> drain(asio::local::stream_protocol::socket& socket) {
  boost::system::error_code error;
  socket.shutdown(Connection::Socket::shutdown_send, error);
  std::array<std::byte, 4096> dropped;
  for (std::size_t bytes = 0; !error && bytes < kFarewellBytes;) {
    bytes += co_await socket.async_read_some(asio::buffer(dropped), asio::redirect_error(asio::use_awaitable, error));
  }
}

Connection::Connection(Services& services, Socket socket, Peer peer, Right right)
    : services_(services),
      socket_(std::move(socket)),
      peer_(std::move(peer)),
      right_(right),
      waiter_(services.loop, services.turns, peer_.uid),
      frame_timer_(services.loop) {}

void Connection::close() {
  closed_ = true;
  frame_timer_.cancel();
  waiter_.hang_up();
  boost::system::error_code ignored;
  socket_.close(ignored);
}

void Connection::dismiss() { waiter_.dismiss(); }

bool Connection::shed_ring(bool slow_too) {
  if (!ring_ || closed_) return false;
  if (staged_ && !(slow_too && give_up_set())) return false;
  boost::system::error_code ignored;
  if (!staged_ && (busy() || socket_.available(ignored) > 0)) return false;  // a request has arrived
  if (staged_ && work_ != Work::answering) {
    std::vector<std::byte> frame;
    protocol::encode(protocol::Reply(*staged_->failure), frame);
    (void)::send(socket_.native_handle(), frame.data(), frame.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  close();
  return true;
}

bool Connection::shed_set() { return staged_ && staged_->draft && give_up_set(); }

/// False if the client is not to blame.
bool Connection::give_up_set() {
  if (staged_->failure) return true;
  const auto& since = staged_->waiting_since;
  if (!since || std::chrono::steady_clock::now() - *since <= staged_->patience) return false;
  staged_->failure = protocol::Failure{
      Errc::segment_full, fmt::format("the set was given up: others wait for the room that it keeps, and after {} "
                                      "bytes its client let them wait",
                                      staged_->received)};
  staged_->draft.reset();
  return true;
}

/// Asio's reactor completes wait_error when the kernel reports EPOLLHUP, which a unix stream socket does when its peer
/// is gone, even while a request of that peer is waiting.
void Connection::watch_for_hang_up() {
  socket_.async_wait(Socket::wait_error, [self = shared_from_this()](const boost::system::error_code& error) {
    if (!error) self->waiter_.hang_up();
  });
}

/// A frame must be complete, and a reply read, within the frame timeout; idling between frames is unlimited.
void Connection::arm_frame_timer(std::chrono::milliseconds timeout) {
  frame_timer_.expires_after(timeout);
  frame_timer_.async_wait([self = shared_from_this()](const boost::system::error_code& error) {
    if (!error) self->close();
  });
}

awaitable<void> Connection::run() {
  watch_for_hang_up();
  // Not one condition with an empty body: g++ 12 compiles that to an illegal instruction.
  for (bool go_on = true; go_on && !closed_;) {
    go_on = co_await read_frames();
  }
  work_ = Work::none;
  staged_.reset();
  listing_.reset();
  if (ring_) {
    ring_.reset();
    --services_.rings;
  }
  if (!closed_) co_await take_leave();
  if (!closed_) close();
}

/// The peer may have sent more than had been read when its request was refused.
awaitable<void> Connection::take_leave() {
  arm_frame_timer(kFarewell);
  co_await drain(socket_);
  frame_timer_.cancel();
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
    if (staged_) {
      arm_frame_timer(kStagedIdle);
    } else {
      frame_timer_.cancel();
    }
    frame_begun_ = false;
  } else if (!frame_begun_) {
    frame_begun_ = true;  // the limit is for the whole frame, however many reads it takes
    arm_frame_timer(services_.config.frame_timeout);
  }
  boost::system::error_code error;
  const std::size_t got = co_await socket_.async_read_some(asio::buffer(in_.data() + in_used_, in_.size() - in_used_),
                                                           asio::redirect_error(asio::use_awaitable, error));
  if (error) co_return false;
  in_used_ += got;

  std::size_t at = 0;
  bool go_on = true;
  while (go_on && in_used_ - at >= protocol::kHeadBytes) {
    const auto head =
        protocol::decode_head(std::span<const std::byte, protocol::kHeadBytes>(in_.data() + at, protocol::kHeadBytes));
    if (!head) {
      co_await send(protocol::Reply(failure(head.error())));
      co_return false;
    }
    const std::size_t frame = protocol::kHeadBytes + head.value().payload_bytes;
    if (in_used_ - at < frame) break;
    frame_timer_.cancel();
    frame_begun_ = false;
    if (pieces_.empty()) {  // consecutive pieces share a turn
      if (head.value().type == protocol::kPieceType) stop_clock();
      work_ = Work::queued;  // from here on it is answered, whatever else ends
      co_await waiter_.yield();
      if (closed_) co_return false;
    }
    auto request = protocol::decode_request(
        head.value(), std::span(in_.data() + at + protocol::kHeadBytes, head.value().payload_bytes));
    if (!request) {
      co_await send(protocol::Reply(failure(request.error())));
      co_return false;
    }
    at += frame;
    if (const auto* piece = std::get_if<protocol::Piece>(&request.value())) {
      pieces_.push_back(*piece);
      // Pieces that arrived together are copied together; more than the ring holds cannot be outstanding.
      if (pieces_.size() < kPiecesPerRing && next_is_piece(at)) continue;
      go_on = co_await on_pieces();
    } else {
      go_on = co_await handle(std::move(request).value());
    }
    work_ = Work::none;
  }
  std::memmove(in_.data(), in_.data() + at, in_used_ - at);
  in_used_ -= at;
  co_return go_on;
}

/// The client has sent data that the daemon has yet to handle: stops its stall clock.
void Connection::stop_clock() {
  if (!staged_ || !staged_->waiting_since) return;
  staged_->patience -= std::chrono::steady_clock::now() - *std::exchange(staged_->waiting_since, std::nullopt);
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
    co_await send_failure(Errc::protocol_error, "the first message must be Hello");
    co_return false;
  }
  const bool of_staged = staged_ && (std::holds_alternative<protocol::SetCommit>(request) ||
                                     std::holds_alternative<protocol::SetAbort>(request));
  if (waiter_.dismissed() && !of_staged) {
    co_await send_failure(Errc::shutting_down, "the daemon is stopping");
    co_return false;
  }
  work_ = Work::answering;
  bool go_on = false;
  if (!std::holds_alternative<protocol::List>(request)) listing_.reset();
  if (auto* begin = std::get_if<protocol::SetBegin>(&request)) {
    go_on = co_await on_set_begin(std::move(*begin));
  } else {
    const protocol::Reply reply = co_await answer(request);
    go_on = co_await send(reply);
  }
  work_ = Work::none;
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
    auto done = co_await store.set(set->params, set->value, waiter_, deadline);
    if (!done) co_return failure(done.error(), set->value.size());
    co_return done.value();
  }
  if (std::get_if<protocol::SetCommit>(&request) != nullptr) co_return co_await on_commit();
  if (std::get_if<protocol::SetAbort>(&request) != nullptr) {
    staged_.reset();
    co_return protocol::Done{};
  }
  if (auto* load = std::get_if<protocol::Load>(&request)) {
    auto done = co_await store.load(load->build, load->name, waiter_, deadline_after(load->deadline_ms));
    if (!done) co_return failure(done.error());
    co_return protocol::Done{};
  }
  if (auto* wait = std::get_if<protocol::Wait>(&request)) {
    auto done = co_await store.wait(wait->build, wait->name, waiter_, deadline_after(wait->deadline_ms));
    if (!done) co_return failure(done.error());
    co_return protocol::Done{};
  }
  if (auto* list = std::get_if<protocol::List>(&request)) {
    auto page = store.list(*list, listing_);
    if (!page && page.error() == Errc::deadline_exceeded) {
      co_return protocol::Failure{Errc::deadline_exceeded,
                                  "the rest of the list was not asked for in time: begin the list again"};
    }
    if (!page) co_return failure(page.error());
    co_return std::move(page).value();
  }
  if (auto* builds = std::get_if<protocol::Builds>(&request)) co_return store.builds().page(*builds);
  if (auto* finish = std::get_if<protocol::Finish>(&request)) {
    if (!may(Right::write)) co_return refuse("finish builds");
    auto at = store.builds().finish(finish->build, finish->complete_at);
    if (!at) co_return failure(at.error());
    co_return protocol::Finished{at.value()};
  }
  if (auto* hold = std::get_if<protocol::HoldBuild>(&request)) {
    if (!may(Right::write)) co_return refuse("hold builds");
    auto done = store.builds().hold(hold->build, hold->held);
    if (!done) co_return failure(done.error());
    co_return protocol::Done{};
  }
  if (auto* prune = std::get_if<protocol::Prune>(&request)) {
    if (!may(Right::admin)) co_return refuse("prune");
    auto count = co_await store.builds().prune(prune->older_than, waiter_, deadline_after(0));
    if (!count) co_return failure(count.error());
    co_return protocol::Count{count.value()};
  }
  if (auto* drop = std::get_if<protocol::Drop>(&request)) {
    if (!may(Right::admin)) co_return refuse("drop builds");
    auto count = co_await store.builds().drop(drop->build);
    if (!count) co_return failure(count.error());
    co_return protocol::Count{count.value()};
  }
  if (auto* flush = std::get_if<protocol::Flush>(&request)) {
    const std::uint64_t place = services_.flusher.last_place();
    auto done = co_await services_.flusher.committed(place, waiter_, deadline_after(flush->deadline_ms));
    if (!done) co_return failure(done.error());
    co_return protocol::Done{};
  }
  const std::shared_ptr<const std::string> text = co_await services_.stats.get(waiter_);
  co_return protocol::Text{*text};
}

// ---- attaching -----------------------------------------------------------------------------------------------------

awaitable<bool> Connection::on_hello(const protocol::Hello& hello) {
  if (greeted_) {
    co_await send_failure(Errc::protocol_error, "Hello comes once, and first");
    co_return false;
  }
  if (hello.version != protocol::kVersion) {
    co_await send_failure(Errc::version_mismatch,
                          fmt::format("the client speaks protocol version {}, this daemon (stepstash {}) version {}",
                                      hello.version, STEPSTASH_VERSION, protocol::kVersion));
    co_return false;
  }
  greeted_ = true;
  shm::Writer& segment = services_.segment;
  protocol::HelloOk ok;
  ok.segment_id = segment.header().segment_id;
  ok.segment_bytes = segment.bytes();
  ok.max_value_bytes = services_.store.room().max_value_bytes();
  ok.server_version = STEPSTASH_VERSION;
  if (!hello.attach) co_return co_await send(protocol::Reply(ok));
  if (hello.resume_page != 0 && hello.resume_segment == ok.segment_id &&
      segment.pins().resumable(hello.resume_page, peer_.uid, ok.segment_id)) {
    ok.resumed = true;
    ok.pin_page = hello.resume_page;
    co_return co_await send(protocol::Reply(ok));
  }
  // A client may keep its page as long as it likes, connected or not: pages have their own limit. Abandoned pages count
  // until the reaper finds them, ten times a second. Asking the kernel about each page is worthwhile only before a
  // refusal.
  const std::size_t per_user = 2 * std::size_t{services_.config.max_connections_per_user};
  const std::size_t in_all = 2 * std::size_t{services_.config.max_connections};
  if (segment.pins().pages_of(peer_.uid) >= per_user || segment.pins().pages() >= in_all) segment.pins().reap();
  if (segment.pins().pages_of(peer_.uid) >= per_user) {
    co_await send_failure(Errc::too_many, fmt::format("clients of user {} hold {} pin pages; at most {} can", peer_.uid,
                                                      segment.pins().pages_of(peer_.uid), per_user));
    co_return false;
  }
  if (segment.pins().pages() >= in_all) {
    co_await send_failure(
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
    if (!services_.free_page()) {
      auto again = co_await services_.store.room().wait_for_pages(page.error(), shm::kPageBytes, waiter_, patience);
      if (!again) break;
    }
    page = create();
  }
  if (!page) {
    co_await send_failure(page.error(), "no pin page: " + page.error().message());
    co_return false;
  }
  ok.pin_page = page.value().number;
  STEPSTASH_CRASH_POINT("daemon.hello.page.made");
  const int descriptors[] = {readable.value().get(), page.value().fd.get()};
  co_return co_await send_with_descriptors(protocol::Reply(ok), descriptors);
}

// ---- staged sets ---------------------------------------------------------------------------------------------------

Result<> Connection::make_ring() {
  const std::uint64_t bytes = services_.config.ring_size;
  Ring ring;
  ring.fd = UniqueFd(::memfd_create("stepstash-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!ring.fd) return last_errno();
  STEPSTASH_CRASH_POINT("daemon.ring.made");
  // Reserved, like all memory that others can make us touch (I8); sealed, so that a client cannot truncate it under us.
  if (const int error = ::posix_fallocate(ring.fd.get(), 0, static_cast<off_t>(bytes)); error != 0) {
    return std::error_code(error, std::system_category());
  }
  STEPSTASH_CRASH_POINT("daemon.ring.reserved");
  if (::fcntl(ring.fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) return last_errno();
  STEPSTASH_CRASH_POINT("daemon.ring.sealed");
  ring.mapping = STEPSTASH_TRY(shm::Mapping::map(ring.fd.get(), bytes, shm::Mapping::Access::read_only));
  ring_ = std::move(ring);
  ++services_.rings;
  STEPSTASH_CRASH_POINT("daemon.ring.mapped");
  return success();
}

awaitable<bool> Connection::on_set_begin(protocol::SetBegin begin) {
  if (staged_) {
    co_await send_failure(Errc::protocol_error, "SetBegin before the former set ended");
    co_return false;
  }
  if (!may(Right::write)) {
    co_return co_await send_failure(Errc::not_permitted, fmt::format("user {} may not set build data", peer_.uid));
  }
  const TimePoint deadline = deadline_after(begin.params.deadline_ms);
  while (!ring_ && services_.rings >= services_.config.max_rings && !services_.shed_ring()) {
    if (waiter_.dismissed()) co_return co_await send_failure(Errc::shutting_down, "the daemon is stopping");
    if (waiter_.gone() || expired(deadline)) {
      co_return co_await send_failure(Errc::too_many,
                                      fmt::format("all {} staging rings are in use (max_rings)", services_.rings));
    }
    co_await services_.ring_ended.wait(waiter_, std::min(deadline, std::chrono::steady_clock::now() + kRingPause));
  }
  if (!ring_) {
    if (auto made = make_ring(); !made) {
      co_return co_await send_failure(made.error(), "no staging ring: " + made.error().message());
    }
  }
  const bool known = begin.length != protocol::kUnknownLength;
  auto draft = co_await services_.store.reserve(begin.params, known ? begin.length : kFirstGuess, waiter_, deadline);
  if (!draft) co_return co_await send(protocol::Reply(failure(draft.error(), known ? begin.length : kFirstGuess)));
  staged_.emplace(std::move(begin.params), begin.length, std::move(draft).value());
  STEPSTASH_CRASH_POINT("daemon.staged.room.found");

  protocol::SetReady ready;
  ready.ring_bytes = static_cast<std::uint32_t>(ring_->mapping.size());
  ready.piece_bytes = ready.ring_bytes / kPiecesPerRing;
  if (ring_->sent) co_return co_await send(protocol::Reply(ready));
  ready.ring_attached = true;
  ring_->sent = true;
  const int descriptors[] = {ring_->fd.get()};
  const bool sent = co_await send_with_descriptors(protocol::Reply(ready), descriptors);
  ring_->fd.reset();
  co_return sent;
}

/// Copies the pieces in pieces_ on another thread and replies to each.
awaitable<bool> Connection::on_pieces() {
  if (!staged_) {
    co_await send_failure(Errc::protocol_error, "Piece without SetBegin");
    co_return false;
  }
  work_ = Work::answering;
  out_.clear();
  stop_clock();
  std::uint64_t total = 0;
  for (const protocol::Piece& piece : pieces_) {
    if (piece.bytes == 0 || piece.bytes > ring_->mapping.size() ||
        piece.ring_offset > ring_->mapping.size() - piece.bytes) {
      staged_->failure = protocol::Failure{
          Errc::protocol_error, fmt::format("a piece of {} bytes at {} lies outside the ring of {} bytes", piece.bytes,
                                            piece.ring_offset, ring_->mapping.size())};
    }
    total += piece.bytes;
  }
  if (!staged_->failure) {
    const std::uint64_t needed = staged_->received + total;
    if (staged_->length != protocol::kUnknownLength && needed > staged_->length) {
      staged_->failure = protocol::Failure{
          Errc::invalid_argument,
          fmt::format("{} bytes came of a value that was announced with {}", needed, staged_->length)};
    } else if (auto room = co_await grow(needed); !room) {
      staged_->failure = failure(room.error(), needed);
    }
  }
  std::uint64_t received = staged_->received;
  if (!staged_->failure) {
    auto job = [this]() { return copy_pieces(); };
    const Result<> copied = co_await with_pages(job, staged_->draft, received + total);
    if (!copied) staged_->failure = failure(copied.error(), received + total);
  }
  for (const protocol::Piece& piece : pieces_) {
    received += piece.bytes;
    if (staged_->failure) {
      protocol::encode(protocol::Reply(*staged_->failure), out_);
    } else {
      protocol::encode(protocol::Reply(protocol::PieceDone{received}), out_);
    }
  }
  if (!staged_->failure) {
    staged_->received = received;
  } else {
    staged_->draft.reset();
  }
  const std::chrono::nanoseconds earned = std::chrono::nanoseconds(1s) / (kStagedBytesPerSecond >> 10) * (total >> 10);
  staged_->patience = std::min<std::chrono::nanoseconds>(staged_->patience + earned, kStagedPatience);
  staged_->waiting_since = std::chrono::steady_clock::now();
  STEPSTASH_CRASH_POINT("daemon.staged.pieces.taken");
  pieces_.clear();
  work_ = Work::none;
  co_return co_await write_out();
}

/// Runs `job` on a copier's thread; repeats it whenever it found no pages for the first `bytes` bytes of `draft`, until
/// it has them.
template <class Job>
awaitable<Result<>> Connection::with_pages(Job job, OwnedDraft& draft, std::uint64_t bytes) {
  const Staged& staged = *staged_;
  const std::uint64_t length = staged.length == protocol::kUnknownLength ? bytes : staged.length;
  const TimePoint deadline = growth_deadline();
  for (;;) {
    const Result<> done = co_await run_on(services_.copiers, job);
    services_.store.room().promise_pages(draft, length);
    if (done) co_return success();
    auto again = co_await services_.store.room().wait_for_pages(done.error(), 0, waiter_, deadline);
    if (!again) co_return again.error();
  }
}

/// A set that occupies room does not wait forever for more, whatever deadline its client gave.
TimePoint Connection::growth_deadline() const {
  return std::min(deadline_after(staged_->params.deadline_ms), std::chrono::steady_clock::now() + kStagedIdle);
}

/// On a copier's thread, while the coroutine waits.
Result<> Connection::copy_pieces() {
  Staged& staged = *staged_;
  std::uint64_t at = staged.received;
  std::uint64_t end = at;
  for (const protocol::Piece& piece : pieces_) end += piece.bytes;
  STEPSTASH_TRY(
      services_.segment.reserve(*staged.draft, end));  // all of it first: after a failure this can be repeated
  STEPSTASH_CRASH_POINT("daemon.staged.pages.reserved");
  for (const protocol::Piece& piece : pieces_) {
    const std::span<std::byte> to = services_.segment.value_bytes(*staged.draft);
    const std::byte* from = ring_->mapping.data() + piece.ring_offset;
    for (std::size_t done = 0; done < piece.bytes;) {
      const std::size_t slice = std::min<std::size_t>(kSlice, piece.bytes - done);
      std::memcpy(to.data() + at, from + done, slice);
      // Hash the copy, not the ring: the client may change the ring at any time.
      staged.hash.update(to.subspan(at, slice));
      STEPSTASH_CRASH_POINT("daemon.staged.slice.copied");
      at += slice;
      done += slice;
    }
  }
  return success();
}

/// Makes sure that the draft holds `needed` bytes: in place if the memory behind it is free, otherwise elsewhere at
/// twice the size.
awaitable<Result<>> Connection::grow(std::uint64_t needed) {
  Staged& staged = *staged_;
  if (needed <= staged.draft->capacity) co_return success();
  const std::uint64_t doubled =
      std::min(std::max(needed, 2 * staged.draft->capacity), services_.store.room().max_value_bytes());
  if (needed > doubled) co_return Errc::too_large;
  const TimePoint deadline = growth_deadline();
  auto extended = services_.store.room().extend(staged.draft, doubled);
  while (!extended) {
    auto again = co_await services_.store.room().wait_for_pages(extended.error(), shm::kPageBytes, waiter_, deadline);
    if (!again) co_return again.error();
    extended = services_.store.room().extend(staged.draft, doubled);
  }
  STEPSTASH_CRASH_POINT("daemon.staged.room.extended");
  if (extended.value()) co_return success();
  auto larger = co_await services_.store.reserve(staged.params, doubled, waiter_, deadline);
  if (!larger && needed < doubled) {
    larger = co_await services_.store.reserve(staged.params, needed, waiter_, deadline);
  }
  if (!larger) co_return larger.error();
  OwnedDraft to = std::move(larger).value();
  auto job = [this, &to, &staged]() -> Result<> {
    STEPSTASH_TRY(services_.segment.reserve(*to, staged.received));
    std::memcpy(services_.segment.value_bytes(*to).data(), services_.segment.value_bytes(*staged.draft).data(),
                staged.received);
    return success();
  };
  const Result<> copied = co_await with_pages(job, to, staged.received);
  if (!copied) co_return copied.error();
  STEPSTASH_CRASH_POINT("daemon.staged.value.moved");
  staged.draft = std::move(to);
  co_return success();
}

awaitable<protocol::Reply> Connection::on_commit() {
  if (!staged_) co_return protocol::Failure{Errc::protocol_error, "SetCommit without SetBegin"};
  Staged staged = std::move(*staged_);
  staged_.reset();
  if (staged.failure) co_return *staged.failure;
  if (staged.length != protocol::kUnknownLength && staged.received != staged.length) {
    co_return protocol::Failure{
        Errc::invalid_argument,
        fmt::format("{} bytes came of a value that was announced with {}", staged.received, staged.length)};
  }
  const TimePoint deadline = deadline_after(staged.params.deadline_ms);
  for (;;) {
    const auto reserved = services_.segment.reserve(*staged.draft, staged.received);
    services_.store.room().promise_pages(staged.draft, staged.received);
    if (reserved) break;
    auto again = co_await services_.store.room().wait_for_pages(reserved.error(), 0, waiter_, deadline);
    if (!again) co_return failure(again.error(), staged.received);
  }
  STEPSTASH_CRASH_POINT("daemon.staged.commit.due");
  auto done = co_await services_.store.commit(staged.params, std::move(staged.draft), staged.received,
                                              staged.hash.digest(), waiter_, deadline);
  if (!done) co_return failure(done.error(), staged.received);
  co_return done.value();
}

// ---- sending -------------------------------------------------------------------------------------------------------

protocol::Failure Connection::failure(std::error_code error, std::uint64_t length) const {
  return {wire_code(error), explain(error, length, services_.segment, services_.store.room(), services_.flusher)};
}

awaitable<bool> Connection::send(const protocol::Reply& reply) {
  out_.clear();
  protocol::encode(reply, out_);
  co_return co_await write_out();
}

/// g++ 12 destroys a temporary aggregate in a co_await expression twice, so no Failure is created in one.
awaitable<bool> Connection::send_failure(std::error_code code, std::string_view message) {
  const protocol::Reply reply = protocol::Failure{wire_code(code), std::string(message)};
  co_return co_await send(reply);
}

awaitable<bool> Connection::write_out() {
  STEPSTASH_CRASH_POINT("daemon.reply.due");
  // The socket nearly always takes it at once: no timer, no trip through the reactor.
  const ssize_t sent = ::send(socket_.native_handle(), out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  const std::size_t done = sent > 0 ? static_cast<std::size_t>(sent) : 0;
  STEPSTASH_CRASH_POINT("daemon.reply.sent");
  if (done == out_.size()) co_return true;
  if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) co_return false;
  arm_frame_timer(services_.config.frame_timeout);
  boost::system::error_code error;
  co_await asio::async_write(socket_, asio::buffer(out_.data() + done, out_.size() - done),
                             asio::redirect_error(asio::use_awaitable, error));
  frame_timer_.cancel();
  frame_begun_ = false;
  co_return !error;
}

awaitable<bool> Connection::send_with_descriptors(const protocol::Reply& reply, std::span<const int> descriptors) {
  out_.clear();
  protocol::encode(reply, out_);
  iovec data{out_.data(), out_.size()};
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(2 * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
  std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
  STEPSTASH_CRASH_POINT("daemon.descriptors.due");
  // The client has read every earlier reply, so the socket's buffer is empty: a few dozen bytes are sent whole or not
  // at all.
  const ssize_t sent = ::sendmsg(socket_.native_handle(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  STEPSTASH_CRASH_POINT("daemon.descriptors.sent");
  co_return sent == static_cast<ssize_t>(out_.size());
}

}  // namespace stepstash::daemon
