// SPDX-License-Identifier: Apache-2.0
#include "daemon/server.hpp"

#include <fmt/format.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <cstdlib>
#include <utility>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "base/signals_blocked.hpp"
#include "daemon/database_opening.hpp"
#include "daemon/exit_status.hpp"
#include "daemon/listening_socket.hpp"
#include "daemon/log.hpp"
#include "daemon/restore.hpp"
#include "persist/database_files.hpp"

namespace stepstash::daemon {
namespace {

using namespace std::chrono_literals;

/// Interval for checking retired blocks, dead clients and the watchdog.
constexpr auto kTick = 100ms;
/// How long requests under way, and then the final flush, may take at shutdown.
constexpr auto kFinishRequests = 5s;
constexpr auto kFinalFlush = 60s;
/// Departing clients trigger the tick early: at most this often, and for at most a tenth of the loop's time.
constexpr auto kEarlyTick = 5ms;
constexpr int kEarlyTickPause = 9;
/// A signal that came before it was blocked is delivered within this time.
constexpr auto kSignalsArrive = 10ms;
/// A start waits this long for its log lines to be written; a slow reader must not hold it up longer.
constexpr auto kStartLines = 200ms;
/// Lines logged about what the start set aside; `stats` has the total.
constexpr std::size_t kLinesLogged = 1000;
/// A database that meets damage so soon after another was set aside is kept: assume a failing disk.
constexpr std::int64_t kDamagedAgainSeconds = 60;

constexpr std::array kSignals = {SIGTERM, SIGINT, SIGHUP};

/// For the main thread, which is the only one that gets them.
void mask_signals(int how) {
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int signal : kSignals) ::sigaddset(&signals, signal);
  ::pthread_sigmask(how, &signals, nullptr);
}

/// Why a segment cannot be opened, as a message for the operator.
std::string reason(std::error_code error) {
  if (!lacks_descriptors(error)) return error.message();
  return error.message() +
         " (LimitNOFILE): a start needs one for each client that lives, or it would not know what "
         "their views hold in place";
}

Store::Limits limits_of(const Config& config) {
  return {{config.max_dirty, config.punch_after}, config.build_data_horizon};
}

}  // namespace

Server::Server(Config config, Inputs inputs) : config_(std::move(config)), inputs_(std::move(inputs)) {}

Server::~Server() = default;

Configured<std::unique_ptr<Server>> Server::open(Config config, Inputs inputs, ListeningSocket socket) {
  std::unique_ptr<Server> server(new Server(std::move(config), std::move(inputs)));
  const Config& settings = server->config_;
  for (const std::string& line : STEPSTASH_TRY(prepare_directories(settings, ::geteuid()))) spdlog::warn("{}", line);
  STEPSTASH_TRY(server->open_objects());
  server->locks_.push_back(STEPSTASH_TRY(lock_or_fail(settings.db + ".lock", "database " + settings.db, "")));
  STEPSTASH_TRY(settle_restore(settings, *server->directory_));
  DatabaseOpening database(settings.db, [&](Phase phase, const std::string& detail) { server->enter(phase, detail); });
  STEPSTASH_TRY(database.open());
  STEPSTASH_TRY(server->open_segment(database));
  server->make_store(database);
  STEPSTASH_TRY(server->catch_signals());
  STEPSTASH_TRY(server->listen(std::move(socket)));
  server->served_.emplace(server->startup_.segment->header());
  return server;
}

Configured<> Server::open_objects() {
  Instance instance = STEPSTASH_TRY(open_instance_or_fail(config_, ""));
  directory_ = std::move(instance.directory);
  locks_.push_back(std::move(instance.lock));
  for (const std::string& note : instance.notes) spdlog::warn("{}", note);
  return success();
}

/// Tells the service manager, and takes the time for `stats`.
void Server::enter(Phase phase, const std::string& detail) {
  phases_.enter(phase);
  notifier_.starting(std::string(text_of(phase)) + (detail.empty() ? "" : ": " + detail));
}

