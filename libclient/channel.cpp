// SPDX-License-Identifier: Apache-2.0
#include "libclient/channel.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "base/crash_point.hpp"
#include "libclient/explain.hpp"
#include "libclient/fork_epoch.hpp"
#include "libclient/forks.hpp"

namespace stepstash::client {
namespace {

constexpr std::size_t kFirstBuffer = 4096;  // fits every reply except list pages and long texts
constexpr std::size_t kNothingYet = SIZE_MAX;

bool broken(int error) noexcept { return error == EPIPE || error == ECONNRESET || error == ENOTCONN; }

bool lacks_descriptors(int error) noexcept { return error == EMFILE || error == ENFILE; }

std::error_code connection_broke() noexcept { return explain(Errc::unavailable, "the daemon closed the connection"); }

/// How many descriptors must come with a reply; -1: it depends on the request.
int descriptors_of(const protocol::Reply& reply) noexcept {
  if (std::holds_alternative<protocol::HelloOk>(reply)) return -1;
  if (const auto* ready = std::get_if<protocol::SetReady>(&reply)) return ready->ring_attached ? 1 : 0;
  return 0;
}

}  // namespace

std::uint32_t remaining_ms(Deadline deadline) noexcept {
  const auto left = deadline - std::chrono::steady_clock::now();
  if (left.count() <= 0) return 0;
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(left).count();
  return static_cast<std::uint32_t>(std::min<std::int64_t>(ms, UINT32_MAX));
}

Result<Address> Address::of(const std::string& path) {
  Address address;
  address.name.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.name.sun_path || path.find('\0') != std::string::npos) {
    return explain(Errc::invalid_argument, "socket path %s has %zu bytes: a unix socket's has 1 to %zu",
                   Quoted(path).c_str(), path.size(), sizeof address.name.sun_path - 1);
  }
  std::memcpy(address.name.sun_path, path.data(), path.size());
  return address;
}

DescriptorTable::DescriptorTable() noexcept {
  for (auto& fd : fds_) fd.store(-1);
}

std::atomic<int>* DescriptorTable::put(int fd) noexcept {
  for (auto& slot : fds_) {
    int empty = -1;
    if (slot.load(std::memory_order_relaxed) == -1 && slot.compare_exchange_strong(empty, fd)) return &slot;
  }
  return nullptr;
}

void DescriptorTable::close_all() noexcept {
  for (auto& slot : fds_) {
    const int fd = slot.exchange(-1);
    if (fd >= 0) ::close(fd);
  }
}

Channel::Channel(DescriptorTable& table, std::atomic<int>* slot) noexcept
    : table_(table), slot_(slot), fd_(slot->load()), epoch_(fork_epoch()) {}

Channel::~Channel() {
  // In a child the descriptor is closed through the table; slot and number may belong to another channel by now.
  if (epoch_ != fork_epoch()) {
    for (Received& received : descriptors_) {
      if (received.slot != nullptr) received.fd.release();
    }
    ring_.mapping.forget();
    return;
  }
  const NoFork whole;
  drop_descriptors();
  // A child of ours may hold a copy: shutdown tells the daemon at once that this connection is closed.
  ::shutdown(fd_, SHUT_RDWR);
  slot_->store(-1);
  ::close(fd_);
}

Result<std::unique_ptr<Channel>> Channel::open(const Address& address, DescriptorTable& table) {
  const NoFork whole;
  UniqueFd fd = above_stdio(UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)));
  if (!fd) return lacks_descriptors(errno) ? explain_lack_of_descriptors(last_errno()) : last_errno();
  int rc;  // non-blocking: connects at once, or the queue is full
  do {
    rc = ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address.name), sizeof address.name);
  } while (rc != 0 && errno == EINTR);
  if (rc != 0) return last_errno();
  std::atomic<int>* slot = table.put(fd.get());
  if (slot == nullptr) {
    return explain(Errc::too_many, "%zu calls of this client wait for the daemon already", DescriptorTable::kSlots);
  }
  fd.release();
  return std::unique_ptr<Channel>(new Channel(table, slot));
}

