// SPDX-License-Identifier: Apache-2.0
#include "daemon/flusher.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <utility>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "daemon/id_range.hpp"
#include "shm/hash.hpp"
#include "shm/validate.hpp"

namespace stepstash::daemon {
namespace {

using namespace std::chrono_literals;

/// Pages given back to the file system per step between batches: about 10 ms.
constexpr std::uint64_t kVacuumPages = 256;
/// How often a log that a reader held back is checkpointed again while the flusher is idle.
constexpr auto kCheckpointPause = 1s;

}  // namespace

Flusher::Flusher(asio::io_context& loop, shm::Segment& segment, Database& database, const Clock& clock,
                 std::chrono::milliseconds interval)
    : segment_(segment), database_(database), clock_(clock), wake_(loop), pause_(loop), interval_(interval) {}

// ---- the queue -----------------------------------------------------------------------------------------------------

std::uint64_t Flusher::mark(DirtyMark& mark, Item item, std::uint64_t bytes) {
  dirty_bytes_ += bytes - mark.bytes;  // modulo 2^64: the sum is correct when it shrinks, too
  mark.bytes = bytes;
  std::uint64_t& place = mark.in_flight ? mark.next_seq : mark.seq;
  if (place == 0) {
    place = ++last_seq_;
    queue_.emplace(place, item);
    if (queue_.size() == 1 || dirty_bytes_ >= kBatchBytes) wake_.wake();
  }
  return place;
}

std::uint64_t Flusher::mark_dirty(Node& node, std::chrono::nanoseconds since) {
  if (!node.dirty.dirty()) ++dirty_values_;
  const shm::Entry& entry = segment_.entry_at(node.block);
  return mark(node.dirty, Item{&node, nullptr, since}, entry.value_offset == 0 ? 0 : entry.length);
}

std::uint64_t Flusher::mark_dirty(BuildState& build) {
  return mark(build.dirty, Item{nullptr, &build, clock_.monotonic()}, 0);
}

void Flusher::forget(Node& node) {
  if (!node.dirty.dirty()) return;
  --dirty_values_;
  dirty_bytes_ -= node.dirty.bytes;
  std::uint64_t place = node.dirty.seq;
  if (node.dirty.in_flight) {
    Item& item = queue_.at(place);  // settle() removes it
    item.node = nullptr;
    item.heir = node.build;
    place = node.dirty.next_seq;
  }
  if (place != 0) hand_over(place, *node.build);
  node.dirty = {};
  committed_.notify_all();
}

void Flusher::hand_over(std::uint64_t place, BuildState& build) {
  std::uint64_t& own = build.dirty.in_flight ? build.dirty.next_seq : build.dirty.seq;
  if (own != 0 && own < place) {
    queue_.erase(place);
    return;
  }
  Item& item = queue_.at(place);
  item.node = nullptr;
  item.build = &build;
  if (own != 0) queue_.erase(own);
  own = place;
}

std::chrono::nanoseconds Flusher::oldest_age() const {
  if (queue_.empty()) return 0ns;
  return std::max<std::chrono::nanoseconds>(clock_.monotonic() - queue_.begin()->second.since, 0ns);
}

awaitable<Result<>> Flusher::committed(std::uint64_t place, Waiter& waiter, TimePoint deadline) {
  kick();
  while (!queue_.empty() && queue_.begin()->first <= place) {
    // No later commit is to be expected from a database that is absent.
    if (waiter.gone() || expired(deadline) || database_.absence()) co_return Errc::not_durable;
    co_await committed_.wait(waiter, deadline);
  }
  co_return success();
}

void Flusher::kick() {
  kicked_ = true;
  wake_.wake();
}

void Flusher::set_interval(std::chrono::milliseconds interval) {
  interval_ = interval;
  wake_.wake();
}

void Flusher::stop(TimePoint give_up) {
  give_up_ = give_up;
  wake_.wake();
  pause_.wake();
}

// ---- batches -------------------------------------------------------------------------------------------------------

bool Flusher::due() const { return kicked_ || give_up_ || dirty_bytes_ >= kBatchBytes || oldest_age() >= interval_; }

std::vector<Flusher::Flight> Flusher::take(persist::Batch& batch, std::vector<std::uint64_t>& entry_places,
                                           bool builds_only) {
  std::vector<Flight> flights;
  std::uint64_t bytes = 0;
  for (auto& [seq, item] : queue_) {
    if (flights.size() >= kBatchItems) break;
    if (builds_only && item.build == nullptr) continue;
    Flight flight{.seq = seq};
    if (item.node != nullptr) {
      const shm::Entry& entry = segment_.entry_at(item.node->block);
      const bool lost = entry.value_offset == 0;  // Segment::mark_lost
      const std::uint64_t length = lost ? 0 : entry.length;
      if (bytes > 0 && bytes + length > kBatchBytes) break;
      bytes += length;
      flight.block = item.node->block;
      flight.bytes = length;
      segment_.retain(flight.block);
      item.node->dirty.in_flight = true;
      persist::EntryRow row{.id = entry.id,
                            .revision = entry.revision,
                            .buildid = entry.buildid,
                            .name = shm::entry_name(entry),
                            .source = shm::entry_source(entry),
                            .value_hash = entry.value_hash,
                            .value = {},
                            .lost_bytes = lost ? entry.length : 0};
      if (!lost) row.value = shm::entry_value(entry);
      batch.entries.push_back(row);
      entry_places.push_back(seq);
    } else if (item.build != nullptr) {
      const shm::BuildRecord& record = *item.build->record;
      flight.complete_at = record.complete_at.load(std::memory_order_relaxed);  // the loop's own stores, here and below
      flight.hold = record.hold.load(std::memory_order_relaxed);
      const std::uint64_t drop_upto = record.drop_upto.load(std::memory_order_relaxed);
      // While the segment is still carrying out a deletion, its record has to stay, and entries being deleted may be
      // written once more: the build is marked again at the end.
      if (item.build->dropping == 0) flight.drop_upto = drop_upto;
      item.build->dirty.in_flight = true;
      persist::BuildRow row{.buildid = item.build->id, .complete_at = {}, .held = {}, .drop_upto = drop_upto};
      if (flight.complete_at != shm::kNotComplete) row.complete_at = flight.complete_at;
      if (flight.hold != shm::Hold::unknown) row.held = flight.hold == shm::Hold::held;
      batch.builds.push_back(row);
    }
    flights.push_back(flight);
  }
  STEPSTASH_CRASH_POINT("daemon.flush.batch.taken");
  return flights;
}

/// On the database's thread. Reads retained values in place; touches nothing else of the loop's.
Flusher::Outcome Flusher::write(persist::BackingStore& store, persist::Batch& batch,
                                const std::vector<std::uint64_t>& entry_places) {
  Outcome outcome;
  const auto start = clock_.monotonic();
  persist::Batch sound;
  sound.builds = std::move(batch.builds);
  for (std::size_t i = 0; i < batch.entries.size(); ++i) {
    const persist::EntryRow& row = batch.entries[i];
    if (row.lost_bytes > 0 || shm::hash_bytes(row.value) == row.value_hash) {
      sound.entries.push_back(row);
    } else {
      outcome.damaged.push_back(entry_places[i]);
    }
  }
  STEPSTASH_CRASH_POINT("daemon.flush.batch.verified");
  if (!sound.empty()) {
    outcome.committed = store.commit(sound);
    STEPSTASH_CRASH_POINT("daemon.flush.batch.committed");
    outcome.commit_count = store.commit_count();
  }
  outcome.duration = clock_.monotonic() - start;
  return outcome;
}

void Flusher::settle_one(const Flight& flight, bool committed, bool damaged) {
  if (flight.block != 0) segment_.unretain(flight.block);
  const auto place = queue_.find(flight.seq);
  const Item item = place->second;
  if (item.node == nullptr && item.build == nullptr) {  // forgotten in flight
    // The database may still have an older value: a wait for this place is now a wait for the deletion. The build
    // exists, because no commit has settled the deletion yet.
    if (committed && !damaged) {
      queue_.erase(place);
    } else {
      hand_over(flight.seq, *item.heir);
    }
    return;
  }
  DirtyMark& mark = item.node != nullptr ? item.node->dirty : item.build->dirty;
  mark.in_flight = false;
  if (damaged ? mark.next_seq != 0 : !committed) {
    // One place for both states, the older one: waiting for either now means waiting for both.
    if (const std::uint64_t next = std::exchange(mark.next_seq, 0); next != 0) {
      const std::uint64_t later = std::max(mark.seq, next);
      mark.seq = std::min(mark.seq, next);
      std::vector<std::uint64_t>& coalesced = queue_.at(mark.seq).coalesced;
      coalesced.push_back(later);
      coalesced.insert(coalesced.end(), queue_.at(later).coalesced.begin(), queue_.at(later).coalesced.end());
      queue_.erase(later);
    }
    return;
  }
  queue_.erase(place);
  mark.seq = std::exchange(mark.next_seq, 0);
  if (item.node != nullptr) {
    if (mark.dirty()) return;  // replaced meanwhile
    --dirty_values_;
    dirty_bytes_ -= std::exchange(mark.bytes, 0);
    if (damaged) {
      if (!committed_.empty()) {
        damaged_places_.insert(flight.seq);
        damaged_places_.insert(item.coalesced.begin(), item.coalesced.end());
      }
      on_damaged(*item.node);
      return;
    }
    segment_.mark(segment_.entry_at(item.node->block), shm::EntryState::clean);
    STEPSTASH_CRASH_POINT("daemon.flush.entry.clean");
    counters_.flushed_bytes += flight.bytes;
    ++counters_.flushed_values;
    on_clean(*item.node);
    return;
  }
  std::uint64_t dropped = flight.drop_upto;
  if (dropped != 0) {
    vacuum_due_ = true;
    // Unless more was dropped in the meantime, no row of a deleted entry is left.
    item.build->record->drop_upto.compare_exchange_strong(dropped, 0, std::memory_order_release,
                                                          std::memory_order_relaxed);
    STEPSTASH_CRASH_POINT("daemon.flush.drop.cleared");
  }
  if (!mark.dirty()) on_build_clean(*item.build);
}

/// With `builds_only`, success does not show that the database accepts values again.
void Flusher::settle(const std::vector<Flight>& flights, const Outcome& outcome, bool builds_only) {
  const bool committed = outcome.committed.has_value();
  if (!committed) {
    ++counters_.flush_errors;
    database_.report(outcome.committed, /*proof=*/false);
  } else if (outcome.commit_count) {
    ++counters_.flushes;
    database_.report(outcome.committed, /*proof=*/!builds_only || dirty_values_ == 0);
    segment_.header().commit_count.store(*outcome.commit_count, std::memory_order_release);
    STEPSTASH_CRASH_POINT("daemon.flush.commit_count.stored");
  }
  counters_.last_duration = outcome.duration;
  if (committed_.empty()) damaged_places_.clear();
  for (const Flight& flight : flights) {
    const bool damaged = std::find(outcome.damaged.begin(), outcome.damaged.end(), flight.seq) != outcome.damaged.end();
    settle_one(flight, committed, damaged);
  }
  STEPSTASH_CRASH_POINT("daemon.flush.batch.settled");
  committed_.notify_all();
  on_settled();
}

bool Flusher::ids_low() const noexcept { return IdRange(segment_.header()).low(); }

awaitable<void> Flusher::reserve_ids() {
  shm::Header& header = segment_.header();
  const IdRange ids(header);
  auto job = [at_least = ids.end()](persist::BackingStore& store) {
    return store.reserve_ids(IdRange::kCount, at_least);
  };
  const Result<std::uint64_t> first = co_await database_.write(job);
  if (!first) {
    database_.report(first.error(), /*proof=*/false);
    next_id_try_ = std::chrono::steady_clock::now() + 1s;
    co_return;
  }
  STEPSTASH_CRASH_POINT("daemon.ids.reserved");
  database_.report(success(), /*proof=*/dirty_values_ == 0);
  // Before any id of the range is used: a copy of the database without this range is recognized by its count.
  const std::uint64_t unsettled = header.commit_count.load(std::memory_order_relaxed) & shm::kUnsettled;
  header.commit_count.store(database_.commit_count() | unsettled, std::memory_order_release);
  STEPSTASH_CRASH_POINT("daemon.ids.commit_count.stored");
  ids.begin(first.value());
}

awaitable<void> Flusher::run() {
  auto backoff = 100ms;
  // On a full disk values cannot be written; the deletions that make room must not wait for them.
  bool builds_first = false;
  for (;;) {
    if (!database_.allows(Database::Use::commit)) {
      // At a stop only a file that was moved away may still come back in time.
      const bool hopeless = queue_.empty() || database_.state() != Database::State::detached;
      if (give_up_ && (hopeless || expired(*give_up_))) break;
      co_await database_.changed().wait(wake_, give_up_.value_or(TimePoint::max()));
      continue;
    }
    if (ids_low() && next_id_try_ <= std::chrono::steady_clock::now() && !give_up_) {
      co_await reserve_ids();
      continue;
    }
    if (queue_.empty()) {
      kicked_ = false;
      if (give_up_) break;
      if (vacuum_due_) {
        auto job = [](persist::BackingStore& store) -> std::uint64_t {
          auto freed = store.vacuum(kVacuumPages);
          return freed ? freed.value() : 0;
        };
        vacuum_due_ = co_await database_.write(job) > 0;
        continue;
      }
      TimePoint next = ids_low() ? next_id_try_ : TimePoint::max();
      if (database_.files().log_held_bytes > 0) {
        if (next_checkpoint_ <= std::chrono::steady_clock::now()) {
          auto job = [](persist::BackingStore& store) { return store.checkpoint(), true; };
          (void)co_await database_.write(job);
          next_checkpoint_ = std::chrono::steady_clock::now() + kCheckpointPause;
          continue;
        }
        next = std::min(next, next_checkpoint_);
      }
      co_await database_.changed().wait(wake_, next);
      continue;
    }
    if (!due()) {
      const auto left = interval_ - oldest_age();
      co_await wake_.sleep_until(std::chrono::steady_clock::now() +
                                 std::chrono::duration_cast<std::chrono::steady_clock::duration>(left));
      continue;
    }
    kicked_ = false;
    auto batch = std::make_unique<persist::Batch>();
    auto places = std::make_unique<std::vector<std::uint64_t>>();
    const bool builds_only = std::exchange(builds_first, false);
    const std::vector<Flight> flights = take(*batch, *places, builds_only);
    if (flights.empty()) {  // values only
      kicked_ = true;
      continue;
    }
    auto job = [this, &batch, &places](persist::BackingStore& store) -> Outcome {
      return write(store, *batch, *places);
    };
    const Outcome outcome = co_await database_.write(job);
    builds_first = !outcome.committed && !batch->entries.empty();
    settle(flights, outcome, builds_only);
    if (outcome.committed) {
      if (!builds_only) backoff = 100ms;
      if (!queue_.empty() && !committed_.empty()) kicked_ = true;  // waiters need more than one batch
      continue;
    }
    kicked_ = true;  // right after the pause: a waiter must not wait for the interval
    const auto now = std::chrono::steady_clock::now();
    if (give_up_ && now >= *give_up_) break;
    co_await pause_.sleep_until(give_up_ ? std::min(*give_up_, now + 100ms) : now + backoff);
    backoff = std::min(backoff * 2, 2000ms);
  }
}

}  // namespace stepstash::daemon
