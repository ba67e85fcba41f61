// SPDX-License-Identifier: Apache-2.0
/// The uploads of all connections: what each one holds, which of them others may end, and how many staging rings exist.
///
/// A set through a staging ring holds room and a ring for as long as its client takes to send the value, and others may
/// need both. So each upload has a stall budget:
///
///   1. Its clock runs while the daemon waits for the client. It stands still from the arrival of a piece until that
///      piece has been copied: time in which the daemon holds the client back, for lack of room for example, is free.
///   2. The budget is kBudget at the start. The clock uses it up, and each MiB copied gives back a second, up to
///      kBudget. Other requests that the client sends meanwhile give back nothing.
///   3. Over budget, an upload is stalled. Nothing happens to it until somebody finds no room (abort_stalled) or no
///      ring (free_ring). Then it is aborted: its draft is freed at once, and the failure stays for its owner, who
///      sends it with the next piece or the commit.
///   4. A ring goes with its connection alone, because the client has it mapped. free_ring() therefore closes a
///      connection: an idle one, whose client connects again when it needs to, otherwise one whose upload is stalled or
///      has failed.
///   5. Candidates are looked at in the order in which they connected. Thousands may look for one, so after a look
///      without success the next one of the same kind is kLookAgain later.
///
/// Thread safety: the loop's thread only; but while the clock stands still nobody ends the upload, and a copier's
/// thread may use the draft. Lifetime: outlives all rows.
#pragma once

#include <chrono>
#include <cstdint>
#include <list>
#include <optional>

#include "base/clock.hpp"
#include "base/result.hpp"
#include "daemon/draft.hpp"
#include "daemon/link.hpp"
#include "daemon/tasks.hpp"
#include "protocol/message.hpp"

namespace stepstash::daemon {

class UploadTable {
 public:
  static constexpr std::chrono::nanoseconds kBudget = std::chrono::seconds(5);
  static constexpr std::uint64_t kBytesPerSecond = std::uint64_t{1} << 20;
  static constexpr auto kLookAgain = std::chrono::milliseconds(100);

  /// One connection's row: its upload, if there is one, and whether it has a ring.
  class Row {
   public:
    /// `link` outlives it.
    Row(UploadTable& table, Link& link);
    Row(const Row&) = delete;
    Row& operator=(const Row&) = delete;
    ~Row();

    /// An upload begins, and its clock starts.
    void begin(OwnedDraft draft);
    bool under_way() const noexcept { return upload_.has_value(); }
    void stop_clock();
    /// The following need an upload under way.
    OwnedDraft& draft() noexcept { return upload_->draft; }
    std::uint64_t bytes() const noexcept { return upload_->bytes; }
    const std::optional<protocol::Failure>& failure() const noexcept { return upload_->failure; }
    /// `bytes` more are in the draft.
    void add(std::uint64_t bytes);
    void start_clock();
    /// Frees the draft; failure() is `why` from now on.
    void fail(protocol::Failure why);
    /// No upload is under way any more; what is left of its draft is freed. Also when there is none.
    void end() noexcept { upload_.reset(); }

    bool has_ring() const noexcept { return has_ring_; }
    void set_ring(bool has_ring);

   private:
    friend class UploadTable;
    struct State {
      OwnedDraft draft;
      std::uint64_t bytes = 0;
      std::optional<std::chrono::nanoseconds> stalled_since;  // unset: the clock stands still
      std::chrono::nanoseconds budget = kBudget;
      std::optional<protocol::Failure> failure;
    };

    bool abort_if_stalled();
    bool free_draft();
    bool free_idle_ring();
    bool free_stalled_ring();

    UploadTable& table_;
    Link& link_;
    const std::list<Row*>::iterator at_;
    std::optional<State> upload_;
    bool has_ring_ = false;
  };

  /// `clock` outlives it.
  explicit UploadTable(const Clock& clock) : clock_(clock) {}
  UploadTable(const UploadTable&) = delete;
  UploadTable& operator=(const UploadTable&) = delete;

  /// Aborts a stalled upload and frees its draft; false if there is none.
  bool abort_stalled();
  /// Closes a connection for its ring; false if there is none that may be closed. The ring counts until the connection
  /// has ended.
  bool free_ring();
  /// Waits until there are fewer than `most` rings, or a connection has been closed for its ring.
  /// Errors: too_many, at the deadline and when the client is gone; shutting_down.
  awaitable<Result<>> wait_for_ring(std::uint64_t most, Waiter& waiter, TimePoint deadline);

  std::uint64_t rings() const noexcept { return rings_; }

 private:
  /// When to look for something again.
  using NextLook = std::chrono::nanoseconds;
  bool look(NextLook& next, bool (Row::*free)());

  const Clock& clock_;
  std::list<Row*> rows_;  // in the order in which they connected
  std::uint64_t rings_ = 0;
  WaitList ring_ended_;
  NextLook next_idle_{0};
  NextLook next_stalled_{0};
  NextLook next_abort_{0};
};

}  // namespace stepstash::daemon
