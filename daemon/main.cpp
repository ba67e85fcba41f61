// SPDX-License-Identifier: Apache-2.0
/// stepstashd: arguments and files -> Config -> Server::run.
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/standard_descriptors.hpp"
#include "base/text.hpp"
#include "daemon/exit_status.hpp"
#include "daemon/listening_socket.hpp"
#include "daemon/log.hpp"
#include "daemon/options.hpp"
#include "daemon/restore.hpp"
#include "daemon/server.hpp"

namespace {

/// Every connection takes a descriptor: raise the soft limit to the hard one.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

/// However main() returns, gives the last log lines time to be written.
struct LogEnd {
  LogEnd() = default;
  LogEnd(const LogEnd&) = delete;
  LogEnd& operator=(const LogEnd&) = delete;
  ~LogEnd() { stepstash::daemon::wait_for_log(std::chrono::seconds(2)); }
};

}  // namespace

int main(int argc, char** argv) {
  using namespace stepstash::daemon;
  if (!stepstash::fill_standard_descriptors()) return kExitOs;
  CommandLine command = parse_command_line(argc, argv, environ, ::geteuid());
  std::fputs(command.errors.c_str(), stderr);
  if (std::fputs(command.output.c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
    std::fprintf(stderr, "stepstashd: standard output: %s\n", std::strerror(errno));
    return kExitIo;
  }
  if (!command.reading) return command.exit_status;

  ::prctl(PR_SET_NAME, "stepstashd");  // after a restart by execv(kOwnProgram) it would be "exe"
  ::umask(0077);
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGHUP, SIG_IGN);   // until there is something to reload
  ::signal(SIGIO, SIG_IGN);    // another process opens a pin page that we have under a lease: we are about to close it
                               // anyway
  ::signal(SIGXFSZ, SIG_IGN);  // makes a file size limit an error of write(2) instead of fatal
  raise_descriptor_limit();
  if (!command.restore.empty()) {
    const auto restored = restore(command.reading->config, command.restore);
    if (!restored) std::fprintf(stderr, "stepstashd: %s\n", stepstash::visible(restored.error().message).c_str());
    if (restored) std::fputs(restored.value().c_str(), stdout);
    return restored ? 0 : restored.error().exit_status;
  }
  set_up_log(command.reading->config.log_level);
  const LogEnd log_end;
  for (const std::string& line : command.reading->warnings) spdlog::warn("{}", line);

  std::string what_is_wrong;
  ListeningSocket socket = inherited_socket(what_is_wrong);
  if (!what_is_wrong.empty()) {
    spdlog::error("{}", what_is_wrong);
    return kExitConfig;
  }
  auto server = Server::open(std::move(command.reading->config), command.inputs, std::move(socket));
  if (!server) {
    spdlog::error("{}", server.error().message);
    return server.error().exit_status;
  }
  const int status = server.value()->run();
  if (!server.value()->restarting()) return status;
  // The same process, so that the service manager sees a reload. Other threads end here, and locks, connections and
  // mappings with them, as when the process dies.
  wait_for_log(std::chrono::seconds(1));
  pass_on(server.value()->hand_over());
  ::execv(kOwnProgram, argv);
  std::fprintf(stderr, "stepstashd: cannot start again: %s\n", std::strerror(errno));
  std::_Exit(kExitOs);
}
