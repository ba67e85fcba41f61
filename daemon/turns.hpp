// SPDX-License-Identifier: Apache-2.0
/// Fair scheduling of requests: users take turns, and so do each user's connections.
///
/// A coroutine that has work for the loop waits for its turn (next); a turn is what it does until it waits for
/// something else. Deficit round robin (M. Shreedhar, G. Varghese, "Efficient Fair Queuing Using Deficit Round-Robin",
/// IEEE/ACM ToN 4(3), 1996) over users: each may use the loop for kQuantum, and a user that has used more waits for
/// that many rounds. So a user with a thousand connections, or with expensive requests, gets no more of the loop than
/// one with a single connection, as long as both have work; a user that is alone gets all of it. After kSlice the loop
/// runs other work: the flusher, timers, and incoming data.
///
/// Thread safety: the loop's thread only. Lifetime: outlives all waiters.
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
  /// Loop time for one user before the next one is served: about ten sets.
  static constexpr auto kQuantum = std::chrono::microseconds(250);
  /// Loop time for all users before the loop does something else.
  static constexpr auto kSlice = std::chrono::milliseconds(1);
  /// Upper bound on a user's debt: with many other users, paying it off could take long.
  static constexpr auto kMostDebt = std::chrono::milliseconds(100);

  /// `clock`: measures turns; it outlives this.
  Turns(boost::asio::io_context& loop, const Clock& clock) : loop_(loop), clock_(clock) {}
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;

  /// Returns when it is the caller's turn, after all earlier callers of the same user.
  boost::asio::awaitable<void> next(uid_t uid) {
    auto start = [this, uid](auto handler) {
      using Handler = decltype(handler);
      add(uid, std::make_unique<Waiting<Handler>>(std::move(handler)));
    };
    co_return co_await boost::asio::async_initiate<const boost::asio::use_awaitable_t<>, void()>(
        start, boost::asio::use_awaitable);
  }

  /// Turns taken.
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
    std::chrono::nanoseconds credit{0};  // below zero: debt
    std::chrono::nanoseconds left{0};    // when its queue last became empty
  };

  void add(uid_t uid, std::unique_ptr<Turn> turn) {
    User& user = users_[uid];
    if (user.waiting.empty()) {
      // Time pays off debts, too: a debt only decides between users that compete at the same time.
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
      User& user = users_.at(uid);  // references into a map stay valid
      const bool alone = round_.size() == 1;
      if (user.credit.count() <= 0 && !alone) {  // its next round
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
      if (last) round_.pop_front();  // before the turn is taken: the user may queue again in it
      turn->take();
      const auto then = std::exchange(now, clock_.monotonic());
      if (alone) user.credit = std::chrono::nanoseconds(0);  // what was used while no other user was waiting is free
      user.credit = std::max<std::chrono::nanoseconds>(user.credit - (now - then), -kMostDebt);
      if (last && user.waiting.empty()) {
        user.credit = std::min(user.credit, std::chrono::nanoseconds(0));  // no saving up
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
  std::map<uid_t, User> users_;  // users of this round, and users in debt
  std::list<uid_t> round_;       // users with waiting turns, the next one in front
  std::uint64_t taken_ = 0;
  bool posted_ = false;
};

}  // namespace stepstash::daemon
