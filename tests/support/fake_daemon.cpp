// SPDX-License-Identifier: Apache-2.0
#include "tests/support/fake_daemon.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "shm/validate.hpp"

namespace stepstash::test {
namespace {

constexpr std::size_t kSegmentBytes = 1 << 20;
constexpr unsigned kLog2Slots = 6;
constexpr shm::Offset kTable = 2 * shm::kPageBytes;
constexpr shm::Offset kFirstEntry = 3 * shm::kPageBytes;

UniqueFd memory(std::size_t bytes) {
  UniqueFd fd(::memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) throw std::runtime_error("memfd");
  return fd;
}

shm::Mapping map(int fd, std::size_t bytes) {
  return shm::Mapping::map(fd, bytes, shm::Mapping::Access::read_write).value();
}

}  // namespace

FakeSegment::FakeSegment(std::uint8_t id)
    : fd_(memory(kSegmentBytes)), mapping_(map(fd_.get(), kSegmentBytes)), next_(kFirstEntry) {
  auto& h = *new (mapping_.data()) shm::Header{};
  h.magic = shm::kSegmentMagic;
  h.layout_version = shm::kLayoutVersion;
  h.fingerprint = shm::layout_fingerprint();
  h.segment_bytes = kSegmentBytes;
  h.object_bytes = kSegmentBytes;  // no stand-in
  h.segment_id.fill(id);
  h.heap_offset = shm::kPageBytes;
  h.header_hash =
      shm::hash_bytes(std::span(reinterpret_cast<const std::byte*>(&h), offsetof(shm::Header, header_hash)));
  h.index.store(shm::make_index_word(1, kLog2Slots, kTable));
  h.served.store(1);
}

std::atomic<shm::Slot>& FakeSegment::slot_of(BuildId build, std::string_view name) noexcept {
  auto* slots = reinterpret_cast<std::atomic<shm::Slot>*>(mapping_.data() + kTable);
  const std::uint64_t hash = shm::key_hash({}, build, name);
  for (std::uint64_t i = 0;; ++i) {
    auto& slot = slots[(hash + i) & ((1u << kLog2Slots) - 1)];
    if (slot.load() == shm::kEmptySlot || shm::slot_matches(slot.load(), hash)) return slot;
  }
}

void FakeSegment::put(BuildId build, std::string_view name, std::string_view value, bool evicted) {
  auto& entry = *new (mapping_.data() + next_) shm::Entry{};
  const std::uint64_t texts_end = sizeof(shm::Entry) + name.size();
  const std::uint64_t value_at = shm::round_up(texts_end, shm::kBlockAlign);
  const std::uint64_t size = shm::round_up(value_at + value.size() + 1, shm::kBlockAlign);
  if (next_ + size > kSegmentBytes) throw std::runtime_error("the fake segment is full");
  entry.block.magic = shm::kBlockMagic;
  entry.block.kind = shm::BlockKind::entry;
  entry.block.size.store(size);
  entry.id = next_;
  entry.revision = next_;
  entry.buildid = build;
  entry.length = value.size();
  entry.name_bytes = static_cast<std::uint16_t>(name.size());
  entry.value_offset = evicted ? 0 : static_cast<std::uint32_t>(value_at);
  std::memcpy(mapping_.data() + next_ + sizeof(shm::Entry), name.data(), name.size());
  if (!evicted) std::memcpy(mapping_.data() + next_ + value_at, value.data(), value.size());
  slot_of(build, name).store(shm::make_slot(shm::key_hash({}, build, name), next_));
  next_ += size;
}

void FakeSegment::damage(BuildId build, std::string_view name) {
  slot_of(build, name).store(shm::make_slot(shm::key_hash({}, build, name), kSegmentBytes - shm::kBlockAlign));
}

int FakeSegment::make_page() {
  const std::lock_guard lock(mutex_);
  page_fds_.push_back(memory(shm::kPageBytes));
  pages_.push_back(map(page_fds_.back().get(), shm::kPageBytes));
  auto& page = *new (pages_.back().data()) shm::PinPage{};
  page.magic = shm::kPinPageMagic;
  page.layout_version = shm::kLayoutVersion;
  page.number = static_cast<std::uint32_t>(pages_.size());
  page.segment_id = id();
  return page_fds_.back().get();
}

protocol::Request FakeDaemon::Peer::read() {
  const auto exactly = [this](std::byte* to, std::size_t bytes) {
    while (bytes > 0) {
      const ssize_t got = ::recv(fd_.get(), to, bytes, 0);
      if (got <= 0) throw std::runtime_error("gone");
      to += got;
      bytes -= static_cast<std::size_t>(got);
    }
  };
  std::array<std::byte, protocol::kHeadBytes> bytes;
  exactly(bytes.data(), bytes.size());
  const auto head = protocol::decode_head(bytes).value();
  payload_.resize(head.payload_bytes);
  exactly(payload_.data(), payload_.size());
  return protocol::decode_request(head, payload_).value();
}

void FakeDaemon::Peer::send(const protocol::Reply& reply, std::initializer_list<int> descriptors) {
  std::vector<std::byte> frame;
  protocol::encode(reply, frame);
  send_bytes(frame, descriptors);
}

void FakeDaemon::Peer::send_bytes(std::span<const std::byte> bytes, std::initializer_list<int> descriptors) {
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(8 * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (descriptors.size() > 0) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(descriptors.size() * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), descriptors.begin(), descriptors.size() * sizeof(int));
  }
  if (::sendmsg(fd_.get(), &message, MSG_NOSIGNAL) != static_cast<ssize_t>(bytes.size())) {
    throw std::runtime_error("gone");
  }
}

