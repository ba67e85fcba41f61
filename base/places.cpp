// SPDX-License-Identifier: Apache-2.0
#include "base/places.hpp"

#include <sys/stat.h>

namespace stepstash {
namespace {

constexpr const char* kMachineSocket = "/run/stepstash/stepstash.sock";
constexpr const char* kSocketName = "/stepstash.sock";

}  // namespace

std::optional<uid_t> owner_of_directory(const std::string& path) noexcept {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) return std::nullopt;
  return status.st_uid;
}

bool is_private_directory(const std::string& path, uid_t uid) noexcept {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode) && status.st_uid == uid &&
         (status.st_mode & 077) == 0;
}

Place place_to_listen(uid_t uid, std::string_view runtime_directory, std::string_view xdg_runtime_dir) {
  Place place;
  if (!runtime_directory.empty()) {
    place.path = std::string(runtime_directory) + kSocketName;
    return place;
  }
  // Root's daemon is the system-wide one; its variables may be inherited from another user (sudo -E, su).
  if (uid == 0) {
    place.path = kMachineSocket;
    return place;
  }
  const std::string runtime(xdg_runtime_dir);
  if (runtime.starts_with('/')) {
    const auto owner = owner_of_directory(runtime);
    if (!owner || *owner == uid) {  // a missing one may still be created
      place.path = runtime + "/stepstash" + kSocketName;
      return place;
    }
    place.passed_over = "XDG_RUNTIME_DIR is " + runtime + ", which belongs to user " + std::to_string(*owner) +
                        " and not to user " + std::to_string(uid);
  } else if (!runtime.empty()) {
    place.passed_over = "XDG_RUNTIME_DIR is \"" + runtime + "\", which is no absolute path";
  }
  place.private_directory = "/tmp/stepstash-" + std::to_string(uid);
  place.path = place.private_directory + kSocketName;
  return place;
}

Place place_to_connect(uid_t uid, std::string_view xdg_runtime_dir) {
  Place own = place_to_listen(uid, {}, xdg_runtime_dir);
  struct stat status {};
  const bool there = ::stat(own.path.c_str(), &status) == 0;
  // Anyone can create the directory in /tmp and listen there.
  const bool ours = own.private_directory.empty() || is_private_directory(own.private_directory, uid);
  if (there && ours) return own;
  own.path = kMachineSocket;
  if (there) {
    own.passed_over += (own.passed_over.empty() ? "" : "; ") + own.private_directory + " is not a directory of user " +
                       std::to_string(uid) + " alone (mode 0700)";
  }
  own.private_directory.clear();
  return own;
}

}  // namespace stepstash
