// SPDX-License-Identifier: Apache-2.0
/// The limits of the contract, and the common description of an entry of build data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.hpp"

namespace stepstash {

/// Buildbot's buildid: 1 .. 2^63-1.
using BuildId = std::int64_t;

inline constexpr std::size_t kMaxNameChars = 256;   // Buildbot: String(256)
inline constexpr std::size_t kMaxNameBytes = 1024;  // 256 characters of at most four UTF-8 bytes
inline constexpr std::size_t kMaxSourceChars = kMaxNameChars;
inline constexpr std::size_t kMaxSourceBytes = kMaxNameBytes;

/// One entry of build data without its value: the result of stat and list.
struct EntryInfo {
  std::uint64_t id = 0;        ///< unique forever; kept when the value is replaced
  std::uint64_t revision = 0;  ///< changes with every set; drawn from the same sequence as ids
  BuildId buildid = 0;
  std::uint64_t length = 0;  ///< bytes of the value
  std::string name;
  std::string source;
};

/// A build that has data: its sizes and state.
struct BuildInfo {
  BuildId build = 0;
  std::uint64_t entries = 0;
  std::uint64_t resident_bytes = 0;         ///< of values in the segment
  std::uint64_t evicted_bytes = 0;          ///< of values that are only in the database
  std::optional<std::int64_t> complete_at;  ///< seconds since 1970; none: not finished
  bool held = false;
};

constexpr bool valid_build(BuildId build) noexcept { return build > 0; }

/// Whether `text` is valid UTF-8 (no overlong forms, no surrogates) without NUL, of at most 256 characters. For names
/// and sources alike. O(bytes); stops at the first violation.
bool valid_text(std::string_view text) noexcept;

}  // namespace stepstash
