// SPDX-License-Identifier: Apache-2.0
/// Moving values between the segment and files, pipes and terminals.
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

/// Writes everything, waiting where the descriptor does not block. 0 or an errno; `done` receives the bytes written.
int write_all(int fd, const void* data, std::size_t bytes, std::size_t* done = nullptr) noexcept;
/// As read(2), but waits where the descriptor does not block. -1 with errno for errors.
ssize_t read_some(int fd, void* data, std::size_t bytes) noexcept;

/// Whether the descriptor is open, and open for writing.
bool open_for_writing(int fd) noexcept;

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

/// Where `get -o FILE` writes. What is done follows from what FILE is, links followed as the kernel follows them:
///
///   - nothing yet, also at the end of a link: a file that appears whole or not at all;
///   - a regular file: replaced as a whole, owner, group, mode, ACL and other extended attributes kept;
///   - a descriptor of this process (/dev/stdout, /dev/fd/N, a link to one): that descriptor, where it stands;
///   - a device, a FIFO, a file that has other hard links, that something is mounted on, that is reached by a link of
///     another process in /proc, that lies in a directory where nothing can be made, or whose owner or attributes
///     cannot be given to another one: written in place, after it was emptied, as a shell's `> FILE` does;
///   - a directory or a socket: refused.
///
/// What is not yet whole has no name (O_TMPFILE), so that nothing is left whatever ends the process. Replacing needs a
/// name between link(2) and rename(2), with all signals blocked: only SIGKILL between the two leaves it there. On file
/// systems without O_TMPFILE it has a name from the start, which signal handlers remove. One at a time in a process.
class OutputFile {
 public:
  enum class Temporary {
    without_name,  ///< where the file system has that
    with_name,
  };
  explicit OutputFile(Temporary temporary = Temporary::without_name) noexcept : temporary_(temporary) {}
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  /// Finds out what `path` is, and changes nothing. To be called before the process opens anything else: a number in
  /// /dev/fd means a descriptor that it was given. Empty, or why it cannot be written.
  std::string inspect(const std::string& path);
  /// Opens it. Empty, or why not; then nothing was changed.
  std::string open();
  int fd() const noexcept { return file_.get(); }
  /// Closes it, and gives a new file its name. 0 or an errno.
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
  UniqueFd directory_;  // created, replaced: where the file is, under name_
  std::string name_;
  UniqueFd file_;
  std::string temporary_name_;  // in directory_; empty: the new file has no name yet
};

}  // namespace stepstash::cli
