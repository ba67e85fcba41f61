// SPDX-License-Identifier: Apache-2.0
#include "tests/support/numbered_values.hpp"

#include <charconv>
#include <chrono>
#include <cstdio>
#include <iterator>

#include "tests/support/harness.hpp"

namespace stepstash::test {

std::int64_t now_ns() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

std::uint64_t mixed(std::uint64_t z) {
  z += 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

std::size_t length_of(std::uint64_t value) {
  const std::uint64_t kind = mixed(value) % 100;
  const std::uint64_t size = mixed(value + 1);
  // The largest value that travels inline, the largest stored in build_data itself, one byte more of each, and the
  // maximum.
  static constexpr std::size_t kEdges[] = {64 * kKiB, 64 * kKiB + 1, 256 * kKiB, 256 * kKiB + 1, kMiB};
  if (kind < 5) return 0;
  if (kind < 55) return 1 + size % 200;
  if (kind < 88) return 1 + size % (64 * kKiB);
  if (kind < 90) return kEdges[size % std::size(kEdges)];
  return 64 * kKiB + 1 + size % (kMiB - 64 * kKiB);
}

std::string bytes_of(std::uint64_t value) { return generated(length_of(value), mixed(value)); }

bool is_exact(std::span<const std::byte> bytes, std::uint64_t value) {
  return is_generated(bytes, length_of(value), mixed(value));
}

std::string source_of(std::uint64_t value) {
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

std::uint64_t value_of(std::string_view source) {
  std::uint64_t value = 0;
  const auto parsed = std::from_chars(source.data(), source.data() + source.size(), value, 16);
  return source.size() == 16 && parsed.ptr == source.data() + source.size() ? value : 0;
}

}  // namespace stepstash::test
