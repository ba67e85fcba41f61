// SPDX-License-Identifier: Apache-2.0
#include "shm/index.hpp"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <new>
#include <random>
#include <set>

#include "shm/hash.hpp"
#include "shm/mapping.hpp"
#include "shm/validate.hpp"
#include "tests/support/segment_fixture.hpp"

namespace stepstash::test {
namespace {

using shm::Found;
using shm::Offset;

/// An index over a heap, with a header page in front and a pin page next to it: enough for both sides to search.
struct IndexFixture {
  explicit IndexFixture(std::uint64_t bytes = 8 * 1024 * 1024, std::uint64_t slots = 8) {
    fd = take(take(shm::ObjectDirectory::open(dir.path())).create("index"));
    BOOST_TEST_REQUIRE(::ftruncate(fd.get(), static_cast<::off_t>(bytes)) == 0);
    mapping = take(shm::Mapping::map(fd.get(), bytes, shm::Mapping::Access::read_write));
    new (mapping.data()) shm::Header{};
    heap = std::make_unique<shm::Heap>(mapping.data(), shm::kPageBytes, bytes, fd.get());
    take(heap->format());
    index = std::make_unique<shm::IndexWriter>(mapping.data(), *heap);
    take(index->format(slots));
  }

  shm::Header& header() const { return *reinterpret_cast<shm::Header*>(mapping.data()); }

  /// What a client reads of the table that serves.
  shm::HashSecret secret() const {
    return shm::table_secret(mapping.data(), shm::index_slots_offset(header().index.load()));
  }

  /// A record without a value: all that the index looks at.
  Offset record(BuildId build, std::string_view name) {
    const Offset block = take(heap->allocate(sizeof(shm::Entry) + name.size()));
    take(heap->reserve(block));
    auto* entry = reinterpret_cast<shm::Entry*>(mapping.data() + block);
    entry->block.kind = shm::BlockKind::entry;
    entry->buildid = build;
    entry->value_offset = 0;
    entry->name_bytes = static_cast<std::uint16_t>(name.size());
    entry->source_bytes = 0;
    std::memcpy(reinterpret_cast<char*>(entry + 1), name.data(), name.size());
    return block;
  }
  Offset add(BuildId build, std::string_view name) {
    take(index->ensure_slot(build, name));
    const Offset block = record(build, name);
    if (const Offset old = index->publish(block)) heap->free(old);
    return block;
  }
  void erase(BuildId build, std::string_view name) { heap->free(index->erase(build, name)); }

  /// Where a reader finds the key; 0: a miss.
  Offset read(BuildId build, std::string_view name) {
    shm::Pinned view;
    const Found answer =
        shm::find_entry(mapping.data(), mapping.size(), page, shm::ReaderFence::own, build, name, view);
    if (answer == Found::miss) return 0;
    BOOST_TEST_REQUIRE((answer == Found::evicted));
    const auto at = static_cast<Offset>(reinterpret_cast<const std::byte*>(view.entry) - mapping.data());
    BOOST_TEST(view.pin->load() == at);
    view.release();
    return at;
  }
  bool no_pin_left() const {
    for (const auto& line : page.lines) {
      for (const auto& pin : line.pins) {
        if (pin != 0) return false;
      }
    }
    return true;
  }

