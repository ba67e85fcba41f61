// SPDX-License-Identifier: Apache-2.0
// One writer and several readers at once, for as long as STEPSTASH_STRESS_SECONDS says (2 s otherwise).
//
// Every value tells whose it is: each of its words follows from the entry's id and revision and the word's place. A
// view of torn bytes, or of a block that was given to another value while it was looked at, is found by reading it.
//
// ThreadSanitizer knows memory by its address: of two mappings of one object it sees no connection. So one of the cases
// lets the readers search in the writer's own mapping. The daemon reads the pins through a system call, which tells the
// sanitizer nothing either: there the readers say with a fence that they are done, before they release the pin.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sstream>
#include <thread>

#include "shm/fence.hpp"
#include "shm/hash.hpp"
#include "shm/reader_fence.hpp"
#include "shm/validate.hpp"
#include "tests/support/segment_fixture.hpp"

namespace stepstash::test {
namespace {

using shm::EntryState;
using shm::Found;
using shm::Offset;
using shm::Slot;

constexpr int kReaders = 3;
constexpr std::size_t kChanging = 24;  // names that are set, replaced, evicted, reloaded and erased
constexpr std::size_t kLasting = 8;    // names that are replaced only: a miss is an error

std::chrono::milliseconds duration() {
  const char* seconds = std::getenv("STEPSTASH_STRESS_SECONDS");
  return std::chrono::milliseconds(seconds == nullptr ? 2000 : 1000 * std::atol(seconds));
}

std::string changing(std::size_t i) { return "changing " + std::to_string(i); }
std::string lasting(std::size_t i) { return "lasting " + std::to_string(i); }

/// What the daemon does to a segment, all day.
class Load {
 public:
  explicit Load(shm::Segment& segment) : writer_(segment) {
    for (std::size_t i = 0; i < kLasting; ++i) take(try_set_pattern(writer_, 1, lasting(i), 500));
  }

  void one_call() {
    const std::string name = changing(random_() % kChanging);
    const shm::Entry* entry = writer_.find(1, name);
    const std::uint64_t what = random_() % 16;
    if (what < 7) {
      (void)try_set_pattern(writer_, 1, name, size());  // a full segment is an answer, too
    } else if (what < 9) {
      (void)try_set_pattern(writer_, 1, lasting(random_() % kLasting), size());
    } else if (what == 9 && entry != nullptr) {
      writer_.erase(*entry);
    } else if (what < 12 && entry != nullptr && entry->value_offset != 0) {
      writer_.mark(*entry, EntryState::clean);
      (void)writer_.evict(*entry);
    } else if (what < 14 && entry != nullptr && entry->value_offset == 0) {
      reload(*entry);
    } else if (what == 14) {
      // Keys that come and go: the table is cleaned, and the records' memory is used again at once.
      for (int i = 0; i < 40; ++i) {
        const std::string passing = "passing " + std::to_string(random_() % 2000);
        if (const shm::Entry* there = writer_.find(2, passing)) {
          writer_.erase(*there);
        } else if (writer_.index().entries() < 300) {
          (void)try_set_pattern(writer_, 2, passing, 8);
        }
      }
    } else if (what == 15 && random_() % 64 == 0) {
      writer_.heap().punch(std::chrono::seconds(0), ~std::uint64_t{0});
    }
    writer_.reclaim();
  }

 private:
  std::size_t size() { return random_() % 8 == 0 ? random_() % 60'000 : random_() % 3000; }

  /// The value comes back from the database: same id, same revision, same bytes, another block.
  void reload(const shm::Entry& record) {
    const std::string name(shm::entry_name(record));
    const auto draft = writer_.draft(name, "", record.length);
    if (!draft) return;
    if (!writer_.reserve(draft.value(), record.length)) return writer_.discard(draft.value());
    fill_pattern(writer_.value_bytes(draft.value()).first(record.length), record.id, record.revision);
    shm::Segment::EntryFacts facts;
    facts.id = record.id;
    facts.revision = record.revision;
    facts.build = record.buildid;
    facts.name = name;
    facts.length = record.length;
    facts.value_hash = record.value_hash;
    facts.state = EntryState::clean;
    writer_.publish(draft.value(), facts);
  }

  shm::Segment& writer_;
  std::mt19937_64 random_{1};
};

struct Search {
  std::function<Found(BuildId, std::string_view, shm::Pinned&)> find;
  bool fence_before_release = false;

