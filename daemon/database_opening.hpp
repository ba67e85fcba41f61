// SPDX-License-Identifier: Apache-2.0
/// Opens the database at a start: waits for one that is locked, sets aside one that is damaged, and does without one
/// that it cannot use.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/errc.hpp"
#include "daemon/config.hpp"
#include "daemon/database.hpp"
#include "daemon/phase.hpp"
#include "persist/backing_store.hpp"

namespace stepstash::daemon {

/// Thread safety: none. Blocks: for the time before the loop runs.
class DatabaseOpening {
 public:
  /// `progress` is called when a phase begins, with a detail for the operator or none.
  using Progress = std::function<void(Phase, const std::string& detail)>;

  /// `patience`: how long it retries.
  DatabaseOpening(std::string path, Progress progress, std::chrono::milliseconds patience = std::chrono::seconds(60))
      : path_(std::move(path)), progress_(std::move(progress)), patience_(patience) {}

  /// After success there is a store, or an absence. Errors: messages for the operator, with the exit status.
  Configured<> open();
  /// Renames the damaged database aside and opens a new one; if that fails, there is an absence.
  void replace(const std::string& why);
  /// From here on there is an absence.
  void do_without(std::error_code error, std::string why);

  /// Another process may lock the database for a while, and a disk may be away for a moment: retries `attempt` while it
  /// fails with Errc::not_durable. Clients wait at the socket meanwhile, and keep reading what they
  /// have. `why()`: message about the last try.
  template <class Try, class Why>
  auto patiently(Try attempt, Why why) -> decltype(attempt()) {
    auto result = attempt();
    const auto give_up = std::chrono::steady_clock::now() + patience_;
    while (!result && result.error() == Errc::not_durable && std::chrono::steady_clock::now() < give_up) {
      pause(why());
      result = attempt();
    }
    return result;
  }

  /// Null: see absence().
  persist::BackingStore* store() const noexcept { return store_.get(); }
  const Database::Absence& absence() const noexcept { return absence_; }
  /// "database PATH: why".
  std::string why_absent() const;
  /// What was set aside, one line each.
  std::vector<std::string>& set_aside() noexcept { return set_aside_; }
  /// Hands the store or the absence over.
  std::unique_ptr<Database> finish(asio::io_context& loop);

 private:
  void pause(const std::string& why);
  void tell_set_aside(const std::string& kept);

  const std::string path_;
  const Progress progress_;
  const std::chrono::milliseconds patience_;
  std::shared_ptr<persist::BackingStore> store_;
  Database::Absence absence_;
  std::vector<std::string> set_aside_;
};

}  // namespace stepstash::daemon
