// SPDX-License-Identifier: Apache-2.0
/// The hashes of the segment and the database. Bytes are checked with XXH3, 64 bit (https://xxhash.com, libxxhash 0.8),
/// which is not cryptographic: it detects damage, not forgery. Keys, which clients choose, are placed by keyed hashes.
/// Inlined, so that the client needs no library at run time.
#pragma once

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <sys/random.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <span>
#include <string_view>

#include "base/errc.hpp"
#include "base/result.hpp"
#include "base/types.hpp"

namespace stepstash::shm {

/// The key of a keyed hash.
struct HashSecret {
  std::array<std::uint64_t, 4> words{};
};

/// Draws a secret from the kernel. Errors: those of getrandom(2).
inline Result<HashSecret> draw_secret() noexcept {
  HashSecret secret;
  if (::getrandom(&secret, sizeof secret, 0) != static_cast<ssize_t>(sizeof secret)) return last_errno();
  return secret;
}

template <class Word>
Word word_at(const char* at) noexcept {
  Word word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

/// SipHash-c-d (J.-P. Aumasson, D. Bernstein, "SipHash: a fast short-input PRF", Indocrypt 2012) of the eight bytes of
/// `first` and then of `rest`.
template <int kCompress, int kFinish>
std::uint64_t sip_hash(const HashSecret& secret, std::uint64_t first, std::string_view rest) noexcept {
  const std::uint64_t k0 = secret.words[0];
  const std::uint64_t k1 = secret.words[1];
  std::uint64_t v0 = k0 ^ 0x736F6D65'70736575;
  std::uint64_t v1 = k1 ^ 0x646F7261'6E646F6D;
  std::uint64_t v2 = k0 ^ 0x6C796765'6E657261;
  std::uint64_t v3 = k1 ^ 0x74656462'79746573;
  const auto rounds = [&](int count) {
    for (int i = 0; i < count; ++i) {
      v0 += v1;
      v2 += v3;
      v1 = std::rotl(v1, 13) ^ v0;
      v3 = std::rotl(v3, 16) ^ v2;
      v0 = std::rotl(v0, 32) + v3;
      v2 += v1;
      v1 = std::rotl(v1, 17) ^ v2;
      v3 = std::rotl(v3, 21) ^ v0;
      v2 = std::rotl(v2, 32);
    }
  };
  const auto take = [&](std::uint64_t word) {
    v3 ^= word;
    rounds(kCompress);
    v0 ^= word;
  };
  take(first);
  const char* at = rest.data();
  for (std::size_t left = rest.size() / 8; left > 0; --left, at += 8) take(word_at<std::uint64_t>(at));
  std::uint64_t last = (8 + rest.size()) << 56;
  const std::size_t tail = rest.size() % 8;
  if (tail != 0 && rest.size() >= 8) {
    last |= word_at<std::uint64_t>(at + tail - 8) >>
            (64 - 8 * tail);  // the last eight bytes, without those already consumed
  } else {
    for (std::size_t i = 0; i < tail; ++i) last |= std::uint64_t{static_cast<unsigned char>(at[i])} << (8 * i);
  }
  take(last);
  v2 ^= 0xFF;
  rounds(kFinish);
  return v0 ^ v1 ^ v2 ^ v3;
}

/// Both halves of the product in one word.
inline std::uint64_t folded_product(std::uint64_t a, std::uint64_t b) noexcept {
  __extension__ using Product = unsigned __int128;
  const Product product = static_cast<Product>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

/// The home slot of (build, name) in the index; the top 16 bits are the slot's fingerprint. Clients choose builds and
/// names, and every table has a new `secret`: keys that were chosen before it was drawn are spread by it evenly.
///
/// Folded products, as in wyhash (Wang Yi, https://github.com/wangyi-fudan/wyhash), with a word of the secret in every
/// factor: so none of them can be chosen to be zero, which is how wyhash's fixed constants are attacked. Go's maps
/// place their keys in this way where there is no AES. A get of a name of 8 bytes spends 2 ns here, and 7 with
/// SipHash-1-3.
inline std::uint64_t key_hash(const HashSecret& secret, BuildId build, std::string_view name) noexcept {
  const auto& k = secret.words;
  const char* at = name.data();
  std::size_t left = name.size();
  std::uint64_t hash = k[0];
  for (; left > 16; at += 16, left -= 16) {
    hash = folded_product(word_at<std::uint64_t>(at) ^ k[1], word_at<std::uint64_t>(at + 8) ^ hash);
  }
  std::uint64_t a = 0;
  std::uint64_t b = 0;
  if (left >= 8) {  // the two may overlap, here and below
    a = word_at<std::uint64_t>(at);
    b = word_at<std::uint64_t>(at + left - 8);
  } else if (left >= 4) {
    a = word_at<std::uint32_t>(at);
    b = word_at<std::uint32_t>(at + left - 4);
  } else if (left > 0) {
    const auto byte = [at](std::size_t i) { return std::uint64_t{static_cast<unsigned char>(at[i])}; };
    a = byte(0) | byte(left / 2) << 8 | byte(left - 1) << 16;
  }
  hash = folded_product(a ^ k[1], b ^ hash) ^ static_cast<std::uint64_t>(build);
  return folded_product(hash ^ k[2], name.size() ^ k[3]);
}

/// Drawn once per process; never leaves it.
inline const HashSecret& process_secret() noexcept {
  static const HashSecret secret = [] {
    auto drawn = draw_secret();
    if (!drawn) std::terminate();  // every supported kernel has getrandom(2)
    return drawn.value();
  }();
  return secret;
}

/// A key's name among keys, for comparisons: SipHash, since equal keys are concluded from equal hashes.
inline std::uint64_t key_id(const HashSecret& secret, BuildId build, std::string_view name) noexcept {
  return sip_hash<1, 3>(secret, static_cast<std::uint64_t>(build), name);
}

/// std::hash for maps whose keys are numbers chosen by clients. The standard library's hash is the identity: a client
/// that knows the number of buckets could put all its keys into one.
struct SecretHash {
  std::size_t operator()(std::uint64_t key) const noexcept { return sip_hash<1, 3>(process_secret(), key, {}); }
  std::size_t operator()(std::int64_t key) const noexcept { return (*this)(static_cast<std::uint64_t>(key)); }
};

inline std::uint64_t hash_bytes(std::span<const std::byte> bytes) noexcept {
  return XXH3_64bits(bytes.data(), bytes.size());
}

/// The same as hash_bytes, for bytes that arrive in pieces. Movable; one thread at a time.
class StreamHash {
 public:
  StreamHash() noexcept { XXH3_64bits_reset(&state_); }
  void update(std::span<const std::byte> bytes) noexcept { XXH3_64bits_update(&state_, bytes.data(), bytes.size()); }
  std::uint64_t digest() const noexcept { return XXH3_64bits_digest(&state_); }

 private:
  XXH3_state_t state_;
};

}  // namespace stepstash::shm
