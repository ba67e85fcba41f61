// SPDX-License-Identifier: Apache-2.0
// What a person may write: sizes, durations, TOML files, command lines. Nothing crashes, nothing is accepted that is
// then printed as something else.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/text.hpp"
#include "base/unique_fd.hpp"
#include "daemon/config.hpp"
#include "daemon/options.hpp"
#include "tests/fuzz/check.hpp"

using namespace stepstash;
using namespace stepstash::daemon;
using stepstash::fuzz::check;

namespace {

void sizes(std::string_view text) {
  const auto size = parse_size(text);
  if (!size) {
    check(!size.error().message.empty() && size.error().exit_status == kExitConfig, "an error says what is wrong");
    return;
  }
  const auto again = parse_size(format_size(size.value()));
  check(again && again.value() == size.value(), "a size is printed as one that reads back", format_size(size.value()));
}

void durations(std::string_view text) {
  const auto duration = parse_duration(text);
  if (!duration) {
    check(!duration.error().message.empty(), "an error says what is wrong");
    return;
  }
  const auto again = parse_duration(format_duration(duration.value()));
  check(again && again.value() == duration.value(), "a duration is printed as one that reads back");
  if (duration.value()) {
    const auto nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(*duration.value());
    check(nanoseconds.count() >= 0, "a duration does not overflow when it is counted in nanoseconds");
  }
}

/// A file in memory with this content; its path is valid for as long as it lives.
struct MemoryFile {
  explicit MemoryFile(std::string_view text) : fd(::memfd_create("config", MFD_CLOEXEC)) {
    check(::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()), "write(2)");
  }
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd.get()); }
  UniqueFd fd;
};

Inputs inputs() {
  Inputs made;
  made.uid = 4711;
  made.environment["HOME"] = "/nonexistent";
  made.system_config = "/nonexistent/stepstashd.conf";
  return made;
}

/// All but where the values came from.
std::string settings(const Reading& reading) {
  std::string out;
  const std::string text = print_config(reading);
  for (std::size_t at = text.find('\n') + 1; at < text.size();) {  // the first line names the file
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    out += line.substr(0, line.rfind("  # ")) + "\n";
    at = end + 1;
  }
  return out;
}

void files(std::string_view text) {
  const MemoryFile file(text);
  Inputs from = inputs();
  from.config_file = file.path();
  const auto reading = read_config(from);
  if (!reading) {
    check(!reading.error().message.empty() && reading.error().exit_status == kExitConfig,
          "an error says what is wrong");
    return;
  }
  const Config& config = reading.value().config;
  check(config.max_dirty != 0 && config.max_dirty <= config.segment_size, "no more may be dirty than there is room");
  check(config.segment_size >= 4 << 20 && config.ring_size % 4096 == 0, "sizes are in their range");
  check((config.socket_mode & ~0777u) == 0, "a mode is a mode");
  check(config.max_connections > 0 && config.max_connections_per_user > 0 && config.max_rings > 0, "counts are not 0");
  const std::string printed = print_config(reading.value());
  const MemoryFile second(printed);
  from.config_file = second.path();
  const auto again = read_config(from);
  check(again.has_value(), "what --print-config prints is accepted", again ? "" : again.error().message);
  check(settings(again.value()) == settings(reading.value()), "what --print-config prints means the same", printed);
  const auto reloaded = reload_config(config, from);
  check(reloaded.has_value() && reloaded.value().needs_restart.empty(), "reading it again changes nothing");
}

/// Words are separated by line feeds. Of the file system only one file is looked at.
void command_lines(std::string_view text) {
  std::vector<std::string> words = {"stepstashd"};
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string word(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (word.find("--config") != word.npos || word.find('\0') != word.npos) continue;
    words.push_back(std::move(word));
  }
  std::vector<const char*> argv;
  for (const std::string& word : words) argv.push_back(word.c_str());
  argv.push_back(nullptr);
  const char* const envp[] = {"HOME=/nonexistent", nullptr};
  const CommandLine command = parse_command_line(static_cast<int>(argv.size() - 1), argv.data(), envp, 4711);
  const bool refused = command.exit_status != 0;
  check(!refused || command.exit_status == kExitUsage || command.exit_status == kExitConfig,
        "the exit status says whose fault it is");
  std::string said = command.errors + command.output;
  std::replace(said.begin(), said.end(), '\n', ' ');
  check(visible(said) == said, "nothing that is said commands a terminal", said);
  check(!refused || (!command.errors.empty() && !command.reading), "what is refused is explained, and not run");
  check(refused || command.reading || !command.output.empty(), "something is done: run, or say");
}

void environments(std::string_view text) {
  Inputs from = inputs();
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::size_t equals = line.find('=');
    if (equals == line.npos || line.starts_with("STEPSTASH_CONFIG") || line.starts_with("HOME")) continue;
    if (line.starts_with("XDG_CONFIG_HOME")) continue;
    from.environment.insert_or_assign(std::string(line.substr(0, equals)), std::string(line.substr(equals + 1)));
  }
  const auto reading = read_config(from);
  check(reading || !reading.error().message.empty(), "an error says what is wrong");
}

}  // namespace

/// Input: {what it is, the text...}.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return -1;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0]) {
    case 's':
      sizes(text);
      break;
    case 'd':
      durations(text);
      break;
    case 'f':
      files(text);
      break;
    case 'c':
      command_lines(text);
      break;
    case 'e':
      environments(text);
      break;
    default:
      return -1;  // not worth keeping
  }
  return 0;
}
