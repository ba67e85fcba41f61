// SPDX-License-Identifier: Apache-2.0
/// Build data: set, get, list, finish, prune, drop, hold. The one place where segment and database meet.
///
/// Every acknowledged operation is a fact in the segment before its call returns; the flusher takes it to the database.
/// What a value needs that the loop must not do (reserving and filling large blocks, SQLite) is done by callers on
/// other threads, between reserve() and commit().
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "base/result.hpp"
#include "daemon/catalog.hpp"
#include "daemon/flusher.hpp"
#include "daemon/listing.hpp"
#include "daemon/room_queue.hpp"
#include "daemon/tasks.hpp"
#include "persist/backing_store.hpp"
#include "protocol/message.hpp"
#include "shm/writer.hpp"

namespace stepstash::daemon {

/// An amount that counts in a sum while this lives.
class Share {
 public:
  Share() = default;
  Share(Share&& other) noexcept : sum_(std::exchange(other.sum_, nullptr)), amount_(std::exchange(other.amount_, 0)) {}
  Share& operator=(Share&& other) noexcept {
    if (this != &other) {
      reset();
      sum_ = std::exchange(other.sum_, nullptr);
      amount_ = std::exchange(other.amount_, 0);
    }
    return *this;
  }
  ~Share() { reset(); }
  void set(std::uint64_t& sum, std::uint64_t amount) noexcept {
    reset();
    sum_ = &sum;
    amount_ = amount;
    sum += amount;
  }
  void reset() noexcept {
    if (sum_ != nullptr) *std::exchange(sum_, nullptr) -= std::exchange(amount_, 0);
  }

 private:
  std::uint64_t* sum_ = nullptr;
  std::uint64_t amount_ = 0;
};

/// A block for a value in the making; discarded unless it was published. Loop's thread only.
class OwnedDraft {
 public:
  OwnedDraft() = default;
  OwnedDraft(shm::Writer& segment, shm::Draft draft) : segment_(&segment), draft_(draft) {}
  OwnedDraft(OwnedDraft&& other) noexcept
      : segment_(std::exchange(other.segment_, nullptr)),
        draft_(other.draft_),
        staged_(std::move(other.staged_)),
        promised_(std::move(other.promised_)) {}
  OwnedDraft& operator=(OwnedDraft&& other) noexcept {
    if (this != &other) {
      reset();
      segment_ = std::exchange(other.segment_, nullptr);
      draft_ = other.draft_;
      staged_ = std::move(other.staged_);
      promised_ = std::move(other.promised_);
    }
    return *this;
  }
  ~OwnedDraft() { reset(); }

  explicit operator bool() const noexcept { return segment_ != nullptr; }
  shm::Draft& operator*() noexcept { return draft_; }
  shm::Draft* operator->() noexcept { return &draft_; }
  shm::Draft release() noexcept {
    segment_ = nullptr;
    staged_.reset();
    promised_.reset();
    return draft_;
  }
  void reset() noexcept {
    if (segment_ != nullptr) std::exchange(segment_, nullptr)->discard(draft_);
    staged_.reset();
    promised_.reset();
  }
  /// Has its capacity, as it is now, counted in `sum` while it lives.
  void count_in(std::uint64_t& sum) noexcept { staged_.set(sum, draft_.capacity); }
  /// Has the pages that the first `bytes` bytes of its value lack now counted in `sum` while it lives.
  void promise(std::uint64_t& sum, std::uint64_t bytes) noexcept {
    promised_.set(sum, segment_->unreserved_bytes(draft_, std::min(bytes, draft_.capacity)));
  }

 private:
  shm::Writer* segment_ = nullptr;
  shm::Draft draft_;
  Share staged_;
  Share promised_;
};

/// Thread safety: the loop's thread only. Lifetime: all it refers to outlives it.
class Store {
 public:
  struct Limits {
    std::uint64_t max_dirty = 0;               ///< bytes that may wait for the database
    std::chrono::milliseconds punch_after{0};  ///< free memory goes back to the system after this
    std::optional<std::chrono::milliseconds> horizon;
  };
  struct Counters {
    std::uint64_t sets = 0;
    std::uint64_t asked = 0;  ///< gets that asked the daemon
    std::uint64_t reloads = 0;
    std::uint64_t reload_errors = 0;
    std::uint64_t evictions = 0;
    std::uint64_t moves = 0;  ///< records that made way for a large value
    std::uint64_t pruned = 0;
    std::uint64_t dropped = 0;
    std::uint64_t finishes = 0;
    std::uint64_t room_tries = 0;    ///< looks for room for a value, in vain or not
    std::uint64_t users_closed = 0;  ///< times that a user held more than his share
  };

