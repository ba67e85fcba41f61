// SPDX-License-Identifier: Apache-2.0
#include "persist/database_files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string_view>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "base/unique_fd.hpp"

namespace stepstash::persist {
namespace {

/// Owner only: anyone who can open the file can read every value and hold SQLite's locks, whatever their rights.
constexpr ::mode_t kFileMode = 0600;

/// Maps file errors that concern room or the device, rather than permissions, to not_durable.
std::error_code file_error(std::error_code error) noexcept {
  switch (error.value()) {
    case ENOSPC:
    case EDQUOT:
    case EROFS:
    case EIO:
      return Errc::not_durable;
    default:
      return error;
  }
}

Result<> sync_directory_of(const std::string& path) {
  const std::string directory = path.substr(0, path.rfind('/') + 1);
  const UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd || ::fsync(fd.get()) != 0) return last_errno();
  return success();
}

bool exists(const std::string& path) noexcept {
  struct ::stat status {};
  return ::lstat(path.c_str(), &status) == 0;
}

}  // namespace

FileId FileId::at(const std::string& path) noexcept {
  struct ::stat status {};
  if (::lstat(path.c_str(), &status) != 0) return {};
  return {status.st_dev, status.st_ino};
}

Result<std::string> resolve_directory(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  if (name.empty() || name == "." || name == "..") return Errc::invalid_argument;
  const std::unique_ptr<char, void (*)(void*)> real(::realpath(directory.c_str(), nullptr), std::free);
  if (!real) return last_errno();
  std::string resolved = real.get();
  if (resolved.back() != '/') resolved += '/';
  return resolved + name;
}

Result<bool> examine(const std::string& path) {
  // O_PATH: closing any other descriptor of a database would drop the POSIX locks that this process holds on it. The
  // mode is changed on the very file that was checked, not on what has its name by then; via /proc, because fchmod(2)
  // refuses such a descriptor.
  const UniqueFd fd(::open(path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!fd && errno == ENOENT) return false;
  struct ::stat status {};
  if (!fd || ::fstat(fd.get(), &status) != 0) return last_errno();
  if (!S_ISREG(status.st_mode) || status.st_uid != ::geteuid() || status.st_nlink != 1) return Errc::unsafe_object;
  const ::mode_t mode = status.st_mode & 07777;
  const std::string same = "/proc/self/fd/" + std::to_string(fd.get());
  if ((mode & ~kFileMode) != 0 && ::chmod(same.c_str(), mode & kFileMode) != 0) return last_errno();
  return true;
}

Result<> create_file(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, kFileMode));
  STEPSTASH_CRASH_POINT("persist.file.made");
  if (!fd || ::fchmod(fd.get(), kFileMode) != 0 || ::fsync(fd.get()) != 0) return file_error(last_errno());
  STEPSTASH_CRASH_POINT("persist.file.synced");
  return sync_directory_of(path);
}

void make_reserve(const std::string& path, std::uint64_t bytes) noexcept {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, kFileMode));
  if (!fd) return;
  if (::fchmod(fd.get(), kFileMode) == 0) {
    // If the disk is nearly full, a smaller one is better than none.
    for (const std::uint64_t least = bytes / 8; bytes >= least; bytes /= 2) {
      if (::posix_fallocate(fd.get(), 0, static_cast<::off_t>(bytes)) == 0) {
        STEPSTASH_CRASH_POINT("persist.reserve_file.made");
        return;
      }
      if (::ftruncate(fd.get(), 0) != 0) break;
    }
  }
  ::unlink(path.c_str());
}

std::uint64_t room_beside(const std::string& path) noexcept {
  struct ::statvfs room {};
  if (::statvfs(path.substr(0, path.rfind('/') + 1).c_str(), &room) != 0) return UINT64_MAX;
  return std::uint64_t{room.f_bavail} * room.f_frsize;
}

std::uint64_t file_bytes(const std::string& path) noexcept {
  struct ::stat status {};
  return ::stat(path.c_str(), &status) == 0 ? static_cast<std::uint64_t>(status.st_size) : 0;
}

std::int64_t modified_at(const std::string& path) noexcept {
  struct ::stat status {};
  return ::stat(path.c_str(), &status) == 0 ? status.st_mtim.tv_sec : 0;
}

Result<std::string> set_aside(const std::string& path) {
  const std::string from = STEPSTASH_TRY(resolve_directory(path));
  const auto taken = [](const std::string& name) {
    return exists(name) || exists(name + "-wal") || exists(name + "-shm") || exists(name + "-journal");
  };
  std::string to;
  for (std::uint64_t n = 1;; ++n) {
    to = from + ".damaged-" + std::to_string(n);
    if (!taken(to)) break;
  }
  // The companions first: a crash in between must not leave a WAL next to a database that is yet to be created.
  for (const char* suffix : {"-wal", "-shm", "-journal", ""}) {  // the reserve holds nothing and stays
    if (::rename((from + suffix).c_str(), (to + suffix).c_str()) == 0) {
      STEPSTASH_CRASH_POINT("persist.set_aside.file_renamed");
      continue;
    }
    if (errno != ENOENT || *suffix == '\0') return last_errno();
  }
  STEPSTASH_TRY(sync_directory_of(from));
  return to;
}

std::vector<std::string> kept_aside(const std::string& path) {
  std::vector<std::string> kept;
  const std::string prefix = path + ".damaged-";
  std::error_code error;
  for (std::filesystem::directory_iterator at(path.substr(0, path.rfind('/') + 1), error), end; !error && at != end;
       at.increment(error)) {
    const std::string found = at->path().string();
    if (!found.starts_with(prefix)) continue;
    const std::size_t digits = std::min(found.find_first_not_of("0123456789", prefix.size()), found.size());
    if (digits == prefix.size()) continue;
    const std::string_view suffix = std::string_view(found).substr(digits);
    // A companion by itself: set_aside() was killed between the renames.
    const bool alone =
        std::count(kCompanions.begin(), kCompanions.end(), suffix) > 0 && !exists(found.substr(0, digits));
    if (suffix.empty() || alone) kept.push_back(found);
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

SetAside last_set_aside(const std::string& path) {
  SetAside last;
  for (const std::string& kept : kept_aside(path)) {
    struct stat status {};
    if (::lstat(kept.c_str(), &status) == 0 && status.st_ctim.tv_sec >= last.at) last = {kept, status.st_ctim.tv_sec};
  }
  return last;
}

}  // namespace stepstash::persist
