// SPDX-License-Identifier: Apache-2.0
/// A daemon scripted entirely by a test: for behaviour that a real one shows rarely, late or never.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/unique_fd.hpp"
#include "protocol/frame.hpp"
#include "shm/layout.hpp"
#include "shm/mapping.hpp"
#include "tests/support/temp_dir.hpp"

namespace stepstash::test {

/// A segment with a few hand-made entries, and pin pages for it.
class FakeSegment {
 public:
  explicit FakeSegment(std::uint8_t id);

  /// Adds an entry; evicted ones have no value in the segment. Offsets only increase, so nothing is reused.
  void put(BuildId build, std::string_view name, std::string_view value, bool evicted = false);
  /// Makes the index slot of this key point outside the heap.
  void damage(BuildId build, std::string_view name);

  int fd() const noexcept { return fd_.get(); }
  const shm::SegmentId& id() const noexcept { return header().segment_id; }
  std::uint64_t bytes() const noexcept { return mapping_.size(); }
  /// A new pin page; its mapping is kept for inspection.
  int make_page();
  shm::PinPage& page(std::size_t index) {
    const std::lock_guard lock(mutex_);
    return *reinterpret_cast<shm::PinPage*>(pages_[index].data());
  }
  std::size_t pages() const {
    const std::lock_guard lock(mutex_);
    return pages_.size();
  }

 private:
  shm::Header& header() const noexcept { return *reinterpret_cast<shm::Header*>(mapping_.data()); }
  std::atomic<shm::Slot>& slot_of(BuildId build, std::string_view name) noexcept;

  UniqueFd fd_;
  shm::Mapping mapping_;
  shm::Offset next_;
  mutable std::mutex mutex_;  // protects the pages: connections create them, tests inspect them
  std::vector<UniqueFd> page_fds_;
  std::vector<shm::Mapping> pages_;
};

class FakeDaemon {
 public:
  /// One accepted connection, for the script. Every call throws std::runtime_error("gone") once the client has hung up.
  class Peer {
   public:
    explicit Peer(int fd) : fd_(fd) {}
    protocol::Request read();
    /// The bytes of `Set` requests stay valid until the next read().
    void send(const protocol::Reply& reply, std::initializer_list<int> descriptors = {});
    void send_bytes(std::span<const std::byte> bytes, std::initializer_list<int> descriptors = {});
    void close() { fd_.reset(); }

   private:
    UniqueFd fd_;
    std::vector<std::byte> payload_;
  };
  using Script = std::function<void(Peer&)>;

  /// Runs the script for each connection, on a separate thread, until the script returns.
  FakeDaemon();
  ~FakeDaemon();

  /// Sets the script for later connections.
  void serve(Script script);
  /// Answers a Hello as a daemon with `segment` does; resumes if requested and possible.
  static void greet(Peer& peer, FakeSegment& segment);
  static void answer_hello(Peer& peer, const protocol::Hello& hello, FakeSegment& segment);

  /// Closes and removes the listening socket, as a daemon that exits; listen() opens it again.
  void stop_listening();
  void listen();
  const std::string& socket() const noexcept { return socket_; }
  int connections() const noexcept { return connections_.load(); }

 private:
  void accept();

  TempDir directory_;
  std::string socket_;
  UniqueFd listener_;
  UniqueFd wake_;
  std::thread acceptor_;
  std::mutex mutex_;
  Script script_;
  std::vector<std::thread> servers_;
  std::vector<int> peers_;  // their descriptors, to hang up at the end
  std::atomic<int> connections_{0};
};

/// A sealed memfd, as a daemon creates it for a staging ring.
UniqueFd make_ring(std::size_t bytes, bool sealed = true);

}  // namespace stepstash::test
