// SPDX-License-Identifier: Apache-2.0
/// The socket between the daemon and one client: who the peer is, what is sent to it, and how the connection ends.
#pragma once

#include <sys/types.h>

#include <boost/asio/local/stream_protocol.hpp>
#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string_view>
#include <system_error>
#include <vector>

#include "base/result.hpp"
#include "daemon/config.hpp"
#include "daemon/tasks.hpp"
#include "protocol/frame.hpp"
#include "protocol/message.hpp"

namespace stepstash::daemon {

using Socket = asio::local::stream_protocol::socket;

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
awaitable<void> drain(Socket& socket);

/// Thread safety: the loop's thread only. Lifetime: shared, because its timer may outlive its connection; what it
/// refers to outlives it.
class Link : public std::enable_shared_from_this<Link> {
 public:
  /// What the daemon does for this client. `queued`: a whole request has been read, and other requests run first.
  enum class Work { none, queued, answering };

  /// The waits of `waiter()` count for `uid`.
  Link(asio::io_context& loop, Turns& turns, const Config& config, Socket socket, uid_t uid);

  Socket& socket() noexcept { return socket_; }
  /// What its requests wait with.
  Waiter& waiter() noexcept { return waiter_; }
  Work work() const noexcept { return work_; }
  void set_work(Work work) noexcept { work_ = work; }
  /// No request of this client is being answered, queued, or still unread in the socket.
  bool idle() const;

  // ---- sending ----

  /// All of these return false if nothing more can be sent: the connection is to end.
  awaitable<bool> send(const protocol::Reply& reply);
  awaitable<bool> send_failure(std::error_code code, std::string_view message);
  awaitable<bool> send_with_descriptors(const protocol::Reply& reply, std::span<const int> descriptors);
  /// Adds a reply to what write_out() sends.
  void add(const protocol::Reply& reply) { protocol::encode(reply, out_); }
  awaitable<bool> write_out();

  // ---- ending ----

  /// Call once: a peer that hangs up ends the waits of its requests, even while one of them is being answered.
  void watch_for_hang_up();
  /// Closes the connection after `timeout`, unless end_limit() comes first. One limit at a time.
  void limit(std::chrono::milliseconds timeout);
  void end_limit() { timer_.cancel(); }
  /// Waits until the peer has read what it was sent (kFarewell).
  awaitable<void> take_leave();
  void close();
  /// Closes it between two requests: the peer reads `why` instead of its next reply, if its socket has room for that.
  void close(const protocol::Failure& why);
  bool closed() const noexcept { return closed_; }

 private:
  Socket socket_;
  Waiter waiter_;
  asio::steady_timer timer_;
  const Config& config_;
  std::vector<std::byte> out_;
  Work work_ = Work::none;
  bool closed_ = false;
};

/// What goes over the wire for an error.
Errc wire_code(std::error_code error);

}  // namespace stepstash::daemon
