// SPDX-License-Identifier: Apache-2.0
/// One client's socket: reads frames, calls the store, replies. Its destruction releases everything it held.
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

/// Shared by all connections. Loop's thread only.
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
  asio::thread_pool copiers{2};     ///< fill blocks from staging rings; two, so that one long copy does not hold up all
                                    ///< others
  std::uint64_t rings = 0;          ///< staging rings that exist now
  WaitList ring_ended;              ///< those waiting for a ring
  std::function<bool()> free_page;  ///< gives up a tmpfs page reserved for this; false when none is left
  std::function<bool()> shed_ring;  ///< closes a connection that has a ring and is idle or slow; false: there is none
};

/// The peer's credentials as reported by the kernel, taken at connect(2).
struct Peer {
  pid_t pid = 0;
  uid_t uid = 0;
  std::vector<gid_t> groups;
  static Result<Peer> of(int socket);
};

/// How long, and for how many bytes, the daemon keeps reading from a connection that it ends. A unix socket closed with
/// unread bytes is reset: the peer's next write fails with EPIPE before the peer has read the reason. So the daemon
/// shuts down its sending side, which the peer sees as end of stream, and discards input until the peer hangs up.
inline constexpr auto kFarewell = std::chrono::seconds(1);
inline constexpr std::size_t kFarewellBytes = std::size_t{1} << 20;

/// Reads and discards until the peer hangs up, something else closes `socket`, or kFarewellBytes have arrived; the
/// caller enforces kFarewell.
awaitable<void> drain(asio::local::stream_protocol::socket& socket);

/// Stall budget of a client whose set holds room or a ring that others need: 5 s, refilled by 1 s per MiB received.
inline constexpr auto kStagedPatience = std::chrono::seconds(5);
inline constexpr std::uint64_t kStagedBytesPerSecond = std::uint64_t{1} << 20;

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Socket = asio::local::stream_protocol::socket;

  /// `right` is not none: a peer without rights gets no connection.
  Connection(Services& services, Socket socket, Peer peer, Right right);

  /// Serves until the peer hangs up, breaks the protocol, or close() is called.
  awaitable<void> run();
  void close();
  /// The daemon is stopping: requests that wait for something that may never happen get shutting_down, as do new
  /// requests, except the rest of a set under way. The client retries with the next daemon.
  void dismiss();
  /// Closes the connection if it has a ring and is idle or, with `slow_too`, stalls a set. Its client reconnects when
  /// it needs to.
  bool shed_ring(bool slow_too);
  /// Aborts the set under way if its client stalls it, and frees its room.
  bool shed_set();
  uid_t uid() const noexcept { return peer_.uid; }
  /// A request is being answered or is queued.
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
    // Since when the client has been holding up the set (unset while the daemon is), and how long it may do so if
    // others wait.
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
  Work work_ = Work::none;  // queued: a whole request has been read, and other requests run first
  std::vector<std::byte> in_;
  std::size_t in_used_ = 0;
  std::vector<std::byte> out_;
  std::optional<Ring> ring_;
  std::optional<Staged> staged_;
  Listings::Handle listing_;             // a list with more pages; dropped at the next request of another kind
  std::vector<protocol::Piece> pieces_;  // announced, not yet copied
};

}  // namespace stepstash::daemon