Result<> Channel::wait_for(short events, Deadline deadline) const {
  for (;;) {
    pollfd waited{fd_, events, 0};
    const std::uint32_t left = remaining_ms(deadline);
    const int rc = ::poll(&waited, 1, static_cast<int>(std::min<std::uint32_t>(left, INT32_MAX)));
    if (rc > 0) return success();
    if (rc < 0 && errno != EINTR) return last_errno();
    if (rc == 0 && remaining_ms(deadline) == 0) return Errc::deadline_exceeded;
  }
}

Result<> Channel::send(const protocol::Request& request, Deadline deadline) {
  out_.clear();
  std::span<const std::byte> body;
  if (const auto* set = std::get_if<protocol::Set>(&request)) {
    protocol::encode_set_head(*set, out_);
    body = set->value;  // sent from where it is, without a copy
  } else {
    protocol::encode(request, out_);
  }
  std::span<const std::byte> head(out_);
  sent_any_ = false;
  while (!head.empty() || !body.empty()) {
    iovec parts[2] = {{const_cast<std::byte*>(head.data()), head.size()},
                      {const_cast<std::byte*>(body.data()), body.size()}};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = body.empty() ? 1 : 2;
    const ssize_t sent = ::sendmsg(fd_, &message, MSG_NOSIGNAL);
    if (sent >= 0) {
      sent_any_ = sent_any_ || sent > 0;
      STEPSTASH_CRASH_POINT("libclient.request.sent");
      const std::size_t of_head = std::min(head.size(), static_cast<std::size_t>(sent));
      head = head.subspan(of_head);
      body = body.subspan(static_cast<std::size_t>(sent) - of_head);
    } else if (errno == EAGAIN) {
      STEPSTASH_TRY(wait_for(POLLOUT, deadline));
    } else if (broken(errno)) {
      return connection_broke();
    } else if (errno != EINTR) {
      return last_errno();
    }
  }
  return success();
}

/// One recvmsg(2); kNothingYet if it should be repeated.
Result<std::size_t> Channel::receive_some(std::span<std::byte> room) {
  const NoFork whole;
  iovec part{room.data(), room.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t got = ::recvmsg(fd_, &message, MSG_CMSG_CLOEXEC);
  if (got < 0) {
    if (errno == EINTR || errno == EAGAIN) return kNothingYet;
    if (broken(errno)) return connection_broke();
    return last_errno();
  }
  // Take ownership of the received descriptors before checking anything.
  bool too_many = (message.msg_flags & MSG_CTRUNC) != 0;
  std::error_code no_number;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      if (descriptor_count_ < kMaxDescriptors) {
        Received& received = descriptors_[descriptor_count_++];
        received.fd = above_stdio(UniqueFd(fd));
        if (!received.fd) no_number = last_errno();
        if (received.fd) received.slot = table_.put(received.fd.get());
      } else {
        ::close(fd);
        too_many = true;
      }
    }
  }
  // If we are out of descriptors, the kernel drops those that were sent and reports only this.
  if (too_many && descriptor_count_ < kMaxDescriptors) {
    const UniqueFd one_more(::fcntl(fd_, F_DUPFD_CLOEXEC, 0));
    if (!one_more && lacks_descriptors(errno)) return explain_lack_of_descriptors(last_errno());
  }
  if (too_many) return explain(Errc::protocol_error, "the daemon sent more descriptors than were asked for");
  if (no_number) return no_number;
  return static_cast<std::size_t>(got);
}

UniqueFd Channel::take_descriptor(std::size_t index) noexcept {
  Received& received = descriptors_[index];
  if (received.slot != nullptr) std::exchange(received.slot, nullptr)->store(-1);
  return std::move(received.fd);
}

void Channel::drop_descriptors() noexcept {
  for (std::size_t i = 0; i < descriptor_count_; ++i) take_descriptor(i);
  descriptor_count_ = 0;
}

