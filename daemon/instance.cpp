// SPDX-License-Identifier: Apache-2.0
#include "daemon/instance.hpp"

#include <fmt/format.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "base/crash_point.hpp"
#include "base/errc.hpp"

namespace stepstash::daemon {
namespace {

using shm::ObjectDirectory;

Result<std::string> random_suffix() {
  std::uint64_t number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number) return last_errno();
  return fmt::format("{:016x}", number);
}

constexpr std::size_t kRandomDigits = 16;

/// Whether a directory of this name may belong to this instance: "x.d.d" belongs to an instance called "x.d".
bool is_directory_name(std::string_view name, std::string_view base) {
  if (name == base) return true;
  return name.size() == base.size() + 1 + kRandomDigits && name.starts_with(base) && name[base.size()] == '.' &&
         name.find_first_not_of("0123456789abcdef", base.size() + 1) == name.npos;
}

bool is_number(std::string_view text) { return !text.empty() && text.find_first_not_of("0123456789") == text.npos; }

bool has(const ObjectDirectory& directory, const std::string& name) {
  return directory.open_own(name, ObjectDirectory::Access::read_only).has_value();
}

/// Contains what only a daemon of ours can have put there: the segment, one under construction, or one that a restore
/// has set aside.
bool has_segment(const ObjectDirectory& directory) {
  const std::string segment = kSegmentObject;
  if (has(directory, segment) || has(directory, segment + ".new")) return true;
  const auto aside = directory.list(segment + ".restoring.");
  return aside && !aside.value().empty();
}

/// It contains other users' names: it belonged to another user, and a tool run by root (systemd-tmpfiles) gave it to us
/// with its contents. Those names may be ones that we need.
bool was_foreign(const ObjectDirectory& directory) {
  const auto names = directory.list("");
  return names && std::any_of(names.value().begin(), names.value().end(), [&](const std::string& name) {
           struct stat status {};
           return ::lstat((directory.path() + "/" + name).c_str(), &status) == 0 && status.st_uid != ::geteuid();
         });
}

/// The directories of this instance that are ours, sorted by name.
Result<std::vector<ObjectDirectory>> own_directories(const ObjectDirectory& parent, const std::string& base) {
  std::vector<ObjectDirectory> own;
  for (const std::string& name : STEPSTASH_TRY(parent.list(base))) {
    if (!is_directory_name(name, base)) continue;
    auto opened = parent.open_own_directory(name);
    // Another user's, or not a directory: skip it. But if one of ours cannot be opened just now, that is an error: it
    // may hold the only copy of something.
    if (!opened && opened.error() != Errc::unsafe_object && opened.error() != std::errc::no_such_file_or_directory) {
      return opened.error();
    }
    if (opened && (has_segment(opened.value()) || !was_foreign(opened.value()))) {
      own.push_back(std::move(opened).value());
    }
  }
  return own;
}

Result<ObjectDirectory> make_directory(const ObjectDirectory& parent, const std::string& base) {
  auto made = parent.make_directory(base);
  if (!made && made.error() == std::errc::file_exists) {
    made = parent.make_directory(base + "." + STEPSTASH_TRY(random_suffix()));
  }
  return made;
}

Result<LockFile> lock_in(const ObjectDirectory& directory, std::string& about) {
  const std::string path = directory.path() + "/lock";
  std::string holder;
  auto locked = LockFile::acquire(path, holder);
  about = locked.has_error() && locked.error() == Errc::already_held ? holder : path;
  return locked;
}

/// Objects of this instance that an earlier version left in `parent`: their names without NAME. Pin pages come first:
/// while the segment is in its old place, its pages are also looked for there.
Result<std::vector<std::string>> former_objects(const ObjectDirectory& parent, const std::string& name) {
  std::vector<std::string> pages;
  std::vector<std::string> rest;
  for (const std::string& object : STEPSTASH_TRY(parent.list(name))) {
    const std::string kind = object.substr(name.size());
    const bool page = kind.starts_with(".pin.") && is_number(kind.substr(5));
    const bool known =
        page || kind.empty() || kind == ".new" || (kind.starts_with(".damaged.") && is_number(kind.substr(9)));
    if (known && has(parent, object)) (page ? pages : rest).push_back(kind);
  }
  std::sort(rest.rbegin(), rest.rend());  // the segment itself last
  pages.insert(pages.end(), rest.begin(), rest.end());
  return pages;
}

/// Frees the name that a former object is to get. It is taken only if an earlier version ran again after this one; what
/// that version left is newer.
Result<> clear_place(const ObjectDirectory& directory, const std::string& kind, std::vector<std::string>& notes) {
  const std::string object = kSegmentObject + kind;
  if (!has(directory, object)) return success();
  if (kind == ".new") return directory.remove(object);
  if (kind.starts_with(".pin.")) {  // a page of the superseded segment: its client is notified under any number
    std::uint32_t number = 0;
    if (::getrandom(&number, sizeof number, 0) != sizeof number) return last_errno();
    return directory.rename(object, fmt::format("{}.pin.{}", kSegmentObject, number));
  }
  const std::string aside = STEPSTASH_TRY(directory.set_aside(object, std::string(kSegmentObject) + ".damaged"));
  if (kind.empty()) {
    notes.push_back(
        fmt::format("a stepstashd of an earlier version made a newer segment; the one of this version is "
                    "kept as {}/{}",
                    directory.path(), aside));
  }
  return success();
}

Result<> move_in(const ObjectDirectory& parent, const std::string& name, Instance& instance, std::string& about) {
  const std::vector<std::string> kinds = STEPSTASH_TRY(former_objects(parent, name));
  if (kinds.empty()) return success();
  // If the lock file is not ours, no earlier version can hold it.
  const std::string lock_path = parent.path() + "/" + name + ".lock";
  std::optional<LockFile> former;
  if (has(parent, name + ".lock")) {
    std::string holder;
    auto locked = LockFile::acquire(lock_path, holder);
    about = locked.has_error() && locked.error() == Errc::already_held ? holder : lock_path;
    former = STEPSTASH_TRY(std::move(locked));
  }
  for (const std::string& kind : kinds) {
    about = parent.path() + "/" + name + kind;
    STEPSTASH_TRY(clear_place(instance.directory, kind, instance.notes));
    STEPSTASH_TRY(instance.directory.take(parent, name + kind, kSegmentObject + kind));
  }
  if (former) STEPSTASH_TRY(parent.remove(name + ".lock"));
  instance.notes.push_back(
      fmt::format("moved {} objects of an earlier version into {}", kinds.size(), instance.directory.path()));
  return success();
}

}  // namespace

