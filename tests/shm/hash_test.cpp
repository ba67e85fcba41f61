// SPDX-License-Identifier: Apache-2.0
#include "shm/hash.hpp"

#include <array>
#include <set>
#include <string>
#include <unordered_map>

#include "tests/support/segment_fixture.hpp"

namespace stepstash::test {
namespace {

BOOST_AUTO_TEST_SUITE(hash)

/// Of the paper's appendix A, and of the authors' reference implementation (vectors_sip64).
BOOST_AUTO_TEST_CASE(sip_hash_has_the_published_values) {
  const shm::HashSecret key{{0x0706050403020100, 0x0F0E0D0C0B0A0908}};
  std::string bytes;
  for (char i = 8; i < 16; ++i) bytes.push_back(i);
  const std::uint64_t first = 0x0706050403020100;
  BOOST_TEST((shm::sip_hash<2, 4>(key, first, bytes.substr(0, 7)) == 0xA129CA6149BE45E5));
  BOOST_TEST((shm::sip_hash<2, 4>(key, first, "") == 0x93F5F5799A932462));
  BOOST_TEST((shm::sip_hash<2, 4>(key, first, bytes.substr(0, 1)) == 0x9E0082DF0BA9E4B0));
  BOOST_TEST((shm::sip_hash<2, 4>(key, first, bytes) == 0x3F2ACC7F57C29BDB));
}

BOOST_AUTO_TEST_CASE(every_byte_of_a_key_and_its_length_count) {
  const shm::HashSecret secret = take(shm::draw_secret());
  std::set<std::uint64_t> seen;
  std::size_t keys = 0;
  for (std::size_t length = 0; length < 40; ++length) {
    std::string name(length, '\0');
    seen.insert(shm::key_hash(secret, 1, name));
    seen.insert(shm::key_hash(secret, 256, name));
    keys += 2;
    for (std::size_t i = 0; i < length; ++i, ++keys) {
      name[i] = '\x80';
      seen.insert(shm::key_hash(secret, 1, name));
      name[i] = '\0';
    }
  }
  BOOST_TEST(seen.size() == keys);
}

BOOST_AUTO_TEST_CASE(two_secrets_place_the_same_keys_in_ways_that_have_nothing_to_do_with_each_other) {
  const shm::HashSecret one = take(shm::draw_secret());
  const shm::HashSecret other = take(shm::draw_secret());
  // Keys that go to one of 1024 places under the first go everywhere under the second.
  std::array<int, 16> places{};
  int found = 0;
  for (std::uint64_t i = 0; found < 1600; ++i) {
    const std::string name = "name " + std::to_string(i);
    if ((shm::key_hash(one, 1, name) & 1023) != 7) continue;
    ++found;
    ++places[shm::key_hash(other, 1, name) & 15];
  }
  for (const int count : places) BOOST_TEST((count > 40 && count < 170), count);  // 100 expected, 6 standard deviations
}

/// Builds that are multiples of every number of buckets that the standard library uses up to here go to one bucket with
/// its own hash.
BOOST_AUTO_TEST_CASE(numbers_that_a_client_chooses_do_not_fill_one_bucket_of_a_map) {
  std::unordered_map<BuildId, int, shm::SecretHash> map;
  std::unordered_map<BuildId, int> plain;
  plain.reserve(20'000);
  map.reserve(20'000);
  const auto buckets = static_cast<BuildId>(plain.bucket_count());
  for (BuildId i = 1; i <= 10'000; ++i) {
    map.emplace(i * buckets, 0);
    plain.emplace(i * buckets, 0);
  }
  std::size_t longest = 0;
  for (std::size_t i = 0; i < map.bucket_count(); ++i) longest = std::max(longest, map.bucket_size(i));
  BOOST_TEST(plain.bucket_size(0) == 10'000u);
  BOOST_TEST(longest < 20u);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
