// SPDX-License-Identifier: Apache-2.0
#include "daemon/exit_status.hpp"

#include <fmt/format.h>

#include <utility>

#include "base/errc.hpp"

namespace stepstash::daemon {
namespace {

ConfigError held(const std::string& object, const std::string& holder, const char* advice) {
  return fail(kExitTemporary, fmt::format("{} is held by another stepstashd, {}{}", object, holder, advice));
}

}  // namespace

ConfigError fail(int status, std::string message) { return {std::move(message), status}; }

bool lacks_descriptors(std::error_code error) {
  return error == std::errc::too_many_files_open || error == std::errc::too_many_files_open_in_system;
}

int exit_status_of(std::error_code error) {
  if (error == Errc::already_held || lacks_descriptors(error) || error == std::errc::not_enough_memory) {
    return kExitTemporary;
  }
  if (error == Errc::unsafe_object || error == std::errc::permission_denied ||
      error == std::errc::operation_not_permitted) {
    return kExitPermission;
  }
  if (error == Errc::newer_database || error == Errc::foreign_database || error == Errc::invalid_argument) {
    return kExitConfig;
  }
  if (error == Errc::not_durable) return kExitIo;
  return kExitCannotCreate;
}

Configured<LockFile> lock_or_fail(const std::string& path, const std::string& object, const char* advice) {
  std::string holder;
  auto locked = LockFile::acquire(path, holder);
  if (locked) return std::move(locked).value();
  const std::error_code error = locked.error();
  if (error == Errc::already_held) return held(object, holder, advice);
  return fail(exit_status_of(error), fmt::format("{}: {}", path, error.message()));
}

Configured<Instance> open_instance_or_fail(const Config& config, const char* advice) {
  std::string about;
  auto instance = open_instance(config.segment_directory, config.segment_name, about);
  if (instance) return std::move(instance).value();
  const std::error_code error = instance.error();
  if (error == Errc::already_held) {
    return held(fmt::format("segment {}/{}", config.segment_directory, config.segment_name), about, advice);
  }
  return fail(exit_status_of(error), fmt::format("{}: {}", about, error.message()));
}

}  // namespace stepstash::daemon
