// SPDX-License-Identifier: Apache-2.0
/// stepstashd as a process of a test's own: in a temporary directory, with a segment nobody else has.
///
/// It outlives its daemon: after kill() or terminate() the database and the segment are still there, and start() runs
/// a daemon on them again. The destructor kills what runs and removes everything.
///
/// Threads: one at a time. start() must be called from a thread that outlives the daemon: the kernel kills the daemon
/// with the thread that started it, so that none is left behind when a test dies.
#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include "base/unique_fd.hpp"
#include "tests/support/temp_dir.hpp"

namespace stepstash::test {

class DaemonProcess {
 public:
  /// Nothing runs yet. `options` come on top of those that name socket, database and segment, as on the command line:
  /// {"--flush-interval=1h"}.
  explicit DaemonProcess(std::vector<std::string> options = {});
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;
  ~DaemonProcess();

  /// Runs it; returns when it serves. Throws std::runtime_error with its log when it ends before, or after 60 s.
  void start();
  /// The same with other options from now on.
  void start(std::vector<std::string> options);
  /// Runs it and does not wait for it to serve.
  void start_unready();
  /// Runs it and kills it `time` after that with SIGKILL, which is in the middle of its start if the time is short
  /// enough. True: it was ready before, lives, and serves as after start(). False: it is gone.
  bool start_killed_after(std::chrono::microseconds time);
  /// Runs it although it is not expected to serve, and returns the status it exits with. Throws when it serves.
  int start_refused();

  /// SIGKILL; returns when it is gone.
  void kill();
  /// SIGTERM; returns the exit status, or 128 + the signal that ended it. Throws after 90 s.
  int terminate();
  /// SIGSTOP; returns when all its threads stand still.
  void stop();
  /// SIGCONT.
  void resume();

  /// The path of the program that is run: stepstashd of this build (daemon_program.cpp), unless a test defines this
  /// function itself.
  static const char* program() noexcept;
  bool running() const noexcept { return pid_ > 0; }
  pid_t pid() const noexcept { return pid_; }
  const std::string& socket() const noexcept { return socket_; }
  const std::string& db() const noexcept { return db_; }
  /// The instance's name, the directory of its objects and the path of the segment.
  const std::string& segment() const noexcept { return segment_; }
  std::string segment_directory() const { return "/dev/shm/" + segment_ + ".d"; }
  std::string segment_path() const { return segment_directory() + "/segment"; }
  const TempDir& directory() const noexcept { return directory_; }
  /// What all daemons that ran here wrote.
  std::string log() const;

  /// As after a reboot: the segment, pin pages included, is gone. Only while no daemon runs.
  void remove_segment();

  /// Elsewhere than by default, for tests that let two daemons meet. Only while no daemon runs.
  void use_socket(std::string path) { socket_ = std::move(path); }
  void use_db(std::string path) { db_ = std::move(path); }
  void use_segment(const std::string& name);
  /// As this user and group, which only root can ask for. Call it before the first start.
  void run_as(uid_t user);
  /// A daemon that is started from now on may have so many open; 0: as many as the test may.
  void limit_descriptors(::rlim_t most) { descriptors_ = most; }
  /// A daemon that is started from now on starts without these: bit n for descriptor n, of 0 to 2.
  void close_standard(unsigned closed) { closed_ = closed; }
  /// The standard error of a daemon that is started from now on; log() does not have what it writes there.
  void use_stderr(int fd) { stderr_ = fd; }
  /// What a daemon says to its service manager from now on is left unread, until it is killed.
  void leave_notices_unread() { unread_notices_ = true; }
  std::string notify_path() const { return directory_.file("notify.sock"); }

 private:
  void spawn();
  bool wait_ready();
  bool ready_within(std::chrono::nanoseconds time);
  int wait_exit(std::chrono::milliseconds deadline);

  TempDir directory_;
  std::vector<std::string> options_;
  std::string socket_;
  std::string db_;
  std::string segment_;
  bool owns_segment_ = true;
  ::rlim_t descriptors_ = 0;
  unsigned closed_ = 0;
  int stderr_ = -1;
  bool unread_notices_ = false;
  uid_t user_ = 0;  // 0: whoever runs the test
  pid_t pid_ = -1;
  UniqueFd process_;  // pidfd
  UniqueFd notify_;   // where the daemon says that it is ready
};

}  // namespace stepstash::test
