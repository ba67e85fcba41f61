// SPDX-License-Identifier: Apache-2.0
/// The socket that clients connect to: made here, or inherited: from systemd, or from
/// this program itself when it starts again in the same process.
#pragma once

#include <string>

#include "base/unique_fd.hpp"
#include "daemon/config.hpp"

namespace stepstash::daemon {

struct ListeningSocket {
  UniqueFd fd{};      ///< empty: none was inherited
  bool ours = false;  ///< this program made it, and removes it when it ends
};

/// The socket that was passed to this process (sd_listen_fds(3)); empty if there is none. Call once. Sets
/// `what_is_wrong` if what was passed cannot be served, or is more than one descriptor: clients there would never get
/// an answer.
ListeningSocket inherited_socket(std::string& what_is_wrong);
/// Passes it to the program that execve(2) starts next in this process. Call right before.
void pass_on(ListeningSocket socket);

/// Creates the socket at config.socket with its owner and mode, and listens. The caller has its lock. Errors: messages
/// for the operator, with the exit status.
Configured<UniqueFd> make_listening_socket(const Config& config);

/// The address of an inherited one: a path, or for an abstract socket "@" and its name; `otherwise` if it has neither.
std::string address_of(const UniqueFd& socket, const std::string& otherwise);

/// The group that may connect to the socket at `path`; the daemon's own if there is no such file.
gid_t group_of(const std::string& path);

}  // namespace stepstash::daemon
