// SPDX-License-Identifier: Apache-2.0
#include "daemon/database.hpp"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "base/errc.hpp"

namespace stepstash::daemon {

Database::Database(asio::io_context& loop, std::shared_ptr<persist::BackingStore> store)
    : store_(std::move(store)), loop_(loop), files_(store_->look()), pause_(loop) {
  conditions_[index(State::ready)] = {true, files_seen_, {}};
}

Database::Database(asio::io_context& loop, Absence absence) : absence_(absence.error), loop_(loop), pause_(loop) {
  conditions_[index(State::ready)] = {true, files_seen_, {}};
  files_.in_place = false;
  set(State::absent, true, absence.error.message() + ": " + absence.why);
}

// ---- state ---------------------------------------------------------------------------------------------------------

std::string_view Database::name_of(State state) noexcept {
  constexpr std::array<std::string_view, kStates> kNames = {"ready",    "stalled", "hung",
                                                            "detached", "damaged", "absent"};
  return kNames[index(state)];
}

bool Database::allows(State state, Use use) noexcept {
  switch (use) {
    case Use::commit:
      return state <= State::hung;
    case Use::load:
      return state != State::absent;
    case Use::evict:
      return state <= State::stalled;
    case Use::identify:
      return state != State::absent;
  }
  return false;
}

/// The only place where a condition changes, and the state with it.
void Database::set(State condition, bool holds, std::string reason) {
  Condition& changing = conditions_[index(condition)];
  if (changing.holds == holds && changing.reason == reason) return;
  if (changing.holds != holds) changing.since = std::chrono::steady_clock::now();
  changing.holds = holds;
  changing.reason = std::move(reason);
  State gravest = State::ready;
  for (std::size_t i = 0; i < kStates; ++i) {
    if (conditions_[i].holds) gravest = static_cast<State>(i);
  }
  const State before = std::exchange(state_, gravest);
  if (gravest == State::ready) conditions_[index(gravest)].since = std::chrono::steady_clock::now();
  if (holds && condition == gravest) {
    spdlog::error("database {}: {}", name_of(gravest), changing.reason);
  } else if (before != gravest) {
    spdlog::info("database {} again{}{}", name_of(gravest), this->reason().empty() ? "" : ": ", this->reason());
  }
  changed_.notify_all();
}

void Database::report(const Result<>& outcome, bool proof) {
  if (outcome) {
    if (proof) set(State::stalled, false);
    return;
  }
  const std::string detail = store_->last_error();
  std::string text = outcome.error().message();
  if (!detail.empty()) text += ": " + detail;
  const bool damage = outcome.error() == Errc::corrupt_database;
  set(damage ? State::damaged : State::stalled, true, std::move(text));
}

void Database::keep_damaged(const std::string& why) {
  set(State::damaged, true, conditions_[index(State::damaged)].reason + "; not replaced: " + why);
}

// ---- files ---------------------------------------------------------------------------------------------------------

awaitable<void> Database::watch() {
  if (!store_) co_return;
  watching_ = true;
  while (!pause_.gone()) {
    const TimePoint start = std::chrono::steady_clock::now();
    asio::steady_timer silence(loop_, kDiskAnswers);
    silence.async_wait([this](const boost::system::error_code& cancelled) {
      if (!cancelled) {
        set(State::hung, true, fmt::format("no answer from the disk for {} s", kDiskAnswers / std::chrono::seconds(1)));
      }
    });
    auto job = [this]() { return store_->look(); };
    const persist::BackingStore::Files files = co_await run_on(watcher_, job);
    silence.cancel();
    const bool log_held = files.log_held_bytes > 0 && files_.log_held_bytes == 0;
    files_ = files;
    files_seen_ = start;
    set(State::hung, false);
    set(State::detached, !files.in_place,
        files.in_place ? "" : "the file was deleted, renamed or replaced while it is in use: nothing is evicted");
    if (log_held) changed_.notify_all();
    co_await pause_.sleep_until(start + kLookEvery);
  }
  watching_ = false;
  changed_.notify_all();
}

awaitable<void> Database::stop_watching() {
  pause_.hang_up();
  Waiter waiter(loop_);
  while (watching_) co_await changed_.wait(waiter, TimePoint::max());
}

void Database::stop_threads() {
  writer_.join();
  reader_.join();
  watcher_.join();
}

}  // namespace stepstash::daemon
