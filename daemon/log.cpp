// SPDX-License-Identifier: Apache-2.0
#include "daemon/log.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "base/signals_blocked.hpp"
#include "base/text.hpp"

namespace stepstash::daemon {
namespace {

/// `<3>` and the like: the prefixes that systemd parses as priorities (sd-daemon(3)).
class Priority final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& out) override {
    const auto digit = [&] {
      switch (message.level) {
        case spdlog::level::critical:
          return '2';
        case spdlog::level::err:
          return '3';
        case spdlog::level::warn:
          return '4';
        case spdlog::level::info:
          return '6';
        default:
          return '7';
      }
    }();
    for (const char c : {'<', digit, '>'}) out.push_back(c);
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<Priority>(); }
};

/// The message, passed through visible(): it contains names, paths and texts of libraries, and a line feed in them must
/// not start a new line.
class Message final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& out) override {
    const std::string text = visible({message.payload.data(), message.payload.size()});
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<Message>(); }
};

/// Whether stderr is the stream to the journal that systemd set up (systemd.exec(5), JOURNAL_STREAM).
bool journal_reads_stderr() {
  const char* stream = std::getenv("JOURNAL_STREAM");
  struct stat status {};
  if (stream == nullptr || ::fstat(STDERR_FILENO, &status) != 0) return false;
  return stream == std::to_string(status.st_dev) + ":" + std::to_string(status.st_ino);
}

}  // namespace

LogWriter::LogWriter(int fd, std::size_t most_bytes) : state_(std::make_shared<State>()) {
  state_->fd = fd;
  state_->most_bytes = most_bytes;
  const SignalsBlocked in_thread;
  std::thread([state = state_] { write_out(*state); }).detach();
}

LogWriter::~LogWriter() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->over = true;
  }
  state_->changed.notify_all();
}

void LogWriter::sink_it_(const spdlog::details::log_msg& message) {
  spdlog::memory_buf_t text;
  formatter_->format(message, text);
  const std::size_t bytes = text.size();
  State& state = *state_;
  {
    const std::lock_guard lock(state.mutex);
    if (state.bytes + bytes > state.most_bytes) {
      ++state.dropped;
      return;
    }
    if (const std::uint64_t untold = state.dropped - state.told; untold > 0) {
      state.told = state.dropped;
      const std::string words = fmt::format("{} lines of this log were dropped: nobody took them", untold);
      spdlog::memory_buf_t told;
      formatter_->format({message.time, {}, message.logger_name, spdlog::level::warn, words}, told);
      state.lines.emplace_back(told.data(), told.size());
      state.bytes += told.size();
    }
    state.lines.emplace_back(text.data(), bytes);
    state.bytes += bytes;
  }
  state.changed.notify_all();
}

std::uint64_t LogWriter::dropped() const {
  const std::lock_guard lock(state_->mutex);
  return state_->dropped;
}

bool LogWriter::wait_written(std::chrono::milliseconds time) {
  std::unique_lock lock(state_->mutex);
  return state_->changed.wait_for(lock, time, [&] { return state_->lines.empty() && !state_->writing; });
}

/// On its own thread, which may block in write(2) forever: nobody waits for it without a deadline, and its state lives
/// as long as it does.
void LogWriter::write_out(State& state) {
  std::unique_lock lock(state.mutex);
  for (;;) {
    state.changed.wait(lock, [&] { return state.over || !state.lines.empty(); });
    if (state.lines.empty()) return;
    const std::string line = std::move(state.lines.front());
    state.lines.pop_front();
    state.writing = true;
    lock.unlock();
    const bool written = write_whole(state.fd, line);
    lock.lock();
    state.writing = false;
    state.bytes -= line.size();
    if (!written) ++state.dropped;
    if (state.lines.empty()) state.changed.notify_all();
  }
}

bool LogWriter::write_whole(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<std::size_t>(written));
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {  // another process made the shared descriptor non-blocking
      pollfd watched{fd, POLLOUT, 0};
      (void)::poll(&watched, 1, -1);
    } else if (errno != EINTR) {
      return false;  // the reader is gone, or its disk is full
    }
  }
  return true;
}

namespace {

/// How long a process that dies of an exception waits for its last lines to be written.
constexpr auto kLastLines = std::chrono::seconds(1);
/// Limit on queued lines: room for some thousands.
constexpr std::size_t kMostBytes = std::size_t{1} << 20;

std::shared_ptr<LogWriter>& writer() {
  static std::shared_ptr<LogWriter> made;
  return made;
}

std::terminate_handler former_terminate = nullptr;

/// An exception ends the process: first write what it has logged, then let the former handler write its own line,
/// unless stderr accepts nothing.
[[noreturn]] void last_words() {
  wait_for_log(kLastLines);
  pollfd watched{STDERR_FILENO, POLLOUT, 0};
  if (former_terminate != nullptr && ::poll(&watched, 1, 1000) == 1) former_terminate();
  std::abort();
}

}  // namespace

void set_up_log(LogLevel level) {
  writer() = std::make_shared<LogWriter>(STDERR_FILENO, kMostBytes);
  auto logger = std::make_shared<spdlog::logger>("stepstashd", writer());
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<Priority>('P').add_flag<Message>('*').set_pattern(
      journal_reads_stderr() ? "%P%*" : "%Y-%m-%dT%H:%M:%S.%e%z %l %*");
  logger->set_formatter(std::move(formatter));
  spdlog::set_default_logger(std::move(logger));
  set_log_level(level);
  former_terminate = std::set_terminate(last_words);
}

void wait_for_log(std::chrono::milliseconds time) {
  if (writer() != nullptr) (void)writer()->wait_written(time);
}

std::uint64_t log_lines_dropped() { return writer() != nullptr ? writer()->dropped() : 0; }

void set_log_level(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      spdlog::set_level(spdlog::level::debug);
      break;
    case LogLevel::info:
      spdlog::set_level(spdlog::level::info);
      break;
    case LogLevel::warning:
      spdlog::set_level(spdlog::level::warn);
      break;
    case LogLevel::error:
      spdlog::set_level(spdlog::level::err);
      break;
  }
}

}  // namespace stepstash::daemon
