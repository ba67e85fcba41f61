// SPDX-License-Identifier: Apache-2.0
/// The daemon: owns all components, accepts connections, runs the periodic work, and shuts down in order.
#pragma once

#include <boost/asio/signal_set.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.hpp"
#include "daemon/clients.hpp"
#include "daemon/config.hpp"
#include "daemon/database.hpp"
#include "daemon/listening_socket.hpp"
#include "daemon/lock_file.hpp"
#include "daemon/metrics.hpp"
#include "daemon/notify.hpp"
#include "daemon/services.hpp"
#include "daemon/startup.hpp"
#include "shm/object.hpp"
#include "shm/served.hpp"

namespace stepstash::daemon {

class DatabaseOpening;

/// The file of this program, whatever became of its path: what main() executes after Server::restarting().
inline constexpr const char* kOwnProgram = "/proc/self/exe";

/// Thread safety: created, run and destroyed on one thread.
class Server {
 public:
  /// Locks segment, database and socket, opens them, recovers, listens. `inputs` are kept for SIGHUP. Errors are
  /// messages for the operator, with the matching exit status (sysexits).
  static Configured<std::unique_ptr<Server>> open(Config config, Inputs inputs, ListeningSocket socket);
  ~Server();

  /// Serves until SIGTERM or SIGINT, then stops: no new connections, requests finish, everything is flushed, SQLite is
  /// closed, the segment stays. Returns the exit status: 74 if something could not be flushed (it is still in the
  /// segment).
  int run();
  /// After run(): the database was found damaged and set aside, and this program is to start again. Nothing was
  /// stopped: end the process, or replace it (execve).
  bool restarting() const noexcept { return restarting_; }
  /// The listening socket, for the next start.
  ListeningSocket hand_over() { return clients_->hand_over(); }

 private:
  Server(Config config, Inputs inputs);
  Configured<> open_objects();
  void enter(Phase phase, const std::string& detail = {});
  Configured<> open_segment(DatabaseOpening& database);
  void make_store(DatabaseOpening& database);
  Configured<> listen(ListeningSocket socket);
  Configured<> catch_signals();

  awaitable<void> keep_time();
  awaitable<void> handle_signals();
  awaitable<void> stop();
  awaitable<void> await_damage();
  std::string why_not_replaced(const Config& config) const;
  awaitable<void> replace_database();
  std::string stats() const;
  std::string status_line() const;

  // The parts themselves, in the order in which they need each other: more than other classes have, since this one
  // only connects them.
  Config config_;
  Inputs inputs_;
  std::vector<LockFile> locks_;
  SystemClock clock_;
  asio::io_context loop_{1};
  asio::signal_set signals_{loop_};
  Waiter tick_{loop_};
  Waiter damage_watch_{loop_};
  std::unique_ptr<Database> database_;
  std::optional<shm::ObjectDirectory> directory_;
  PhaseTimes phases_;
  Startup startup_;
  Catalog catalog_;
  std::unique_ptr<Flusher> flusher_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Services> services_;
  std::unique_ptr<Clients> clients_;
  bool stopping_ = false;
  bool replacement_due_ = false;  // of the database
  bool restarting_ = false;
  bool flusher_done_ = false;
  int exit_status_ = 0;
  TimePoint started_ = std::chrono::steady_clock::now();
  Notifier notifier_;
  std::optional<shm::Served> served_;  // last: it ends before its segment
};

}  // namespace stepstash::daemon
