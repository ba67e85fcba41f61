// SPDX-License-Identifier: Apache-2.0
/// A server that this program started.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace stepstash::bench {

/// The destructor ends it. The kernel ends it, too, when the thread that started it ends, however that comes about: so
/// start servers from the main thread only.
class Process {
 public:
  Process() = default;
  /// `path` is looked for in PATH; `arguments` begin with the program's own name. Its output goes to `log`.
  Process(const std::string& path, std::vector<std::string> arguments, const std::string& log);
  Process(Process&& other) noexcept;
  Process& operator=(Process&& other) noexcept;
  ~Process();

  /// Whether it has not ended by itself.
  bool running();
  pid_t pid() const noexcept { return pid_; }
  /// Sends the signal and waits for the end. Nothing if it does not run.
  void end(int signal);

 private:
  pid_t pid_ = -1;
};

/// Whether PATH has it.
bool installed(const std::string& program);
/// The first line that a shell command prints; empty if it fails.
std::string first_line_of(const std::string& command);

}  // namespace stepstash::bench
