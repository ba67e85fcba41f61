// SPDX-License-Identifier: Apache-2.0
/// The daemon: owns all components, accepts connections, runs the periodic work, and shuts down in order.
#pragma once

#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/signal_set.hpp>
#include <chrono>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.hpp"
#include "daemon/config.hpp"
#include "daemon/connection.hpp"
#include "daemon/database.hpp"
#include "daemon/listening_socket.hpp"
#include "daemon/lock_file.hpp"
#include "daemon/metrics.hpp"
#include "daemon/notify.hpp"
#include "daemon/refusals.hpp"
#include "daemon/services.hpp"
#include "daemon/startup.hpp"
#include "shm/object.hpp"
#include "shm/served.hpp"

namespace stepstash::daemon {

class DatabaseOpening;

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
  ListeningSocket hand_over();

 private:
  Server(Config config, Inputs inputs);
  Configured<> open_objects();
  void enter(Phase phase, const std::string& detail = {});
  Configured<> open_segment(DatabaseOpening& database);
  void make_store(DatabaseOpening& database);
  Configured<> listen(ListeningSocket socket);
  Configured<> catch_signals();

  awaitable<void> accept();
  void greet(Socket socket);
  awaitable<void> serve(std::shared_ptr<Connection> connection);
  awaitable<void> keep_time();
  awaitable<void> handle_signals();
  awaitable<void> stop();
  awaitable<void> await_damage();
  void give_back_memory();
  std::string stats() const;
  std::string status_line() const;

  Config config_;
  Inputs inputs_;
  std::vector<LockFile> locks_;
  SystemClock clock_;
  asio::io_context loop_{1};
  asio::signal_set signals_{loop_};
  asio::local::stream_protocol::acceptor acceptor_{loop_};
  Waiter accept_pause_{loop_};
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
  std::list<std::weak_ptr<Connection>> connections_;
  Refusals refusals_{loop_};
  std::map<uid_t, std::uint32_t> per_user_;
  std::size_t open_connections_ = 0;
  std::size_t most_connections_ = 0;  // since the allocator last gave memory back
  std::uint64_t accepted_ = 0;
  gid_t socket_gid_ = 0;
  bool socket_is_ours_ = false;  // created by us, not passed by systemd
  bool stopping_ = false;
  bool restarting_ = false;
  bool flusher_done_ = false;
  int exit_status_ = 0;
  TimePoint started_ = std::chrono::steady_clock::now();
  Notifier notifier_;
  std::optional<shm::Served> served_;  // last: it ends before its segment
};

}  // namespace stepstash::daemon
