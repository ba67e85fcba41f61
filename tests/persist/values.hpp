// SPDX-License-Identifier: Apache-2.0
/// Values and batches for the tests of persist/: concise to write and easy to tell apart.
#pragma once

#define BOOST_TEST_DYN_LINK
#include <boost/test/unit_test.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "base/errc.hpp"
#include "persist/backing_store.hpp"

namespace stepstash::test {

using Bytes = std::vector<std::byte>;

/// `size` bytes that differ from those of any other seed, from their neighbours and at every position.
inline Bytes pattern(std::size_t size, std::uint64_t seed) {
  Bytes bytes(size);
  std::uint64_t word = seed * 0x9E3779B97F4A7C15u + 1;
  for (std::size_t at = 0; at < size; at += sizeof word) {
    word ^= word << 13;
    word ^= word >> 7;
    word ^= word << 17;
    std::memcpy(bytes.data() + at, &word, std::min(sizeof word, size - at));
  }
  return bytes;
}

inline persist::EntryRow row(std::uint64_t id, std::uint64_t revision, BuildId build, std::string_view name,
                             const Bytes& value, std::string_view source = "test") {
  persist::EntryRow made;
  made.id = id;
  made.revision = revision;
  made.buildid = build;
  made.name = name;
  made.source = source;
  made.value_hash = ~revision;  // with the highest bit set: it must be read back unchanged
  made.value = value;
  return made;
}

inline Result<> set(persist::BackingStore& store, const persist::EntryRow& entry) {
  persist::Batch batch;
  batch.entries.push_back(entry);
  return store.commit(batch);
}

inline Result<> put_build(persist::BackingStore& store, BuildId build, std::optional<std::int64_t> complete_at,
                          std::optional<bool> held = {}, std::uint64_t drop_upto = 0) {
  persist::Batch batch;
  batch.builds.push_back({build, complete_at, held, drop_upto});
  return store.commit(batch);
}

/// Whether the store has exactly `value` as entry `id` of `revision`.
inline bool has(persist::BackingStore& store, std::uint64_t id, std::uint64_t revision, const Bytes& value) {
  Bytes out(value.size(), std::byte{0xEE});
  const auto loaded = store.load_value(id, revision, out);
  if (!loaded) {
    BOOST_TEST_MESSAGE("entry " << id << " revision " << revision << ": " << loaded.error().message());
    return false;
  }
  return out == value;
}

inline std::vector<persist::StoredEntry> entries(persist::BackingStore& store) {
  std::vector<persist::StoredEntry> all;
  const auto loaded = store.load_entries([&](const persist::StoredEntry& entry) {
    all.push_back(entry);
    return true;
  });
  BOOST_TEST_REQUIRE(loaded.has_value());
  return all;
}

inline std::vector<std::uint64_t> ids(persist::BackingStore& store) {
  std::vector<std::uint64_t> all;
  for (const auto& entry : entries(store)) all.push_back(entry.id);
  return all;
}

/// The error of a Result, or the empty code: comparable with Errc, printable by Boost.Test.
template <class T>
std::error_code error_of(const Result<T>& result) {
  return result ? std::error_code() : result.error();
}

}  // namespace stepstash::test

namespace stepstash {
inline std::ostream& boost_test_print_type(std::ostream& out, Errc error) { return out << make_error_code(error); }
}  // namespace stepstash