  ShmDir dir;
  UniqueFd fd;
  shm::Mapping mapping;
  shm::PinPage page{};
  std::unique_ptr<shm::Heap> heap;
  std::unique_ptr<shm::IndexWriter> index;
};

std::string name_of(std::uint64_t i) { return "name " + std::to_string(i); }

/// `count` names of build 1 that start at the same one of `slots` slots, with the same fingerprint.
std::vector<std::string> colliding(std::size_t count, std::uint64_t slots, const shm::HashSecret& secret) {
  std::map<std::uint64_t, std::vector<std::string>> groups;
  for (std::uint64_t i = 0;; ++i) {
    const std::uint64_t hash = shm::key_hash(secret, 1, name_of(i));
    auto& group = groups[(hash & (slots - 1)) | hash >> 48 << 48];
    group.push_back(name_of(i));
    if (group.size() == count) return group;
  }
}

BOOST_AUTO_TEST_SUITE(index)

BOOST_FIXTURE_TEST_CASE(an_empty_index_has_nothing, IndexFixture) {
  BOOST_TEST(index->find(1, "x") == 0u);
  BOOST_TEST(read(1, "x") == 0u);
  BOOST_TEST(index->erase(1, "x") == 0u);
  BOOST_TEST(index->entries() == 0u);
}

BOOST_FIXTURE_TEST_CASE(a_key_is_a_build_and_a_name, IndexFixture) {
  const Offset one = add(1, "report");
  const Offset other = add(2, "report");
  const Offset nameless = add(1, "");
  BOOST_TEST(read(1, "report") == one);
  BOOST_TEST(read(2, "report") == other);
  BOOST_TEST(read(1, "") == nameless);
  BOOST_TEST(read(1, "repor") == 0u);
  BOOST_TEST(read(1, "report2") == 0u);
  BOOST_TEST(read(3, "report") == 0u);
  BOOST_TEST(index->entries() == 3u);
}

BOOST_FIXTURE_TEST_CASE(publishing_a_known_key_gives_back_the_block_before, IndexFixture) {
  const Offset first = add(1, "x");
  const Offset second = record(1, "x");
  BOOST_TEST(index->publish(second) == first);
  BOOST_TEST(read(1, "x") == second);
  BOOST_TEST(index->find(1, "x") == second);
  BOOST_TEST(index->entries() == 1u);
}

BOOST_FIXTURE_TEST_CASE(keys_that_share_slot_and_fingerprint_are_told_apart, IndexFixture) {
  const auto names = colliding(3, 8, secret());
  std::map<std::string, Offset> blocks;
  for (const auto& name : names) blocks[name] = add(1, name);
  BOOST_TEST_REQUIRE(index->slots() == 8u);
  for (const auto& [name, block] : blocks) BOOST_TEST(read(1, name) == block, name);
  erase(1, names[0]);
  BOOST_TEST(read(1, names[0]) == 0u);
  BOOST_TEST(read(1, names[1]) == blocks[names[1]]);
  BOOST_TEST(read(1, names[2]) == blocks[names[2]]);
  const Offset again = add(1, names[0]);
  BOOST_TEST(read(1, names[0]) == again);
  BOOST_TEST(no_pin_left());
}

BOOST_FIXTURE_TEST_CASE(a_probe_that_reaches_the_last_slot_goes_on_at_the_first, IndexFixture) {
  // Keys whose place is the last of eight slots.
  std::vector<std::string> names;
  for (std::uint64_t i = 0; names.size() < 3; ++i) {
    if ((shm::key_hash(secret(), 1, name_of(i)) & 7) == 7) names.push_back(name_of(i));
  }
  std::vector<Offset> blocks;
  for (const auto& name : names) blocks.push_back(add(1, name));
  BOOST_TEST_REQUIRE(index->slots() == 8u);
  for (std::size_t i = 0; i < names.size(); ++i) BOOST_TEST(read(1, names[i]) == blocks[i]);
}

BOOST_FIXTURE_TEST_CASE(the_table_grows_with_its_entries_and_loses_none, IndexFixture) {
  std::map<std::string, Offset> blocks;
  for (std::uint64_t i = 0; i < 3000; ++i) {
    blocks[name_of(i)] = add(1, name_of(i));
    BOOST_TEST_REQUIRE(index->entries() * 8 <= index->slots() * 5);
  }
  BOOST_TEST(index->slots() == 8192u);
  for (const auto& [name, block] : blocks) BOOST_TEST_REQUIRE(read(1, name) == block);
  for (std::uint64_t i = 3000; i < 6000; ++i) BOOST_TEST_REQUIRE(read(1, name_of(i)) == 0u);
}

/// Keys that come and go leave tombstones; they are cleaned, and the table does not grow because of them.
BOOST_FIXTURE_TEST_CASE(tombstones_are_cleaned_without_growing, IndexFixture) {
  const Offset stays = add(1, "stays");
  for (std::uint64_t i = 0; i < 5000; ++i) {
    add(1, name_of(i));
    erase(1, name_of(i));
    BOOST_TEST_REQUIRE(index->slots() == 8u);
  }
  BOOST_TEST(read(1, "stays") == stays);
  BOOST_TEST(read(1, name_of(4999)) == 0u);
  BOOST_TEST(index->entries() == 1u);
}

/// The version has ten bits: 5000 keys come and go above, and so do more than 1024 tables. Here the count.
BOOST_FIXTURE_TEST_CASE(the_version_begins_anew_after_1024_tables_and_every_table_has_another_than_the_last,
                        IndexFixture) {
  std::uint64_t last = shm::index_version(header().index.load());
  std::uint64_t tables = 0;
  shm::IndexWord word = header().index.load();
  for (std::uint64_t i = 0; tables < 1100; ++i) {
    add(1, name_of(i));
    erase(1, name_of(i));
    if (header().index.load() == word) continue;
    word = header().index.load();
    ++tables;
    BOOST_TEST_REQUIRE(shm::index_version(word) == ((last + 1) & 0x3FF));
    last = shm::index_version(word);
  }
  BOOST_TEST(last == 1100u - 1024u);
}

BOOST_AUTO_TEST_CASE(a_full_heap_lets_the_table_fill_to_seven_eighths_and_then_says_so) {
  IndexFixture one(1024 * 1024, 1024);
  std::map<std::string, Offset> blocks;
  std::vector<Offset> room;  // records first: then the heap is filled to the brim
  for (std::uint64_t i = 0; i < 1000; ++i) room.push_back(one.record(1, name_of(i)));
  while (one.heap->largest_free() > 0) (void)one.heap->allocate(one.heap->largest_free());
  std::uint64_t published = 0;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    const auto ready = one.index->ensure_slot(1, name_of(i));
    if (!ready) {
      BOOST_TEST((ready.error() == Errc::segment_full));
      break;
    }
    one.index->publish(room[i]);
    ++published;
  }
  BOOST_TEST(published == 1024u / 8 * 7);
  BOOST_TEST(one.index->slots() == 1024u);
  for (std::uint64_t i = 0; i < 1000; ++i) {
    BOOST_TEST_REQUIRE(one.read(1, name_of(i)) == (i < published ? room[i] : 0));
  }
}

BOOST_FIXTURE_TEST_CASE(any_order_of_calls_agrees_with_a_map_on_both_sides, IndexFixture) {
  std::mt19937_64 random(4711);
  std::map<std::pair<BuildId, std::string>, Offset> model;
  for (int step = 0; step < 20'000; ++step) {
    // The range of keys breathes, so that the table grows and is cleaned many times.
    const std::uint64_t range = 50 + static_cast<std::uint64_t>(step / 2000 % 3) * 400;
    const std::pair<BuildId, std::string> key{1 + static_cast<BuildId>(random() % 3), name_of(random() % range)};
    if (random() % 5 < 2) {
      const bool there = model.erase(key) > 0;
      const Offset block = index->erase(key.first, key.second);
      BOOST_TEST_REQUIRE((block != 0) == there);
      if (there) heap->free(block);
    } else {
      model[key] = add(key.first, key.second);
    }
    const std::pair<BuildId, std::string> asked{1 + static_cast<BuildId>(random() % 3), name_of(random() % range)};
    const auto expected = model.find(asked);
    BOOST_TEST_REQUIRE(read(asked.first, asked.second) == (expected == model.end() ? 0 : expected->second));
    BOOST_TEST_REQUIRE(index->entries() == model.size());
  }
  for (const auto& [key, block] : model) BOOST_TEST_REQUIRE(index->find(key.first, key.second) == block);
  // Another daemon takes the table over.
  shm::IndexWriter other(mapping.data(), *heap);
  other.attach();
  BOOST_TEST(other.entries() == model.size());
  for (const auto& [key, block] : model) BOOST_TEST_REQUIRE(other.find(key.first, key.second) == block);
  BOOST_TEST(no_pin_left());
}

// ---- keys that were chosen to collide ------------------------------------------------------------------------------

/// Names of build 1 whose own slots are among 64 neighbours, under a secret that the attacker knows.
class Attack {
 public:
  explicit Attack(const IndexFixture& on) : slots_(on.index->slots()), secret_(on.secret()) {}
  std::string next() {
    for (;; ++i_) {
      if ((shm::key_hash(secret_, 1, name_of(i_)) & (slots_ - 1)) < 64) return name_of(i_++);
    }
  }
  /// What somebody sets who knows nothing of it, and whose key goes where the attacker's are.
  std::string victim(int number) const {
    for (std::uint64_t i = 0;; ++i) {
      const std::string name = "victim " + std::to_string(i);
      if ((shm::key_hash(secret_, 1, name) & (slots_ - 1)) == 32 && number-- == 0) return name;
    }
  }

