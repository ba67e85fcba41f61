// SPDX-License-Identifier: Apache-2.0
#include "daemon/server.hpp"

#include <fmt/format.h>
#include <malloc.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
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
/// Connections are accepted for this long per event-loop turn: fast enough to empty the queue, in which everybody else
/// waits too, more often than a flood fills it.
constexpr auto kAcceptSlice = 200us;
/// Departing clients trigger the tick early: at most this often, and for at most a tenth of the loop's time.
constexpr auto kEarlyTick = 5ms;
constexpr int kEarlyTickPause = 9;
/// With fewer connections than this, trimming memory is not worthwhile.
constexpr std::size_t kFewConnections = 256;
/// A signal that came before its default action was restored is handled within this time.
constexpr auto kSignalsArrive = 10ms;
/// Pause after a failed accept.
constexpr auto kAcceptPause = 100ms;
/// A start waits this long for its log lines to be written; a slow reader must not hold it up longer.
constexpr auto kStartLines = 200ms;
/// Lines logged about what the start set aside; `stats` has the total.
constexpr std::size_t kLinesLogged = 1000;
/// A database that meets damage so soon after another was set aside is kept: assume a failing disk.
constexpr std::int64_t kDamagedAgainSeconds = 60;

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
  server->refusals_.keep_spare();
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
  const shm::Writer& segment = *startup_.segment;
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
  shm::Writer& segment = *startup_.segment;
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
  services_->stats.make = [this] { return stats(); };
  spdlog::info("segment {}/{}: {} entries kept, {} known from the database, {} saved, {} set aside, in {:.3f} s",
               directory_->path(), kSegmentObject, startup_.entries_kept, startup_.entries_loaded,
               startup_.entries_salvaged, startup_.set_aside.size(),
               std::chrono::duration<double>(startup_.duration).count());
}

/// Until here SIGTERM ends the process at once: there is nothing to finish, and a start may wait for a minute.
Configured<> Server::catch_signals() {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    boost::system::error_code error;
    signals_.add(signal, error);
    if (error) return fail(kExitCannotCreate, fmt::format("cannot handle signal {}: {}", signal, error.message()));
  }
  return success();
}

Configured<> Server::listen(ListeningSocket socket) {
  std::string path = config_.socket;
  socket_is_ours_ = !socket.fd || socket.ours;
  if (socket_is_ours_) locks_.push_back(STEPSTASH_TRY(lock_or_fail(path + ".lock", "socket " + path, "")));
  if (socket.fd) {
    path = address_of(socket.fd, path);
  } else {
    socket.fd = STEPSTASH_TRY(make_listening_socket(config_));
  }
  socket_gid_ = group_of(path);
  boost::system::error_code error;
  acceptor_.assign(asio::local::stream_protocol(), socket.fd.release(), error);
  if (error) return fail(kExitCannotCreate, fmt::format("{}: {}", path, error.message()));
  acceptor_.non_blocking(true, error);
  spdlog::info("listening on {}", path);
  return success();
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
    co_await stop();
    work.reset();
  };
  asio::co_spawn(loop_, flush, kOrDie);
  asio::co_spawn(
      loop_, [this] { return accept(); }, kOrDie);
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

awaitable<void> Server::accept() {
  while (!stopping_) {
    boost::system::error_code error;
    Socket socket(loop_);
    co_await acceptor_.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
    const TimePoint pause = std::chrono::steady_clock::now() + kAcceptSlice;
    while (!error && !stopping_) {
      greet(std::move(socket));
      if (std::chrono::steady_clock::now() >= pause) break;
      socket = Socket(loop_);
      acceptor_.accept(socket, error);
    }
    if (!stopping_ && (!error || error == asio::error::would_block || error == asio::error::try_again)) continue;
    if (stopping_ || error == asio::error::operation_aborted) break;
    spdlog::warn("cannot accept a connection: {}", error.message());
    if (error == boost::system::errc::too_many_files_open ||
        error == boost::system::errc::too_many_files_open_in_system) {
      co_await refusals_.refuse_next(acceptor_, accept_pause_, std::chrono::steady_clock::now() + kAcceptPause);
    } else {
      co_await accept_pause_.sleep_until(std::chrono::steady_clock::now() + kAcceptPause);
    }
  }
}

