// SPDX-License-Identifier: Apache-2.0
/// Peers that get no connection. Each is sent the reason, and has kFarewell to read it. A flood of them costs a bounded
/// number of descriptors, and none counts against max_connections.
///
/// Thread safety: the loop's thread only. Lifetime: until idle() after close().
#pragma once

#include <sys/types.h>

#include <boost/asio/local/stream_protocol.hpp>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>

#include "base/errc.hpp"
#include "base/unique_fd.hpp"
#include "daemon/link.hpp"
#include "daemon/tasks.hpp"

namespace stepstash::daemon {

class Refusals {
 public:
  /// Peers that have not hung up yet. Beyond this the oldest is cut off: these are the descriptors that they cost.
  static constexpr std::size_t kMost = 256;
  /// Per user: beyond this, peers get the reason and are closed at once, which leaves time to others that are refused.
  static constexpr std::size_t kMostOfOne = 64;

  explicit Refusals(asio::io_context& loop) : loop_(loop) {}

  /// Refuses the peer of `socket`, whose user is `uid`.
  void refuse(Socket socket, uid_t uid, Errc code, std::string why);

  /// Opens the descriptor that refuse_next() needs. Call before descriptors can run out.
  void keep_spare();
  /// For when accept(2) finds no descriptor: refuses the next peer by means of the spare one, instead of leaving it in
  /// the queue while the daemon spins. Returns after a pause in which the peer may read the reason.
  awaitable<void> refuse_next(asio::local::stream_protocol::acceptor& acceptor, Waiter& pause, TimePoint until);

  /// The daemon is stopping: closes all sockets, and begins no more.
  void close();
  bool idle() const noexcept { return sockets_.empty(); }
  /// Peers refused so far.
  std::uint64_t count() const noexcept { return count_; }

 private:
  using Shared = std::shared_ptr<Socket>;

  void start(Shared socket, uid_t uid, Errc code, std::string why);
  awaitable<void> run(Shared socket, uid_t uid, Errc code, std::string why);

  asio::io_context& loop_;
  std::list<Shared> sockets_;  // waiting for the peer to hang up, the oldest in front
  std::map<uid_t, std::size_t> per_user_;
  UniqueFd spare_;
  std::uint64_t count_ = 0;
  bool closed_ = false;
};

}  // namespace stepstash::daemon
