// SPDX-License-Identifier: Apache-2.0
#include "daemon/link.hpp"

#include <sys/socket.h>

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "base/crash_point.hpp"
#include "base/errc.hpp"

namespace stepstash::daemon {

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

awaitable<void> drain(Socket& socket) {
  boost::system::error_code error;
  socket.shutdown(Socket::shutdown_send, error);
  std::array<std::byte, 4096> dropped;
  for (std::size_t bytes = 0; !error && bytes < kFarewellBytes;) {
    bytes += co_await socket.async_read_some(asio::buffer(dropped), asio::redirect_error(asio::use_awaitable, error));
  }
}

Errc wire_code(std::error_code error) {
  if (error.category() == category()) return static_cast<Errc>(error.value());
  if (error == std::errc::no_space_on_device || error == std::errc::not_enough_memory) return Errc::segment_full;
  if (error == std::errc::too_many_files_open || error == std::errc::too_many_files_open_in_system) {
    return Errc::too_many;
  }
  return Errc::not_durable;
}

Link::Link(asio::io_context& loop, Turns& turns, const Config& config, Socket socket, uid_t uid)
    : socket_(std::move(socket)), waiter_(loop, turns, uid), timer_(loop), config_(config) {}

bool Link::idle() const {
  boost::system::error_code ignored;
  return work_ == Work::none && socket_.available(ignored) == 0;
}

// ---- sending -------------------------------------------------------------------------------------------------------

awaitable<bool> Link::send(const protocol::Reply& reply) {
  add(reply);
  co_return co_await write_out();
}

/// g++ 12 destroys a temporary aggregate in a co_await expression twice, so no Failure is created in one.
awaitable<bool> Link::send_failure(std::error_code code, std::string_view message) {
  const protocol::Reply reply = protocol::Failure{wire_code(code), std::string(message)};
  co_return co_await send(reply);
}

awaitable<bool> Link::write_out() {
  STEPSTASH_CRASH_POINT("daemon.reply.due");
  // The socket nearly always takes it at once: no timer, no trip through the reactor.
  const ssize_t sent = ::send(socket_.native_handle(), out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  const std::size_t done = sent > 0 ? static_cast<std::size_t>(sent) : 0;
  STEPSTASH_CRASH_POINT("daemon.reply.sent");
  boost::system::error_code error;
  if (done < out_.size()) {
    if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) co_return false;
    limit(config_.frame_timeout);
    co_await asio::async_write(socket_, asio::buffer(out_.data() + done, out_.size() - done),
                               asio::redirect_error(asio::use_awaitable, error));
    end_limit();
  }
  out_.clear();
  co_return !error;
}

awaitable<bool> Link::send_with_descriptors(const protocol::Reply& reply, std::span<const int> descriptors) {
  std::vector<std::byte> out;
  protocol::encode(reply, out);
  iovec data{out.data(), out.size()};
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
  co_return sent == static_cast<ssize_t>(out.size());
}

// ---- ending --------------------------------------------------------------------------------------------------------

/// Asio's reactor completes wait_error when the kernel reports EPOLLHUP, which a unix stream socket does when its peer
/// is gone, even while a request of that peer is waiting.
void Link::watch_for_hang_up() {
  socket_.async_wait(Socket::wait_error, [self = shared_from_this()](const boost::system::error_code& error) {
    if (!error) self->waiter_.hang_up();
  });
}

void Link::limit(std::chrono::milliseconds timeout) {
  timer_.expires_after(timeout);
  timer_.async_wait([self = shared_from_this()](const boost::system::error_code& error) {
    if (!error) self->close();
  });
}

/// The peer may have sent more than had been read when its request was refused.
awaitable<void> Link::take_leave() {
  limit(kFarewell);
  co_await drain(socket_);
  end_limit();
}

void Link::close() {
  closed_ = true;
  timer_.cancel();
  waiter_.hang_up();
  boost::system::error_code ignored;
  socket_.close(ignored);
}

void Link::close(const protocol::Failure& why) {
  std::vector<std::byte> frame;
  protocol::encode(protocol::Reply(why), frame);
  (void)::send(socket_.native_handle(), frame.data(), frame.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  close();
}

}  // namespace stepstash::daemon