/// Ensures that at least `bytes` received bytes are available.
Result<> Channel::fill(std::size_t bytes, Deadline deadline) {
  if (in_end_ - in_begin_ >= bytes) return success();
  if (in_begin_ != 0) {
    std::memmove(in_.data(), in_.data() + in_begin_, in_end_ - in_begin_);
    in_end_ -= in_begin_;
    in_begin_ = 0;
  }
  if (in_.size() < bytes) in_.resize(std::max(bytes, kFirstBuffer));
  while (in_end_ < bytes) {
    // Poll first: the answer is rarely there already, and a failed recvmsg costs as much as the poll.
    STEPSTASH_TRY(wait_for(POLLIN, deadline));
    const std::size_t got = STEPSTASH_TRY(receive_some(std::span(in_).subspan(in_end_)));
    if (got == kNothingYet) continue;
    if (got == 0) return connection_broke();
    in_end_ += got;
  }
  return success();
}

Result<protocol::Reply> Channel::receive(Deadline deadline) {
  if (descriptor_count_ != 0) {
    const NoFork whole;
    drop_descriptors();  // of the previous reply
  }
  STEPSTASH_TRY(fill(protocol::kHeadBytes, deadline));
  auto head = protocol::decode_head(
      std::span<const std::byte, protocol::kHeadBytes>(in_.data() + in_begin_, protocol::kHeadBytes));
  if (!head) return explain(head.error(), "what answers on the socket is not a stepstash daemon");
  STEPSTASH_TRY(fill(protocol::kHeadBytes + head.value().payload_bytes, deadline));
  const std::span payload(in_.data() + in_begin_ + protocol::kHeadBytes, head.value().payload_bytes);
  auto reply = protocol::decode_reply(head.value(), payload);
  if (!reply) {
    return explain(reply.error(), "a reply of type %u and %u bytes was not understood", unsigned{head.value().type},
                   unsigned{head.value().payload_bytes});
  }
  in_begin_ += protocol::kHeadBytes + head.value().payload_bytes;
  STEPSTASH_CRASH_POINT("libclient.reply.received");
  const int expected = descriptors_of(reply.value());
  if (expected >= 0 && descriptor_count_ != static_cast<std::size_t>(expected)) {
    return explain(Errc::protocol_error, "a reply of type %u came with %zu descriptors instead of %d",
                   unsigned{head.value().type}, descriptor_count_, expected);
  }
  return reply;
}

Result<protocol::Reply> Channel::call(const protocol::Request& request, Deadline deadline) {
  if (auto sent = send(request, deadline); !sent) {
    // A daemon that refuses a peer says so and closes: the reason may have arrived even though the request could not be
    // sent.
    if (sent.error() == Errc::unavailable) {
      if (auto reason = receive(deadline); reason && std::holds_alternative<protocol::Failure>(reason.value())) {
        return reason;
      }
      return connection_broke();
    }
    return sent.error();
  }
  return receive(deadline);
}

bool Channel::idle_and_alive() const noexcept {
  char byte;
  if (in_begin_ != in_end_) return false;
  return ::recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

Result<> Channel::adopt_ring(const protocol::SetReady& ready) {
  if (ready.ring_attached) {
    const NoFork whole;
    const UniqueFd fd = take_descriptor(0);
    struct stat status {};
    if (::fstat(fd.get(), &status) != 0) return last_errno();
    const int seals = ::fcntl(fd.get(), F_GET_SEALS);
    if (ready.ring_bytes == 0 || status.st_size < static_cast<off_t>(ready.ring_bytes) || seals < 0 ||
        (seals & F_SEAL_SHRINK) == 0) {
      return explain(Errc::protocol_error, "the staging ring has %lld bytes instead of %u, or may shrink",
                     static_cast<long long>(status.st_size), ready.ring_bytes);
    }
    ring_.mapping = STEPSTASH_TRY(shm::Mapping::map(fd.get(), ready.ring_bytes, shm::Mapping::Access::read_write));
    ring_.mapping.inherit(false);  // a child's copy would keep the memory
    ring_.bytes = ready.ring_bytes;
    STEPSTASH_CRASH_POINT("libclient.ring.mapped");
  }
  if (ring_.bytes == 0 || ring_.bytes != ready.ring_bytes || ready.piece_bytes == 0 ||
      ready.piece_bytes > ring_.bytes) {
    return explain(Errc::protocol_error, "a staging ring of %u bytes in pieces of %u was announced", ready.ring_bytes,
                   ready.piece_bytes);
  }
  ring_.piece_bytes = ready.piece_bytes;
  return success();
}

}  // namespace stepstash::client