  void release(shm::Pinned& view) const {
    if (fence_before_release) shm::full_fence();
    view.release();
  }
};

struct Tally {
  std::atomic<std::uint64_t> calls{0};  // of the writer
  std::atomic<std::uint64_t> resident{0};
  std::atomic<std::uint64_t> evicted{0};
  std::atomic<std::uint64_t> misses{0};
  std::atomic<std::uint64_t> wrong_bytes{0};
  std::atomic<std::uint64_t> wrong_entry{0};
  std::atomic<std::uint64_t> wrong_miss{0};
  std::atomic<std::uint64_t> no_answer{0};  // corrupt, superseded, no pin

  std::uint64_t wrong() const { return wrong_bytes + wrong_entry + wrong_miss + no_answer; }
  std::string text() const {
    std::ostringstream out;
    out << calls << " calls of the writer; found " << resident << " resident, " << evicted << " evicted, missed "
        << misses << "; wrong: " << wrong_bytes << " values, " << wrong_entry << " entries, " << wrong_miss
        << " misses, " << no_answer << " without an answer";
    return out.str();
  }
};

/// Whether what the view shows is whole and belongs to the name.
void judge(const shm::Pinned& view, const std::string& name, Tally& tally) {
  const auto value = view.value();
  if (view.entry->buildid != 1 || view.name() != name || value.size() != view.entry->length) {
    ++tally.wrong_entry;
    return;  // nobody knows where such a value ends
  }
  if (!is_pattern(value, view.entry->id, view.entry->revision)) ++tally.wrong_bytes;
}

void read_until(const std::atomic<bool>& stop, const Search& search, std::uint64_t seed, Tally& tally) {
  struct Held {
    shm::Pinned view;
    std::string name;
  };
  std::mt19937_64 random(seed);
  std::vector<Held> held(6);  // views that stay open for a while
  while (!stop) {
    const bool lasts = random() % 4 == 0;
    const std::string name = lasts ? lasting(random() % kLasting) : changing(random() % kChanging);
    shm::Pinned view;
    switch (search.find(1, name, view)) {
      case Found::miss:
        ++tally.misses;
        if (lasts) ++tally.wrong_miss;
        break;
      case Found::evicted:
        ++tally.evicted;
        if (view.entry->buildid != 1 || view.name() != name || lasts) ++tally.wrong_entry;
        search.release(view);
        break;
      case Found::resident: {
        ++tally.resident;
        judge(view, name, tally);
        Held& place = held[random() % held.size()];
        if (place.view.entry != nullptr) {
          judge(place.view, place.name, tally);
          search.release(place.view);
        }
        place = {view, name};
        break;
      }
      default:
        ++tally.no_answer;
    }
  }
  for (Held& place : held) {
    if (place.view.entry == nullptr) continue;
    judge(place.view, place.name, tally);
    search.release(place.view);
  }
}

/// Runs the writer in this thread and one reader for each of `searches` beside it, until the time is over or `enough`.
void run(shm::Segment& segment, const std::vector<Search>& searches, Tally& tally, std::chrono::milliseconds time,
         const std::function<bool()>& enough) {
  Load load(segment);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < searches.size(); ++i) {
    threads.emplace_back([&, i] { read_until(stop, searches[i], 100 + i, tally); });
  }
  const auto deadline = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < deadline && !enough()) {
    load.one_call();
    ++tally.calls;
  }
  stop = true;
  for (auto& thread : threads) thread.join();
}

/// Enough when the time is over and readers have found something this often: on a busy machine that takes longer.
std::function<bool()> after(std::chrono::milliseconds time, const Tally& tally, std::uint64_t resident) {
  const auto end = std::chrono::steady_clock::now() + time;
  return [end, &tally, resident] { return std::chrono::steady_clock::now() >= end && tally.resident > resident; };
}
constexpr std::chrono::milliseconds kAtMost = std::chrono::minutes(2);

/// A copy of shm/reader.cpp's search that waits at its most delicate point, between the look at a slot and the pin,
/// until the writer has made two more calls; and that can be told to leave out the second look.
struct SlowSearch {
  const std::byte* segment;
  std::uint64_t bytes;
  shm::PinPage& page;
  const Tally& tally;
  bool second_look;

