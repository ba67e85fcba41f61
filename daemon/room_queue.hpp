// SPDX-License-Identifier: Apache-2.0
/// The queue for room in the segment: one waiter tries at a time.
///
/// A try may cost a walk over all blocks, and thousands may wait, so there are rounds. A round begins when there may be
/// room (notify_all), or 50 ms after the last one, for readers that release memory without notice. In a round each
/// waiter tries once: users take turns, and each user's waiters go in order of arrival. After a failed try, waiters
/// that want as much or more are passed over, including new arrivals. When a waiter is done, successful or not, the
/// next one tries.
///
/// Thread safety: the loop's thread only.
#pragma once

#include <cstdint>
#include <list>
#include <system_error>

#include "daemon/tasks.hpp"

namespace stepstash::daemon {

class RoomQueue {
 public:
  static constexpr auto kLookAgain = std::chrono::milliseconds(50);

  /// What a waiter needs: bytes of the segment, and bytes of the dirty limit.
  struct Wish {
    std::uint64_t bytes = 0;
    std::uint64_t dirty_bytes = 0;
  };

  /// A waiter, from its first failed try until it is destroyed. `waiter` outlives it.
  class Place {
   public:
    Place(RoomQueue& queue, Waiter& waiter, Wish wish)
        : queue_(queue), waiter_(waiter), wish_(wish), round_(queue.round_) {
      at_ = queue_.places_.insert(queue_.places_.end(), this);
    }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;
    ~Place() {
      const bool first = queue_.places_.front() == this;
      queue_.places_.erase(at_);
      if (queue_.trying_ == this) queue_.next();
      if (first && !queue_.places_.empty()) queue_.places_.front()->waiter_.wake();  // it watches the clock now
    }

    /// Waits until it may try; false if the deadline, a hang-up or a dismissal comes first.
    awaitable<bool> turn(TimePoint deadline) {
      while (queue_.trying_ != this) {
        const TimePoint now = std::chrono::steady_clock::now();
        if (waiter_.gone() || waiter_.dismissed() || now >= deadline) co_return false;
        const bool first = queue_.places_.front() == this;
        if (first && now >= queue_.again_) {
          queue_.notify_all();
          continue;
        }
        co_await waiter_.sleep_until(first ? std::min(deadline, queue_.again_) : deadline);
      }
      co_await waiter_.yield();  // other connections have requests
      co_return true;
    }
    /// Its try has failed.
    void failed() {
      if (queue_.trying_ == this) queue_.next();
    }

   private:
    friend class RoomQueue;
    RoomQueue& queue_;
    Waiter& waiter_;
    const Wish wish_;
    std::uint64_t round_;  // in which it has tried
    std::list<Place*>::iterator at_;
  };

  /// There may be room.
  void notify_all() {
    full_from_ = limit_from_ = UINT64_MAX;
    ++round_;
    again_ = std::chrono::steady_clock::now() + kLookAgain;
    next();
  }
  /// A try for `wish` failed for lack of room.
  void no_room_for(const Wish& wish, std::error_code why, bool dirty_limit) {
    why_ = why;
    std::uint64_t& from = dirty_limit ? limit_from_ : full_from_;
    from = std::min(from, dirty_limit ? wish.dirty_bytes : wish.bytes);
  }
  /// It is known that there is no room for `wish`, and why. When nobody waits, such knowledge is short-lived: false.
  bool passes_over(const Wish& wish) const noexcept {
    return !places_.empty() && (wish.bytes >= full_from_ || (wish.dirty_bytes > 0 && wish.dirty_bytes >= limit_from_));
  }
  std::error_code why() const noexcept { return why_; }
  std::size_t waiting() const noexcept { return places_.size(); }

 private:
  /// O(waiters); wakes at most one of them.
  void next() {
    trying_ = nullptr;
    for (Place* place : places_) {
      if (place->round_ == round_ || passes_over(place->wish_)) continue;
      if (trying_ == nullptr || after(place) < after(trying_)) trying_ = place;
    }
    if (trying_ == nullptr) return;
    trying_->round_ = round_;
    last_ = trying_->waiter_.uid();
    trying_->waiter_.wake();
  }
  /// Distance from the user who tried last, in the order of turns.
  uid_t after(const Place* place) const noexcept { return place->waiter_.uid() - last_ - 1; }

  std::list<Place*> places_;
  Place* trying_ = nullptr;
  std::uint64_t round_ = 1;
  std::uint64_t full_from_ = UINT64_MAX;   // in this round there is no room for this many bytes or more
  std::uint64_t limit_from_ = UINT64_MAX;  // and no room under the dirty limit for this many or more
  std::error_code why_;
  uid_t last_ = 0;
  TimePoint again_{};
};

}  // namespace stepstash::daemon
