// SPDX-License-Identifier: Apache-2.0
#include "cli/transfer.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <sys/random.h>
#include <sys/statfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <map>
#include <utility>

#include "base/signals_blocked.hpp"
#include "base/text.hpp"

namespace stepstash::cli {
namespace {

/// The temporary file to remove when a signal ends the process; empty: none. Written only while signals are blocked.
char doomed[64];
int doomed_in = -1;

void remove_and_die(int signal_number) {
  if (doomed[0] != 0) ::unlinkat(doomed_in, doomed, 0);
  ::signal(signal_number, SIG_DFL);
  ::raise(signal_number);
}

bool ends_the_process(int signal_number) noexcept {
  for (const int other : {SIGKILL, SIGSTOP, SIGCHLD, SIGCONT, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH}) {
    if (signal_number == other) return false;
  }
  return true;
}

void remove_on_signals(int directory, const std::string& name) noexcept {
  std::snprintf(doomed, sizeof doomed, "%s", name.c_str());
  doomed_in = directory;
  for (int s = 1; s <= SIGRTMAX; ++s) {
    struct sigaction now {};
    if (!ends_the_process(s) || ::sigaction(s, nullptr, &now) != 0) continue;  // or one reserved by the C library
    if (now.sa_handler == SIG_IGN) continue;  // nohup, or a background job of a plain shell
    now.sa_handler = remove_and_die;
    now.sa_flags = 0;
    ::sigaction(s, &now, nullptr);
  }
}

// ---- what a path is ------------------------------------------------------------------------------------------------

bool same_file(const struct stat& a, const struct stat& b) noexcept {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

struct Place {
  std::string directory;  // prefix for a name: empty, or with a trailing slash
  std::string name;
};

Place split(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return {{}, path};
  return {path.substr(0, slash + 1), path.substr(slash + 1)};
}

std::string to_open(const std::string& directory) { return directory.empty() ? "." : directory; }

/// The descriptor of this process that the name refers to, open or not; -1: none.
int own_descriptor(const Place& place) noexcept {
  if (place.name.empty() || place.name.size() > 9) return -1;
  if (!std::all_of(place.name.begin(), place.name.end(), [](char c) { return c >= '0' && c <= '9'; })) return -1;
  struct stat directory {};
  if (::stat(to_open(place.directory).c_str(), &directory) != 0) return -1;
  for (const char* ours : {"/proc/self/fd", "/proc/thread-self/fd"}) {
    struct stat status {};
    if (::stat(ours, &status) == 0 && same_file(status, directory)) return std::stoi(place.name);
  }
  return -1;
}

bool on_procfs(const std::string& directory) noexcept {
  struct statfs status {};
  return ::statfs(to_open(directory).c_str(), &status) == 0 && status.f_type == PROC_SUPER_MAGIC;
}

std::string link_target(int directory, const char* name) {
  char target[PATH_MAX];
  const ssize_t bytes = ::readlinkat(directory, name, target, sizeof target);
  return {target, bytes < 0 || bytes == sizeof target ? 0 : static_cast<std::size_t>(bytes)};
}
std::string link_target(const std::string& path) { return link_target(AT_FDCWD, path.c_str()); }

std::string link_of(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

std::string reason(int error) { return std::strerror(error); }

UniqueFd open_directory(const std::string& directory) {
  return UniqueFd(::open(to_open(directory).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
}

/// The rule of fs.protected_symlinks (proc_sys_fs(5)), whatever its setting here: in a directory where everybody may
/// create names, such as /tmp, a link is followed only if its owner is the current user or the directory's owner.
bool may_follow(const struct stat& link, int directory) noexcept {
  struct stat status {};
  if (::fstat(directory, &status) != 0) return false;
  const bool everybody = (status.st_mode & S_ISVTX) != 0 && (status.st_mode & S_IWOTH) != 0;
  return !everybody || link.st_uid == ::geteuid() || link.st_uid == status.st_uid;
}

/// A mount point cannot be renamed over.
bool is_mount_point(int directory, const std::string& name) noexcept {
  struct statx status {};
  return ::statx(directory, name.c_str(), AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &status) == 0 &&
         (status.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
}

// ---- what a file has apart from its content -----------------------------------------------------------------------

/// The kernel itself removes or renews these when a file is written.
bool belongs_to_the_content(std::string_view attribute) noexcept {
  return attribute == "security.capability" || attribute == "security.ima" || attribute == "security.evm";
}

/// False: they cannot be read.
bool attributes_of(int fd, std::map<std::string, std::string>& out) {
  ssize_t bytes = ::flistxattr(fd, nullptr, 0);
  if (bytes < 0) return errno == ENOTSUP;
  std::string names(static_cast<std::size_t>(bytes), '\0');
  bytes = ::flistxattr(fd, names.data(), names.size());
  if (bytes < 0) return false;
  names.resize(static_cast<std::size_t>(bytes));
  for (std::size_t at = 0; at < names.size();) {
    const std::string name = names.c_str() + at;
    at += name.size() + 1;
    const ssize_t size = ::fgetxattr(fd, name.c_str(), nullptr, 0);
    if (size < 0) return false;
    std::string value(static_cast<std::size_t>(size), '\0');
    if (::fgetxattr(fd, name.c_str(), value.data(), value.size()) != size) return false;
    out[name] = std::move(value);
  }
  return true;
}

/// Copies owner, group, mode and extended attributes (including ACLs) from `from` to `to`. False: not all of it is
/// possible.
bool copy_facts(int from, const struct stat& status, int to) {
  struct stat now {};
  if (::fstat(to, &now) != 0) return false;
  if ((now.st_uid != status.st_uid || now.st_gid != status.st_gid) && ::fchown(to, status.st_uid, status.st_gid) != 0) {
    return false;
  }
  std::map<std::string, std::string> wanted, there;
  if (!attributes_of(from, wanted) || !attributes_of(to, there)) return false;
  for (const auto& [name, value] : wanted) {
    if (belongs_to_the_content(name)) continue;
    const auto found = there.find(name);
    if (found != there.end() && found->second == value) continue;
    if (::fsetxattr(to, name.c_str(), value.data(), value.size(), 0) != 0) return false;
  }
  for (const auto& [name, value] : there) {  // such as a default ACL of the directory
    if (!wanted.contains(name) && !belongs_to_the_content(name) && ::fremovexattr(to, name.c_str()) != 0) return false;
  }
  // Without setuid and setgid: writing to the file clears them, too.
  return ::fchmod(to, status.st_mode & 01777) == 0;
}

std::string random_name() {
  std::uint64_t number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number) number = static_cast<std::uint64_t>(::getpid());
  char name[40];
  std::snprintf(name, sizeof name, ".stepstash-%016llx", static_cast<unsigned long long>(number));
  return name;
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

ssize_t read_some(int fd, void* data, std::size_t bytes) noexcept {
  for (;;) {
    const ssize_t got = ::read(fd, data, bytes);
    if (got >= 0 || (errno != EINTR && errno != EAGAIN)) return got;
    if (errno == EAGAIN) {
      pollfd waited{fd, POLLIN, 0};
      ::poll(&waited, 1, -1);
    }
  }
}

bool open_for_writing(int fd) noexcept {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags >= 0 && (flags & O_PATH) == 0 && (flags & O_ACCMODE) != O_RDONLY;
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

std::string OutputFile::inspect(const std::string& path) {
  path_ = path;
  constexpr int kLinks = 40;  // the kernel's own limit
  // `at` follows the links name by name to find out their kinds. Others may change names in the meantime, so each link
  // is checked and read through one descriptor, independently of what the kernel finds for the whole path below.
  std::string at = path;
  bool by_link = false, of_process = false;
  for (int links = 0;; ++links) {
    const Place place = split(at);
    if (const int given = own_descriptor(place); given >= 0) {
      if (::fcntl(given, F_GETFD) < 0) return "descriptor " + place.name + " is not open";
      if (!open_for_writing(given)) return "descriptor " + place.name + " is not open for writing";
      file_.reset(::fcntl(given, F_DUPFD_CLOEXEC, 3));
      way_ = Way::descriptor;
      return file_ ? std::string() : reason(errno);
    }
    const UniqueFd directory = open_directory(place.directory);
    const UniqueFd link(::openat(directory.get(), place.name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
    struct stat status {};
    if (!link || ::fstat(link.get(), &status) != 0 || !S_ISLNK(status.st_mode)) break;
    if (links == kLinks) return reason(ELOOP);
    by_link = true;
    of_process = on_procfs(place.directory);
    if (of_process) break;  // such a link may lead where no name leads
    if (!may_follow(status, directory.get())) {
      return printable(at) + " is a link that user " + std::to_string(status.st_uid) +
             " made in a directory where everybody may: name the file itself";
    }
    const std::string target = link_target(link.get(), "");
    if (target.empty()) break;
    at = target.front() == '/' ? target : place.directory + target;
  }
  struct stat target {};
  if (::stat(path.c_str(), &target) != 0) {
    return errno == ENOENT && !of_process ? place_new(at, by_link) : reason(errno);
  }
  if (S_ISDIR(target.st_mode)) return "is a directory";
  if (S_ISSOCK(target.st_mode)) return "is a socket";
  const bool replaceable = S_ISREG(target.st_mode) && target.st_nlink == 1 && !of_process;
  way_ = replaceable && place_existing(path, by_link, target) ? Way::replaced : Way::in_place;
  return {};
}

std::string OutputFile::place_new(const std::string& path, bool by_link) {
  const Place place = split(path);
  if (place.name.empty() || place.name == "." || place.name == "..") return reason(EISDIR);
  directory_ = open_directory(place.directory);
  if (!directory_) {
    const std::string why = reason(errno);
    return by_link ? "is a link to " + printable(path) + ": " + why : why;
  }
  name_ = place.name;
  way_ = Way::created;
  return {};
}

/// False: no name is known at which another file could replace this one.
bool OutputFile::place_existing(const std::string& path, bool by_link, const struct ::stat& target) {
  Place place = split(path);
  if (by_link) {
    const UniqueFd end(::open(path.c_str(), O_PATH | O_CLOEXEC));
    if (!end) return false;
    place = split(link_target(link_of(end.get())));
  }
  directory_ = open_directory(place.directory);
  struct stat found {};
  if (!directory_ || ::fstatat(directory_.get(), place.name.c_str(), &found, AT_SYMLINK_NOFOLLOW) != 0 ||
      !same_file(found, target) || is_mount_point(directory_.get(), place.name)) {
    return false;
  }
  name_ = place.name;
  return true;
}

std::string OutputFile::open() {
  switch (way_) {
    case Way::descriptor:
      return {};
    case Way::in_place:
      return open_in_place();
    case Way::replaced:
      return open_replacement();
    case Way::created: {
      const int error = make_temporary(0666);
      return error == 0 ? std::string() : reason(error);
    }
  }
  return reason(EINVAL);
}

std::string OutputFile::open_in_place() {
  do {
    // O_CREAT: the kernel's rules for other users' files in /tmp (fs.protected_fifos) must apply as for a shell.
    file_.reset(::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY, 0666));
  } while (!file_ && errno == EINTR);  // a FIFO waits for its reader
  struct stat status {};
  if (!file_ || ::fstat(file_.get(), &status) != 0) return reason(errno);
  if (S_ISREG(status.st_mode) && ::ftruncate(file_.get(), 0) != 0) return reason(errno);
  return {};
}

std::string OutputFile::open_replacement() {
  UniqueFd existing;
  struct stat status {};
  do {  // another process may replace it between the two calls
    // O_CREAT: as for a shell's redirection, so that the kernel's rules for /tmp (fs.protected_regular) apply here,
    // too.
    constexpr int kFlags = O_CLOEXEC | O_NOCTTY | O_NOFOLLOW | O_NONBLOCK;
    existing.reset(::openat(directory_.get(), name_.c_str(), kFlags | O_WRONLY | O_CREAT, 0666));
    // A running program: it cannot be written, but replaced.
    if (!existing && errno == ETXTBSY) existing.reset(::openat(directory_.get(), name_.c_str(), kFlags | O_RDONLY));
    if (!existing || ::fstat(existing.get(), &status) != 0) return reason(errno);
  } while (status.st_nlink == 0);
  const int error = S_ISREG(status.st_mode) && status.st_nlink == 1 ? make_temporary(0600) : EPERM;
  if (error == 0 && copy_facts(existing.get(), status, file_.get())) return {};
  if (error != 0 && error != EACCES && error != EPERM && error != EROFS) return reason(error);
  // It can be written, but no other file can replace it.
  drop_temporary();
  way_ = Way::in_place;
  return open_in_place();
}

int OutputFile::make_temporary(mode_t mode) {
  if (temporary_ == Temporary::without_name) {
    file_.reset(::openat(directory_.get(), ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, mode));
    // It gets its name through /proc.
    if (file_ && ::access(link_of(file_.get()).c_str(), F_OK) == 0) return 0;
    if (!file_ && errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT && errno != EINVAL) return errno;
  }
  const SignalsBlocked blocked;
  do {
    temporary_name_ = random_name();
    file_.reset(::openat(directory_.get(), temporary_name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode));
  } while (!file_ && errno == EEXIST);
  if (!file_) {
    const int error = errno;
    temporary_name_.clear();
    return error;
  }
  remove_on_signals(directory_.get(), temporary_name_);
  return 0;
}

void OutputFile::drop_temporary() noexcept {
  const SignalsBlocked blocked;
  doomed[0] = 0;
  if (!temporary_name_.empty()) ::unlinkat(directory_.get(), temporary_name_.c_str(), 0);
  temporary_name_.clear();
  file_.reset();
}

OutputFile::~OutputFile() { drop_temporary(); }

int OutputFile::commit() {
  // A network file system may report a failed write only at close. A file without a name must not be closed yet:
  // closing a second descriptor serves as well.
  const bool nameless = (way_ == Way::created || way_ == Way::replaced) && temporary_name_.empty();
  const int last = nameless ? ::fcntl(file_.get(), F_DUPFD_CLOEXEC, 3) : file_.release();
  if (last < 0 || (::close(last) != 0 && errno != EINTR)) return errno;
  return way_ == Way::created || way_ == Way::replaced ? give_name() : 0;
}

int OutputFile::give_name() noexcept {
  const auto link_as = [this](const std::string& name) {
    return ::linkat(AT_FDCWD, link_of(file_.get()).c_str(), directory_.get(), name.c_str(), AT_SYMLINK_FOLLOW) == 0;
  };
  if (temporary_name_.empty() && way_ == Way::created) {
    if (link_as(name_)) return 0;
    if (errno != EEXIST) return errno;  // else somebody created one in the meantime, and ours replaces it
  }
  const SignalsBlocked blocked;
  while (temporary_name_.empty()) {
    const std::string name = random_name();
    if (link_as(name)) {
      temporary_name_ = name;
    } else if (errno != EEXIST) {
      return errno;
    }
  }
  if (::renameat(directory_.get(), temporary_name_.c_str(), directory_.get(), name_.c_str()) != 0) {
    const int error = errno;
    drop_temporary();
    return error;
  }
  temporary_name_.clear();
  doomed[0] = 0;
  return 0;
}

}  // namespace stepstash::cli
