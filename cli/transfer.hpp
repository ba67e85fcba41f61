/// Moving values between the segment and files, pipes and terminals.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace stepstash::cli {

/// Writes everything, waiting where the descriptor does not block. 0 or an errno; `done` receives the bytes written.
int write_all(int fd, const void* data, std::size_t bytes, std::size_t* done = nullptr) noexcept;

/// A line on stderr that follows a transfer of more than a second, when stderr is a terminal; nothing otherwise.
class Progress {
 public:
  /// `total` 0: not known.
  Progress(std::string_view what, std::uint64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void at(std::uint64_t bytes);

 private:
  using Clock = std::chrono::steady_clock;
  const std::string what_;
  const std::uint64_t total_;
  const bool wanted_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point next_ = start_ + std::chrono::seconds(1);
  bool shown_ = false;
};

/// A file that appears under its name whole or not at all: written beside it, renamed at the end, removed when it is
/// destroyed before, or by SIGINT, SIGTERM and SIGHUP. What is no regular file (a device, a fifo) is written directly.
/// One at a time in a process.
class OutputFile {
 public:
  /// 0 or an errno.
  int open(const std::string& path);
  ~OutputFile();
  int fd() const noexcept { return fd_; }
  /// Closes and renames. 0 or an errno.
  int commit();

 private:
  int fd_ = -1;
  std::string path_;       // with symbolic links resolved, so that a link stays one
  std::string temporary_;  // empty: path_ is written directly
};

}  // namespace stepstash::cli
