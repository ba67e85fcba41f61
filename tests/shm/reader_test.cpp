// SPDX-License-Identifier: Apache-2.0
#include "shm/reader.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>

#include "shm/hash.hpp"
#include "shm/validate.hpp"
#include "tests/support/segment_fixture.hpp"

namespace stepstash::test {
namespace {

using shm::EntryState;
using shm::Found;
using shm::GivenBack;
using shm::Reader;

/// Copies of a segment and a pin page that a test may damage before it attaches.
struct Copies {
  explicit Copies(Stash& stash)
      : pins(take(stash.segment->pins().create(stash.segment->header().segment_id, 1, 1)).fd) {
    take(stash.objects.remove("copy"));
    segment = take(stash.objects.create("copy"));
    const UniqueFd original = take(stash.segment->open_for_client());
    std::vector<char> bytes(Stash::kBytes);
    BOOST_TEST_REQUIRE(::pread(original.get(), bytes.data(), bytes.size(), 0) == static_cast<::ssize_t>(bytes.size()));
    BOOST_TEST_REQUIRE(::pwrite(segment.get(), bytes.data(), bytes.size(), 0) == static_cast<::ssize_t>(bytes.size()));
    BOOST_TEST_REQUIRE(::ftruncate(segment.get(), static_cast<::off_t>(stash.segment->mapped_bytes())) == 0);
  }
  template <class T>
  static void put(const UniqueFd& fd, std::size_t at, T value) {
    BOOST_TEST_REQUIRE(::pwrite(fd.get(), &value, sizeof(value), static_cast<::off_t>(at)) == sizeof(value));
  }
  std::error_code attach() {
    const auto reader = Reader::attach(UniqueFd(::dup(segment.get())), UniqueFd(::dup(pins.get())));
    return reader ? std::error_code() : reader.error();
  }
  UniqueFd segment;
  UniqueFd pins;
};

BOOST_AUTO_TEST_SUITE(reader)

BOOST_FIXTURE_TEST_CASE(a_value_is_found_with_all_that_belongs_to_it, Stash) {
  const Reader client = reader();
  const shm::Entry& set_entry = set(7, "report", "<xml/>", "step 3");
  shm::Pinned view;
  BOOST_TEST_REQUIRE((client.find(7, "report", view) == Found::resident));
  BOOST_TEST(text_of(view.value()) == "<xml/>");
  BOOST_TEST(view.name() == "report");
  BOOST_TEST(view.source() == "step 3");
  BOOST_TEST(view.resident());
  BOOST_TEST(view.entry->id == set_entry.id);
  BOOST_TEST(view.entry->revision == set_entry.revision);
  BOOST_TEST(view.entry->length == 6u);
  BOOST_TEST(view.entry->value_hash == shm::hash_bytes(bytes_of("<xml/>")));
  BOOST_TEST(client.pins_in_use() == 1u);
  view.release();
  BOOST_TEST(client.pins_in_use() == 0u);
  BOOST_TEST(view.entry == nullptr);
}

BOOST_FIXTURE_TEST_CASE(what_was_never_set_or_is_erased_is_a_miss_and_leaves_no_pin, Stash) {
  const Reader client = reader();
  for (int i = 0; i < 500; ++i) set(1 + i % 5, "name " + std::to_string(i), "v");
  for (int i = 0; i < 2000; ++i) {
    BOOST_TEST_REQUIRE(found(client, 6, "name " + std::to_string(i)) == "(miss)");
    BOOST_TEST_REQUIRE(found(client, 1 + (i + 1) % 5, "name " + std::to_string(i)) == "(miss)");
  }
  segment->erase(*segment->find(1, "name 0"));
  BOOST_TEST(found(client, 1, "name 0") == "(miss)");
  BOOST_TEST(found(client, 1, "name 5") == "v");
  BOOST_TEST(client.pins_in_use() == 0u);
}

BOOST_FIXTURE_TEST_CASE(what_a_deletion_deletes_is_a_miss_from_one_instant_on_though_slots_still_lead_to_it, Stash) {
  const Reader client = reader();
  std::vector<shm::BuildRecord*> builds;
  for (BuildId build = 1; build <= 3; ++build) {
    builds.push_back(take(segment->add_build(build, false)));
    for (int i = 0; i < 5; ++i) set(build, std::to_string(i), "v");
  }
  set(4, "a build without a record", "v");
  const auto found_of = [&](BuildId build) {
    int found_here = 0;
    for (int i = 0; i < 5; ++i) found_here += found(client, build, std::to_string(i)) == "v";
    return found_here;
  };
  builds.pop_back();
  const std::uint64_t upto = segment->begin_deletion(builds);
  BOOST_TEST(upto == segment->header().next_id.load() - 1);
  for (BuildId build = 1; build <= 2; ++build) {
    BOOST_TEST(found_of(build) == 0);
    BOOST_TEST(segment->find(build, "0") != nullptr);
  }
  BOOST_TEST(found_of(3) == 5);
  BOOST_TEST(found(client, 4, "a build without a record") == "v");
  // What is set since is there.
  segment->erase(*segment->find(1, "3"));
  set(1, "3", "v");
  set(1, "new", "v");
  BOOST_TEST(found_of(1) == 1);
  BOOST_TEST(found(client, 1, "new") == "v");
  // A second one while the first is under way, and its end before that one's.
  shm::BuildRecord* third = segment->find_build(3);
  segment->begin_deletion(std::span(&third, 1));
  BOOST_TEST(found_of(3) == 0);
  for (int i = 0; i < 5; ++i) segment->erase(*segment->find(3, std::to_string(i)));
  segment->end_deletion();
  BOOST_TEST(found_of(2) == 0);
  BOOST_TEST(found(client, 1, "new") == "v");
  BOOST_TEST(client.pins_in_use() == 0u);
  // A crash completes it.
  restart();
  const Reader next = reader();
  BOOST_TEST(segment->find(2, "0") == nullptr);
  BOOST_TEST(segment->header().deletions.load() == 0u);
  BOOST_TEST(found(next, 1, "3") == "v");
  BOOST_TEST(segment->index().entries() == 3u);
}

/// Of a daemon that was killed in between: the marks alone delete nothing, and the next deletion does not take them for
/// its own.
BOOST_FIXTURE_TEST_CASE(a_deletion_that_was_cut_short_before_its_instant_never_was, Stash) {
  shm::BuildRecord* builds[] = {take(segment->add_build(1, false)), take(segment->add_build(2, false))};
  set(1, "a", "v");
  set(2, "a", "v");
  for (shm::BuildRecord* build : builds) build->deletion = segment->header().deletion_epoch.load() + 1;
  segment->header().deletions = 1;
  segment->header().deletion_upto = 1'000'000;
  const Reader client = reader();
  BOOST_TEST(found(client, 1, "a") == "v");
  restart();
  const Reader next = reader();
  for (const BuildId build : {1, 2}) BOOST_TEST(found(next, build, "a") == "v");
  shm::BuildRecord* second = segment->find_build(2);
  segment->begin_deletion(std::span(&second, 1));
  BOOST_TEST(found(next, 1, "a") == "v");
  BOOST_TEST(found(next, 2, "a") == "(miss)");
}

BOOST_FIXTURE_TEST_CASE(an_empty_value_is_a_value, Stash) {
  const Reader client = reader();
  set(1, "empty", "");
  shm::Pinned view;
  BOOST_TEST_REQUIRE((client.find(1, "empty", view) == Found::resident));
  BOOST_TEST(view.resident());
  BOOST_TEST(view.value().empty());
  BOOST_TEST(view.entry->length == 0u);
}

BOOST_FIXTURE_TEST_CASE(names_and_sources_of_0_and_of_1024_bytes_are_kept_whole, Stash) {
  const Reader client = reader();
  const std::string longest(1024, 'n');
  set(1, longest, "long", longest);
  set(1, "", "short", "");
  set(1, longest.substr(1), "one less");
  shm::Pinned view;
  BOOST_TEST_REQUIRE((client.find(1, longest, view) == Found::resident));
  BOOST_TEST(view.name() == longest);
  BOOST_TEST(view.source() == longest);
  BOOST_TEST(text_of(view.value()) == "long");
  view.release();
  BOOST_TEST(found(client, 1, "") == "short");
  BOOST_TEST(found(client, 1, longest.substr(1)) == "one less");
}

BOOST_FIXTURE_TEST_CASE(values_start_on_64_bytes_and_large_ones_on_a_page, Stash) {
  const Reader client = reader();
  for (const std::size_t bytes : {std::size_t{1}, shm::kPageAlignedFrom - 1, shm::kPageAlignedFrom}) {
    const std::string name = std::to_string(bytes);
    set_pattern(1, name, bytes);
    shm::Pinned view;
    BOOST_TEST_REQUIRE((client.find(1, name, view) == Found::resident));
    const auto at = reinterpret_cast<std::uintptr_t>(view.value().data());
    BOOST_TEST(at % (bytes < shm::kPageAlignedFrom ? 64 : shm::kPageBytes) == 0u);
    BOOST_TEST(is_pattern(view.value(), view.entry->id, view.entry->revision));
    view.release();
  }
}

BOOST_FIXTURE_TEST_CASE(a_view_keeps_its_bytes_through_replace_erase_and_reuse, Stash) {
  const Reader client = reader();
  set_pattern(1, "x", 100'000);
  shm::Pinned first;
  BOOST_TEST_REQUIRE((client.find(1, "x", first) == Found::resident));
  const std::uint64_t id = first.entry->id;
  const std::uint64_t revision = first.entry->revision;
  set_pattern(1, "x", 100'000);
  shm::Pinned second;
  BOOST_TEST_REQUIRE((client.find(1, "x", second) == Found::resident));
  BOOST_TEST(second.entry != first.entry);
  BOOST_TEST(second.entry->id == id);
  BOOST_TEST(second.entry->revision != revision);
  segment->erase(*segment->find(1, "x"));
  BOOST_TEST(found(client, 1, "x") == "(miss)");
  // All memory that can be had is written over.
  for (int i = 0;; ++i) {
    segment->reclaim();
    if (!try_set_pattern(*segment, 2, std::to_string(i), 50'000)) break;
  }
  BOOST_TEST(is_pattern(first.value(), id, revision));
  BOOST_TEST(is_pattern(second.value(), id, second.entry->revision));
  first.release();
  second.release();
  BOOST_TEST(segment->reclaim() >= 200'000u);
}

BOOST_FIXTURE_TEST_CASE(a_page_of_441_views_is_full_and_one_release_makes_room_for_one, Stash) {
  const Reader client = reader();
  const Reader other = reader();
  set(1, "x", "value");
  std::vector<shm::Pinned> views(shm::kPinsPerPage);
  for (auto& view : views) BOOST_TEST_REQUIRE((client.find(1, "x", view) == Found::resident));
  BOOST_TEST(client.pins_in_use() == 441u);
  shm::Pinned more;
  BOOST_TEST((client.find(1, "x", more) == Found::no_pin));
  BOOST_TEST(found(client, 1, "absent") == "(miss)");  // needs none
  BOOST_TEST(found(other, 1, "x") == "value");         // a page of its own
  views[200].release();
  BOOST_TEST((client.find(1, "x", more) == Found::resident));
  BOOST_TEST((client.find(1, "x", views[200]) == Found::no_pin));
  for (std::size_t i = 0; i < views.size(); ++i) {
    if (i != 200) views[i].release();
  }
  more.release();
  BOOST_TEST(client.pins_in_use() == 0u);
}

BOOST_FIXTURE_TEST_CASE(an_evicted_entry_is_found_without_its_value, Stash) {
  const Reader client = reader();
  const shm::Entry& entry = set(1, "x", std::string(1000, 'v'), "src", EntryState::clean);
  const std::uint64_t id = entry.id;
  take(segment->evict(entry));
  shm::Pinned view;
  BOOST_TEST_REQUIRE((client.find(1, "x", view) == Found::evicted));
  BOOST_TEST(!view.resident());
  BOOST_TEST(view.value().empty());
  BOOST_TEST(view.entry->id == id);
  BOOST_TEST(view.entry->length == 1000u);
  BOOST_TEST(view.source() == "src");
  view.release();
}

/// I6: gets, new ones included, go on while no daemon runs; the next daemon respects what was pinned meanwhile.
BOOST_FIXTURE_TEST_CASE(lookups_and_pins_work_while_there_is_no_daemon, Stash) {
  const Reader client = reader();
  set_pattern(1, "x", 100'000);
  segment.reset();
  shm::Pinned view;
  BOOST_TEST_REQUIRE((client.find(1, "x", view) == Found::resident));
  BOOST_TEST(found(client, 1, "y") == "(miss)");
  restart();
  set_pattern(1, "x", 100'000);
  BOOST_TEST(segment->reclaim() == 0u);
  BOOST_TEST(is_pattern(view.value(), view.entry->id, view.entry->revision));
  view.release();
  BOOST_TEST(segment->reclaim() > 100'000u);
}

BOOST_FIXTURE_TEST_CASE(readers_of_a_segment_that_was_replaced_are_told_so, Stash) {
  const Reader client = reader();
  set(1, "x", "old");
  shm::Pinned view;
  BOOST_TEST_REQUIRE((client.find(1, "x", view) == Found::resident));
  segment.reset();
  segment = take(shm::Segment::create(objects, kName, kBytes));
  take(segment->install(/*keep_former=*/false));
  BOOST_TEST(client.superseded());
  BOOST_TEST(found(client, 1, "x") == "(superseded)");
  BOOST_TEST(text_of(view.value()) == "old");  // what was held stays readable
  view.release();
  const Reader anew = reader();
  BOOST_TEST(found(anew, 1, "x") == "(miss)");
  BOOST_TEST((anew.segment_id() != client.segment_id()));
}

/// In place of the segment come zeros that need no addresses; in place of the page a page, which does.
BOOST_FIXTURE_TEST_CASE(a_client_at_its_limit_of_addresses_gives_the_segment_back_and_the_page_later, Stash,
                        *boost::unit_test::enable_if<kMayLackAddresses>()) {
  set(1, "x", "old");
  Reader client = reader();
  Child child([&](int) {
    ::alarm(30);
    const auto mapped = [&](const char* mode, const std::string& object) {
      std::ifstream maps("/proc/self/maps");
      int count = 0;
      for (std::string line; std::getline(maps, line);) {
        count += line.find(mode) != line.npos && line.find(dir.file(object)) != line.npos;
      }
      return count;
    };
    const std::string page = "segment.pin.1." + std::to_string(client.uid());
    shm::Pinned view;
    if (client.find(1, "x", view) != Found::resident) return 1;
    if (client.give_back() != GivenBack::pinned) return 2;
    view.release();
    if (mapped("r--s", "segment") != 1 || mapped("rw-s", page) != 1) return 3;
    ::rlimit before{};
    ::getrlimit(RLIMIT_AS, &before);
    long pages = 0;
    if (std::ifstream("/proc/self/statm") >> pages; pages == 0) return 4;
    ::rlimit few = before;
    few.rlim_cur = static_cast<::rlim_t>(pages) * shm::kPageBytes;
    ::setrlimit(RLIMIT_AS, &few);
    const GivenBack at_the_limit = client.give_back();
    const GivenBack again = client.give_back();
    ::setrlimit(RLIMIT_AS, &before);
    if (at_the_limit != GivenBack::refused || again != GivenBack::refused) return 5;
    if (mapped("r--s", "segment") != 0 || mapped("rw-s", page) != 1) return 6;
    if (client.find(1, "x", view) != Found::superseded) return 7;
    if (client.give_back() != GivenBack::all || mapped("rw-s", page) != 0) return 8;
    return client.find(1, "x", view) == Found::superseded ? 0 : 9;
  });
  BOOST_TEST(child.wait() == 0);
}

BOOST_FIXTURE_TEST_CASE(a_client_cannot_write_the_segment, Stash) {
  const UniqueFd fd = take(segment->open_for_client());
  BOOST_TEST((::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0) == MAP_FAILED));
  BOOST_TEST(::ftruncate(fd.get(), 0) == -1);
}

BOOST_FIXTURE_TEST_CASE(attaching_checks_the_header, Stash) {
  Copies copies(*this);
  BOOST_TEST(!copies.attach());
  Copies::put(copies.segment, offsetof(shm::Header, layout_version), shm::kLayoutVersion + 1);
  BOOST_TEST((copies.attach() == Errc::format_mismatch));
  Copies::put(copies.segment, offsetof(shm::Header, layout_version), shm::kLayoutVersion);
  Copies::put(copies.segment, offsetof(shm::Header, fingerprint), shm::layout_fingerprint() + 1);
  BOOST_TEST((copies.attach() == Errc::format_mismatch));
  Copies::put(copies.segment, offsetof(shm::Header, fingerprint), shm::layout_fingerprint());
  BOOST_TEST(!copies.attach());
  Copies::put(copies.segment, offsetof(shm::Header, segment_id), std::uint64_t{1});
  BOOST_TEST((copies.attach() == Errc::corrupt_segment));
  Copies::put(copies.segment, 0, std::uint64_t{0});
  BOOST_TEST((copies.attach() == Errc::corrupt_segment));
}

BOOST_FIXTURE_TEST_CASE(attaching_refuses_a_segment_or_page_of_another_length, Stash) {
  Copies copies(*this);
  for (const ::off_t bytes : {::off_t{0}, ::off_t{1}, ::off_t{4095}, ::off_t{4096}, ::off_t{kBytes - 1},
                              ::off_t{kBytes + 1}, ::off_t{kBytes + 4096}}) {
    BOOST_TEST_REQUIRE(::ftruncate(copies.segment.get(), bytes) == 0);
    BOOST_TEST((copies.attach() == Errc::corrupt_segment), bytes << " bytes");
  }
  Copies fresh(*this);
  for (const ::off_t bytes : {0, 4095, 4097, 8192}) {
    BOOST_TEST_REQUIRE(::ftruncate(fresh.pins.get(), bytes) == 0);
    BOOST_TEST((fresh.attach() == Errc::format_mismatch), bytes << " bytes");
  }
}

BOOST_FIXTURE_TEST_CASE(attaching_refuses_a_page_that_is_none, Stash) {
  Copies copies(*this);
  Copies::put(copies.pins, offsetof(shm::PinPage, layout_version), shm::kLayoutVersion + 1);
  BOOST_TEST((copies.attach() == Errc::format_mismatch));
  Copies::put(copies.pins, offsetof(shm::PinPage, layout_version), shm::kLayoutVersion);
  BOOST_TEST(!copies.attach());
  Copies::put(copies.pins, 0, std::uint64_t{0});
  BOOST_TEST((copies.attach() == Errc::format_mismatch));
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace
}  // namespace stepstash::test