  Store(asio::io_context& loop, Catalog& catalog, shm::Writer& segment, persist::BackingStore& database,
        Flusher& flusher, const Clock& clock, Limits limits);

  /// Builds the catalogue from the segment and queues what is dirty. Call once, before anything else.
  /// `all_dirty`: the database is not the one that "clean" speaks of. O(entries).
  /// `lost`: entries whose values the database knows to be damaged.
  void adopt(bool all_dirty, const std::vector<persist::StoredEntry>& lost = {});

  // ---- setting ----

  /// Finds room for a value of `length` bytes, waiting for evictions and flushes until `deadline`. The tmpfs has the
  /// pages for it beyond what other sets were promised, but they are not reserved yet. Errors: invalid_argument,
  /// too_large (at once), segment_full, ENOSPC, dirty_limit, condition_failed.
  awaitable<Result<OwnedDraft>> reserve(const protocol::SetParams& params, std::uint64_t length, Waiter& waiter,
                                        TimePoint deadline);
  /// Makes the draft larger where it is; false when there is no room behind it.
  Result<bool> extend(OwnedDraft& draft, std::uint64_t length);
  /// Called where somebody waits for room: gives back that of a set whose client does not fill it; false when there is
  /// none.
  std::function<bool()> shed_set;
  /// Publishes a filled block: from here on every process sees it. With params.durable waits for the commit.
  awaitable<Result<protocol::SetOk>> commit(const protocol::SetParams& params, OwnedDraft draft, std::uint64_t length,
                                            std::uint64_t value_hash, Waiter& waiter, TimePoint deadline);
  /// All of it for a value that is small enough to be copied on the loop.
  awaitable<Result<protocol::SetOk>> set(const protocol::SetParams& params, std::span<const std::byte> value,
                                         Waiter& waiter, TimePoint deadline);

  /// After reserving pages met `error`: waits until it is worth trying again, as a set waits for room in the segment:
  /// what is clean is evicted, pages go back, the flusher is kicked. `bytes`: what the tmpfs lacks besides what drafts
  /// were promised. Errors: `error`, where it is not ENOSPC, at the deadline, and when the client is gone.
  awaitable<Result<>> wait_for_pages(std::error_code error, std::uint64_t bytes, Waiter& waiter, TimePoint deadline);
  /// Counts the pages that the first `length` bytes of a draft's value still lack as promised to it.
  void promise_pages(OwnedDraft& draft, std::uint64_t length) { draft.promise(promised_pages_, length); }

  // ---- reading ----

  /// Brings an evicted value back, once however many ask. Errors: not_found, corrupt_value, segment_full, the
  /// database's.
  awaitable<Result<>> load(BuildId build, const std::string& name, Waiter& waiter, TimePoint deadline);
  /// Waits until the name is there. Errors: deadline_exceeded.
  awaitable<Result<>> wait(BuildId build, const std::string& name, Waiter& waiter, TimePoint deadline);
  /// One page, in id order. O(log entries of the build + page). A list that takes more than one is kept in `listing`,
  /// which is the connection's, and its next pages are of the same instant. Errors: deadline_exceeded: it was cut off.
  Result<protocol::ListPage> list(const protocol::List& request, Listings::Handle& listing);
  /// One page, in the order of the builds' numbers, as of one instant. O(log builds + page).
  protocol::BuildsPage builds(const protocol::Builds& request) const;

  // ---- builds ----

  Result<std::int64_t> finish(BuildId build, std::optional<std::int64_t> complete_at);
  /// Deletes what all the builds hold at one instant; returns how many entries that were. Waits until the database has
  /// said what it knows of the builds that there are now.
  awaitable<Result<std::uint64_t>> prune(std::int64_t older_than, Waiter& waiter, TimePoint deadline);
  /// Deletes what is there now; what is set meanwhile stays. Returns how many entries went, when all of them have.
  awaitable<Result<std::uint64_t>> drop(BuildId build);
  Result<> hold(BuildId build, bool held);

  // ---- upkeep ----

