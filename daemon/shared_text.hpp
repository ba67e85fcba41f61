// SPDX-License-Identifier: Apache-2.0
/// A text that takes a while to put together and that many may ask for: put together at most ten times a second, and
/// shared by all who asked meanwhile.
///
/// Nobody gets one from before he asked: what a client sees in it includes what it did before.
/// Thread safety: the loop's thread only.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "daemon/tasks.hpp"

namespace stepstash::daemon {

class SharedText {
 public:
  static constexpr auto kPause = std::chrono::milliseconds(100);

  /// Puts it together.
  std::function<std::string()> make;

  /// Waits up to kPause; without a text of its own when the waiter hung up.
  awaitable<std::shared_ptr<const std::string>> get(Waiter& waiter) {
    const TimePoint asked = std::chrono::steady_clock::now();
    bool waited = false;
    while (text_ == nullptr || made_at_ < asked) {
      const TimePoint now = std::chrono::steady_clock::now();
      if (waiter.gone()) co_return std::make_shared<const std::string>();
      if (now < next_) {
        waited = true;
        co_await made_.wait(waiter, next_);
        continue;
      }
      text_ = std::make_shared<const std::string>(make());
      made_at_ = now;
      next_ = std::chrono::steady_clock::now() + kPause;
      ++times_made_;
      made_.notify_all();
    }
    const std::shared_ptr<const std::string> text = text_;
    if (waited) co_await waiter.yield();  // many were woken at once
    co_return text;
  }

  std::uint64_t times_made() const noexcept { return times_made_; }

 private:
  std::shared_ptr<const std::string> text_;
  TimePoint made_at_{};  // when what it says was the case
  TimePoint next_{};
  std::uint64_t times_made_ = 0;
  WaitList made_;
};

}  // namespace stepstash::daemon
