// SPDX-License-Identifier: Apache-2.0
#include "daemon/restore.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <optional>

#include "base/errc.hpp"
#include "base/text.hpp"
#include "daemon/exit_status.hpp"
#include "daemon/instance.hpp"
#include "daemon/lock_file.hpp"
#include "persist/restore.hpp"
#include "shm/layout.hpp"
#include "shm/object.hpp"

namespace stepstash::daemon {
namespace {

std::string copy_of(const Config& config) { return config.db + "-restoring"; }
const std::string kFormerSegment = std::string(kSegmentObject) + ".restoring";

bool exists(const std::string& path) noexcept { return ::access(path.c_str(), F_OK) == 0; }

Configured<LockFile> lock(const std::string& path, const std::string& what) {
  std::string holder;
  auto locked = LockFile::acquire(path, holder);
  if (locked) return std::move(locked).value();
  if (locked.error() == Errc::already_held) {
    return fail(kExitTemporary, fmt::format("{} is held by a stepstashd, {}: stop it first", what, holder));
  }
  return fail(locked.error() == Errc::unsafe_object ? kExitPermission : kExitCannotCreate,
              fmt::format("{}: {}", path, locked.error().message()));
}

Configured<Instance> open_objects(const Config& config) {
  std::string about;
  auto instance = open_instance(config.segment_directory, config.segment_name, about);
  if (instance) return std::move(instance).value();
  if (instance.error() == Errc::already_held) {
    return fail(kExitTemporary, fmt::format("segment {}/{} is held by a stepstashd, {}: stop it first",
                                            config.segment_directory, config.segment_name, about));
  }
  return fail(instance.error() == Errc::unsafe_object ? kExitPermission : kExitCannotCreate,
              fmt::format("{}: {}", about, instance.error().message()));
}

/// Refuses another user's database: files created here would belong to us, and that user's daemon would refuse them.
Configured<> check_owner(const Config& config) {
  const std::string directory = std::filesystem::path(config.db).parent_path().string();
  struct stat status {};
  for (const std::string& path : {directory, config.db}) {
    if (::lstat(path.c_str(), &status) != 0 || status.st_uid == ::geteuid()) continue;
    return fail(kExitPermission,
                fmt::format("{} belongs to user {}: restore as that user (runuser -u, sudo -u)", path, status.st_uid));
  }
  return boost::outcome_v2::success();
}

bool same_file(const std::string& one, const std::string& other) noexcept {
  struct stat first {
  }, second{};
  return ::stat(one.c_str(), &first) == 0 && ::stat(other.c_str(), &second) == 0 && first.st_dev == second.st_dev &&
         first.st_ino == second.st_ino;
}

/// All ids that the segment may have given out are below this; 0 if there is no credible value. The database knows them
/// all unless it is damaged or a different one.
std::uint64_t given_ids(const shm::ObjectDirectory& directory) {
  const auto object = directory.open_own(kSegmentObject, shm::ObjectDirectory::Access::read_only);
  if (!object) return 0;
  const auto word = [&](std::size_t offset) {
    std::uint64_t value = 0;
    return ::pread(object.value().get(), &value, sizeof value, static_cast<off_t>(offset)) == sizeof value ? value : 0;
  };
  constexpr std::uint64_t kBelievable = std::uint64_t{1} << 62;  // ids end at 2^63; a damaged value must not exhaust
                                                                 // them
  const std::uint64_t id = std::max(word(offsetof(shm::Header, next_id)), word(offsetof(shm::Header, id_limit)));
  return word(offsetof(shm::Header, magic)) == shm::kSegmentMagic && id < kBelievable ? id : 0;
}

/// A start that died may have left a segment that is complete except for its name: give it that name.
Result<> settle_new_segment(const shm::ObjectDirectory& directory) {
  const std::string made = std::string(kSegmentObject) + ".new";
  const bool only = exists(directory.path() + "/" + made) && !exists(directory.path() + "/" + kSegmentObject);
  return only ? directory.rename(made, kSegmentObject) : directory.remove(made);
}

int status_of(std::error_code error) {
  if (error == Errc::newer_database || error == Errc::foreign_database) return kExitConfig;
  if (error == Errc::already_held) return kExitTemporary;
  if (error == Errc::unsafe_object) return kExitPermission;
  if (error == std::errc::no_space_on_device || error == std::errc::file_exists) return kExitCannotCreate;
  return kExitIo;
}

}  // namespace

Configured<> settle_restore(const Config& config, const shm::ObjectDirectory& directory) {
  const std::string copy = copy_of(config);
  const auto names = directory.list(kFormerSegment + ".");
  if (!names) return fail(kExitCannotCreate, fmt::format("{}: {}", directory.path(), names.error().message()));
  for (const std::string& name : names.value()) {
    const std::string segment = directory.path() + "/" + kSegmentObject;
    const bool undone = exists(copy) && !exists(segment);
    const auto settled = undone ? directory.rename(name, kSegmentObject) : directory.remove(name);
    if (!settled) return fail(kExitCannotCreate, fmt::format("{}: {}", name, settled.error().message()));
  }
  if (exists(copy)) persist::remove_whole(copy);
  return boost::outcome_v2::success();
}

Configured<std::string> restore(const Config& config, const std::string& file) {
  STEPSTASH_TRY(prepare_directories(config, ::geteuid()));
  STEPSTASH_TRY(check_owner(config));
  const Instance instance = STEPSTASH_TRY(open_objects(config));
  const shm::ObjectDirectory& directory = instance.directory;
  const LockFile database_lock = STEPSTASH_TRY(lock(config.db + ".lock", "database " + config.db));
  const std::string copy = copy_of(config);
  if (same_file(file, config.db) || same_file(file, copy)) {
    return fail(kExitUsage, fmt::format("{} is the database itself", file));
  }
  STEPSTASH_TRY(settle_restore(config, directory));
  if (const auto settled = settle_new_segment(directory); !settled) {
    return fail(kExitCannotCreate, fmt::format("{}: {}", directory.path(), settled.error().message()));
  }

  std::string why;
  const auto copied = persist::copy_whole(file, copy, why);
  if (!copied) {
    return fail(status_of(copied.error()),
                fmt::format("{} is not restored: {} ({})", file, copied.error().message(), why));
  }
  const auto give_up = [&](int status, std::string message) {
    persist::remove_whole(copy);
    return fail(status, std::move(message));
  };
  const auto closed = persist::close_log(config.db, why);
  if (!closed) {
    return give_up(status_of(closed.error()), fmt::format("{}: {} ({})", config.db, closed.error().message(), why));
  }
  // Everything set since the backup is gone, but its ids and revisions must not be given out again: a client that has
  // seen one would take the new value for the old one (if_revision).
  if (const std::uint64_t id = std::max(closed.value(), given_ids(directory)); id > 0) {
    if (const auto skipped = persist::skip_ids(copy, id, why); !skipped) {
      return give_up(status_of(skipped.error()), fmt::format("{}: {} ({})", copy, skipped.error().message(), why));
    }
  }
  const auto aside = directory.set_aside(kSegmentObject, kFormerSegment);
  if (!aside && aside.error() != std::errc::no_such_file_or_directory) {
    return give_up(kExitCannotCreate,
                   fmt::format("{}/{}: {}", directory.path(), kSegmentObject, aside.error().message()));
  }
  if (::rename(copy.c_str(), config.db.c_str()) != 0) {
    const int error = errno;
    if (aside) static_cast<void>(directory.rename(aside.value(), kSegmentObject));
    return give_up(kExitCannotCreate, fmt::format("{}: {}", config.db, std::strerror(error)));
  }
  const std::string parent = std::filesystem::path(config.db).parent_path().string();
  const UniqueFd synced(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!synced || ::fsync(synced.get()) != 0) {
    return fail(kExitIo, fmt::format("{}: {}; the backup is in its place", parent, std::strerror(errno)));
  }
  STEPSTASH_TRY(settle_restore(config, directory));  // removes the segment
  return fmt::format("restored {}: {} entries of {} builds\n", visible(config.db), copied.value().entries,
                     copied.value().builds);
}

}  // namespace stepstash::daemon