void Server::greet(Socket socket) {
  auto peer = Peer::of(socket.native_handle());
  if (!peer) return;
  const uid_t uid = peer.value().uid;
  const Right right = config_.right_of(uid, peer.value().groups, ::geteuid(), socket_gid_);
  std::string why;
  if (right == Right::none) {
    why = fmt::format("user {} may not use this daemon: see read, write and admin in its configuration", uid);
  } else if (open_connections_ >= config_.max_connections) {
    why = fmt::format("{} connections are open, the most there may be (max_connections)", open_connections_);
  } else if (const auto open = per_user_.find(uid);
             open != per_user_.end() && open->second >= config_.max_connections_per_user) {
    why = fmt::format("user {} has {} connections open, the most one may have (max_connections_per_user)", uid,
                      open->second);
  }
  if (!why.empty()) {
    refusals_.refuse(std::move(socket), uid, right == Right::none ? Errc::not_permitted : Errc::too_many,
                     std::move(why));
    return;
  }
  auto connection = std::make_shared<Connection>(*services_, std::move(socket), std::move(peer).value(), right);
  ++accepted_;
  asio::co_spawn(
      loop_, [this, connection] { return serve(connection); }, kOrDie);
}

awaitable<void> Server::serve(std::shared_ptr<Connection> connection) {
  if (stopping_) co_return;
  const uid_t uid = connection->uid();
  const auto place = connections_.insert(connections_.end(), connection);
  ++open_connections_;
  ++per_user_[uid];
  co_await connection->run();
  connections_.erase(place);
  --open_connections_;
  if (--per_user_[uid] == 0) per_user_.erase(uid);
  // A client that is gone may have held blocks: check its page now rather than at the next tick.
  tick_.wake();
}

/// Thousands of connections fragment the allocator's heap, which keeps the memory. When most of them are gone, trim it;
/// that takes some milliseconds, so each trim requires that half of the connections have gone.
void Server::give_back_memory() {
  most_connections_ = std::max(most_connections_, open_connections_);
  if (most_connections_ < 2 * open_connections_ + kFewConnections) return;
  ::malloc_trim(0);
  most_connections_ = open_connections_;
}

