// SPDX-License-Identifier: Apache-2.0
/// The clients: accepts their connections, within the bounds per daemon and user, and ends them at shutdown.
#pragma once

#include <sys/types.h>

#include <boost/asio/local/stream_protocol.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>

#include "daemon/config.hpp"
#include "daemon/connection.hpp"
#include "daemon/link.hpp"
#include "daemon/listening_socket.hpp"
#include "daemon/refusals.hpp"
#include "daemon/services.hpp"
#include "daemon/tasks.hpp"

namespace stepstash::daemon {

/// Thread safety: the loop's thread only. Lifetime: `services` and `tick` outlive it; it outlives its coroutines, which
/// end after stop().
class Clients {
 public:
  /// `tick` is woken when a client is gone: it may have held blocks.
  Clients(Services& services, Waiter& tick)
      : services_(services), tick_(tick), acceptor_(services.loop), pause_(services.loop), refusals_(services.loop) {}

  /// Takes the listening socket, whose address is `path`. Errors: messages for the operator, with the exit status.
  Configured<> listen(ListeningSocket socket, const std::string& path);
  /// Accepts connections and serves them until stop().
  awaitable<void> accept();
  /// Accepts no more and removes the socket file, if it is ours. Requests that wait for room or for a name get
  /// Errc::shutting_down.
  void stop();
  /// After stop(): whether a request is under way.
  bool busy() const;
  /// After stop(): closes all connections, and returns when they have ended.
  awaitable<void> close();
  /// The listening socket, for the next start.
  ListeningSocket hand_over();
  /// Trims memory after most of many connections have gone. Call now and then.
  void give_back_memory();

  std::size_t connections() const noexcept { return open_; }
  std::uint64_t accepted() const noexcept { return accepted_; }
  std::uint64_t refused() const noexcept { return refusals_.count(); }

 private:
  void greet(Socket socket);
  awaitable<void> serve(std::shared_ptr<Connection> connection);
  void for_each(const std::function<void(Connection&)>& each) const;

  Services& services_;
  Waiter& tick_;
  asio::local::stream_protocol::acceptor acceptor_;
  Waiter pause_;  // after an accept that failed
  Refusals refusals_;
  std::list<std::weak_ptr<Connection>> connections_;
  std::map<uid_t, std::uint32_t> per_user_;
  std::size_t open_ = 0;
  std::size_t most_ = 0;  // since the allocator last gave memory back
  std::uint64_t accepted_ = 0;
  std::string path_;
  gid_t gid_ = 0;
  bool ours_ = false;  // created by us, not passed by systemd
  bool stopping_ = false;
};

}  // namespace stepstash::daemon
