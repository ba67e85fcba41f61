// SPDX-License-Identifier: Apache-2.0
/// Copies values between the segment and files, pipes and terminals.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/unique_fd.hpp"

namespace stepstash::cli {

/// Writes everything; waits if the descriptor is non-blocking. Returns 0 or an errno; `done` receives the bytes
/// written.
int write_all(int fd, const void* data, std::size_t bytes, std::size_t* done = nullptr) noexcept;
/// Like read(2), but waits if the descriptor is non-blocking. Returns -1 with errno on errors.
ssize_t read_some(int fd, void* data, std::size_t bytes) noexcept;

/// Whether the descriptor is open for writing.
bool open_for_writing(int fd) noexcept;

/// A progress line on stderr for transfers of more than a second, if stderr is a terminal; otherwise nothing.
class Progress {
 public:
  /// `total` 0: unknown.
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

/// The destination of `get -o FILE`. What happens depends on what FILE is, with links followed as the kernel does:
///
/// - does not exist, also as the target of a link: a file that appears whole or not at all;
/// - a regular file: replaced as a whole; owner, group, mode, ACL and other extended attributes are kept;
/// - a descriptor of this process (/dev/stdout, /dev/fd/N, a link to one): that descriptor, at its present offset;
/// - a device, a FIFO, a file with other hard links, a mount point, one reached through another process's link in
///   /proc, one in a directory where nothing can be created, or one whose owner or attributes cannot be given to
///   another file: written in place after truncation, as a shell's `> FILE` does;
/// - a directory or a socket: refused.
///
/// An incomplete file has no name (O_TMPFILE), so nothing is left behind however the process ends. Replacing needs a
/// temporary name between link(2) and rename(2), with all signals blocked: only SIGKILL between the two leaves it
/// behind. On file systems without O_TMPFILE the file has a temporary name from the start, which signal handlers
/// remove. One at a time per process.
class OutputFile {
 public:
  enum class Temporary {
    without_name,  ///< if the file system supports it
    with_name,
  };
  explicit OutputFile(Temporary temporary = Temporary::without_name) noexcept : temporary_(temporary) {}
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  /// Determines what `path` is, and changes nothing. Call before the process opens anything else: a number in /dev/fd
  /// means a descriptor that was passed to it. Returns empty, or why the file cannot be written.
  std::string inspect(const std::string& path);
  /// Opens it. Returns empty, or why not; then nothing was changed.
  std::string open();
  int fd() const noexcept { return file_.get(); }
  /// Closes it, and gives a new file its name. Returns 0 or an errno.
  int commit();

 private:
  enum class Way { created, replaced, in_place, descriptor };

  std::string place_new(const std::string& path, bool by_link);
  bool place_existing(const std::string& path, bool by_link, const struct ::stat& target);
  std::string open_in_place();
  std::string open_replacement();
  /// 0 or an errno.
  int make_temporary(mode_t mode);
  void drop_temporary() noexcept;
  int give_name() noexcept;

  const Temporary temporary_;
  std::string path_;
  Way way_ = Way::in_place;
  UniqueFd directory_;  // created, replaced: the file's directory, in which it is name_
  std::string name_;
  UniqueFd file_;
  std::string temporary_name_;  // in directory_; empty: the new file has no name yet
};

}  // namespace stepstash::cli
