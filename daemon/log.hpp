// SPDX-License-Identifier: Apache-2.0
/// Destination of log lines: stderr, with priorities when the journal reads it and with timestamps otherwise.
///
/// Logging never blocks. Standard error may be a pipe that nobody reads or a stopped terminal, and write(2) to it may
/// not return, so a separate thread writes. Lines queue for it up to a byte limit; lines beyond it are dropped and
/// counted, and a line reports the count when the log continues.
#pragma once

#include <spdlog/sinks/base_sink.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "daemon/config.hpp"

namespace stepstash::daemon {

/// A sink of spdlog. Thread safety: any thread.
class LogWriter final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  /// Writes to `fd`, which stays open as long as the process lives. At most `most_bytes` are queued.
  LogWriter(int fd, std::size_t most_bytes);
  /// Does not wait: queued lines are still written, if `fd` accepts them before the process ends.
  ~LogWriter() override;
  LogWriter(const LogWriter&) = delete;
  LogWriter& operator=(const LogWriter&) = delete;

  /// Lines lost.
  std::uint64_t dropped() const;
  /// False if not everything was written in time.
  bool wait_written(std::chrono::milliseconds time);

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override;
  void flush_() override {}

 private:
  struct State {
    int fd = -1;
    std::size_t most_bytes = 0;
    mutable std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::string> lines;
    std::size_t bytes = 0;  // of `lines`, and of the line being written
    std::uint64_t dropped = 0;
    std::uint64_t told = 0;  // drops already reported by a line
    bool writing = false;
    bool over = false;
  };

  static void write_out(State& state);
  static bool write_whole(int fd, std::string_view text);

  std::shared_ptr<State> state_;
};

/// Call once, before the first line.
void set_up_log(LogLevel level);
void set_log_level(LogLevel level);
/// Returns when everything has been written or the time has passed. Not to be called while clients are served.
void wait_for_log(std::chrono::milliseconds time);
std::uint64_t log_lines_dropped();

}  // namespace stepstash::daemon
