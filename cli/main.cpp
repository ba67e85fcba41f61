// SPDX-License-Identifier: Apache-2.0
/// stepstash: the shell's access to the build data of this host, described in stepstash(1).
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <exception>

#include "base/standard_descriptors.hpp"
#include "cli/arguments.hpp"
#include "cli/commands.hpp"
#include "cli/output.hpp"
#include "cli/transfer.hpp"

int main(int argc, char** argv) {
  using namespace stepstash::cli;
  if (!stepstash::fill_standard_descriptors()) return kIoError;
  // A reader that goes away is reported as an error (74), so that a partial read never looks complete.
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);  // likewise a file that exceeds `ulimit -f`
  try {
    const Parsed parsed = parse_arguments(argc, argv, std::getenv("STEPSTASH_BUILD"));
    if (parsed.arguments) return end_output(run(*parsed.arguments));
    if (parsed.exit_status == kDone) return end_output(print(parsed.text));
    write_all(STDERR_FILENO, parsed.text.data(), parsed.text.size());  // nowhere to report that this failed
    return parsed.exit_status;
  } catch (const std::exception& e) {  // out of memory, in practice
    return complain(kTryLater, e.what());
  }
}
