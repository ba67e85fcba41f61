// SPDX-License-Identifier: Apache-2.0
#include "daemon/database_opening.hpp"

#include <fmt/format.h>
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
}

Configured<> DatabaseOpening::open() {
  progress_(Phase::opening_database, "");
  const persist::SqliteStore::Options options{.path = path_};
  std::string why;
  auto opened = patiently([&] { return persist::SqliteStore::open(options, &why); }, [&] { return why; });
  if (opened) {
    store_ = std::move(opened).value();
    return boost::outcome_v2::success();
  }
  const std::error_code error = opened.error();
  if (error == Errc::corrupt_database) {
    replace(why);
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
  const auto do_without = [this, &why](const std::string& obstacle) {
    absence_ = {make_error_code(Errc::not_durable), fmt::format("{} is damaged ({}), and {}", path_, why, obstacle)};
  };
  auto aside = persist::set_aside(path_);
  if (!aside) return do_without("cannot be renamed: " + aside.error().message());
  STEPSTASH_CRASH_POINT("daemon.database.set_aside");
  spdlog::error("database {} is damaged ({}); kept as {}, a new one takes its place", path_, why, aside.value());
  set_aside_.push_back(fmt::format("database {}: damaged; kept as {}", path_, aside.value()));
  std::string again;
  auto opened = patiently([&] { return persist::SqliteStore::open({.path = path_}, &again); }, [&] { return again; });
  if (!opened) return do_without(fmt::format("no new one can be made: {}: {}", opened.error().message(), again));
  store_ = std::move(opened).value();
}

std::string DatabaseOpening::why_absent() const {
  return fmt::format("database {}: {}: {}", path_, absence_.error.message(), absence_.why);
}

std::unique_ptr<Database> DatabaseOpening::finish(asio::io_context& loop) {
  if (!store_) return std::make_unique<Database>(loop, absence_);
  return std::make_unique<Database>(loop, std::move(store_));
}

}  // namespace stepstash::daemon
