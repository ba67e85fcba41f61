// SPDX-License-Identifier: Apache-2.0
/// One client: reads its frames, has store, builds and upload do what they ask, and replies. Its end releases
/// everything it held.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "daemon/config.hpp"
#include "daemon/link.hpp"
#include "daemon/listing.hpp"
#include "daemon/services.hpp"
#include "daemon/tasks.hpp"
#include "daemon/upload.hpp"
#include "protocol/message.hpp"

namespace stepstash::daemon {

/// Thread safety: the loop's thread only. Lifetime: until run() has returned; `services` outlives it.
class Connection {
 public:
  /// `right` is not none: a peer without rights gets no connection.
  Connection(Services& services, Socket socket, Peer peer, Right right);

  /// Serves until the peer hangs up, breaks the protocol, or close() is called.
  awaitable<void> run();
  void close() { link_->close(); }
  /// The daemon is stopping: requests that wait for something that may never happen get shutting_down, as do new
  /// requests, except the rest of a set under way. The client retries with the next daemon.
  void dismiss() { link_->waiter().dismiss(); }
  uid_t uid() const noexcept { return peer_.uid; }
  /// A request is being answered or is queued.
  bool busy() const noexcept { return link_->work() != Link::Work::none; }

 private:
  awaitable<bool> read_frames();
  bool next_is_piece(std::size_t at) const noexcept;
  awaitable<bool> handle(protocol::Request request);
  awaitable<protocol::Reply> answer(protocol::Request& request);
  awaitable<bool> on_hello(const protocol::Hello& hello);
  awaitable<bool> on_set_begin(protocol::SetBegin begin);
  bool may(Right right) const noexcept { return right_ >= right; }

  Services& services_;
  const Peer peer_;
  const Right right_;
  const std::shared_ptr<Link> link_;
  bool greeted_ = false;
  bool frame_begun_ = false;  // and the time limit for the whole frame runs
  std::vector<std::byte> in_;
  std::size_t in_used_ = 0;
  Listings::Handle listing_;  // a list with more pages; dropped at the next request of another kind
  Upload upload_;
};

}  // namespace stepstash::daemon
