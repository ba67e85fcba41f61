// SPDX-License-Identifier: Apache-2.0
/// How handlers wait without blocking the loop: for work on another thread, and for events.
#pragma once

#include <utility>  // before awaitable.hpp, which uses std::exchange without it in Boost 1.74

#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <exception>
#include <list>
#include <type_traits>

#include "daemon/turns.hpp"

namespace stepstash::daemon {

namespace asio = boost::asio;
using asio::awaitable;
using TimePoint = std::chrono::steady_clock::time_point;

inline bool expired(TimePoint deadline) noexcept { return std::chrono::steady_clock::now() >= deadline; }

/// Completion handler for co_spawn() of coroutines that nobody awaits. asio::detached would swallow an exception, and
/// the daemon would continue without the coroutine, for example without accepting connections. Running out of memory
/// ends the process instead, with a line on stderr, and the next one recovers.
inline constexpr auto kOrDie = [](const std::exception_ptr& thrown) noexcept {
  if (thrown) std::rethrow_exception(thrown);
};

/// Runs `work` on a thread of `pool` and resumes the coroutine on its own executor with the result. `work` must not
/// throw, and what it refers to must live until then: a coroutine waiting here is never destroyed early.
template <class Work>
awaitable<std::invoke_result_t<Work>> run_on(asio::thread_pool& pool, Work work) {
  using R = std::invoke_result_t<Work>;
  auto start = [&pool](auto handler, Work job) {
    asio::post(pool, [job = std::move(job), handler = std::move(handler)]() mutable {
      R result = job();
      const auto executor = asio::get_associated_executor(handler);
      asio::post(executor,
                 [handler = std::move(handler), result = std::move(result)]() mutable { handler(std::move(result)); });
    });
  };
  co_return co_await asio::async_initiate<const asio::use_awaitable_t<>, void(R)>(start, asio::use_awaitable,
                                                                                  std::move(work));
}

/// What a coroutine waits with: a timer that a wake-up or hang-up cuts short. One wait at a time. Loop's thread only.
class Waiter {
 public:
  explicit Waiter(asio::io_context& loop) : timer_(loop) {}
  /// For a coroutine that shares the loop with others: its turns count for `uid`.
  Waiter(asio::io_context& loop, Turns& turns, uid_t uid) : timer_(loop), turns_(&turns), uid_(uid) {}

  /// Ends the wait under way and all later ones: the waiting coroutine is to stop.
  void hang_up() {
    gone_ = true;
    timer_.cancel();
  }
  bool gone() const noexcept { return gone_; }
  /// The daemon stops: ends waits for events that may not happen before that. Waits for what the shutdown itself
  /// produces continue.
  void dismiss() {
    dismissed_ = true;
    timer_.cancel();
  }
  bool dismissed() const noexcept { return dismissed_; }

  /// Returns at `deadline`, or earlier after wake() or hang_up().
  awaitable<void> sleep_until(TimePoint deadline) {
    if (gone_) co_return;
    timer_.expires_at(deadline);
    boost::system::error_code ignored;  // cancelled or expired: the caller checks
    co_await timer_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
  void wake() { timer_.cancel(); }
  /// Yields the loop until it is this coroutine's turn.
  awaitable<void> yield() {
    if (turns_ != nullptr) co_return co_await turns_->next(uid_);
    co_await asio::post(timer_.get_executor(), asio::use_awaitable);
  }
  /// The user it waits for, whose own views are never closed for this wait. 0 for the daemon itself.
  uid_t uid() const noexcept { return uid_; }

 private:
  asio::steady_timer timer_;
  Turns* turns_ = nullptr;
  uid_t uid_ = 0;
  bool gone_ = false;
  bool dismissed_ = false;
};

/// The waiters for one event. A wake-up is a hint to look again, never a promise. Loop's thread only.
class WaitList {
 public:
  /// Returns after notify_all(), at the deadline, or when the waiter hangs up.
  awaitable<void> wait(Waiter& waiter, TimePoint deadline) {
    const auto place = waiters_.insert(waiters_.end(), &waiter);
    const Remove remove{waiters_, place};
    co_await waiter.sleep_until(deadline);
  }
  void notify_all() {
    for (Waiter* waiter : waiters_) waiter->wake();
  }
  bool empty() const noexcept { return waiters_.empty(); }
  std::size_t size() const noexcept { return waiters_.size(); }

 private:
  struct Remove {
    std::list<Waiter*>& list;
    std::list<Waiter*>::iterator place;
    ~Remove() { list.erase(place); }
  };
  std::list<Waiter*> waiters_;
};

}  // namespace stepstash::daemon
