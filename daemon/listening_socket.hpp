// SPDX-License-Identifier: Apache-2.0
/// The socket that clients connect to: made here, or inherited from systemd or from the previous server.
#pragma once

#include <string>

#include "base/unique_fd.hpp"
#include "daemon/config.hpp"

namespace stepstash::daemon {

/// Creates the socket at config.socket with its owner and mode, and listens. The caller has its lock. Errors: messages
/// for the operator, with the exit status.
Configured<UniqueFd> make_listening_socket(const Config& config);

/// The address of an inherited one: a path, or for an abstract socket "@" and its name; `otherwise` if it has neither.
std::string address_of(const UniqueFd& socket, const std::string& otherwise);

/// The group that may connect to the socket at `path`; the daemon's own if there is no such file.
gid_t group_of(const std::string& path);

}  // namespace stepstash::daemon
