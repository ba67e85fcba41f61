// SPDX-License-Identifier: Apache-2.0
/// The versions of the protocol, and how client and daemon agree on one. docs/protocol.md, "Versions".
///
/// The daemon speaks the last two versions, so that clients with the former library continue to work when it is
/// upgraded. What differs between the two is written and read in codec.cpp alone: so far that is Hello.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

namespace stepstash::protocol {

/// The versions that one side speaks, both ends included.
struct Versions {
  std::uint32_t oldest = 0;
  std::uint32_t newest = 0;
  bool operator==(const Versions&) const = default;
};

/// 1: stepstash 0.1. 2: Hello carries a range.
inline constexpr std::uint32_t kVersion = 2;
/// The first version whose Hello says a range. A client of an earlier one speaks that one alone.
inline constexpr std::uint32_t kFirstRange = 2;
inline constexpr Versions kDaemonVersions{kVersion - 1, kVersion};
/// The last two as well, except those whose daemons do not understand the Hello that this library sends.
inline constexpr Versions kClientVersions{std::max(kVersion - 1, kFirstRange), kVersion};

constexpr bool includes(Versions versions, std::uint32_t version) noexcept {
  return versions.oldest <= version && version <= versions.newest;
}

/// The highest version that both speak; nullopt: none.
constexpr std::optional<std::uint32_t> common_version(Versions one, Versions other) noexcept {
  const std::uint32_t version = std::min(one.newest, other.newest);
  if (!includes(one, version) || !includes(other, version)) return std::nullopt;
  return version;
}

/// "version 2", or "versions 1 to 2".
inline std::string to_text(Versions versions) {
  const std::string newest = std::to_string(versions.newest);
  if (versions.oldest == versions.newest) return "version " + newest;
  return "versions " + std::to_string(versions.oldest) + " to " + newest;
}

}  // namespace stepstash::protocol