Result<Instance> open_instance(const std::string& parent_path, const std::string& name, std::string& about) {
  const std::string base = name + ".d";
  about = parent_path;
  const ObjectDirectory parent = STEPSTASH_TRY(ObjectDirectory::open(parent_path));
  std::vector<ObjectDirectory> own = STEPSTASH_TRY(own_directories(parent, base));
  about = parent_path + "/" + base;
  if (own.empty()) own.push_back(STEPSTASH_TRY(make_directory(parent, base)));
  const auto served = std::find_if(own.begin(), own.end(), has_segment);
  ObjectDirectory directory = std::move(served == own.end() ? own.front() : *served);
  LockFile held = STEPSTASH_TRY(lock_in(directory, about));
  // Two concurrent first starts may each have created a directory: at least one of them sees the other's lock.
  for (const ObjectDirectory& other : STEPSTASH_TRY(own_directories(parent, base))) {
    if (other.path() == directory.path() || !has(other, "lock")) continue;
    if (auto free = lock_in(other, about); !free && free.error() == Errc::already_held) return free.error();
  }
  Instance instance{std::move(directory), std::move(held), {}};
  if (instance.directory.path() != parent_path + "/" + base) {
    instance.notes.push_back(fmt::format(
        "{}/{} is not a directory of this user's own, or holds what others put there, so the segment lies in {}",
        parent_path, base, instance.directory.path()));
  }
  STEPSTASH_TRY(move_in(parent, name, instance, about));
  return instance;
}

}  // namespace stepstash::daemon
