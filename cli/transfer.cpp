#include "cli/transfer.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/text.hpp"

namespace stepstash::cli {
namespace {

/// The temporary file to remove when a signal ends us; empty: none. Written only while the signals are blocked.
char doomed[PATH_MAX];

void remove_and_die(int signal_number) {
  if (doomed[0] != 0) ::unlink(doomed);
  ::signal(signal_number, SIG_DFL);
  ::raise(signal_number);
}

/// Blocks the signals that end us while it lives.
class SignalsBlocked {
 public:
  SignalsBlocked() noexcept {
    sigset_t set;
    ::sigemptyset(&set);
    for (const int s : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&set, s);
    ::sigprocmask(SIG_BLOCK, &set, &before_);
  }
  ~SignalsBlocked() { ::sigprocmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_{};
};

void remove_on_signals(const std::string& path) noexcept {
  std::snprintf(doomed, sizeof doomed, "%s", path.c_str());
  for (const int s : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction now {};
    ::sigaction(s, nullptr, &now);
    if (now.sa_handler == SIG_IGN) continue;  // nohup, or a background job of a plain shell
    now.sa_handler = remove_and_die;
    now.sa_flags = 0;
    ::sigaction(s, &now, nullptr);
  }
}

std::string amount(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
  return text;
}

}  // namespace

int write_all(int fd, const void* data, std::size_t bytes, std::size_t* done) noexcept {
  const char* from = static_cast<const char*>(data);
  std::size_t sent = 0;
  int error = 0;
  while (sent < bytes && error == 0) {
    const ssize_t n = ::write(fd, from + sent, bytes - sent);
    if (n >= 0) {
      sent += static_cast<std::size_t>(n);
    } else if (errno == EAGAIN) {
      pollfd waited{fd, POLLOUT, 0};
      ::poll(&waited, 1, -1);
    } else if (errno != EINTR) {
      error = errno;
    }
  }
  if (done != nullptr) *done = sent;
  return error;
}

Progress::Progress(std::string_view what, std::uint64_t total)
    : what_(printable(what)), total_(total), wanted_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (shown_) static_cast<void>(!::write(STDERR_FILENO, "\r\x1b[K", 4));
}

void Progress::at(std::uint64_t bytes) {
  if (!wanted_) return;
  const auto now = Clock::now();
  if (now < next_) return;
  next_ = now + std::chrono::milliseconds(100);
  shown_ = true;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  std::string line = "\r\x1b[K" + what_ + ": ";
  if (total_ > 0) {
    const auto filled = static_cast<std::size_t>(20 * std::min(bytes, total_) / total_);
    line += "[" + std::string(filled, '#') + std::string(20 - filled, '.') + "] " + amount(double(bytes)) + " of " +
            amount(double(total_));
  } else {
    line += amount(double(bytes));
  }
  line += ", " + amount(double(bytes) / seconds) + "/s";
  static_cast<void>(!::write(STDERR_FILENO, line.data(), line.size()));
}

int OutputFile::open(const std::string& path) {
  path_ = path;
  char resolved[PATH_MAX];
  if (::realpath(path.c_str(), resolved) != nullptr) path_ = resolved;  // fails where there is no file yet
  struct stat status {};
  if (::stat(path_.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY);
    return fd_ >= 0 ? 0 : errno;
  }
  const std::size_t slash = path_.rfind('/');
  std::string name = slash == std::string::npos ? std::string() : path_.substr(0, slash + 1);
  name += ".stepstash-XXXXXX";
  const SignalsBlocked blocked;
  fd_ = ::mkostemp(name.data(), O_CLOEXEC);
  if (fd_ < 0) return errno;
  temporary_ = name;
  remove_on_signals(temporary_);
  // As a shell's redirection would make it; an existing file keeps its mode.
  const mode_t mask = ::umask(0);
  ::umask(mask);
  const mode_t mode = status.st_mode != 0 ? status.st_mode & 07777 : 0666 & ~mask;
  return ::fchmod(fd_, mode) == 0 ? 0 : errno;
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

int OutputFile::commit() {
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0 && errno != EINTR) return errno;  // a network file system may tell only now
  if (temporary_.empty()) return 0;
  const SignalsBlocked blocked;
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) return errno;
  temporary_.clear();
  doomed[0] = 0;
  return 0;
}

}  // namespace stepstash::cli