Configured<> Server::open_segment(DatabaseOpening& database) {
  const std::string name = directory_->path() + "/" + kSegmentObject;
  const auto open = [&] {
    if (database.store() == nullptr) {
      enter(Phase::attaching_segment);
      return open_segment_alone(*directory_, kSegmentObject);
    }
    return daemon::open_segment(
        *directory_, kSegmentObject, config_.segment_size, *database.store(), [this](Phase phase) { enter(phase); },
        database.set_aside());
  };
  const auto last_error = [&] { return database.store() == nullptr ? "" : database.store()->last_error(); };
  auto opened = database.patiently(open, last_error);
  // Opening a database reads little of it: damage inside may first show when its lists are read.
  if (!opened && opened.error() == Errc::corrupt_database) {
    database.replace(last_error());
    opened = open();
  }
  // The list of an older copy of the database may find no room in a sound segment full of values, nor a tmpfs for a
  // larger one. The values are served all the same.
  if (!opened && database.store() != nullptr && is_lack_of_room(opened.error())) {
    if (auto alone = open_segment_alone(*directory_, kSegmentObject)) {
      database.do_without(opened.error(),
                          "the segment is full, and lacks room for the database's list of entries, which "
                          "needs a larger segment: enlarge " +
                              config_.segment_directory);
      opened = std::move(alone);
    }
  }
  if (!opened && database.store() == nullptr) {
    const int status = lacks_descriptors(opened.error()) ? kExitTemporary : exit_status_of(database.absence().error);
    return fail(status, fmt::format("{}; and no segment {} to serve without it: {}", database.why_absent(), name,
                                    reason(opened.error())));
  }
  if (!opened) {
    // The next start may not find it.
    for (const std::string& line : database.set_aside()) spdlog::error("set aside: {}", line);
    return fail(exit_status_of(opened.error()),
                fmt::format("segment {} of {}: {}", name, format_size(config_.segment_size), reason(opened.error())));
  }
  startup_ = std::move(opened).value();
  startup_.set_aside.insert(startup_.set_aside.begin(), database.set_aside().begin(), database.set_aside().end());
  if (database.store() == nullptr) {
    const bool newer = database.absence().error == Errc::newer_database;
    startup_.set_aside.push_back(database.why_absent() +
                                 "; what is in the segment is served, and nothing written, until " +
                                 (newer ? "a stepstashd that knows this database takes over" : "a restart"));
  }
  for (std::string& path : persist::kept_aside(config_.db)) startup_.kept.push_back(std::move(path));
  for (std::size_t i = 0; i < startup_.set_aside.size(); ++i) {
    if (i == kLinesLogged) {
      spdlog::error("set aside: {} more", startup_.set_aside.size() - i);
      break;
    }
    spdlog::error("set aside: {}", startup_.set_aside[i]);
  }
  wait_for_log(kStartLines);  // these lines may be the only trace of a lost value
  if (startup_.segment->bytes() != config_.segment_size) {
    spdlog::warn("segment {} has {}, not the configured {}: a segment keeps its size until it is created again", name,
                 format_size(startup_.segment->bytes()), format_size(config_.segment_size));
  }
  const shm::Segment& segment = *startup_.segment;
  const shm::Heap::FileSystem tmpfs = segment.heap().file_system();
  if (tmpfs.bounded() && tmpfs.total < segment.bytes()) {
    spdlog::warn(
        "the tmpfs {} of {} bytes is smaller than the segment of {} bytes: values are evicted when it is full. Enlarge "
        "it (mount -o remount,size=; for a container --shm-size), or set a smaller segment_size",
        config_.segment_directory, tmpfs.total, segment.bytes());
  }
  return success();
}