FakeDaemon::FakeDaemon() : socket_(directory_.file("s")), wake_(::eventfd(0, EFD_CLOEXEC)) { listen(); }

FakeDaemon::~FakeDaemon() {
  stop_listening();
  {
    const std::lock_guard lock(mutex_);
    for (const int fd : peers_) ::shutdown(fd, SHUT_RDWR);
  }
  for (std::thread& server : servers_) server.join();
  for (const int fd : peers_) ::close(fd);
}

void FakeDaemon::serve(Script script) {
  const std::lock_guard lock(mutex_);
  script_ = std::move(script);
}

void FakeDaemon::listen() {
  listener_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::strncpy(name.sun_path, socket_.c_str(), sizeof name.sun_path - 1);
  if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name) != 0 ||
      ::listen(listener_.get(), 64) != 0) {
    throw std::runtime_error("cannot listen on " + socket_);
  }
  acceptor_ = std::thread([this] { accept(); });
}

void FakeDaemon::stop_listening() {
  if (!acceptor_.joinable()) return;
  const std::uint64_t one = 1;
  if (::write(wake_.get(), &one, sizeof one) != sizeof one) std::terminate();
  acceptor_.join();
  std::uint64_t drained;
  if (::read(wake_.get(), &drained, sizeof drained) != sizeof drained) std::terminate();
  listener_.reset();
  ::unlink(socket_.c_str());
}

void FakeDaemon::accept() {
  for (;;) {
    pollfd waited[2] = {{listener_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    ::poll(waited, 2, -1);
    if ((waited[1].revents & POLLIN) != 0) return;
    const int fd = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    ++connections_;
    const std::lock_guard lock(mutex_);
    // The peer owns a copy, so that the test can hang up at its end whatever the script did with its own.
    peers_.push_back(fd);
    servers_.emplace_back([script = script_, fd, copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0)] {
      Peer peer(copy);
      try {
        script(peer);
      } catch (const std::exception&) {
        // The client hung up, or sent something that none of our clients sends: closing the connection shows it, and
        // the test sees the effect.
      }
      ::shutdown(fd, SHUT_RDWR);
    });
  }
}

void FakeDaemon::answer_hello(Peer& peer, const protocol::Hello& hello, FakeSegment& segment) {
  protocol::HelloOk ok;
  ok.segment_id = segment.id();
  ok.segment_bytes = segment.bytes();
  ok.server_version = "fake";
  if (!hello.attach) return peer.send(ok);
  if (hello.resume_page != 0 && hello.resume_page <= segment.pages() && hello.resume_segment == segment.id()) {
    ok.resumed = true;
    ok.pin_page = hello.resume_page;
    return peer.send(ok);
  }
  const int page = segment.make_page();
  ok.pin_page = static_cast<std::uint32_t>(segment.pages());
  peer.send(ok, {segment.fd(), page});
}

void FakeDaemon::greet(Peer& peer, FakeSegment& segment) {
  answer_hello(peer, std::get<protocol::Hello>(peer.read()), segment);
}

UniqueFd make_ring(std::size_t bytes, bool sealed) {
  UniqueFd fd = memory(bytes);
  if (sealed) ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  return fd;
}

}  // namespace stepstash::test
