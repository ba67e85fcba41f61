// SPDX-License-Identifier: Apache-2.0
/// The text that clients get with an error: what happened, with which figures, and what to do.
#pragma once

#include <cstdint>
#include <string>
#include <system_error>

#include "daemon/database.hpp"
#include "daemon/flusher.hpp"
#include "daemon/room.hpp"
#include "shm/segment.hpp"

namespace stepstash::daemon {

/// A sentence with the figures that explain `error`; `length` is the value's.
std::string explain(std::error_code error, std::uint64_t length, const shm::Segment& segment, const Room& room,
                    const Flusher& flusher, const Database& database);

}  // namespace stepstash::daemon