void Server::make_store(DatabaseOpening& database) {
  const SignalsBlocked others;  // the threads that are created here
  shm::Segment& segment = *startup_.segment;
  database_ = database.finish(loop_);
  flusher_ = std::make_unique<Flusher>(loop_, segment, *database_, clock_, config_.flush_interval);
  store_ = std::make_unique<Store>(loop_, catalog_, segment, *database_, *flusher_, clock_, limits_of(config_));
  enter(Phase::building_catalog);
  store_->adopt(startup_.all_dirty, startup_.lost);
  phases_.end();
  startup_.phases = phases_.all();
  STEPSTASH_CRASH_POINT("daemon.server.segment.adopted");
  // Last: if killed before this, the next start finds the old identity and marks everything again.
  if (database_->allows(Database::Use::identify)) {
    segment.header().store_id.store(database_->store_id());
    STEPSTASH_CRASH_POINT("daemon.server.store_id.stored");
    segment.header().commit_count.store(database_->commit_count());
    STEPSTASH_CRASH_POINT("daemon.server.commit_count.stored");
  }
  services_ = std::make_unique<Services>(loop_, *store_, *flusher_, *database_, segment, config_, clock_);
  clients_ = std::make_unique<Clients>(*services_, tick_);
  services_->stats.make = [this] { return stats(); };
  spdlog::info("segment {}/{}: {} entries kept, {} known from the database, {} saved, {} set aside, in {:.3f} s",
               directory_->path(), kSegmentObject, startup_.entries_kept, startup_.entries_loaded,
               startup_.entries_salvaged, startup_.set_aside.size(),
               std::chrono::duration<double>(startup_.duration).count());
}

/// Until here SIGTERM ends the process at once: there is nothing to finish, and a start may wait for a minute. After a
/// restart (replace_database) signals have been pending since.
Configured<> Server::catch_signals() {
  for (const int signal : kSignals) {
    boost::system::error_code error;
    signals_.add(signal, error);
    if (error) return fail(kExitCannotCreate, fmt::format("cannot handle signal {}: {}", signal, error.message()));
  }
  mask_signals(SIG_UNBLOCK);
  return success();
}

Configured<> Server::listen(ListeningSocket socket) {
  std::string path = config_.socket;
  socket.ours = !socket.fd || socket.ours;
  if (socket.ours) locks_.push_back(STEPSTASH_TRY(lock_or_fail(path + ".lock", "socket " + path, "")));
  if (socket.fd) {
    path = address_of(socket.fd, path);
  } else {
    socket.fd = STEPSTASH_TRY(make_listening_socket(config_));
  }
  return clients_->listen(std::move(socket), path);
}

// ---- serving -------------------------------------------------------------------------------------------------------

int Server::run() {
  started_ = std::chrono::steady_clock::now();
  const auto flush = [this]() -> awaitable<void> {
    co_await flusher_->run();
    co_await database_->stop_watching();
    flusher_done_ = true;
    tick_.wake();
  };
  // Handlers on other threads post back here: the loop must not end while one is running.
  auto work = asio::make_work_guard(loop_);
  const auto all = [this, &work]() -> awaitable<void> {
    co_await handle_signals();
    if (restarting_) co_return loop_.stop();
    co_await stop();
    work.reset();
  };
  asio::co_spawn(loop_, flush, kOrDie);
  asio::co_spawn(
      loop_, [this] { return clients_->accept(); }, kOrDie);
  asio::co_spawn(
      loop_, [this] { return keep_time(); }, kOrDie);
  asio::co_spawn(
      loop_, [this] { return database_->watch(); }, kOrDie);
  asio::co_spawn(
      loop_, [this] { return await_damage(); }, kOrDie);
  asio::co_spawn(loop_, all, kOrDie);
  wait_for_log(kStartLines);
  notifier_.ready(status_line());
  loop_.run();
  return exit_status_;
}

