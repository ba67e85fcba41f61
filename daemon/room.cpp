// SPDX-License-Identifier: Apache-2.0
#include "daemon/room.hpp"

#include <algorithm>
#include <optional>

#include "base/errc.hpp"
#include "shm/layout.hpp"
#include "shm/validate.hpp"

namespace stepstash::daemon {
namespace {

/// A scan of this many pin pages takes less than a tenth of a millisecond.
constexpr std::size_t kFewPages = 64;
/// After a scan of all pin pages that found nothing, the loop runs other work for this many times as long.
constexpr int kScanPause = 9;
/// How often a set retries when the index has no slot for its key.
constexpr auto kSlotPause = std::chrono::milliseconds(20);
/// Reclaim steps per event-loop turn for a small value.
constexpr int kStepsAtOnce = 4;

}  // namespace

Room::Room(Catalog& catalog, shm::Segment& segment, Database& database, Flusher& flusher, const Clock& clock,
           Limits limits)
    : segment_(segment),
      database_(database),
      flusher_(flusher),
      clock_(clock),
      limits_(limits),
      evictor_(catalog, segment, clock),
      shares_(segment, clock),
      uploads_(clock),
      tmpfs_(segment.heap().file_system()) {}

// ---- reclaiming ----------------------------------------------------------------------------------------------------

/// The memory that values share, whichever user holds it: the smaller of the heap and its tmpfs.
std::uint64_t Room::total() const noexcept {
  const std::uint64_t capacity = segment_.heap().capacity();
  return tmpfs_.bounded() ? std::min(capacity, tmpfs_.total) : capacity;
}

std::uint64_t Room::max_value_bytes() const noexcept {
  return tmpfs_.bounded() ? segment_.max_value_bytes_on(tmpfs_.total) : segment_.max_value_bytes();
}

/// Bytes that the tmpfs lacks for `bytes` more on top of what drafts were promised.
std::uint64_t Room::lacking_pages(std::uint64_t bytes) const noexcept {
  const shm::Heap::FileSystem now = segment_.heap().file_system();
  const std::uint64_t needed = promised_pages_ + bytes;
  return now.bounded() && needed > now.free ? needed - now.free : 0;
}

std::uint64_t Room::punch() {
  const std::uint64_t given = segment_.heap().punch(clock_.monotonic(), Evictor::kPunchAtOnce);
  given_back_ += given;
  return given;
}

/// One bounded step of eviction and reclaim; with `give_back` pages return to the tmpfs, first those of memory that is
/// already free. False when nothing can go.
bool Room::free_pages(std::uint64_t bytes, bool give_back) {
  // First what was freed a moment ago: it still has its pages, and may lie elsewhere.
  const std::uint64_t given = give_back ? punch() : 0;
  if (given >= bytes) return true;
  if (!may_evict() || !evictor_.evict(bytes - given, give_back)) {
    return (give_back && evictor_.compact_records()) || given > 0;
  }
  segment_.reclaim_new();
  if (give_back) punch();
  return true;
}

bool Room::free_for_record(std::error_code error) { return free_pages(shm::kPageBytes, error != Errc::segment_full); }

/// Scans all pin pages again; if the last scan found nothing, for at most a tenth of the loop's time.
bool Room::rescan() {
  const auto start = clock_.monotonic();
  if (start < next_rescan_) return false;
  if (segment_.reclaim() > 0) return true;
  const auto now = clock_.monotonic();
  next_rescan_ = now + kScanPause * (now - start);
  return false;
}

void Room::freed() {
  if (segment_.pins().pages() <= kFewPages) {
    segment_.reclaim();
  } else {
    segment_.reclaim_if_due();
  }
  queue_.notify_all();
}

void Room::maintain() {
  const auto now = clock_.monotonic();
  if (segment_.reclaim() > 0) queue_.notify_all();
  shares_.reopen(total());
  segment_.heap().punch(now - limits_.punch_after, Evictor::kPunchAtOnce);
  tmpfs_ = segment_.heap().file_system();
}

// ---- a draft -------------------------------------------------------------------------------------------------------

/// One try: draft, reclaim, a bounded number of steps, draft again.
Result<shm::Draft> Room::try_draft(const Wanted& value) {
  std::uint64_t wanted = value.length;
  const bool large = value.length >= shm::kPageAlignedFrom;
  const auto attempt = [&]() -> Result<shm::Draft> {
    if (auto slot = segment_.ensure_slot(value.build, value.name); !slot) {
      wanted = std::max(value.length, 2 * segment_.index().slots() * sizeof(shm::Slot));
      return slot.error();
    }
    // A value needs room in both the segment and its tmpfs; memory that was used before has its pages already. Check
    // first: draft() would otherwise reserve pages and give them back again and again.
    const std::uint64_t unreserved = segment_.unreserved_for(value.name, value.source, value.length);
    const std::uint64_t lacking = unreserved == 0 ? 0 : lacking_pages(unreserved);
    if (lacking == 0) return segment_.draft(value.name, value.source, value.length);
    wanted = lacking;
    return std::make_error_code(std::errc::no_space_on_device);
  };
  // A full tmpfs counts as a full segment: evicted values give their pages back.
  const auto full = [](const Result<shm::Draft>& draft) {
    return !draft && (draft.error() == Errc::segment_full || draft.error() == std::errc::no_space_on_device);
  };
  auto draft = attempt();
  if (full(draft) && segment_.worth_reclaiming() && segment_.reclaim_new() > 0) draft = attempt();
  const auto reclaim_step = [&] {
    // The value's record, name, source and padding come on top.
    const std::uint64_t block = shm::round_up(wanted, shm::kPageBytes) + 2 * shm::kPageBytes;
    const bool scattered = draft.error() == Errc::segment_full && segment_.heap().free_bytes() >= block;
    // A small value is not worth a walk over all blocks while something can be evicted.
    if (large && scattered) {
      const Evictor::Compacted compacted = evictor_.compact(block, may_evict());
      if (compacted == Evictor::Compacted::progress) return true;
      // If views block every run, what only closed pages hold can still be written off.
      if (compacted == Evictor::Compacted::impossible && segment_.pins().closed().empty()) return false;
    }
    if (free_pages(wanted, draft.error() != Errc::segment_full)) return true;
    return !large && scattered && evictor_.compact(block, may_evict()) == Evictor::Compacted::progress;
  };
  // A large value yields the loop after each step.
  for (int steps = large ? 1 : kStepsAtOnce; steps > 0 && full(draft) && reclaim_step(); --steps) draft = attempt();
  // A scan that was not worthwhile before is worthwhile when nothing else helps.
  if (full(draft) && rescan()) draft = attempt();
  return draft;
}

awaitable<Result<OwnedDraft>> Room::find(Wanted wanted, Waiter& waiter, TimePoint deadline) {
  const RoomQueue::Wish wish{wanted.length, wanted.dirty_bytes};
  std::optional<RoomQueue::Place> place;
  for (;;) {
    std::error_code why = queue_.why();
    if (place || !queue_.passes_over(wish)) {
      // One value may exceed the limit if nothing else waits: it could never be set otherwise.
      const bool limited = wanted.dirty_bytes != 0 && flusher_.dirty_bytes() != 0 &&
                           flusher_.dirty_bytes() + wanted.dirty_bytes > limits_.max_dirty;
      why = Errc::dirty_limit;
      if (!limited) {
        // After a restart, what an earlier daemon had written off counts again, and everything in the stand-in would
        // have to go before there is room.
        const shm::Heap& heap = segment_.heap();
        if (heap.free_bytes() == 0 && heap.stand_in_used_bytes() > heap.written_off()) (void)close_greediest(waiter);
        const std::uint64_t before = progress();
        ++counters_.tries;
        auto draft = try_draft(wanted);
        if (draft) {
          OwnedDraft found(segment_, draft.value());
          promise_pages(found, wanted.length);
          co_return found;
        }
        why = draft.error();
        if (waiter.gone() || expired(deadline)) co_return why;
        if (why == Errc::too_many) {  // not a lack of room: others may find theirs
          place.reset();
          if (waiter.dismissed()) co_return Errc::shutting_down;
          co_await waiter.sleep_until(std::min(deadline, std::chrono::steady_clock::now() + kSlotPause));
          continue;
        }
        const bool progressed = progress() != before;
        if (!progressed && uploads_.abort_stalled()) continue;
        if (progressed || close_greediest(waiter)) {  // yield the loop, then try again
          if (!place) {
            co_await waiter.yield();
            continue;
          }
          queue_.notify_all();
          if (co_await place->turn(deadline)) continue;
        }
      }
      queue_.no_room_for(wish, why, limited);
      if (place) place->failed();
    } else if (why != Errc::dirty_limit && close_greediest(waiter)) {
      // The caller that found no room may have been the holder itself, and a user's own request never closes that
      // user's pages.
      queue_.notify_all();
      continue;
    }
    if (waiter.dismissed()) co_return Errc::shutting_down;
    if (waiter.gone() || expired(deadline)) co_return why;
    flusher_.kick();
    if (!place) place.emplace(queue_, waiter, wish);
    if (co_await place->turn(deadline)) continue;
    if (waiter.dismissed()) co_return Errc::shutting_down;
    co_return why;
  }
}

Result<bool> Room::extend(OwnedDraft& draft, std::uint64_t length) {
  const bool extended = STEPSTASH_TRY(segment_.extend(*draft, length));
  draft.count_in(staged_bytes_);
  return extended;
}

// ---- waiting -------------------------------------------------------------------------------------------------------

awaitable<Result<>> Room::wait_for_pages(std::error_code error, std::uint64_t bytes, Waiter& waiter,
                                         TimePoint deadline) {
  if (error != std::errc::no_space_on_device) co_return error;
  // If nothing is lacking any more, another caller was faster or the cause is different: wait, which takes time.
  const std::uint64_t lacking = lacking_pages(bytes);
  const bool progressed = lacking > 0 && free_pages(lacking, /*give_back=*/true);
  co_return co_await wait(error, bytes, progressed, waiter, deadline);
}

awaitable<Result<>> Room::wait_for_slot(std::error_code error, Waiter& waiter, TimePoint deadline) {
  const std::uint64_t before = progress();
  const std::uint64_t table = 2 * segment_.index().slots() * sizeof(shm::Slot);
  if (error != Errc::too_many) free_pages(table, error != Errc::segment_full);
  co_return co_await wait(error, table, progress() != before, waiter, deadline);
}

/// The one way to wait for room after a try that failed with `why`: returns when a new try is worthwhile, at once after
/// progress. Errors: `why`, at the deadline and when the client is gone.
awaitable<Result<>> Room::wait(std::error_code why, std::uint64_t bytes, bool progress, Waiter& waiter,
                               TimePoint deadline) {
  if (waiter.dismissed()) co_return Errc::shutting_down;
  if (waiter.gone() || expired(deadline)) co_return why;
  if (progress) {
    co_await waiter.yield();
    co_return success();
  }
  if (why == Errc::too_many) {  // the index has no slot for the key until maintain() allows it another table
    co_await waiter.sleep_until(std::min(deadline, std::chrono::steady_clock::now() + kSlotPause));
    co_return success();
  }
  if (uploads_.abort_stalled()) co_return success();
  if (close_greediest(waiter)) co_return success();
  const RoomQueue::Wish wish{bytes, 0};
  queue_.no_room_for(wish, why, /*dirty_limit=*/false);
  flusher_.kick();
  RoomQueue::Place place(queue_, waiter, wish);
  if (co_await place.turn(deadline)) co_return success();
  if (waiter.dismissed()) co_return Errc::shutting_down;
  co_return why;
}

}  // namespace stepstash::daemon
