// SPDX-License-Identifier: Apache-2.0
/// The sentences that clients get with an error: what happened, with which numbers, and what to do.
#pragma once

#include <cstdint>
#include <string>
#include <system_error>

#include "daemon/flusher.hpp"
#include "daemon/room.hpp"
#include "shm/writer.hpp"

namespace stepstash::daemon {

/// A sentence with the numbers that make `error` understandable; `length` is the value's.
std::string explain(std::error_code error, std::uint64_t length, const shm::Writer& segment, const Room& room,
                    const Flusher& flusher);

}  // namespace stepstash::daemon
