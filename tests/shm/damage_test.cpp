// SPDX-License-Identifier: Apache-2.0
// A segment that was damaged: cut at every length, with every byte that means something changed, with random words in
// it. The daemon's attach returns an error or a segment in which every value it serves is right; a reader returns
// something, and neither ever crashes.
//
// Outside: the bytes of a clean value. Attach does not read them (its time would grow with the bytes); their checksum
// is compared when they are used.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>

#include "shm/hash.hpp"
#include "shm/validate.hpp"
#include "tests/support/segment_fixture.hpp"

namespace stepstash::test {
namespace {

using shm::EntryState;
using shm::Found;
using shm::Offset;
using shm::Segment;

constexpr std::uint64_t kBytes = 1024 * 1024;
/// With the stand-in, which nothing here uses: behind the header's page and 1,024 build records lies the heap.
constexpr std::uint64_t kObjectBytes = shm::stand_in_offset(kBytes) + kBytes - (shm::kPageBytes + 1024 * 64);

/// A segment with one of everything, as an image in memory.
struct Damaged {
  Damaged() {
    Stash stash(kBytes);
    Segment& segment = *stash.segment;
    for (BuildId build : {1, 2}) take(segment.add_build(build, false))->complete_at = 1000 + build;
    take(segment.add_build(3, false))->drop_upto = 1;
    stash.set(1, "dirty", "a dirty value", "from here");
    stash.set(1, "clean", "a clean value", "from there", EntryState::clean);
    stash.set(2, "replaced", "first");
    stash.set(2, "replaced", "second");
    stash.set(2, "erased", "gone");
    segment.erase(*segment.find(2, "erased"));
    take(segment.evict(stash.set(2, "evicted", std::string(300, 'e'), "", EntryState::clean)));
    stash.set(2, "", "");
    stash.set(1, std::string(256, 'n'), std::string(5000, 'v'), std::string(256, 's'));
    segment.for_each([&](const shm::Entry& entry) {
      const Key key{entry.buildid, std::string(shm::entry_name(entry))};
      values[key] = text_of(shm::entry_value(entry));
      entries.push_back(segment.offset_of(entry));
      blocks.push_back(segment.offset_of(entry));
    });
    blocks.push_back(segment.index().table_block());
    const auto* memory = reinterpret_cast<const std::byte*>(&segment.header());
    take(shm::Heap::walk(memory, segment.header().heap_offset, kBytes, [&](Offset at, std::uint64_t) {
      if (std::find(blocks.begin(), blocks.end(), at) == blocks.end()) blocks.push_back(at);
    }));
    table = shm::index_slots_offset(segment.header().index);
    slots = segment.index().slots();
    image.assign(memory, memory + kBytes);
    object = take(objects.create("damaged"));
    // For the readers: the same bytes with nothing around them that could be read unnoticed.
    auto* room = static_cast<std::byte*>(
        ::mmap(nullptr, kBytes + 2 * shm::kPageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    BOOST_TEST_REQUIRE((room != MAP_FAILED));
    guarded = room + shm::kPageBytes;
    BOOST_TEST_REQUIRE(::mprotect(guarded, kBytes, PROT_READ | PROT_WRITE) == 0);
    std::memcpy(guarded, image.data(), kBytes);
  }
  Damaged(const Damaged&) = delete;
  Damaged& operator=(const Damaged&) = delete;
  ~Damaged() { ::munmap(guarded - shm::kPageBytes, kBytes + 2 * shm::kPageBytes); }

  using Key = std::pair<BuildId, std::string>;

  /// The image as an object, of `bytes` bytes.
  void write(std::uint64_t bytes = kObjectBytes) const {
    BOOST_TEST_REQUIRE(::ftruncate(object.get(), static_cast<::off_t>(bytes)) == 0);
    bytes = std::min(bytes, kBytes);
    BOOST_TEST_REQUIRE(::pwrite(object.get(), image.data(), bytes, 0) == static_cast<::ssize_t>(bytes));
  }

  /// Attaches what write() wrote; true when it was taken. Whatever is served is right, and it can be set into.
  bool attach(const std::string& what) const {
    shm::Recovery recovery;
    auto attached = Segment::attach(objects, "damaged", recovery);
    if (!attached) {
      BOOST_TEST_REQUIRE((attached.error() == Errc::corrupt_segment || attached.error() == Errc::format_mismatch),
                         what);
      const auto right = [&](const shm::Entry& entry) {
        if (entry.value_offset != 0)
          check(entry.buildid, shm::entry_name(entry), text_of(shm::entry_value(entry)), what);
      };
      take(Segment::salvage(objects, "damaged", right, [](const shm::BuildRecord&) {}));
      return false;
    }
    Segment& segment = *attached.value();
    BOOST_TEST_REQUIRE(disorder(segment) == "", what);
    std::size_t served = 0;
    segment.for_each([&](const shm::Entry& entry) {
      ++served;
      if (entry.value_offset != 0) check(entry.buildid, shm::entry_name(entry), text_of(shm::entry_value(entry)), what);
    });
    BOOST_TEST_REQUIRE(recovery.entries_kept == served, what);
    lost += values.size() - served;
    silent += served < values.size() && recovery.set_aside.empty();
    BOOST_TEST_REQUIRE(try_set(segment, 77, "new", bytes_of("new"), "").has_value(), what);
    for (const auto& [key, value] : values) {
      shm::Pinned view;
      const Found answer = shm::find_entry(reinterpret_cast<const std::byte*>(&segment.header()), kBytes, page,
                                           shm::ReaderFence::own, key.first, key.second, view);
      if (answer == Found::resident) check(key.first, key.second, text_of(view.value()), what);
      BOOST_TEST_REQUIRE((answer == Found::resident || answer == Found::evicted || answer == Found::miss), what);
      if (answer != Found::miss) view.release();
    }
    return true;
  }

  void check(BuildId build, std::string_view name, const std::string& value, const std::string& what) const {
    const auto expected = values.find({build, std::string(name)});
    BOOST_TEST_REQUIRE((expected != values.end()), what << ": serves build " << build << ", name " << name);
    BOOST_TEST_REQUIRE(value == expected->second, what);
  }

  /// Readers search the guarded copy, which no daemon has looked at. They may find anything but a way out.
  void read(const std::string& what) const {
    if (!shm::check_header(*reinterpret_cast<const shm::Header*>(guarded), kObjectBytes)) return;
    for (const auto& [key, value] : values) {
      shm::Pinned view;
      const Found answer = shm::find_entry(guarded, kBytes, page, shm::ReaderFence::own, key.first, key.second, view);
      if (answer != Found::resident && answer != Found::evicted) continue;
      unsigned sum = 0;
      for (const std::byte byte : view.value()) sum += std::to_integer<unsigned>(byte);
      for (const char c : view.source()) sum += static_cast<unsigned char>(c);
      touched += sum;
      BOOST_TEST_REQUIRE(view.name() == key.second, what);
      view.release();
    }
    for (const auto& line : page.lines) {
      for (const auto& pin : line.pins) BOOST_REQUIRE(pin == 0);
    }
  }

  /// Changes one byte by `mask`, attaches, reads, and changes it back.
  bool flip(std::uint64_t at, unsigned mask, const std::string& what) {
    const std::string text = what + ", byte " + std::to_string(at) + " ^ " + std::to_string(mask);
    image[at] ^= std::byte(mask);
    guarded[at] ^= std::byte(mask);
    write();
    const bool taken = attach(text);
    read(text);
    image[at] ^= std::byte(mask);
    guarded[at] ^= std::byte(mask);
    return taken;
  }

  ShmDir dir;
  shm::ObjectDirectory objects = take(shm::ObjectDirectory::open(dir.path()));
  UniqueFd object;
  std::map<Key, std::string> values;
  std::vector<Offset> entries;
  std::vector<Offset> blocks;
  Offset table = 0;
  std::uint64_t slots = 0;
  std::vector<std::byte> image;
  std::byte* guarded = nullptr;
  mutable shm::PinPage page{};
  mutable std::uint64_t lost = 0;
  mutable std::uint64_t silent = 0;
  mutable std::uint64_t touched = 0;
};

BOOST_AUTO_TEST_SUITE(damage)

BOOST_FIXTURE_TEST_CASE(the_undamaged_segment_is_taken_whole, Damaged) {
  write();
  BOOST_TEST(attach("nothing changed"));
  read("nothing changed");
  BOOST_TEST(lost == 0u);
  BOOST_TEST(values.size() == 6u);
}

BOOST_FIXTURE_TEST_CASE(a_segment_cut_at_any_length_is_refused, Damaged) {
  write();
  // Every one; what can be saved out of it is looked at where it may differ.
  std::uint64_t taken = 0;
  for (std::uint64_t bytes = kBytes; bytes-- > 0;) {
    if (::ftruncate(object.get(), static_cast<::off_t>(bytes)) != 0) BOOST_FAIL("ftruncate(2)");
    shm::Recovery recovery;
    const auto attached = Segment::attach(objects, "damaged", recovery);
    const bool refused =
        !attached && (attached.error() == Errc::corrupt_segment || attached.error() == Errc::format_mismatch);
    if (!refused) ++taken;
    if (bytes % shm::kPageBytes <= 1) BOOST_TEST_REQUIRE(!attach("cut at " + std::to_string(bytes)));
  }
  BOOST_TEST(taken == 0u);
}

/// As a copy that stopped half way leaves it: the length is right, the rest is zero.
BOOST_FIXTURE_TEST_CASE(a_segment_whose_rest_is_missing_is_refused_or_served_rightly, Damaged) {
  for (std::uint64_t bytes = 0; bytes < kBytes; bytes += bytes < 200'000 ? 512 : 8192) {
    BOOST_TEST_REQUIRE(::ftruncate(object.get(), 0) == 0);
    write(bytes);
    BOOST_TEST_REQUIRE(::ftruncate(object.get(), kObjectBytes) == 0);
    attach("zero from " + std::to_string(bytes));
  }
}

BOOST_FIXTURE_TEST_CASE(any_bit_of_the_headers_first_line_makes_attach_refuse, Damaged) {
  for (std::uint64_t at = 0; at < 64; ++at) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      BOOST_TEST_REQUIRE(!flip(at, 1u << bit, "header"), "byte " << at << " bit " << bit);
    }
  }
}

BOOST_FIXTURE_TEST_CASE(any_bit_of_the_headers_second_line_leads_to_no_wrong_value, Damaged) {
  for (std::uint64_t at = 64; at < 128; ++at) {
    for (unsigned bit = 0; bit < 8; ++bit) flip(at, 1u << bit, "header");
  }
  BOOST_TEST(silent == 0u);
}

BOOST_FIXTURE_TEST_CASE(any_bit_of_a_build_record_leads_to_no_wrong_value, Damaged) {
  for (std::uint64_t at = shm::kPageBytes; at < shm::kPageBytes + 4 * sizeof(shm::BuildRecord); ++at) {
    for (unsigned bit = 0; bit < 8; ++bit) flip(at, 1u << bit, "build table");
  }
}

BOOST_FIXTURE_TEST_CASE(any_bit_of_a_slot_in_use_leads_to_no_wrong_value_and_is_told, Damaged) {
  for (std::uint64_t i = 0; i < slots; ++i) {
    const Offset at = table + i * sizeof(shm::Slot);
    shm::Slot slot = 0;
    std::memcpy(&slot, image.data() + at, sizeof(slot));
    const bool neighbour = i % 61 == 0;
    if (slot == shm::kEmptySlot && !neighbour) continue;
    for (std::uint64_t byte = 0; byte < sizeof(shm::Slot); ++byte) {
      for (unsigned bit = 0; bit < 8; bit += slot == shm::kEmptySlot ? 5 : 1) flip(at + byte, 1u << bit, "slot");
    }
  }
  BOOST_TEST(silent == 0u);
}

BOOST_FIXTURE_TEST_CASE(any_bit_of_a_block_header_leads_to_no_wrong_value, Damaged) {
  for (const Offset block : blocks) {
    for (std::uint64_t byte = 0; byte < sizeof(shm::BlockHeader); ++byte) {
      for (unsigned bit = 0; bit < 8; ++bit) flip(block + byte, 1u << bit, "block header");
    }
  }
  BOOST_TEST(silent == 0u);
}

BOOST_FIXTURE_TEST_CASE(any_byte_of_a_record_leads_to_no_wrong_value_and_is_told, Damaged) {
  for (const Offset block : entries) {
    shm::Entry entry_head_only{};
    std::memcpy(static_cast<void*>(&entry_head_only), image.data() + block, sizeof(shm::Entry));
    const std::uint64_t end = sizeof(shm::Entry) + entry_head_only.name_bytes + entry_head_only.source_bytes;
    for (std::uint64_t byte = sizeof(shm::BlockHeader); byte < end; ++byte) {
      for (const unsigned mask : {1u << byte % 8, 0x80u, 0xFFu}) flip(block + byte, mask, "record");
    }
  }
  BOOST_TEST(lost > 0u);
  BOOST_TEST(silent == 0u);
}

/// Former tables lead to what was replaced and erased since. Its blocks are still there, for readers hold them; or what
/// was in them is, where they were freed and became part of others.
BOOST_AUTO_TEST_CASE(whatever_the_index_word_says_exactly_what_was_there_is_saved) {
  for (const bool freed : {false, true}) {
    Stash stash;
    Segment& segment = *stash.segment;
    const std::uint64_t first_table = segment.index().slots();
    int count = 0;
    while (segment.index().slots() < 4 * first_table) stash.set(1, std::to_string(count++), "value");
    const auto erase = [&](int name) { segment.erase(*segment.find(1, std::to_string(name))); };
    if (freed) {
      for (int last = 3; last > 0; --last) erase(count - last);
      segment.reclaim();
    } else {
      for (int first = 0; first < 3; ++first) erase(first);
      stash.set(1, "3", "replaced");
    }
    std::map<std::string, std::string> expected;
    const auto note = [](std::map<std::string, std::string>& in) {
      return [&in](const shm::Entry& entry) { in.emplace(shm::entry_name(entry), text_of(shm::entry_value(entry))); };
    };
    segment.for_each(note(expected));
    std::atomic<shm::IndexWord>& word = segment.header().index;
    const shm::IndexWord sound = word;
    std::vector<shm::IndexWord> words = {0, ~shm::IndexWord{0}, sound & 0xFFFF'FFFF};
    for (unsigned bit = 0; bit < 54; ++bit) words.push_back(sound ^ shm::IndexWord{1} << bit);  // above: the version
    for (const shm::IndexWord damaged : words) {
      word = damaged;
      shm::Recovery recovery;
      BOOST_TEST((Segment::attach(stash.objects, Stash::kName, recovery).error() == Errc::corrupt_segment), damaged);
      std::map<std::string, std::string> saved;
      take(Segment::salvage(stash.objects, Stash::kName, note(saved), [](const shm::BuildRecord&) {}));
      BOOST_TEST((saved == expected), damaged << ": " << saved.size() << " of " << expected.size());
    }
    word = sound;
  }
}

/// Without its secret no slot's fingerprint can be compared: the table is refused, and what its slots lead to is saved.
BOOST_AUTO_TEST_CASE(a_damaged_secret_of_the_table_costs_no_entry) {
  Stash stash;
  std::map<std::string, std::string> expected;
  for (int i = 0; i < 200; ++i) {
    stash.set(1, std::to_string(i), "value of " + std::to_string(i));
    expected[std::to_string(i)] = "value of " + std::to_string(i);
  }
  auto* head = reinterpret_cast<std::byte*>(&stash.segment->header()) +
               shm::index_slots_offset(stash.segment->header().index.load()) - sizeof(shm::TableHeader);
  for (std::size_t byte = offsetof(shm::TableHeader, secret); byte < offsetof(shm::TableHeader, unused); ++byte) {
    head[byte] ^= std::byte{0x10};
    shm::Recovery recovery;
    BOOST_TEST((Segment::attach(stash.objects, Stash::kName, recovery).error() == Errc::corrupt_segment), byte);
    std::map<std::string, std::string> saved;
    take(Segment::salvage(
        stash.objects, Stash::kName,
        [&](const shm::Entry& entry) { saved.emplace(shm::entry_name(entry), text_of(shm::entry_value(entry))); },
        nullptr));
    BOOST_TEST((saved == expected), byte << ": " << saved.size());
    head[byte] ^= std::byte{0x10};
  }
}

/// Not one bit but whole words, and many at once.
BOOST_FIXTURE_TEST_CASE(random_words_lead_nobody_out_of_the_segment, Damaged) {
  std::mt19937_64 random(20240919);
  const std::vector<std::byte> sound = image;
  for (int round = 0; round < 1500; ++round) {
    const std::uint64_t words = 1 + random() % 20;
    for (std::uint64_t i = 0; i < words; ++i) {
      Offset at = 0;
      switch (random() % 4) {
        case 0:  // the header's second line
          at = 64 + random() % 8 * 8;
          break;
        case 1:  // a slot in use: with its fingerprint kept, so that a reader follows it
          at = table + random() % slots * sizeof(shm::Slot);
          break;
        default:
          at = blocks[random() % blocks.size()] + random() % 12 * 8;
      }
      std::uint64_t word = 0;
      std::memcpy(&word, image.data() + at, sizeof(word));
      switch (random() % 4) {
        case 0:
          word = random();
          break;
        case 1:
          word = (word & 0xFFFF'0000'0000'0000) | random() % (2 * kBytes);
          break;
        case 2:
          word = (word & 0xFFFF'0000'0000'0000) | random() % kBytes / 64 * 64;
          break;
        default:
          word = word ^ std::uint64_t{1} << random() % 64;
      }
      if (at + sizeof(word) > kBytes) continue;
      std::memcpy(image.data() + at, &word, sizeof(word));
    }
    // Slots of keys that readers look for point anywhere.
    for (const auto& [key, value] : values) {
      if (random() % 2 == 0) continue;
      const std::uint64_t hash = shm::key_hash(shm::table_secret(image.data(), table), key.first, key.second);
      const shm::Slot slot =
          shm::make_slot(hash, random() % (kBytes + 4096) / (random() % 2 == 0 ? 64 : 1) * 64 % (2 * kBytes));
      std::memcpy(image.data() + table + (hash & (slots - 1)) * sizeof(slot), &slot, sizeof(slot));
    }
    std::memcpy(guarded, image.data(), kBytes);
    write();
    attach("round " + std::to_string(round));
    read("round " + std::to_string(round));
    image = sound;
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
