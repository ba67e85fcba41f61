// SPDX-License-Identifier: Apache-2.0
/// One connection to the daemon: sends a request, receives its reply.
///
/// Thread rule: one thread at a time. Lifetime: the DescriptorTable it was opened with outlives a Channel.
#pragma once

#include <sys/un.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "protocol/frame.hpp"
#include "shm/mapping.hpp"

namespace stepstash::client {

using Deadline = std::chrono::steady_clock::time_point;  // CLOCK_MONOTONIC in libstdc++

/// Milliseconds left, rounded up, at least 0: the timeout for poll(2) and for the daemon.
std::uint32_t remaining_ms(Deadline deadline) noexcept;

/// The checked path of the daemon's socket. Errors: Errc::invalid_argument if it is empty or too long.
struct Address {
  sockaddr_un name{};
  static Result<Address> of(const std::string& path);
  const char* path() const noexcept { return name.sun_path; }
};

/// The descriptors of one client, so that a forked child can close its copies, whatever the parent's threads were doing
/// at the fork. Lock-free; every slot is consistent at every instruction.
class DescriptorTable {
 public:
  DescriptorTable() noexcept;
  /// The slot that now owns `fd`; null if all are taken.
  std::atomic<int>* put(int fd) noexcept;
  /// Closes every descriptor. Only in a child, for the parent's connections; sends nothing on them.
  void close_all() noexcept;

  static constexpr std::size_t kSlots = 256;  // roughly the threads of one client that can ask the daemon at once

 private:
  std::array<std::atomic<int>, kSlots> fds_;
};

class Channel {
 public:
  /// Connects; does not send Hello. Errors: those of connect(2) (EAGAIN: the daemon's backlog is full), Errc::too_many.
  static Result<std::unique_ptr<Channel>> open(const Address& address, DescriptorTable& table);
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  /// Sends one request and receives its reply. After an error the channel is unusable: drop it. Errors:
  /// Errc::unavailable (the connection broke), Errc::deadline_exceeded, Errc::protocol_error.
  Result<protocol::Reply> call(const protocol::Request& request, Deadline deadline);

  Result<> send(const protocol::Request& request, Deadline deadline);
  Result<protocol::Reply> receive(Deadline deadline);

  /// Whether it is connected and silent, as an idle channel must be. One system call.
  bool idle_and_alive() const noexcept;
  /// Whether any byte of the last request reached the socket. If not, the daemon cannot have acted on it.
  bool sent_any() const noexcept { return sent_any_; }
  /// The descriptors that came with the last reply, in order. Hold a NoFork until they are closed: a child's copies
  /// would stay open.
  UniqueFd take_descriptor(std::size_t index) noexcept;
  /// Whether nothing has been received since the last complete reply.
  bool silent() const noexcept { return in_begin_ == in_end_ && descriptor_count_ == 0; }
  std::size_t descriptor_count() const noexcept { return descriptor_count_; }

  /// The staging ring, once a SetReady has delivered it.
  struct Ring {
    shm::Mapping mapping;
    std::uint32_t bytes = 0;
    std::uint32_t piece_bytes = 0;
  };
  Ring& ring() noexcept { return ring_; }
  /// Maps the ring that a SetReady announces. Errors: Errc::protocol_error, those of mmap(2).
  Result<> adopt_ring(const protocol::SetReady& ready);

 private:
  Channel(DescriptorTable& table, std::atomic<int>* slot) noexcept;
  Result<std::size_t> receive_some(std::span<std::byte> room);
  void drop_descriptors() noexcept;
  Result<> wait_for(short events, Deadline deadline) const;
  Result<> fill(std::size_t bytes, Deadline deadline);

  DescriptorTable& table_;
  std::atomic<int>* slot_;
  int fd_;
  std::uint64_t epoch_;
  bool sent_any_ = false;
  std::vector<std::byte> out_;
  std::vector<std::byte> in_;  // received, not consumed: in_[in_begin_ .. in_end_)
  std::size_t in_begin_ = 0, in_end_ = 0;
  static constexpr std::size_t kMaxDescriptors = 2;  // segment and pin page
  struct Received {
    UniqueFd fd;
    std::atomic<int>* slot = nullptr;  // in the table; null: the table was full
  };
  std::array<Received, kMaxDescriptors> descriptors_;
  std::size_t descriptor_count_ = 0;
  Ring ring_;
};

}  // namespace stepstash::client