awaitable<void> Server::keep_time() {
  auto next_prune = std::chrono::steady_clock::now();
  auto next_status = next_prune;
  const auto watchdog = notifier_.watchdog_interval();
  auto next_alive = next_prune;
  while (!tick_.gone()) {
    const auto now = std::chrono::steady_clock::now();
    store_->maintain();
    clients_->give_back_memory();
    services_->page_reserve.refill();
    if (now >= next_prune) {
      // In a coroutine of its own: millions of entries take a while, and the watchdog must be fed in time.
      asio::co_spawn(
          loop_, [this] { return store_->builds().prune_expired(); }, kOrDie);
      next_prune = now + config_.prune_interval;
    }
    notifier_.catch_up();
    if (now >= next_status && !stopping_) {
      notifier_.status(status_line());
      next_status = now + 1s;
    }
    if (watchdog && now >= next_alive) {
      notifier_.alive();
      next_alive = now + *watchdog;
    }
    // Departing clients wake it early. With thousands of clients a tick scans thousands of pages, so not for each one.
    const auto done = std::chrono::steady_clock::now();
    const auto next = now + kTick;
    const auto early =
        std::min(next, done + std::max<std::chrono::nanoseconds>(kEarlyTick, kEarlyTickPause * (done - now)));
    co_await tick_.sleep_until(next);
    while (!tick_.gone() && std::chrono::steady_clock::now() < early) co_await tick_.sleep_until(early);
  }
}

awaitable<void> Server::handle_signals() {
  for (;;) {
    if (std::exchange(replacement_due_, false)) {
      co_await replace_database();
      if (restarting_) co_return;
    }
    boost::system::error_code cancelled;  // by await_damage()
    const int signal = co_await signals_.async_wait(asio::redirect_error(asio::use_awaitable, cancelled));
    if (cancelled) continue;
    if (signal != SIGHUP) {
      spdlog::info("stopping: signal {}", signal);
      co_return;
    }
    notifier_.reloading();
    auto read = [this]() { return reload_config(config_, inputs_); };  // off the loop: it looks up user names
    auto job = [&read]() { return std::make_shared<Configured<Reload>>(read()); };
    const std::shared_ptr<Configured<Reload>> reloaded = co_await run_on(services_->copiers, job);
    if (!*reloaded) {
      spdlog::error("configuration not reloaded: {}", reloaded->error().message);
    } else {
      const Reload& reload = reloaded->value();
      for (const std::string& line : reload.warnings) spdlog::warn("{}", line);
      for (const std::string& line : reload.needs_restart) spdlog::warn("needs a restart: {}", line);
      for (const std::string& line : reload.changed) spdlog::info("configuration: {}", line);
      config_ = reload.config;
      set_log_level(config_.log_level);
      flusher_->set_interval(config_.flush_interval);
      store_->set_limits(limits_of(config_));
      spdlog::info("configuration reloaded: {} changed", reload.changed.size());
    }
    notifier_.ready(status_line());
  }
}

/// Opening a database reads little of it: damage may first show at a commit. Retrying cannot help, and a plain restart
/// would not find it. So the file is set aside, and this program starts again in the same process (main.cpp): it loses
/// nothing, as after any death, and the listening socket stays open.
awaitable<void> Server::await_damage() {
  while (database_->state() != Database::State::damaged) {
    if (damage_watch_.gone()) co_return;
    co_await database_->changed().wait(damage_watch_, TimePoint::max());
  }
  auto job = [this, config = config_] { return why_not_replaced(config); };  // a copy: SIGHUP may change it meanwhile
  const std::string obstacle = co_await run_on(services_->copiers, job);
  if (damage_watch_.gone()) co_return;
  if (!obstacle.empty()) {
    database_->keep_damaged(obstacle);
    co_return;
  }
  replacement_due_ = true;
  boost::system::error_code ignored;
  signals_.cancel(ignored);  // handle_signals() does it, so that no signal comes between
}

/// On another thread: it reads files. Empty if a restart with a new database is possible and makes sense.
std::string Server::why_not_replaced(const Config& config) const {
  const persist::SetAside last = persist::last_set_aside(config.db);
  const std::int64_t ago = std::abs(clock_.wall_seconds() - last.at);  // the clock may have been set back
  if (!last.path.empty() && ago < kDamagedAgainSeconds) {
    return fmt::format("{} was set aside {} s ago. Check the disk, and restart the daemon after a minute", last.path,
                       ago);
  }
  const auto reload = reload_config(config, inputs_);
  if (!reload) return reload.error().message;
  if (!reload.value().needs_restart.empty()) {
    return "the configuration was changed, restart the daemon: " + reload.value().needs_restart.front();
  }
  if (::access(kOwnProgram, X_OK) != 0) return std::string(kOwnProgram) + " cannot be executed, restart the daemon";
  return {};
}