  /// Frees what nobody looks at any more, and gives memory back. Call it a few times a second.
  void maintain();
  /// Prunes builds complete for longer than the horizon, unless that is being done already; what stays undone is done
  /// the next time.
  awaitable<void> prune_expired();
  void set_limits(Limits limits) { limits_ = limits; }
  void stop_threads() {
    stopping_ = true;
    loader_.join();
  }

  const Counters& counters() const noexcept { return counters_; }
  /// The values that are damaged now, a line each, in id order.
  std::vector<std::string> damaged() const;
  /// A sentence with the numbers that make `error` understandable; `length` is the value's.
  std::string explain(std::error_code error, std::uint64_t length) const;

  /// What the views of each user keep in place; not older than ten times as long as finding it out takes.
  const std::vector<shm::Writer::Held>& held();

  std::uint64_t resident_values() const noexcept { return catalog_.nodes().size() - evicted_; }
  std::uint64_t evicted_values() const noexcept { return evicted_; }
  /// The longest value that there could be room for.
  std::uint64_t max_value_bytes() const noexcept;
  /// What the segment's tmpfs had at the last tick.
  const shm::Heap::FileSystem& tmpfs() const noexcept { return tmpfs_; }
  /// Bytes that sets under way have reserved.
  std::uint64_t staged_bytes() const noexcept { return staged_bytes_; }
  const Listings& listings() const noexcept { return *listings_; }
  const Limits& limits() const noexcept { return limits_; }

 private:
  Result<> check(const protocol::SetParams& params) const;
  Result<> check_condition(const protocol::SetParams& params) const;
  Result<std::uint64_t> next_id();
  Result<BuildState*> ensure_build(BuildId build, bool spare);
  /// Waits until there is room; `dirty_bytes` is what the value will add to what waits for the database.
  awaitable<Result<OwnedDraft>> find_room(BuildId build, std::string_view name, std::string_view source,
                                          std::uint64_t length, std::uint64_t dirty_bytes, Waiter& waiter,
                                          TimePoint deadline);
  /// One try: draft, reclaim, evict a bounded number, draft again.
  Result<shm::Draft> try_draft(BuildId build, std::string_view name, std::string_view source, std::uint64_t length);
  /// Evicts values from the front of the use lists, a bounded number, until `bytes` are retired, and some more ahead so
  /// that the next sets need not scan the pin pages; returns whether any went. `for_pages`: the tmpfs lacks them.
  bool evict_some(std::uint64_t bytes, bool for_pages);
  void note_hints();
  /// Closes the pages of the user whose views keep most of the segment in place, if that is more than his share, and he
  /// is not the one who wants room; returns whether that was done.
  bool close_greediest(std::uint32_t for_user);
  /// What values have room in, whoever holds it: the smaller of the heap and its tmpfs.
  std::uint64_t room_in_all() const noexcept;
  /// Opens those of users who have released enough.
  void open_modest();
  /// After a commit or a deletion: reclaims what is free now at once, where the scan is cheap, else when it is due.
  void reclaim_after();
  /// Reclaims; where the last scan found nothing, for at most a tenth of the loop's time.
  bool reclaim_again();
  /// Free memory is enough for a block of `bytes` bytes, but scattered: clears the run that costs least, a bounded part
  /// of it at a time. O(blocks), and after it found no run not tried again at once.
  enum class Cleared {
    ahead,
    nothing,    // no run can be cleared now, by whatever eviction
    unchanged,  // there is a run, but nothing in it went
  };
  Cleared clear_run(std::uint64_t bytes);
  /// No value can be evicted, and records lie scattered, each of which keeps a granule's pages: moves records together,
  /// a bounded part of them at a time. False where the tmpfs gets nothing of it. O(blocks), and after it was in vain
  /// not tried again at once.
  bool clear_granules();
  /// Evicts the entry's value, or moves its record, to where keep_clear() allows; false where there is no room for the
  /// record.
  bool move_away(Node& node);
  /// The entry is this record now: its value was evicted, or it made way for another.
  void note_moved(Node& node, const shm::Entry& record, bool evicted);
  bool may_evict() const;
  /// Evicts and reclaims, a bounded part of it at a time; with `give_back` pages return to the tmpfs, first those of
  /// memory that is free anyway. False when nothing can go.
  bool free_pages(std::uint64_t bytes, bool give_back);
  /// Bytes that the tmpfs lacks for `bytes` more besides what drafts were promised.
  std::uint64_t lacking_pages(std::uint64_t bytes) const noexcept;
  /// The one way to wait for room, after a try that failed with `why`: returns when it is worth trying again, at once
  /// where `way_was_made`. Errors: `why`, at the deadline and when the client is gone.
  awaitable<Result<>> wait_for_room(std::error_code why, std::uint64_t bytes, bool way_was_made, Waiter& waiter,
                                    TimePoint deadline);
  awaitable<void> wait_for_slot(Waiter& waiter, TimePoint deadline);
  /// Changes with everything that makes room.
  std::uint64_t way_made() const noexcept { return counters_.evictions + counters_.moves + given_back_; }
  Result<const shm::Entry*> publish(const protocol::SetParams& params, OwnedDraft draft, std::uint64_t length,
                                    std::uint64_t value_hash, std::uint64_t& place);
  /// Deletes what the builds hold now, at one instant, before it yields; returns how many entries that were, when all
  /// have left the index. Each has entries, or a deletion under way.
  awaitable<std::uint64_t> delete_builds(std::vector<BuildState*> builds);
  static bool prunable(const BuildState& build, std::int64_t older_than) noexcept;
  /// The entry as of now: none while it is being deleted.
  const shm::Entry* current(BuildId build, std::string_view name) const noexcept;
  void set_complete(BuildState& build, std::int64_t complete_at);
  /// When it completed on the clock that nobody can set.
  std::int64_t on_boot_clock(std::int64_t complete_at) const;
  /// The wall time, as far as it is believed about how long ago something was: a clock may have jumped ahead, since
  /// the start or while the machine was off.
  std::int64_t believed_wall() const;
  void forget_node(Node& node);
  void ask_database(BuildState& build);
  awaitable<void> merge_from_database(BuildId build, std::uint64_t question);
  /// An evicted entry as it was when its reload began.
  struct Reload {
    explicit Reload(const shm::Entry& record);
    std::string name;
    std::string source;
    shm::Writer::EntryFacts facts;  // its texts are set once this has come to rest
  };
  awaitable<void> reload(Reload what, OwnedDraft draft);
  void release_build_if_idle(BuildState& build);
  void on_damaged(Node& node);
  void remember_damage(const shm::Entry& entry);

