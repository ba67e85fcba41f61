// SPDX-License-Identifier: Apache-2.0
/// Values that say which they are: a value's source is a number that is given once, from which its length and its bytes
/// follow. So a reader can tell without asking anybody whether what it sees is exact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace stepstash::test {

/// CLOCK_MONOTONIC, which all processes of a machine share.
std::int64_t now_ns();

/// splitmix64: another number for each.
std::uint64_t mixed(std::uint64_t number);

/// From none at all to 1 MiB, small ones more often, and the lengths at which another way is taken.
std::size_t length_of(std::uint64_t value);
std::string bytes_of(std::uint64_t value);
bool is_exact(std::span<const std::byte> bytes, std::uint64_t value);
std::string source_of(std::uint64_t value);
/// 0 when the text is none of source_of()'s.
std::uint64_t value_of(std::string_view source);

}  // namespace stepstash::test
