// SPDX-License-Identifier: Apache-2.0
/// stepstashd as a process of one test: in a temporary directory, with a private segment.
///
/// The object outlives its daemon: after kill() or terminate() the database and the segment still exist, and start()
/// runs a daemon on them again. The destructor kills the daemon and removes everything.
///
/// Threads: one at a time. Call start() from a thread that outlives the daemon: the kernel kills the daemon together
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
  /// Does not start anything yet. `options` are added to those that name socket, database and segment, as on the
  /// command line: {"--flush-interval=1h"}.
  explicit DaemonProcess(std::vector<std::string> options = {});
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;
  ~DaemonProcess();

  /// Starts it and returns once it serves. Throws std::runtime_error with its log if it exits first, or after 60 s.
  void start();
  /// The same with other options from now on.
  void start(std::vector<std::string> options);
  /// Starts it without waiting for it to serve.
  void start_unready();
  /// Starts it and sends SIGKILL after `time`, which hits it in the middle of its start if the time is short enough.
  /// True: it became ready first, lives, and serves as after start(). False: it is gone.
  bool start_killed_after(std::chrono::microseconds time);
  /// Starts it, expecting it not to serve, and returns its exit status. Throws if it serves.
  int start_refused();

  /// Sends SIGKILL; returns once it is gone.
  void kill();
  /// Sends SIGTERM; returns the exit status, or 128 + the signal that ended it. Throws after 90 s.
  int terminate();
  /// Sends SIGSTOP; returns once all its threads have stopped.
  void stop();
  /// Sends SIGCONT.
  void resume();

  /// The path of the program to run: stepstashd of this build (daemon_program.cpp), unless a test defines this function
  /// itself.
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
  /// The output of all daemons that ran here.
  std::string log() const;

  /// Lays the instance's objects out as version 0.1 did, directly in /dev/shm. Only while no daemon runs.
  void flatten_segment() const;
  /// Simulates a reboot: removes the segment, pin pages included. Only while no daemon runs.
  void remove_segment();

  /// Uses a non-default socket, for tests in which two daemons meet. Only while no daemon runs.
  void use_socket(std::string path) { socket_ = std::move(path); }
  void use_db(std::string path) { db_ = std::move(path); }
  void use_segment(const std::string& name);
  /// Runs it as this user and group; requires root. Call it before the first start.
  void run_as(uid_t user);
  /// Descriptor limit of daemons started from now on; 0: the test's own limit.
  void limit_descriptors(::rlim_t most) { descriptors_ = most; }
  /// Starts later daemons without these descriptors: bit n for descriptor n, of 0 to 2.
  void close_standard(unsigned closed) { closed_ = closed; }
  /// The standard error of daemons started from now on; log() does not contain what they write there.
  void use_stderr(int fd) { stderr_ = fd; }
  /// From now on leaves the daemon's notifications to its service manager unread, until it is killed.
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
  uid_t user_ = 0;  // 0: the user running the test
  pid_t pid_ = -1;
  UniqueFd process_;  // pidfd
  UniqueFd notify_;   // where the daemon reports that it is ready
};

}  // namespace stepstash::test
