/// A home directory of its own for tests of the configuration: nothing of the machine's own settings shows through.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include "daemon/config.hpp"

namespace stepstash::daemon {

class ConfigFixture {
 public:
  ConfigFixture() {
    std::string pattern = (std::filesystem::temp_directory_path() / "stepstash-config.XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    home = pattern;
    inputs.uid = 4711;  // a plain user that the machine has no entry for
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

  /// The configuration; the test ends with the message when there is none.
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
  Inputs inputs;
};

}  // namespace stepstash::daemon
