// SPDX-License-Identifier: Apache-2.0
#include "daemon/refusals.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <utility>
#include <vector>

#include "protocol/frame.hpp"
#include "protocol/message.hpp"

namespace stepstash::daemon {

void Refusals::refuse(Socket socket, uid_t uid, Errc code, std::string why) {
  start(std::make_shared<Socket>(std::move(socket)), uid, code, std::move(why));
}

/// In a coroutine of its own: accepting goes on.
void Refusals::start(Shared socket, uid_t uid, Errc code, std::string why) {
  asio::co_spawn(
      loop_, [this, socket, uid, code, why] { return run(socket, uid, code, why); }, kOrDie);
}

awaitable<void> Refusals::run(Shared socket, uid_t uid, Errc code, std::string why) {
  if (closed_) co_return;
  ++count_;
  boost::system::error_code ignored;
  std::vector<std::byte> frame;
  const protocol::Reply reply = protocol::Failure{code, std::move(why)};
  protocol::encode(reply, frame);
  (void)::send(socket->native_handle(), frame.data(), frame.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (const auto of_one = per_user_.find(uid); of_one != per_user_.end() && of_one->second >= kMostOfOne) {
    socket->close(ignored);
    co_return;
  }
  if (sockets_.size() >= kMost) {
    sockets_.front()->close(ignored);
    sockets_.pop_front();
  }
  sockets_.push_back(socket);
  ++per_user_[uid];
  asio::steady_timer timer(loop_, kFarewell);
  timer.async_wait([socket](const boost::system::error_code& error) {
    boost::system::error_code closing;
    if (!error) socket->close(closing);
  });
  co_await drain(*socket);
  socket->close(ignored);
  sockets_.remove(socket);
  if (--per_user_[uid] == 0) per_user_.erase(uid);
}

void Refusals::keep_spare() { spare_ = UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }

awaitable<void> Refusals::refuse_next(asio::local::stream_protocol::acceptor& acceptor, Waiter& pause,
                                      TimePoint until) {
  spare_.reset();
  const int fd = ::accept4(acceptor.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  boost::system::error_code error = asio::error::would_block;
  auto socket = std::make_shared<Socket>(loop_);
  if (fd >= 0) socket->assign(asio::local::stream_protocol(), fd, error);
  if (!error) {
    start(socket, ::geteuid(), Errc::too_many, "the daemon has no descriptors left (LimitNOFILE)");
  } else if (fd >= 0) {
    ::close(fd);
  }
  co_await pause.sleep_until(until);
  socket->close(error);
  keep_spare();
}

void Refusals::close() {
  closed_ = true;
  boost::system::error_code ignored;
  for (const Shared& socket : sockets_) socket->close(ignored);
}

}  // namespace stepstash::daemon
