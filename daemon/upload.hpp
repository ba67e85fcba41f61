// SPDX-License-Identifier: Apache-2.0
/// One connection's sets through its staging ring: pieces are copied into a draft, which grows if the length is not
/// known, and published by the commit. docs/protocol.md, "Staged sets", has the messages.
///
/// Others may end the upload while its client stalls it (daemon/upload_table.hpp): wherever the client is to act next,
/// look for row_.failure() first.
///
/// Thread safety: the loop's thread only; one call at a time. Lifetime: `services` and `link` outlive it.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "daemon/draft.hpp"
#include "daemon/link.hpp"
#include "daemon/services.hpp"
#include "daemon/tasks.hpp"
#include "daemon/upload_table.hpp"
#include "protocol/message.hpp"
#include "shm/hash.hpp"
#include "shm/mapping.hpp"

namespace stepstash::daemon {

class Upload {
 public:
  /// A set that receives nothing for this long is aborted, and one waits for more room no longer than this, whatever
  /// deadline its client gave: it occupies room that others may need.
  static constexpr auto kIdle = std::chrono::minutes(5);

  Upload(Services& services, Link& link)
      : services_(services), link_(link), row_(services.store.room().uploads(), link) {}

  /// Between SetBegin and the end of the set.
  bool under_way() const noexcept { return row_.under_way(); }
  /// Finds a ring and room, and replies; false if the connection is to end. Not while one is under way.
  awaitable<bool> begin(protocol::SetBegin begin);

  /// A piece has arrived: from here until copy() has replied to it, it is the daemon that the client waits for.
  void stop_clock() { row_.stop_clock(); }

  // The following need an upload under way, and add() and copy() a clock that stands still.

  /// Keeps a piece for copy(); true if no more may be added before that.
  bool add(const protocol::Piece& piece);
  bool has_pieces() const noexcept { return !pieces_.empty(); }
  /// Copies the pieces that were added on another thread, and replies to each; false as above.
  awaitable<bool> copy();
  /// Publishes the value. The upload ends, whatever the reply.
  awaitable<protocol::Reply> commit();

  /// Ends the upload, if there is one, and frees what it held. The connection keeps its ring.
  void abort() noexcept { row_.end(); }
  /// The connection ends: frees the ring, too.
  void close();

 private:
  struct Ring {
    UniqueFd fd;  // until it has been sent
    shm::Mapping mapping;
    bool sent = false;
  };

  Result<> make_ring();
  void start(protocol::SetBegin begin, OwnedDraft draft);
  bool known() const noexcept { return length_ != protocol::kUnknownLength; }
  protocol::Failure wrong_length(std::uint64_t bytes) const;
  template <class Job>
  awaitable<Result<>> with_pages(Job job, OwnedDraft& draft, std::uint64_t bytes);
  TimePoint growth_deadline() const;
  Result<> copy_pieces();
  awaitable<Result<>> grow(std::uint64_t needed);

  Services& services_;
  Link& link_;
  UploadTable::Row row_;
  std::optional<Ring> ring_;
  // Of the upload under way:
  protocol::SetParams params_;
  std::uint64_t length_ = 0;  // or kUnknownLength
  shm::StreamHash hash_;
  std::vector<protocol::Piece> pieces_;  // announced, not yet copied
};

}  // namespace stepstash::daemon
