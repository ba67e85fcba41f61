// SPDX-License-Identifier: Apache-2.0
/// A set whose value comes in pieces: buffered here while it is small, sent through the staging ring otherwise.
///
/// Thread rule: one thread at a time, in the process that began it. Nothing is visible before commit; the destructor
/// discards the value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "libclient/client.hpp"

namespace stepstash::client {

class StagedSet {
 public:
  /// For a value known to be large, asks the daemon for room at once; otherwise when the value turns out to be large.
  /// `length` may be protocol::kUnknownLength. `deadline` bounds each wait for the daemon, not the whole transfer.
  static Result<std::unique_ptr<StagedSet>> begin(Client& client, protocol::SetParams params, std::uint64_t length,
                                                  Milliseconds deadline);
  ~StagedSet();
  StagedSet(const StagedSet&) = delete;
  StagedSet& operator=(const StagedSet&) = delete;

  /// Room for the next bytes, never empty. Waits until the daemon has taken enough of the earlier ones. Errors:
  /// invalid_argument if all announced bytes are there or this is a forked child; the daemon's errors for earlier
  /// pieces (segment_full, condition_failed, ...); unavailable. Any error is final.
  Result<std::span<std::byte>> buffer();
  /// Marks `bytes` of the room from buffer() as filled.
  Result<> advance(std::size_t bytes);
  Result<> write(std::span<const std::byte> bytes);
  /// Publishes the value. Errors: invalid_argument if announced bytes are missing; as buffer(). Must be the last call.
  Result<protocol::SetOk> commit();

  /// Whether the commit request was sent. If not, nothing has been published when a connection breaks.
  bool commit_sent() const noexcept { return commit_sent_; }
  std::uint64_t total() const noexcept { return total_; }

 private:
  StagedSet(Client& client, protocol::SetParams params, std::uint64_t length, Milliseconds deadline);
  Result<> open_ring();
  Result<> send_piece();
  Result<> send(const protocol::Request& request);
  Result<protocol::Reply> receive();
  Result<> receive_done();
  Result<> on_ready(const protocol::Reply& reply);
  Result<> usable() const;
  std::error_code fail(std::error_code error) noexcept;
  void abort() noexcept;
  std::uint64_t missing() const noexcept { return length_ - total_; }

  Client& client_;
  const protocol::SetParams params_;
  const std::uint64_t length_;
  const Milliseconds deadline_;
  const std::uint64_t epoch_;
  std::uint64_t total_ = 0;
  std::error_code error_;
  bool commit_sent_ = false;

  std::vector<std::byte> small_;  // while nothing was sent: a value that may still be sent inline

  std::unique_ptr<Channel> channel_;
  std::uint32_t piece_bytes_ = 0;  // slot size: the ring's slots are used in turn
  std::uint32_t slots_ = 0;
  std::uint32_t filled_ = 0;  // bytes of the current slot
  std::uint64_t sent_pieces_ = 0, done_pieces_ = 0;
  bool open_at_daemon_ = false;
  bool ready_pending_ = false;  // SetBegin was sent, its answer not read yet
};

/// Sets a value of any length from memory. If the connection breaks, repeats the whole set where that is safe.
Result<protocol::SetOk> set_value(Client& client, const protocol::SetParams& params, std::span<const std::byte> value,
                                  Milliseconds deadline);

}  // namespace stepstash::client
