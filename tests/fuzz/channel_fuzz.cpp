// SPDX-License-Identifier: Apache-2.0
// The client's frame reader against a daemon that lies: any bytes, cut anywhere, with any number of descriptors. What
// the client makes of them is what the codec makes of them, and no descriptor is left behind.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <vector>

#include "base/errc.hpp"
#include "base/text.hpp"
#include "libclient/channel.hpp"
#include "libclient/client.hpp"
#include "libclient/explain.hpp"
#include "tests/fuzz/check.hpp"
#include "tests/support/temp_dir.hpp"

using namespace stepstash;
using stepstash::fuzz::check;

namespace {

constexpr std::size_t kMostDescriptors = 5;

struct Listener {
  test::TempDir directory;
  client::Address address = client::Address::of(directory.file("socket")).value();
  UniqueFd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  UniqueFd null{::open("/dev/null", O_RDONLY | O_CLOEXEC)};

  Listener() {
    check(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address.name), sizeof address.name) == 0, "bind(2)");
    check(::listen(fd.get(), 8) == 0, "listen(2)");
  }
};

/// How many of the first numbers are in use.
int open_descriptors() {
  int count = 0;
  for (int fd = 0; fd < 64; ++fd) count += ::fcntl(fd, F_GETFD) >= 0 ? 1 : 0;
  return count;
}

void send_with_descriptors(int to, std::span<const std::uint8_t> bytes, std::size_t count, int fd) {
  if (bytes.empty()) return;
  iovec data{const_cast<std::uint8_t*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMostDescriptors * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (count > 0) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof(int));
    for (std::size_t i = 0; i < count; ++i) std::memcpy(CMSG_DATA(header) + i * sizeof fd, &fd, sizeof fd);
  }
  (void)!::sendmsg(to, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace

/// Input: {descriptors with the first write, and times 6 with the second, where the second write begins: u16,
/// bytes...}.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Listener listener;
  const int before = open_descriptors();
  fuzz::Input input(data, size);
  const std::uint8_t counts = input.u8();
  const std::size_t descriptors = counts % (kMostDescriptors + 1);
  const std::size_t more = counts / (kMostDescriptors + 1) % (kMostDescriptors + 1);
  const std::size_t cut = input.u16();
  const std::span<const std::uint8_t> bytes = input.rest();
  {
    client::DescriptorTable table;
    auto channel = client::Channel::open(listener.address, table);
    check(channel.has_value(), "connect(2)");
    UniqueFd daemon(::accept4(listener.fd.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const std::span<const std::uint8_t> head = bytes.first(std::min(cut, bytes.size()));
    send_with_descriptors(daemon.get(), head, descriptors, listener.null.get());
    send_with_descriptors(daemon.get(), bytes.subspan(head.size()), head.empty() ? descriptors : more,
                          listener.null.get());
    ::shutdown(daemon.get(), SHUT_WR);

    std::span<const std::byte> expected = std::as_bytes(bytes);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    for (;;) {
      const auto reply = channel.value()->receive(deadline);
      check(reply || reply.error() != Errc::deadline_exceeded, "the reader comes to an end when the stream does");
      const std::string_view said = client::explanation(reply ? std::error_code() : reply.error());
      check(visible(said) == said, "no message commands a terminal");
      if (!reply) break;
      if (const auto* failure = std::get_if<protocol::Failure>(&reply.value())) {
        const std::string_view told = client::explanation(client::failed(*failure));
        check(visible(told) == told, "no message of a daemon commands a terminal");
      }
      check(expected.size() >= protocol::kHeadBytes, "a reply comes from bytes that were sent");
      const auto head_again = protocol::decode_head(expected.first<protocol::kHeadBytes>());
      check(head_again.has_value(), "a reply has a head that decodes");
      const std::size_t frame = protocol::kHeadBytes + head_again.value().payload_bytes;
      check(expected.size() >= frame, "a reply comes from a whole frame");
      const auto same = protocol::decode_reply(head_again.value(),
                                               expected.subspan(protocol::kHeadBytes, frame - protocol::kHeadBytes));
      check(same && same.value().index() == reply.value().index(), "a reply is the frame that was sent");
      std::vector<std::byte> one, other;
      protocol::encode(reply.value(), one);
      protocol::encode(same.value(), other);
      check(one == other, "a reply is the frame that was sent, to the byte");
      if (const auto* ready = std::get_if<protocol::SetReady>(&reply.value())) {
        (void)channel.value()->adopt_ring(*ready);  // of a descriptor that is no ring: refused, whatever it says
        check(channel.value()->ring().bytes == 0, "what is not sealed is no ring");
      }
      expected = expected.subspan(frame);
    }
  }
  check(open_descriptors() == before, "no descriptor is left open");
  return 0;
}
