// SPDX-License-Identifier: Apache-2.0
/// Self-describing values: a value's source is a unique number that determines its length and its bytes. So a reader
/// can check exactness without any other information.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace stepstash::test {

/// CLOCK_MONOTONIC, shared by all processes of a machine.
std::int64_t now_ns();

/// splitmix64: a different number for each.
std::uint64_t mixed(std::uint64_t number);

/// From zero to 1 MiB, with a preference for small ones and for the lengths at which the code path changes.
std::size_t length_of(std::uint64_t value);
std::string bytes_of(std::uint64_t value);
bool is_exact(std::span<const std::byte> bytes, std::uint64_t value);
std::string source_of(std::uint64_t value);
/// 0 if the text is not from source_of().
std::uint64_t value_of(std::string_view source);

}  // namespace stepstash::test
