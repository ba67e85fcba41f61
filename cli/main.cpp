/// stepstash: a shell's way to the build data of this host. stepstash(1) describes it.
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <exception>

#include "base/standard_descriptors.hpp"
#include "cli/arguments.hpp"
#include "cli/commands.hpp"
#include "cli/output.hpp"

int main(int argc, char** argv) {
  using namespace stepstash::cli;
  if (!stepstash::fill_standard_descriptors()) return kTryLater;
  // A reader that goes away is an error of ours (74), so that no partial read looks like a whole one.
  ::signal(SIGPIPE, SIG_IGN);
  try {
    const Parsed parsed = parse_arguments(argc, argv, std::getenv("STEPSTASH_BUILD"));
    if (parsed.arguments) return run(*parsed.arguments);
    if (parsed.exit_status == kDone) return print(parsed.text);
    static_cast<void>(!::write(STDERR_FILENO, parsed.text.data(), parsed.text.size()));
    return parsed.exit_status;
  } catch (const std::exception& e) {  // out of memory, in practice
    return complain(kTryLater, e.what());
  }
}