awaitable<void> Server::keep_time() {
  auto next_prune = std::chrono::steady_clock::now();
  auto next_status = next_prune;
  const auto watchdog = notifier_.watchdog_interval();
  auto next_alive = next_prune;
  while (!tick_.gone()) {
    const auto now = std::chrono::steady_clock::now();
    store_->maintain();
    give_back_memory();
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
    boost::system::error_code error;
    const int signal = co_await signals_.async_wait(asio::redirect_error(asio::use_awaitable, error));
    if (error) co_return;
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
  const std::int64_t before = persist::last_set_aside(config_.db);
  if (const std::int64_t now = clock_.wall_seconds(); before != 0 && now - before < kDamagedAgainSeconds) {
    spdlog::error(
        "database {} is damaged, {} s after another was set aside: it is not replaced again before the next start. "
        "Check the disk",
        config_.db, now - before);
    co_return;
  }
  auto read = [this]() { return std::make_shared<Configured<Reading>>(read_config(inputs_)); };
  const std::shared_ptr<Configured<Reading>> readable = co_await run_on(services_->copiers, read);
  if (!*readable) {
    spdlog::error("database {} is damaged, and not replaced before the next start: {}", config_.db,
                  readable->error().message);
    co_return;
  }
  // From here on a signal does what it does in a start. One that has come already is handled now.
  boost::system::error_code ignored;
  ::signal(SIGHUP, SIG_IGN);
  ::signal(SIGTERM, SIG_DFL);
  ::signal(SIGINT, SIG_DFL);
  co_await damage_watch_.sleep_until(std::chrono::steady_clock::now() + kSignalsArrive);
  if (stopping_) co_return;
  auto aside = persist::set_aside(config_.db);
  if (!aside) {
    spdlog::error("database {} is damaged and cannot be renamed, so it is not replaced: {}", config_.db,
                  aside.error().message());
    signals_.clear(ignored);
    if (const auto caught = catch_signals(); !caught) spdlog::error("{}", caught.error().message);
    co_return;
  }
  STEPSTASH_CRASH_POINT("daemon.server.damaged.set_aside");
  spdlog::error("database {} is damaged ({}); kept as {}. Starting again with a new one", config_.db,
                database_->reason(), aside.value());
  notifier_.reloading();
  restarting_ = true;
  loop_.stop();
}

ListeningSocket Server::hand_over() {
  boost::system::error_code ignored;
  return {UniqueFd(acceptor_.release(ignored)), socket_is_ours_};
}

/// The order matters: stop accepting, finish what is under way, flush everything to the database, then the rest.
awaitable<void> Server::stop() {
  stopping_ = true;
  boost::system::error_code ignored;
  notifier_.stopping("finishing requests");
  if (socket_is_ours_) ::unlink(config_.socket.c_str());
  STEPSTASH_CRASH_POINT("daemon.server.stop.socket_removed");
  acceptor_.close(ignored);
  damage_watch_.hang_up();
  accept_pause_.hang_up();
  Waiter pause(loop_);
  const TimePoint requests_end = std::chrono::steady_clock::now() + kFinishRequests;
  const auto any_busy = [this] {
    for (const auto& weak : connections_) {
      const auto connection = weak.lock();
      if (connection && connection->busy()) return true;
    }
    return false;
  };
  // Requests that wait for room or for a name could outlive this daemon; their clients can retry with the next one.
  for (const auto& weak : connections_) {
    if (const auto connection = weak.lock()) connection->dismiss();
  }
  flusher_->kick();  // waiting durable sets need not wait for the interval
  while (any_busy() && std::chrono::steady_clock::now() < requests_end) {
    co_await pause.sleep_until(std::chrono::steady_clock::now() + 10ms);
  }
  for (const auto& weak : connections_) {
    if (const auto connection = weak.lock()) connection->close();
  }
  refusals_.close();
  while (open_connections_ > 0 || !refusals_.idle())
    co_await pause.sleep_until(std::chrono::steady_clock::now() + 10ms);

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
        flusher_->dirty_values(), flusher_->dirty_bytes(), database_->obstacle());
    exit_status_ = kExitIo;
  }
  services_->copiers.join();
  database_->stop_threads();
  signals_.cancel(ignored);
  spdlog::info("stopped; segment {}/{} is left for the next start", directory_->path(), kSegmentObject);
}

std::string Server::stats() const {
  ServerFigures figures;
  figures.connections = open_connections_;
  figures.accepted = accepted_;
  figures.refused = refusals_.count();
  figures.uptime = std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now() - started_);
  return stats_json(*services_, startup_, figures);
}

std::string Server::status_line() const {
  const shm::Heap& heap = startup_.segment->heap();
  std::string text =
      fmt::format("{} entries of {} builds, {} of {} MiB free, {} clients", startup_.segment->index().entries(),
                  startup_.segment->builds(), heap.free_bytes() >> 20, heap.capacity() >> 20, open_connections_);
  if (database_->state() != Database::State::ready) {
    text += fmt::format("; the database is {}, {} bytes wait for it: {}", Database::name_of(database_->state()),
                        flusher_->dirty_bytes(), database_->reason());
  }
  return text;
}

}  // namespace stepstash::daemon
