// SPDX-License-Identifier: Apache-2.0
/// A private home directory for configuration tests: the machine's own settings do not interfere.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include "daemon/config.hpp"

namespace stepstash::daemon {

inline bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

class ConfigFixture {
 public:
  ConfigFixture() {
    std::string pattern = (std::filesystem::temp_directory_path() / "stepstash-config.XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    home = pattern;
    // A plain user; if running as root, one for whom the machine has no entry. The home directory belongs to that user.
    inputs.uid = ::getuid() != 0 ? ::getuid() : 4711;
    if (::chown(home.c_str(), inputs.uid, static_cast<gid_t>(-1)) != 0) throw std::runtime_error("chown failed");
    user = std::to_string(inputs.uid);
    inputs.environment["HOME"] = home.string();
    inputs.system_config = (home / "etc/stepstashd.conf").string();
  }
  ~ConfigFixture() {
    std::error_code ignored;
    std::filesystem::remove_all(home, ignored);
  }
  ConfigFixture(const ConfigFixture&) = delete;
  ConfigFixture& operator=(const ConfigFixture&) = delete;

  /// Writes the file and names it in the inputs.
  std::string write_config(std::string_view text) {
    const std::string path = (home / "test.conf").string();
    std::ofstream(path, std::ios::binary) << text;
    inputs.config_file = path;
    return path;
  }

  /// The configuration; throws the error's message if there is none.
  Reading read() {
    auto reading = read_config(inputs);
    if (!reading) throw std::runtime_error(reading.error().message);
    return std::move(reading).value();
  }
  Config config() { return read().config; }
  /// The message of the error; the test fails when there is none.
  std::string error() {
    const auto reading = read_config(inputs);
    if (reading) throw std::runtime_error("the configuration was accepted");
    return reading.error().message;
  }

  std::filesystem::path home;
  std::string user;  ///< inputs.uid as text
  Inputs inputs;
};

}  // namespace stepstash::daemon
