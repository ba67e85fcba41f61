/// The hashes of the segment and the database: XXH3, 64 bit (https://xxhash.com, libxxhash 0.8).
///
/// Non-cryptographic: they find damage, not forgery. Inlined, so that the client needs no library at run time.
#pragma once

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/types.hpp"

namespace stepstash::shm {

/// Where the index looks for (build, name) first; its top 16 bits are the slot's fingerprint.
inline std::uint64_t key_hash(BuildId build, std::string_view name) noexcept {
  return XXH3_64bits_withSeed(name.data(), name.size(), static_cast<XXH64_hash_t>(build));
}

inline std::uint64_t hash_bytes(std::span<const std::byte> bytes) noexcept {
  return XXH3_64bits(bytes.data(), bytes.size());
}

/// The same as hash_bytes, over bytes that come in pieces. Movable, one thread at a time.
class StreamHash {
 public:
  StreamHash() noexcept { XXH3_64bits_reset(&state_); }
  void update(std::span<const std::byte> bytes) noexcept { XXH3_64bits_update(&state_, bytes.data(), bytes.size()); }
  std::uint64_t digest() const noexcept { return XXH3_64bits_digest(&state_); }

 private:
  XXH3_state_t state_;
};

}  // namespace stepstash::shm
