// SPDX-License-Identifier: Apache-2.0
/// A text that is expensive to build and that many clients may ask for: built at most ten times a second, and shared by
/// all who asked in the meantime.
///
/// The text is never older than the request: it reflects everything the client did before asking. Thread safety: the
/// loop's thread only.
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

  /// Builds the text.
  std::function<std::string()> make;

  /// Waits up to kPause; returns an empty text if the waiter hung up.
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
  TimePoint made_at_{};  // when its contents were current
  TimePoint next_{};
  std::uint64_t times_made_ = 0;
  WaitList made_;
};

}  // namespace stepstash::daemon
