// SPDX-License-Identifier: Apache-2.0
/// One client's socket: reads frames, asks the store, answers. Its end gives back all that it held.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <boost/asio/local/stream_protocol.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "base/unique_fd.hpp"
#include "daemon/config.hpp"
#include "daemon/shared_text.hpp"
#include "daemon/store.hpp"
#include "daemon/tasks.hpp"
#include "protocol/frame.hpp"
#include "protocol/message.hpp"
#include "shm/hash.hpp"
#include "shm/mapping.hpp"

namespace stepstash::daemon {

/// What all connections share. Loop's thread only.
struct Services {
  Services(asio::io_context& loop_, Store& store_, Flusher& flusher_, shm::Writer& segment_, const Config& config_,
           const Clock& clock)
      : loop(loop_), store(store_), flusher(flusher_), segment(segment_), config(config_), turns(loop_, clock) {}

  asio::io_context& loop;
  Store& store;
  Flusher& flusher;
  shm::Writer& segment;
  const Config& config;  ///< changes at reload
  Turns turns;
  SharedText stats;
  asio::thread_pool copiers{2};  ///< fill blocks from staging rings; two, for one long copy must not hold up all others
  std::uint64_t rings = 0;       ///< staging rings that exist now
  WaitList ring_ended;           ///< those who wait for one
  std::function<bool()> free_page;  ///< gives a page of the tmpfs up that was kept for this; false when none is left
  std::function<bool()> shed_ring;  ///< ends a connection that has a ring and is idle or slow; false: there is none
};

/// Who is on the other side, as the kernel says, at the time of connect(2).
struct Peer {
  pid_t pid = 0;
  uid_t uid = 0;
  std::vector<gid_t> groups;
  static Result<Peer> of(int socket);
};

/// How long, and over how many bytes, a connection that the daemon ends is still read from. Closed with bytes unread in
/// it, a unix socket is reset: the peer's next write fails with EPIPE, before it has read the reason that it was given.
/// So the daemon stops writing, which the peer sees as the end of the stream, and drops what comes until the peer
/// hangs up.
inline constexpr auto kFarewell = std::chrono::seconds(1);
inline constexpr std::size_t kFarewellBytes = std::size_t{1} << 20;

/// Reads and drops what comes until the peer hangs up, `socket` is closed by somebody else, or kFarewellBytes came; the
/// caller minds kFarewell.
awaitable<void> drain(asio::local::stream_protocol::socket& socket);

/// How long a client may keep a set waiting where others wait for its room or its ring, once and then as long again as
/// the bytes that it sends would take at the pace below.
inline constexpr auto kStagedPatience = std::chrono::seconds(5);
inline constexpr std::uint64_t kStagedBytesPerSecond = std::uint64_t{1} << 20;

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Socket = asio::local::stream_protocol::socket;

  /// `right` is not none: such a peer gets no connection.
  Connection(Services& services, Socket socket, Peer peer, Right right);

  /// Serves until the peer hangs up, breaks the protocol, or close() is called.
  awaitable<void> run();
  void close();
  /// The daemon stops: what waits for something that may not come before is answered with shutting_down, and so is what
  /// comes from now on, but for the rest of a set under way. The client asks the next daemon.
  void dismiss();
  /// Ends the connection when it has a ring and is idle, or keeps a set waiting with `slow_too`: its client connects
  /// anew when it needs to.
  bool shed_ring(bool slow_too);
  /// Ends the set under way when its client keeps it waiting, and gives back its room.
  bool shed_set();
  uid_t uid() const noexcept { return peer_.uid; }
  /// A request is being answered, or waits for its turn.
  bool busy() const noexcept { return work_ != Work::none; }

 private:
  /// A set through the staging ring, between SetBegin and its end.
  struct Staged {
    Staged(protocol::SetParams params_, std::uint64_t length_, OwnedDraft draft_)
        : params(std::move(params_)), length(length_), draft(std::move(draft_)) {}

    protocol::SetParams params;
    std::uint64_t length;  // or kUnknownLength
    OwnedDraft draft;
    std::uint64_t received = 0;
    // The client's turn: since when, and how long it may take where others wait. Unset while it is ours.
    std::optional<TimePoint> waiting_since = std::chrono::steady_clock::now();
    std::chrono::nanoseconds patience = kStagedPatience;
    shm::StreamHash hash;
    std::optional<protocol::Failure> failure;
  };
  struct Ring {
    UniqueFd fd;
    shm::Mapping mapping;
    bool sent = false;
  };

  awaitable<bool> read_frames();
  void stop_clock();
  awaitable<void> take_leave();
  awaitable<bool> handle(protocol::Request request);
  awaitable<protocol::Reply> answer(protocol::Request& request);
  awaitable<bool> on_hello(const protocol::Hello& hello);
  awaitable<bool> on_set_begin(protocol::SetBegin begin);
  bool next_is_piece(std::size_t at) const noexcept;
  awaitable<bool> on_pieces();
  template <class Job>
  awaitable<Result<>> with_pages(Job job, OwnedDraft& draft, std::uint64_t bytes);
  TimePoint growth_deadline() const;
  Result<> copy_pieces();
  bool give_up_set();
  awaitable<Result<>> grow(std::uint64_t needed);
  awaitable<protocol::Reply> on_commit();

  Result<> make_ring();
  awaitable<bool> send(const protocol::Reply& reply);
  awaitable<bool> send_failure(std::error_code code, std::string_view message);
  awaitable<bool> write_out();
  awaitable<bool> send_with_descriptors(const protocol::Reply& reply, std::span<const int> descriptors);
  protocol::Failure failure(std::error_code error, std::uint64_t length = 0) const;
  bool may(Right right) const noexcept { return right_ >= right; }
  void arm_frame_timer(std::chrono::milliseconds timeout);
  void watch_for_hang_up();

  Services& services_;
  Socket socket_;
  Peer peer_;
  Right right_;
  Waiter waiter_;
  asio::steady_timer frame_timer_;
  bool greeted_ = false;
  bool frame_begun_ = false;  // and the frame timer is running
  bool closed_ = false;
  enum class Work { none, queued, answering };
  Work work_ = Work::none;  // queued: a whole request was read, and others have their turns first
  std::vector<std::byte> in_;
  std::size_t in_used_ = 0;
  std::vector<std::byte> out_;
  std::optional<Ring> ring_;
  std::optional<Staged> staged_;
  Listings::Handle listing_;             // a list that has more pages, for as long as nothing else is asked
  std::vector<protocol::Piece> pieces_;  // announced, not copied yet
};

}  // namespace stepstash::daemon