  asio::io_context& loop_;
  Catalog& catalog_;
  shm::Writer& segment_;
  persist::BackingStore& database_;
  Flusher& flusher_;
  const Clock& clock_;
  Limits limits_;
  std::chrono::nanoseconds start_on_boot_clock_;
  std::int64_t wall_at_start_;  // or when the database had been written to last, if the clock says more
  asio::thread_pool loader_{1};
  RoomQueue room_;
  WaitList merged_;
  WaitList loaded_;
  std::map<std::uint64_t, std::error_code> load_failures_;  // by id, while somebody waits
  std::map<std::pair<BuildId, std::string>, WaitList> awaited_;
  bool pruning_ = false;
  bool stopping_ = false;            // nothing more for the loader
  std::set<std::uint64_t> merging_;  // questions to the database that are under way
  std::uint64_t last_question_ = 0;
  std::vector<BuildId> unanswered_;  // builds that the database could not be asked about
  std::chrono::nanoseconds ask_again_{0};
  std::chrono::nanoseconds next_rekey_{0};
  std::uint64_t evicted_ = 0;
  std::uint64_t staged_bytes_ = 0;
  std::chrono::nanoseconds next_hints_{0};
  std::chrono::nanoseconds next_scan_{0};
  std::uint64_t promised_pages_ = 0;  // bytes that drafts lack, in whole granules
  std::uint64_t given_back_ = 0;      // bytes, to make room for something
  shm::Heap::FileSystem tmpfs_;
  std::chrono::nanoseconds next_census_{0};
  std::vector<shm::Writer::Held> held_;
  std::map<std::uint32_t, std::uint64_t> closed_at_;  // users whose pages are closed: what they held then
  std::chrono::nanoseconds next_walk_{0};             // clear_run's, for as much as the last one found nothing for
  std::uint64_t walked_for_ = 0;
  std::chrono::nanoseconds next_granules_{0};  // clear_granules's walk
  std::shared_ptr<Listings> listings_;
  Counters counters_;
  std::map<std::uint64_t, std::string> damaged_;  // by id, until it is set anew or deleted
};

}  // namespace stepstash::daemon