  Found operator()(BuildId build, std::string_view name, shm::Pinned& out) const {
    const auto& header = *reinterpret_cast<const shm::Header*>(segment);
    for (;;) {
      const shm::IndexWord word = header.index.load();
      const Offset table = shm::index_slots_offset(word);
      const std::uint64_t hash = shm::key_hash(shm::table_secret(segment, table), build, name);
      const std::uint64_t slots = std::uint64_t{1} << shm::index_log2_slots(word);
      const auto* slot = reinterpret_cast<const std::atomic<Slot>*>(segment + table);
      bool again = false;
      for (std::uint64_t i = 0; i < slots && !again; ++i) {
        const std::atomic<Slot>& here = slot[(hash + i) & (slots - 1)];
        const Slot seen = here.load();
        if (seen == shm::kEmptySlot) break;
        if (!shm::slot_matches(seen, hash)) continue;
        const std::uint64_t calls = tally.calls + 2;
        for (int turns = 0; tally.calls < calls && turns < 20; ++turns) std::this_thread::yield();
        std::atomic<Offset>* pin = claim(shm::slot_offset(seen));
        if (pin == nullptr) return Found::no_pin;
        if (second_look && (here.load() != seen || header.index.load() != word)) {
          pin->store(0);
          again = true;
          break;
        }
        const shm::Entry* entry = shm::checked_entry(segment, bytes, shm::slot_offset(seen));
        if (entry != nullptr && entry->buildid == build && shm::entry_name(*entry) == name) {
          out = {entry, pin};
          return out.resident() ? Found::resident : Found::evicted;
        }
        pin->store(0);
        if (entry == nullptr) return Found::corrupt;
      }
      if (!again && header.index.load() == word) return Found::miss;
    }
  }