 private:
  std::uint64_t slots_;
  shm::HashSecret secret_;
  std::uint64_t i_ = 0;
};

std::uint64_t furthest(const IndexFixture& one) {
  const Offset table = shm::index_slots_offset(one.header().index.load());
  const auto* slots = reinterpret_cast<const std::atomic<shm::Slot>*>(one.mapping.data() + table);
  std::uint64_t furthest = 0;
  for (std::uint64_t i = 0; i < one.index->slots(); ++i) {
    if (slots[i].load() <= shm::kTombstone) continue;
    const auto& entry = *reinterpret_cast<const shm::Entry*>(one.mapping.data() + shm::slot_offset(slots[i].load()));
    const std::uint64_t home = shm::key_hash(one.secret(), entry.buildid, shm::entry_name(entry));
    furthest = std::max(furthest, (i - home) & (one.index->slots() - 1));
  }
  return furthest;
}

BOOST_AUTO_TEST_CASE(every_table_has_a_secret_of_its_own) {
  IndexFixture one;
  std::set<std::uint64_t> secrets{one.secret().words[0]};
  std::uint64_t tables = 1;
  shm::IndexWord word = one.header().index.load();
  for (std::uint64_t i = 0; i < 500; ++i) {
    one.add(1, name_of(i % 100));
    one.erase(1, name_of(i % 100));
    if (one.header().index.load() == word) continue;
    word = one.header().index.load();
    ++tables;
    secrets.insert(one.secret().words[0]);
  }
  BOOST_TEST(tables > 50u);
  BOOST_TEST(secrets.size() == tables);
}

BOOST_AUTO_TEST_CASE(keys_that_collide_under_the_secret_of_the_table_find_places_under_another) {
  IndexFixture one(16 * 1024 * 1024, 16384);
  std::map<std::string, Offset> blocks;
  for (int tables = 0; tables < 2; ++tables) {
    Attack attack(one);
    const std::uint64_t rekeys = one.index->rekeys();
    // Until the 4096 slots from the attacked ones on are taken.
    for (int i = 0; i < 4300 && one.index->rekeys() == rekeys; ++i) {
      const std::string name = attack.next();
      blocks[name] = one.add(1, name);
    }
    BOOST_TEST(one.index->rekeys() == rekeys + 1);
    BOOST_TEST(one.index->slots() == 16384u);
    BOOST_TEST(furthest(one) < 300u);
  }
  BOOST_TEST(blocks.size() > 7000u);  // the second time some of the slots are taken already
  BOOST_TEST(one.index->entries() == blocks.size());
  for (const auto& [name, block] : blocks) {
    BOOST_TEST_REQUIRE(one.index->find(1, name) == block);
    BOOST_TEST_REQUIRE(one.read(1, name) == block);
  }
}

BOOST_AUTO_TEST_CASE(a_key_without_a_slot_is_refused_until_sets_or_time_pay_for_another_table) {
  IndexFixture one(16 * 1024 * 1024, 32768);
  std::map<std::string, Offset> blocks;
  const auto crowd = [&] {
    Attack attack(one);
    const std::uint64_t rekeys = one.index->rekeys();
    for (int i = 0; i < 4300 && one.index->rekeys() == rekeys; ++i) {
      const std::string name = attack.next();
      if (one.index->ensure_slot(1, name)) blocks[name] = one.add(1, name);
    }
    return attack;
  };
  (void)crowd();  // what is there at first pays for one
  BOOST_TEST_REQUIRE(one.index->rekeys() == 1u);
  // Fewer than an eighth of the slots since: refused, and nothing is the worse for it.
  const Attack again = crowd();
  BOOST_TEST_REQUIRE(one.index->rekeys() == 1u);
  for (int i = 0; i < 3; ++i) {
    const auto room = one.index->ensure_slot(1, again.victim(i));
    BOOST_TEST_REQUIRE(!room);
    BOOST_TEST((room.error() == Errc::too_many));
  }
  BOOST_TEST(furthest(one) < shm::kMaxProbe);
  for (const auto& [name, block] : blocks) BOOST_TEST_REQUIRE(one.read(1, name) == block);
  BOOST_TEST(one.read(1, again.victim(0)) == 0u);
  // What replaces needs no slot, and others' keys have theirs.
  BOOST_TEST(one.index->ensure_slot(1, blocks.begin()->first).has_value());
  blocks["elsewhere"] = one.add(2, "elsewhere");
  BOOST_TEST(one.read(2, "elsewhere") == blocks["elsewhere"]);
  // One slot that is given up is a slot for the next.
  one.erase(1, blocks.begin()->first);
  // The clock allows one table more.
  one.index->allow_rekey();
  const Offset served = one.add(1, again.victim(1));
  const Offset too = one.add(1, again.victim(2));
  BOOST_TEST(one.read(1, again.victim(1)) == served);
  BOOST_TEST(one.read(1, again.victim(2)) == too);
  BOOST_TEST(one.index->rekeys() <= 2u);
}

/// A table crowded as far as it can be is searched no further than kMaxProbe, whatever stands behind.
BOOST_AUTO_TEST_CASE(no_search_goes_further_than_a_key_can_stand) {
  IndexFixture one(1024 * 1024, 16384);
  const Offset block = one.record(7, "far away");
  const std::uint64_t home = shm::key_hash(one.secret(), 7, "far away");
  auto* slots = reinterpret_cast<std::atomic<shm::Slot>*>(one.mapping.data() +
                                                          shm::index_slots_offset(one.header().index.load()));
  for (std::uint64_t i = 0; i < 16384; ++i) slots[i].store(shm::kTombstone);
  const auto put = [&](std::uint64_t distance, shm::Slot slot) { slots[(home + distance) & 16383].store(slot); };
  put(shm::kMaxProbe - 1, shm::make_slot(home, block));
  BOOST_TEST(one.index->find(7, "far away") == block);
  BOOST_TEST(one.read(7, "far away") == block);
  put(shm::kMaxProbe - 1, shm::kTombstone);
  put(shm::kMaxProbe, shm::make_slot(home, block));
  BOOST_TEST(one.index->find(7, "far away") == 0u);
  BOOST_TEST(one.read(7, "far away") == 0u);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
