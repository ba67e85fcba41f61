// SPDX-License-Identifier: Apache-2.0
#include "daemon/clients.hpp"

#include <fmt/format.h>
#include <malloc.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <chrono>
#include <utility>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "daemon/exit_status.hpp"

namespace stepstash::daemon {
namespace {

using namespace std::chrono_literals;

/// Connections are accepted for this long per event-loop turn: fast enough to empty the queue, in which everybody else
/// waits too, more often than a flood fills it.
constexpr auto kAcceptSlice = 200us;
/// With fewer connections than this, trimming memory is not worthwhile.
constexpr std::size_t kFewConnections = 256;
/// Whether the peer closed its end while it waited in the queue. What it sent is not worth reading: nobody is there to
/// be answered, and a process that connects and leaves all the time would have a queue of these served before a new
/// client.
bool has_left(int fd) {
  pollfd peer{fd, 0, 0};
  return ::poll(&peer, 1, 0) == 1 && (peer.revents & POLLHUP) != 0;
}

/// Pause after a failed accept.
constexpr auto kAcceptPause = 100ms;
/// How often close() looks whether all have ended.
constexpr auto kClosePause = 10ms;

}  // namespace

Configured<> Clients::listen(ListeningSocket socket, const std::string& path) {
  path_ = path;
  ours_ = socket.ours;
  gid_ = group_of(path);
  boost::system::error_code error;
  acceptor_.assign(asio::local::stream_protocol(), socket.fd.release(), error);
  if (error) return fail(kExitCannotCreate, fmt::format("{}: {}", path, error.message()));
  acceptor_.non_blocking(true, error);
  refusals_.keep_spare();
  spdlog::info("listening on {}", path);
  return boost::outcome_v2::success();
}

awaitable<void> Clients::accept() {
  while (!stopping_) {
    boost::system::error_code error;
    Socket socket(services_.loop);
    co_await acceptor_.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
    const TimePoint pause = std::chrono::steady_clock::now() + kAcceptSlice;
    while (!error && !stopping_) {
      greet(std::move(socket));
      if (std::chrono::steady_clock::now() >= pause) break;
      socket = Socket(services_.loop);
      acceptor_.accept(socket, error);
    }
    if (!stopping_ && (!error || error == asio::error::would_block || error == asio::error::try_again)) continue;
    if (stopping_ || error == asio::error::operation_aborted) break;
    spdlog::warn("cannot accept a connection: {}", error.message());
    if (error == boost::system::errc::too_many_files_open ||
        error == boost::system::errc::too_many_files_open_in_system) {
      co_await refusals_.refuse_next(acceptor_, pause_, std::chrono::steady_clock::now() + kAcceptPause);
    } else {
      co_await pause_.sleep_until(std::chrono::steady_clock::now() + kAcceptPause);
    }
  }
}

void Clients::greet(Socket socket) {
  if (has_left(socket.native_handle())) return;
  auto peer = Peer::of(socket.native_handle());
  if (!peer) return;
  const uid_t uid = peer.value().uid;
  const Right right = services_.config.right_of(uid, peer.value().groups, ::geteuid(), gid_);
  std::string why;
  if (right == Right::none) {
    why = fmt::format("user {} may not use this daemon: see read, write and admin in its configuration", uid);
  } else if (open_ >= services_.config.max_connections) {
    why = fmt::format("{} connections are open, the most there may be (max_connections)", open_);
  } else if (const auto open = per_user_.find(uid);
             open != per_user_.end() && open->second >= services_.config.max_connections_per_user) {
    why = fmt::format("user {} has {} connections open, the most one may have (max_connections_per_user)", uid,
                      open->second);
  }
  if (!why.empty()) {
    refusals_.refuse(std::move(socket), uid, right == Right::none ? Errc::not_permitted : Errc::too_many,
                     std::move(why));
    return;
  }
  auto connection = std::make_shared<Connection>(services_, std::move(socket), std::move(peer).value(), right);
  ++accepted_;
  ++open_;  // here, not when serve() begins: several are greeted before that
  ++per_user_[uid];
  asio::co_spawn(
      services_.loop, [this, connection] { return serve(connection); }, kOrDie);
}

awaitable<void> Clients::serve(std::shared_ptr<Connection> connection) {
  const uid_t uid = connection->uid();
  if (!stopping_) {
    const auto place = connections_.insert(connections_.end(), connection);
    co_await connection->run();
    connections_.erase(place);
  }
  --open_;
  if (--per_user_[uid] == 0) per_user_.erase(uid);
  // A client that is gone may have held blocks: check its page now rather than at the next tick.
  tick_.wake();
}

/// Thousands of connections fragment the allocator's heap, which keeps the memory. When most of them are gone, trim it;
/// that takes some milliseconds, so each trim requires that half of the connections have gone.
void Clients::give_back_memory() {
  most_ = std::max(most_, open_);
  if (most_ < 2 * open_ + kFewConnections) return;
  ::malloc_trim(0);
  most_ = open_;
}

void Clients::for_each(const std::function<void(Connection&)>& each) const {
  for (const auto& weak : connections_) {
    if (const auto connection = weak.lock()) each(*connection);
  }
}

void Clients::stop() {
  stopping_ = true;
  if (ours_) ::unlink(path_.c_str());
  STEPSTASH_CRASH_POINT("daemon.clients.socket_removed");
  boost::system::error_code ignored;
  acceptor_.close(ignored);
  pause_.hang_up();
  // These requests could outlive this daemon; their clients can retry with the next one.
  for_each([](Connection& connection) { connection.dismiss(); });
}

bool Clients::busy() const {
  bool any = false;
  for_each([&any](const Connection& connection) { any = any || connection.busy(); });
  return any;
}

awaitable<void> Clients::close() {
  for_each([](Connection& connection) { connection.close(); });
  refusals_.close();
  Waiter pause(services_.loop);
  while (open_ > 0 || !refusals_.idle()) co_await pause.sleep_until(std::chrono::steady_clock::now() + kClosePause);
}

ListeningSocket Clients::hand_over() {
  boost::system::error_code ignored;
  return {UniqueFd(acceptor_.release(ignored)), ours_};
}

}  // namespace stepstash::daemon
