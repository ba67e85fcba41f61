// SPDX-License-Identifier: Apache-2.0
/// One set whose value comes in pieces: collected here while it is small, through the staging ring when it is not.
///
/// Thread rule: one thread at a time, in the process that began it. Nothing is visible before commit; destroying it
/// forgets the value.
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
  /// A value known to be large, the daemon is asked for room at once; else when it turns out to be.
  /// `length` may be protocol::kUnknownLength. `deadline` bounds each wait for the daemon, not the whole transfer.
  static Result<std::unique_ptr<StagedSet>> begin(Client& client, protocol::SetParams params, std::uint64_t length,
                                                  Milliseconds deadline);
  ~StagedSet();
  StagedSet(const StagedSet&) = delete;
  StagedSet& operator=(const StagedSet&) = delete;

  /// Room for the next bytes, never empty. Waits until the daemon has taken enough of the earlier ones.
  /// Errors: invalid_argument when all announced bytes are there, or this is a forked child; what the daemon says of
  /// the pieces before (segment_full, condition_failed, ...); unavailable. An error is final.
  Result<std::span<std::byte>> buffer();
  /// `bytes` of the room that buffer() gave are filled in.
  Result<> advance(std::size_t bytes);
  Result<> write(std::span<const std::byte> bytes);
  /// Publishes. Errors: invalid_argument when announced bytes are missing; as buffer(). Nothing else may follow.
  Result<protocol::SetOk> commit();

  /// Whether the request to publish was sent: if not, a broken connection means that nothing has happened.
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

  std::vector<std::byte> small_;  // while nothing was sent: room for what travels inline

  std::unique_ptr<Channel> channel_;
  std::uint32_t piece_bytes_ = 0;  // the ring is used as slots of this size, in turn
  std::uint32_t slots_ = 0;
  std::uint32_t filled_ = 0;  // bytes of the current slot
  std::uint64_t sent_pieces_ = 0, done_pieces_ = 0;
  bool open_at_daemon_ = false;
  bool ready_pending_ = false;  // SetBegin was sent, and its answer not read yet
};

/// Sets a value of any length from memory. Repeated as a whole when the connection breaks, if that cannot hurt.
Result<protocol::SetOk> set_value(Client& client, const protocol::SetParams& params, std::span<const std::byte> value,
                                  Milliseconds deadline);

}  // namespace stepstash::client
