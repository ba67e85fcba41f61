// SPDX-License-Identifier: Apache-2.0
#include "daemon/database_opening.hpp"

#include <fmt/format.h>
#include <signal.h>
#include <spdlog/spdlog.h>

#include "base/crash_point.hpp"
#include "daemon/exit_status.hpp"
#include "persist/database_files.hpp"
#include "persist/sqlite_store.hpp"

namespace stepstash::daemon {
namespace {

constexpr auto kPause = std::chrono::milliseconds(500);

}  // namespace

void DatabaseOpening::pause(const std::string& why) {
  spdlog::warn("database {}: {}; trying again", path_, why);
  progress_(Phase::waiting_for_database, why);
  std::this_thread::sleep_for(kPause);
  // After a restart by Server::replace_database signals are blocked. One that waits ends the process, as in any start.
  sigset_t pending;
  ::sigpending(&pending);
  if (::sigismember(&pending, SIGTERM) == 1 || ::sigismember(&pending, SIGINT) == 1) {
    ::pthread_sigmask(SIG_UNBLOCK, &pending, nullptr);
  }
}

void DatabaseOpening::tell_set_aside(const std::string& kept) {
  set_aside_.push_back(fmt::format("database {}: damaged; kept as {}", path_, kept));
}

Configured<> DatabaseOpening::open() {
  progress_(Phase::opening_database, "");
  // The daemon that set it aside may have ended before it could make another, or on purpose (Server::replace_database).
  const persist::SetAside kept = persist::last_set_aside(path_);
  const bool replacing = !kept.path.empty() && persist::file_bytes(path_) == 0;
  const persist::SqliteStore::Options options{.path = path_};
  std::string why;
  auto opened = patiently([&] { return persist::SqliteStore::open(options, &why); }, [&] { return why; });
  if (replacing) tell_set_aside(kept.path);
  if (opened) {
    store_ = std::move(opened).value();
    return boost::outcome_v2::success();
  }
  const std::error_code error = opened.error();
  if (error == Errc::corrupt_database) {
    replace(why);
    return boost::outcome_v2::success();
  }
  if (replacing && error == Errc::not_durable) {
    absence_ = {error, fmt::format("it was damaged and is kept as {}, and no new one can be made: {}", kept.path, why)};
    return boost::outcome_v2::success();
  }
  // After a downgrade, or with a wrong --db, serve the segment and leave the file untouched.
  if (error == Errc::newer_database || error == Errc::foreign_database) {
    absence_ = {error, why};
    return boost::outcome_v2::success();
  }
  return fail(exit_status_of(error),
              fmt::format("database {}: {}{}{}", path_, error.message(), why.empty() ? "" : ": ", why));
}

void DatabaseOpening::replace(const std::string& why) {
  store_.reset();
  const auto without = [this, &why](const std::string& obstacle) {
    do_without(Errc::not_durable, fmt::format("{} is damaged ({}), and {}", path_, why, obstacle));
  };
  auto aside = persist::set_aside(path_);
  if (!aside) return without("cannot be renamed: " + aside.error().message());
  STEPSTASH_CRASH_POINT("daemon.database.set_aside");
  spdlog::error("database {} is damaged ({}); kept as {}, a new one takes its place", path_, why, aside.value());
  tell_set_aside(aside.value());
  std::string again;
  auto opened = patiently([&] { return persist::SqliteStore::open({.path = path_}, &again); }, [&] { return again; });
  if (!opened) return without(fmt::format("no new one can be made: {}: {}", opened.error().message(), again));
  store_ = std::move(opened).value();
}

void DatabaseOpening::do_without(std::error_code error, std::string why) {
  store_.reset();
  absence_ = {error, std::move(why)};
}

std::string DatabaseOpening::why_absent() const {
  return fmt::format("database {}: {}: {}", path_, absence_.error.message(), absence_.why);
}

std::unique_ptr<Database> DatabaseOpening::finish(asio::io_context& loop) {
  if (!store_) return std::make_unique<Database>(loop, absence_);
  return std::make_unique<Database>(loop, std::move(store_));
}

}  // namespace stepstash::daemon
