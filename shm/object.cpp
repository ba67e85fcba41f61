// SPDX-License-Identifier: Apache-2.0
#include "shm/object.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>

#include "base/crash_point.hpp"
#include "base/errc.hpp"

namespace stepstash::shm {

Result<DataMap> DataMap::of(int fd) {
  DataMap map;
  for (off_t at = 0;;) {
    const off_t data = ::lseek(fd, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) return map;  // no data from here to the end
    const off_t hole = data < 0 ? data : ::lseek(fd, data, SEEK_HOLE);
    if (hole < 0) return last_errno();
    map.runs_.emplace_back(data, hole);
    at = hole;
  }
}

bool DataMap::contains(std::uint64_t begin, std::uint64_t end) const noexcept {
  const auto after = std::upper_bound(runs_.begin(), runs_.end(), begin,
                                      [](std::uint64_t at, const auto& run) { return at < run.first; });
  return after != runs_.begin() && end <= std::prev(after)->second;
}

namespace {

bool is_own(const struct stat& status) noexcept {
  return S_ISREG(status.st_mode) && status.st_uid == ::geteuid() && status.st_nlink == 1;
}

}  // namespace

Result<ObjectDirectory> ObjectDirectory::open(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return last_errno();
  return ObjectDirectory(std::move(fd), path);
}

Result<ObjectDirectory> ObjectDirectory::open_own_directory(const std::string& name) const {
  UniqueFd fd(::openat(fd_.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat status {};
  const auto own = [&] { return S_ISDIR(status.st_mode) && status.st_uid == ::geteuid(); };
  if (!fd) {
    const std::error_code error = last_errno();
    const bool known = ::fstatat(fd_.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0;
    return known && !own() ? make_error_code(Errc::unsafe_object) : error;
  }
  if (::fstat(fd.get(), &status) != 0) return last_errno();
  if (!own()) return Errc::unsafe_object;
  if ((status.st_mode & 07777) != 0700 && ::fchmod(fd.get(), 0700) != 0) return last_errno();
  return ObjectDirectory(std::move(fd), path_ + "/" + name);
}

Result<ObjectDirectory> ObjectDirectory::make_directory(const std::string& name) const {
  if (::mkdirat(fd_.get(), name.c_str(), 0700) != 0) return last_errno();
  STEPSTASH_CRASH_POINT("shm.object.directory.made");
  return open_own_directory(name);
}

Result<> ObjectDirectory::take(const ObjectDirectory& from, const std::string& name, const std::string& as) const {
  if (::renameat2(from.fd_.get(), name.c_str(), fd_.get(), as.c_str(), RENAME_NOREPLACE) != 0) return last_errno();
  STEPSTASH_CRASH_POINT("shm.object.take.done");
  return success();
}

Result<UniqueFd> ObjectDirectory::create(const std::string& name) const {
  UniqueFd fd(::openat(fd_.get(), name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  STEPSTASH_CRASH_POINT("shm.object.create.made");
  if (!fd || ::fchmod(fd.get(), 0600) != 0) return last_errno();
  return fd;
}

Result<UniqueFd> ObjectDirectory::open_own(const std::string& name, Access access) const {
  // O_NONBLOCK: opening must not block if it is a FIFO. It has no effect on a regular file.
  const int flags = (access == Access::read_only ? O_RDONLY : O_RDWR) | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;
  UniqueFd fd(::openat(fd_.get(), name.c_str(), flags));
  struct stat status {};
  if (!fd) {
    const std::error_code error = last_errno();
    const bool known = ::fstatat(fd_.get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0;
    return known && !is_own(status) ? make_error_code(Errc::unsafe_object) : error;
  }
  if (::fstat(fd.get(), &status) != 0) return last_errno();
  if (!is_own(status)) return Errc::unsafe_object;
  return fd;
}

Result<> ObjectDirectory::rename(const std::string& from, const std::string& to) const {
  if (::renameat(fd_.get(), from.c_str(), fd_.get(), to.c_str()) != 0) return last_errno();
  STEPSTASH_CRASH_POINT("shm.object.rename.done");
  return success();
}

Result<std::string> ObjectDirectory::set_aside(const std::string& from, const std::string& to) const {
  for (int n = 1;; ++n) {
    std::string name = to + "." + std::to_string(n);
    if (::renameat2(fd_.get(), from.c_str(), fd_.get(), name.c_str(), RENAME_NOREPLACE) == 0) {
      STEPSTASH_CRASH_POINT("shm.object.set_aside.done");
      return name;
    }
    if (errno != EEXIST) return last_errno();
  }
}

Result<> ObjectDirectory::remove(const std::string& name) const {
  if (::unlinkat(fd_.get(), name.c_str(), 0) != 0 && errno != ENOENT) return last_errno();
  STEPSTASH_CRASH_POINT("shm.object.remove.done");
  return success();
}

Result<std::vector<std::string>> ObjectDirectory::list(std::string_view prefix) const {
  UniqueFd again(::openat(fd_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));  // fdopendir takes ownership
  if (!again) return last_errno();
  struct Close {
    void operator()(DIR* dir) const noexcept { ::closedir(dir); }
  };
  std::unique_ptr<DIR, Close> dir(::fdopendir(again.get()));
  if (!dir) return last_errno();
  again.release();
  std::vector<std::string> names;
  while (const dirent* item = ::readdir(dir.get())) {
    const std::string_view name = item->d_name;
    if (name != "." && name != ".." && name.starts_with(prefix)) names.emplace_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace stepstash::shm