/// From here on signals wait for the next start, which handles them when it serves.
awaitable<void> Server::replace_database() {
  mask_signals(SIG_BLOCK);
  for (;;) {
    // One timer for each wait: it cancels only a wait that has begun.
    asio::steady_timer arrived(loop_, kSignalsArrive);
    arrived.async_wait([this](const boost::system::error_code& cancelled) {
      boost::system::error_code ignored;
      if (!cancelled) signals_.cancel(ignored);
    });
    boost::system::error_code error;
    const int signal = co_await signals_.async_wait(asio::redirect_error(asio::use_awaitable, error));
    if (error) break;
    ::kill(::getpid(), signal);
  }
  spdlog::error("database {} is damaged: it is set aside, and the daemon starts again with a new one", config_.db);
  auto job = [this]() -> Result<std::string> {
    if (!database_->look().in_place) return std::string("moved away already");  // what is there now is another file
    return persist::set_aside(config_.db);
  };
  const Result<std::string> aside = co_await run_on(services_->copiers, job);
  if (!aside) {
    database_->keep_damaged("it cannot be renamed: " + aside.error().message());
    mask_signals(SIG_UNBLOCK);
    co_return;
  }
  STEPSTASH_CRASH_POINT("daemon.server.damaged.set_aside");
  spdlog::info("database {}: kept as {}", config_.db, aside.value());
  notifier_.reloading();
  restarting_ = true;
}

/// The order matters: stop accepting, finish what is under way, flush everything to the database, then the rest.
awaitable<void> Server::stop() {
  stopping_ = true;
  notifier_.stopping("finishing requests");
  clients_->stop();
  damage_watch_.hang_up();
  Waiter pause(loop_);
  const TimePoint requests_end = std::chrono::steady_clock::now() + kFinishRequests;
  flusher_->kick();  // waiting durable sets need not wait for the interval
  while (clients_->busy() && std::chrono::steady_clock::now() < requests_end) {
    co_await pause.sleep_until(std::chrono::steady_clock::now() + 10ms);
  }
  co_await clients_->close();

  notifier_.stopping(fmt::format("writing {} bytes to the database", flusher_->dirty_bytes()));
  flusher_->stop(std::chrono::steady_clock::now() + kFinalFlush);
  tick_.hang_up();  // start no more periodic work: the threads are about to end
  do {
    notifier_.alive();
    co_await pause.sleep_until(std::chrono::steady_clock::now() + kTick);
  } while (!flusher_done_);
  STEPSTASH_CRASH_POINT("daemon.server.stop.flushed");
  if (!flusher_->empty()) {
    spdlog::error(
        "{} values of {} bytes could not be written to the database ({}); they stay in the segment, and the next start "
        "goes on",
        flusher_->dirty_values(), flusher_->dirty_bytes(), database_->reason());
    exit_status_ = kExitIo;
  }
  services_->copiers.join();
  database_->stop_threads();
  spdlog::info("stopped; segment {}/{} is left for the next start", directory_->path(), kSegmentObject);
}

std::string Server::stats() const {
  ServerFigures figures;
  figures.connections = clients_->connections();
  figures.accepted = clients_->accepted();
  figures.refused = clients_->refused();
  figures.uptime = std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - started_);
  return stats_json(*services_, startup_, figures);
}

std::string Server::status_line() const {
  const shm::Heap& heap = startup_.segment->heap();
  std::string text =
      fmt::format("{} entries of {} builds, {} of {} MiB free, {} clients", startup_.segment->index().entries(),
                  startup_.segment->builds(), heap.free_bytes() >> 20, heap.capacity() >> 20, clients_->connections());
  if (database_->state() != Database::State::ready) {
    text += fmt::format("; the database is {}, {} bytes wait for it: {}", Database::name_of(database_->state()),
                        flusher_->dirty_bytes(), database_->reason());
  }
  return text;
}

}  // namespace stepstash::daemon
