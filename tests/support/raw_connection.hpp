// SPDX-License-Identifier: Apache-2.0
/// A client of the daemon's socket that may send anything. Only in a process that runs Boost.Test.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <boost/test/unit_test.hpp>
#include <cerrno>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/errc.hpp"
#include "base/unique_fd.hpp"
#include "protocol/frame.hpp"

namespace stepstash::test {

/// A connection for protocol violations.
class RawConnection {
 public:
  explicit RawConnection(const std::string& path) : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    if (::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) fd_.reset();
    BOOST_REQUIRE(fd_.get() >= 0);
  }
  explicit RawConnection(UniqueFd connected) : fd_(std::move(connected)) {}
  void send(std::span<const std::byte> bytes) const {
    // The daemon may have hung up already, which is an answer as well.
    static_cast<void>(::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL));
  }
  /// Whether all of it was accepted; false if the daemon had closed this connection.
  bool try_send(std::span<const std::byte> bytes) const {
    return ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  }
  void send(std::string_view text) const { send(std::as_bytes(std::span(text))); }
  void send(const protocol::Request& request) const {
    std::vector<std::byte> frame;
    protocol::encode(request, frame);
    send(frame);
  }
  /// With `count` copies of a descriptor (SCM_RIGHTS).
  void send_with_descriptors(const protocol::Request& request, int fd, std::size_t count) const {
    std::vector<std::byte> frame;
    protocol::encode(request, frame);
    const std::vector<int> descriptors(count, fd);
    std::vector<char> control(CMSG_SPACE(count * sizeof fd));
    iovec data{frame.data(), frame.size()};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof fd);
    std::memcpy(CMSG_DATA(header), descriptors.data(), count * sizeof fd);
    BOOST_REQUIRE(::sendmsg(fd_.get(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(frame.size()));
  }
  /// nullopt: the daemon hung up.
  std::optional<protocol::Reply> receive() {
    std::array<std::byte, protocol::kHeadBytes> head;
    if (!read_whole(head)) return std::nullopt;
    const auto decoded = protocol::decode_head(head);
    BOOST_REQUIRE(decoded.has_value());
    std::vector<std::byte> payload(decoded.value().payload_bytes);
    if (!read_whole(payload)) return std::nullopt;
    auto reply = protocol::decode_reply(decoded.value(), payload);
    BOOST_REQUIRE(reply.has_value());
    return std::move(reply).value();
  }
  void greet() {
    send(protocol::Hello{});
    const auto reply = receive();
    BOOST_REQUIRE((reply && std::holds_alternative<protocol::HelloOk>(*reply)));
  }
  /// The error code of the next reply; nullopt if the daemon hung up instead.
  std::optional<Errc> refusal(std::string* message = nullptr) {
    const auto reply = receive();
    if (!reply) return std::nullopt;
    const auto* failure = std::get_if<protocol::Failure>(&*reply);
    BOOST_REQUIRE_MESSAGE(failure != nullptr, "the daemon took it");
    if (message != nullptr) *message = failure->message;
    return failure->code;
  }
  /// The errno of the next read at the end; 0: an orderly hang-up. Drops whatever arrives before that.
  int end() const {
    std::array<std::byte, 4096> bytes;
    for (;;) {
      pollfd watched{fd_.get(), POLLIN, 0};
      BOOST_REQUIRE_MESSAGE(::poll(&watched, 1, 60'000) == 1, "the daemon neither answers nor hangs up");
      const ssize_t got = ::recv(fd_.get(), bytes.data(), bytes.size(), 0);
      if (got <= 0) return got < 0 ? errno : 0;
    }
  }
  bool hung_up() { return !receive().has_value(); }
  int fd() const { return fd_.get(); }
  /// All descriptors received so far: after an attach the segment's and the pin page's.
  std::vector<UniqueFd>& descriptors() { return descriptors_; }

 private:
  bool read_whole(std::span<std::byte> into) {
    for (std::size_t at = 0; at < into.size();) {
      pollfd watched{fd_.get(), POLLIN, 0};
      BOOST_REQUIRE_MESSAGE(::poll(&watched, 1, 60'000) == 1, "the daemon neither answers nor hangs up");
      iovec part{into.data() + at, into.size() - at};
      alignas(cmsghdr) std::array<char, CMSG_SPACE(4 * sizeof(int))> control{};
      msghdr message{};
      message.msg_iov = &part;
      message.msg_iovlen = 1;
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      const ssize_t got = ::recvmsg(fd_.get(), &message, MSG_CMSG_CLOEXEC);
      if (got <= 0) return false;
      at += static_cast<std::size_t>(got);
      for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
        for (std::size_t i = 0; CMSG_LEN((i + 1) * sizeof(int)) <= c->cmsg_len; ++i) {
          int fd = -1;
          std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
          descriptors_.emplace_back(fd);
        }
      }
    }
    return true;
  }
  UniqueFd fd_;
  std::vector<UniqueFd> descriptors_;
};

/// The fields of a set that matter to a test.
inline protocol::SetParams params_of(BuildId build, std::string name, std::string source = {}) {
  protocol::SetParams params;
  params.build = build;
  params.name = std::move(name);
  params.source = std::move(source);
  return params;
}

/// A frame's head, without any checks.
inline std::string head(std::uint32_t bytes, std::uint16_t type, std::uint16_t zero = 0) {
  std::string text(8, '\0');
  std::memcpy(text.data(), &bytes, 4);
  std::memcpy(text.data() + 4, &type, 2);
  std::memcpy(text.data() + 6, &zero, 2);
  return text;
}

}  // namespace stepstash::test
