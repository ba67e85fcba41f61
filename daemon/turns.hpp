// SPDX-License-Identifier: Apache-2.0
/// Whose request is handled next: users take turns, and each user's connections among themselves.
///
/// A coroutine that has work for the loop waits for its turn (next); a turn is what it then does until it waits for
/// something else. Deficit round robin (M. Shreedhar, G. Varghese, "Efficient Fair Queuing Using Deficit Round-Robin",
/// IEEE/ACM ToN 4(3), 1996) over users: each may use the loop for kQuantum, and who has used more waits that many
/// rounds. So a user with a thousand connections, or with dear requests, gets as much of the loop as one with a single
/// connection, as long as both have something to do; who is alone has all of it. After kSlice others have the loop:
/// the flusher, timers, and those whose bytes arrive.
///
/// Thread safety: the loop's thread only. Lifetime: outlives who waits.
#pragma once

#include <sys/types.h>

#include <utility>  // before awaitable.hpp, which uses std::exchange without it in Boost 1.74

#include <algorithm>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <deque>
#include <list>
#include <map>
#include <memory>

#include "base/clock.hpp"

namespace stepstash::daemon {

class Turns {
 public:
  /// What one user may use of the loop before the next one is served: about ten sets.
  static constexpr auto kQuantum = std::chrono::microseconds(250);
  /// What all of them may use before the loop does something else.
  static constexpr auto kSlice = std::chrono::milliseconds(1);
  /// More than this nobody has to wait for what he used: many others may be there.
  static constexpr auto kMostDebt = std::chrono::milliseconds(100);

  /// `clock`: what turns are measured with; it outlives this.
  Turns(boost::asio::io_context& loop, const Clock& clock) : loop_(loop), clock_(clock) {}
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;

  /// Returns when it is the caller's turn, after all of that user who came before.
  boost::asio::awaitable<void> next(uid_t uid) {
    auto start = [this, uid](auto handler) {
      using Handler = decltype(handler);
      add(uid, std::make_unique<Waiting<Handler>>(std::move(handler)));
    };
    co_return co_await boost::asio::async_initiate<const boost::asio::use_awaitable_t<>, void()>(
        start, boost::asio::use_awaitable);
  }

  /// Turns that have been taken.
  std::uint64_t taken() const noexcept { return taken_; }

 private:
  struct Turn {
    virtual ~Turn() = default;
    virtual void take() = 0;
  };
  template <class Handler>
  struct Waiting final : Turn {
    explicit Waiting(Handler handler_) : handler(std::move(handler_)) {}
    void take() override { handler(); }
    Handler handler;
  };
  struct User {
    std::deque<std::unique_ptr<Turn>> waiting;
    std::chrono::nanoseconds credit{0};  // below zero: used ahead
    std::chrono::nanoseconds left{0};    // the last time that nothing of it waited
  };

  void add(uid_t uid, std::unique_ptr<Turn> turn) {
    User& user = users_[uid];
    if (user.waiting.empty()) {
      // Time pays debts off, too: they tell whose turn it is among those who are there at one time.
      if (user.credit.count() < 0) {
        user.credit = std::min(user.credit + (clock_.monotonic() - user.left), std::chrono::nanoseconds(0));
      }
      round_.push_back(uid);
    }
    user.waiting.push_back(std::move(turn));
    if (!posted_) {
      posted_ = true;
      boost::asio::post(loop_, [this] { serve(); });
    }
  }

  void serve() {
    auto now = clock_.monotonic();
    const auto end = now + kSlice;
    while (!round_.empty() && now < end) {
      const uid_t uid = round_.front();
      User& user = users_.at(uid);  // references into a map stay
      const bool alone = round_.size() == 1;
      if (user.credit.count() <= 0 && !alone) {  // the next round is another one for it
        user.credit += kQuantum;
        if (user.credit.count() <= 0) {
          round_.splice(round_.end(), round_, round_.begin());
          continue;
        }
      }
      const std::unique_ptr<Turn> turn = std::move(user.waiting.front());
      user.waiting.pop_front();
      ++taken_;
      const bool last = user.waiting.empty();
      if (last) round_.pop_front();  // before it is taken: it may come again in it
      turn->take();
      const auto then = std::exchange(now, clock_.monotonic());
      if (alone) user.credit = std::chrono::nanoseconds(0);  // what was used while nobody else was there is free
      user.credit = std::max<std::chrono::nanoseconds>(user.credit - (now - then), -kMostDebt);
      if (last && user.waiting.empty()) {
        user.credit = std::min(user.credit, std::chrono::nanoseconds(0));  // nobody saves up
        user.left = now;
      } else if (!last && user.credit.count() <= 0) {
        round_.splice(round_.end(), round_, round_.begin());
      }
    }
    if (round_.empty()) {
      users_.clear();  // nobody waits: what was used harmed nobody
      posted_ = false;
    } else {
      boost::asio::post(loop_, [this] { serve(); });
    }
  }

  boost::asio::io_context& loop_;
  const Clock& clock_;
  std::map<uid_t, User> users_;  // those of this round, and those who used ahead
  std::list<uid_t> round_;       // those for whom something waits, the next one in front
  std::uint64_t taken_ = 0;
  bool posted_ = false;
};

}  // namespace stepstash::daemon