  std::atomic<Offset>* claim(Offset block) const {
    for (auto& line : page.lines) {
      for (auto& pin : line.pins) {
        Offset none = 0;
        if (pin.compare_exchange_strong(none, block)) return &pin;
      }
    }
    return nullptr;
  }
};

/// Mappings of a client's own.
struct ClientMappings {
  explicit ClientMappings(Stash& stash) {
    const auto made = take(stash.segment->pins().create(stash.segment->header().segment_id, 1, 1));
    const UniqueFd fd = take(stash.segment->open_for_client());
    segment = take(shm::Mapping::map(fd.get(), stash.segment->mapped_bytes(), shm::Mapping::Access::read_only));
    pins = take(shm::Mapping::map(made.fd.get(), shm::kPageBytes, shm::Mapping::Access::read_write));
  }
  SlowSearch search(const Tally& tally, bool second_look) const {
    return {segment.data(), segment.size(), page(), tally, second_look};
  }
  shm::PinPage& page() const { return *reinterpret_cast<shm::PinPage*>(pins.data()); }
  shm::Mapping segment;
  shm::Mapping pins;
};

/// Nothing wrong was seen, and more than `resident` values.
void expect_right(const Tally& tally, std::uint64_t resident) {
  BOOST_TEST_MESSAGE(tally.text());
  BOOST_TEST(tally.wrong() == 0u, tally.text());
  BOOST_TEST(tally.resident > resident);
}

BOOST_AUTO_TEST_SUITE(stress)

BOOST_AUTO_TEST_CASE(readers_with_mappings_of_their_own_never_see_a_wrong_byte) {
  Stash stash(1024 * 1024);
  Tally tally;
  std::vector<shm::Reader> clients;
  for (int i = 0; i < kReaders; ++i) clients.push_back(stash.reader());
  std::vector<Search> searches;
  for (const auto& client : clients) {
    searches.push_back(
        {[&](BuildId build, std::string_view name, shm::Pinned& out) { return client.find(build, name, out); }});
  }
  run(*stash.segment, searches, tally, kAtMost, after(duration(), tally, 1000));
  expect_right(tally, 1000);
  BOOST_TEST(tally.evicted > 0u);
  BOOST_TEST(tally.misses > 0u);
  BOOST_TEST(disorder(*stash.segment) == "");
  for (const auto& client : clients) BOOST_TEST(client.pins_in_use() == 0u);
}

BOOST_AUTO_TEST_CASE(threads_that_share_one_client_never_see_a_wrong_byte) {
  Stash stash(1024 * 1024);
  Tally tally;
  const shm::Reader client = stash.reader();
  const Search search{
      [&](BuildId build, std::string_view name, shm::Pinned& out) { return client.find(build, name, out); }};
  run(*stash.segment, std::vector<Search>(kReaders, search), tally, kAtMost, after(duration() / 2, tally, 1000));
  expect_right(tally, 1000);
  BOOST_TEST(client.pins_in_use() == 0u);
}

BOOST_AUTO_TEST_CASE(readers_whose_claims_the_writer_fences_never_see_a_wrong_byte,
                     *boost::unit_test::precondition(kernel_fences_readers)) {
  BOOST_REQUIRE(shm::register_reader());
  Stash stash(1024 * 1024);
  Tally tally;
  std::vector<std::unique_ptr<ClientMappings>> clients;
  std::vector<Search> searches;
  for (int i = 0; i < kReaders; ++i) {
    clients.push_back(std::make_unique<ClientMappings>(stash));
    const ClientMappings& client = *clients.back();
    searches.push_back({[&client](BuildId build, std::string_view name, shm::Pinned& out) {
      return shm::find_entry(client.segment.data(), client.segment.size(), client.page(), shm::ReaderFence::scanned,
                             build, name, out);
    }});
  }
  run(*stash.segment, searches, tally, kAtMost, after(duration(), tally, 1000));
  expect_right(tally, 1000);
}

BOOST_AUTO_TEST_CASE(readers_in_the_writers_own_mapping_are_ordered_with_it) {
  Stash stash(1024 * 1024);
  Tally tally;
  const ClientMappings client(stash);
  auto& page = *reinterpret_cast<shm::PinPage*>(client.pins.data());
  const auto* segment = reinterpret_cast<const std::byte*>(&stash.segment->header());
  const auto find = [&](BuildId build, std::string_view name, shm::Pinned& out) {
    return shm::find_entry(segment, stash.segment->mapped_bytes(), page, shm::ReaderFence::own, build, name, out);
  };
  const Search search{find, /*fence_before_release=*/true};
  run(*stash.segment, std::vector<Search>(kReaders, search), tally, kAtMost, after(duration(), tally, 1000));
  expect_right(tally, 1000);
}

/// The test of the test: what it is there to find, it finds. Not under ThreadSanitizer, where that reader is so slow
/// that what it sees changes while it is being judged, and leads out of the segment.
#ifdef __SANITIZE_THREAD__
constexpr bool kMayBeWrong = false;
#else
constexpr bool kMayBeWrong = true;
#endif
BOOST_AUTO_TEST_CASE(a_reader_without_the_second_look_is_found_out, *boost::unit_test::enable_if<kMayBeWrong>()) {
  Stash stash(1024 * 1024);
  Tally tally;
  std::vector<std::unique_ptr<ClientMappings>> clients;
  std::vector<Search> searches;
  for (int i = 0; i < kReaders; ++i) {
    clients.push_back(std::make_unique<ClientMappings>(stash));
    searches.push_back({clients.back()->search(tally, /*second_look=*/false)});
  }
  run(*stash.segment, searches, tally, std::chrono::seconds(60), [&] { return tally.wrong() > 0; });
  BOOST_TEST_MESSAGE(tally.text());
  BOOST_TEST(tally.wrong() > 0u);
}

BOOST_AUTO_TEST_CASE(a_reader_that_waits_before_the_pin_is_right_with_the_second_look) {
  Stash stash(1024 * 1024);
  Tally tally;
  std::vector<std::unique_ptr<ClientMappings>> clients;
  std::vector<Search> searches;
  for (int i = 0; i < kReaders; ++i) {
    clients.push_back(std::make_unique<ClientMappings>(stash));
    searches.push_back({clients.back()->search(tally, /*second_look=*/true)});
  }
  run(*stash.segment, searches, tally, kAtMost, after(duration() / 2, tally, 100));
  expect_right(tally, 100);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
