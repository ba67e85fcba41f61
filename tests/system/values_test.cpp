// SPDX-License-Identifier: Apache-2.0
// Setting and getting: every length, replacement under readers, streams, conditions, names.
#include <fcntl.h>
#include <unistd.h>

#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <fstream>
#include <thread>

#include "tests/support/harness.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

/// The code of the stepstash::Error that `body` throws; 0 if it throws none. `message` receives its text.
template <class F>
int error_of(F&& body, std::string* message = nullptr) {
  try {
    body();
  } catch (const Error& error) {
    if (message != nullptr) *message = error.what();
    return error.code();
  }
  return 0;
}

std::string repeated(std::string_view text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(values)

BOOST_AUTO_TEST_CASE(values_of_every_length_come_back_exactly) {
  Served served({"--segment-size=1GiB"});
  const std::vector<std::uint64_t> lengths = {
      0, 1, 64 * kKiB - 1, 64 * kKiB, 64 * kKiB + 1, 256 * kKiB - 1, 256 * kKiB, kMiB, 300 * kMiB / kScale};
  Client other(served.daemon.socket());
  std::uint64_t last_id = 0;
  for (const std::uint64_t length : lengths) {
    BOOST_TEST_CONTEXT(length << " bytes") {
      const std::string name = "value of " + std::to_string(length);
      const auto result = served.client.set(1, name, generated(length, length), "lengths");
      BOOST_REQUIRE(result);
      BOOST_TEST(result->id > last_id);
      last_id = result->id;
      const auto view = other.get(1, name);
      BOOST_REQUIRE(view);
      BOOST_TEST(view->length() == length);
      BOOST_TEST(is_generated(view->bytes(), length, length));
      BOOST_TEST(view->id() == result->id);
      BOOST_TEST(view->build() == 1);
      BOOST_TEST(view->name() == name);
      BOOST_TEST(view->source() == "lengths");
      const auto stat = other.stat(1, name);
      BOOST_REQUIRE(stat);
      BOOST_TEST(stat->length() == length);
      BOOST_TEST(stat->bytes().empty());
    }
  }
  const auto listed = other.list(1);
  BOOST_REQUIRE(listed.size() == lengths.size());
  for (std::size_t i = 0; i < lengths.size(); ++i) BOOST_TEST(listed[i].length == lengths[i]);
}

BOOST_AUTO_TEST_CASE(an_empty_value_differs_from_an_absent_one) {
  Served served;
  served.client.set(1, "empty", "");
  stepstash_view view;
  BOOST_REQUIRE(stepstash_get(served.client.handle(), 1, "empty", &view) == STEPSTASH_OK);
  BOOST_TEST(view.data != nullptr);
  BOOST_TEST(view.length == 0u);
  stepstash_release(&view);
  BOOST_TEST(stepstash_get(served.client.handle(), 1, "absent", &view) == STEPSTASH_MISS);
  BOOST_TEST(!served.client.stat(1, "absent"));
  BOOST_TEST(!served.client.get(2, "empty"));
  BOOST_TEST(served.client.list(2).empty());
}

BOOST_AUTO_TEST_CASE(a_long_list_is_complete_and_in_id_order) {
  Served served;
  // More than one page of the protocol, and the order of names differs from that of ids.
  for (int i = 0; i < 100; ++i) served.client.set(3, "n" + std::to_string(99 - i), std::to_string(i));
  const auto all = served.client.list(3);
  BOOST_REQUIRE(all.size() == 100u);
  for (int i = 0; i < 100; ++i) BOOST_TEST(all[i].name == "n" + std::to_string(99 - i));
  for (int i = 1; i < 100; ++i) BOOST_TEST(all[i].id > all[i - 1].id);
  const auto one = served.client.list(3, "n42");
  BOOST_REQUIRE(one.size() == 1u);
  BOOST_TEST(one[0].name == "n42");
  BOOST_TEST(served.client.list(3, "n100").empty());
}

BOOST_AUTO_TEST_CASE(a_replaced_value_keeps_its_id_and_gets_another_revision) {
  Served served;
  const auto first = served.client.set(1, "report", "old", "step 1");
  const auto second = served.client.set(1, "report", generated(kMiB, 2), "step 2");
  BOOST_TEST(second->id == first->id);
  BOOST_TEST(second->revision != first->revision);
  const auto view = served.client.get(1, "report");
  BOOST_TEST(is_generated(view->bytes(), kMiB, 2));
  BOOST_TEST(view->source() == "step 2");
  BOOST_TEST(view->revision() == second->revision);
  BOOST_TEST(served.client.list(1).size() == 1u);
}

BOOST_DATA_TEST_CASE(a_view_keeps_its_bytes_until_it_is_released,
                     boost::unit_test::data::make({"replace", "drop", "prune"}), ending) {
  Served served({"--segment-size=8MiB"});
  Client& client = served.client;
  Client reader(served.daemon.socket());
  client.flush();
  const std::uint64_t before = figure(client, "segment.used_bytes");
  client.set(7, "small", "the former small value", "before");
  client.set(7, "large", generated(2 * kMiB, 1), "before");
  auto small = reader.get(7, "small");
  auto large = reader.get(7, "large");
  BOOST_REQUIRE((small && large));

  const std::string how = ending;
  if (how == "replace") {
    client.set(7, "small", "another small value", "after");
    client.set(7, "large", generated(kMiB, 2), "after");
    BOOST_TEST(reader.get(7, "small")->text() == "another small value");
  } else if (how == "drop") {
    BOOST_TEST(client.drop(7) == 2u);
    BOOST_TEST(!reader.get(7, "small"));
  } else {
    client.finish(7, epoch(1000));
    BOOST_TEST(client.prune(epoch(1001)) == 2u);
    BOOST_TEST(!reader.get(7, "large"));
  }
  // All reusable memory is reused now: four times the segment's capacity goes through it.
  for (std::uint64_t i = 0; i < 64; ++i) {
    client.set(8, "churn " + std::to_string(i % 5), generated(512 * kKiB, 100 + i), "churn");
  }
  BOOST_TEST(small->text() == "the former small value");
  BOOST_TEST(small->source() == "before");
  BOOST_TEST(is_generated(large->bytes(), 2 * kMiB, 1));
  BOOST_TEST(figure(client, "open_views") == 2u);

  BOOST_TEST(figure(client, "segment.retired_bytes") >= 2 * kMiB);
  small.reset();
  large.reset();
  BOOST_TEST(eventually([&] { return figure(client, "segment.retired_bytes") == 0; }));
  client.drop(7);
  client.drop(8);
  client.flush();
  // Less than before if something was evicted meanwhile: records have been cut from the slab.
  BOOST_TEST(eventually([&] { return figure(client, "segment.used_bytes") <= before; }));
  BOOST_TEST(figure(client, "open_views") == 0u);
}

BOOST_AUTO_TEST_CASE(a_view_of_an_evicted_and_replaced_value_is_still_the_old_one_after_a_flush) {
  Served served({"--segment-size=8MiB", "--flush-interval=10ms"});
  served.client.set(1, "v", generated(kMiB, 1));
  const auto view = served.client.get(1, "v");
  served.client.flush();
  for (std::uint64_t i = 0; i < 20; ++i) served.client.set(2, std::to_string(i), generated(kMiB, 10 + i));
  BOOST_TEST(is_generated(view->bytes(), kMiB, 1));
  const auto again = served.client.get(1, "v");
  BOOST_REQUIRE(again);
  BOOST_TEST(is_generated(again->bytes(), kMiB, 1));
}

BOOST_AUTO_TEST_CASE(no_reader_ever_sees_a_mixture_of_two_values) {
  Served served({"--segment-size=64MiB"});
  std::atomic<bool> over{false};
  std::atomic<std::uint64_t> mixtures{0}, seen{0};
  const auto fill = [](std::uint64_t i) {  // lengths that change between all ways of setting and placing a value
    const std::uint64_t lengths[] = {100, 5000, 64 * kKiB + 1, 300 * kKiB};
    return std::string(lengths[i % 4], static_cast<char>('a' + i % 26));
  };
  served.client.set(1, "contended", fill(0));
  std::vector<Worker> readers;
  for (int t = 0; t < 2; ++t) {
    readers.emplace_back([&] {
      while (!over) {
        const auto view = served.client.get(1, "contended");
        const auto text = view->text();
        if (text.empty() || text.find_first_not_of(text.front()) != text.npos) ++mixtures;
        ++seen;
      }
    });
  }
  Client writer(served.daemon.socket());
  for (std::uint64_t i = 0; i < 1500 / kScale; ++i) writer.set(1, "contended", fill(i));
  over = true;
  for (auto& reader : readers) reader.join();
  BOOST_TEST(mixtures == 0u);
  BOOST_TEST(seen > 10u);
}

BOOST_AUTO_TEST_CASE(more_views_than_a_client_can_have_are_refused_with_the_number) {
  Served served;
  served.client.set(1, "v", "value");
  std::vector<View> views;
  std::string message;
  const int code = error_of(
      [&] {
        for (;;) views.push_back(*served.client.get(1, "v"));
      },
      &message);
  BOOST_TEST(code == STEPSTASH_ELIMIT);
  BOOST_TEST(views.size() == 441u);
  BOOST_TEST(contains(message, "441"));
  views.pop_back();
  BOOST_TEST(served.client.get(1, "v").has_value());
}

BOOST_AUTO_TEST_SUITE_END()

// ---- streams -------------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_SUITE(streams)

BOOST_DATA_TEST_CASE(a_stream_arrives_exactly,
                     boost::unit_test::data::make(std::vector<std::uint64_t>{0, 1, 64 * kKiB, 64 * kKiB + 1, 3'000'000,
                                                                             20 * kMiB + 7}) *
                         boost::unit_test::data::make({true, false}),
                     length, known) {
  Served served({"--segment-size=256MiB"});
  auto writer = served.client.begin(5, "stream", known ? length : Client::kUnknownLength, "stream");
  BOOST_REQUIRE(writer);
  const std::string value = generated(length, 9);
  for (std::uint64_t at = 0; at < length;) {
    const std::uint64_t piece = std::min<std::uint64_t>(77'777, length - at);  // divides nothing evenly
    writer->write(std::string_view(value).substr(at, piece));
    at += piece;
  }
  BOOST_TEST(!served.client.get(5, "stream"));  // nothing is visible before the commit
  const auto result = writer->commit();
  BOOST_REQUIRE(result);
  const auto view = served.client.get(5, "stream");
  BOOST_REQUIRE(view);
  BOOST_TEST(view->id() == result->id);
  BOOST_TEST(is_generated(view->bytes(), length, 9));
}

BOOST_AUTO_TEST_CASE(a_value_filled_in_place_arrives_exactly) {
  Served served;
  const std::uint64_t length = 10 * kMiB + 3;
  auto writer = served.client.begin(5, "in place", length);
  for (std::uint64_t at = 0; at < length;) {
    auto room = writer->buffer();
    BOOST_REQUIRE(!room.empty());
    room = room.first(std::min<std::uint64_t>(room.size(), length - at));
    generate(room, 4, at);
    writer->advance(room.size());
    at += room.size();
  }
  writer->commit();
  BOOST_TEST(is_generated(served.client.get(5, "in place")->bytes(), length, 4));
}

BOOST_AUTO_TEST_CASE(a_file_is_set_from_where_it_stands_to_its_end) {
  Served served;
  const std::string path = served.daemon.directory().file("input");
  std::ofstream(path, std::ios::binary) << "skipped" << generated(5 * kMiB + 1, 3);
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  BOOST_REQUIRE(::lseek(file.get(), 7, SEEK_SET) == 7);
  served.client.set_fd(6, "file", file.get(), path);
  BOOST_TEST(is_generated(served.client.get(6, "file")->bytes(), 5 * kMiB + 1, 3));
  served.client.set_fd(6, "rest", file.get());
  BOOST_TEST(served.client.get(6, "rest")->length() == 0u);
}

BOOST_DATA_TEST_CASE(a_pipe_is_set_to_its_end, boost::unit_test::data::make({0, 1, 65'536, 65'537, 9'000'001}),
                     length) {
  Served served;
  int ends[2];
  BOOST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd from(ends[0]);
  std::thread feeder([to = UniqueFd(ends[1]), length] {
    const std::string value = generated(static_cast<std::uint64_t>(length), 8);
    for (std::size_t at = 0; at < value.size();) {
      const ssize_t wrote = ::write(to.get(), value.data() + at, std::min<std::size_t>(10'000, value.size() - at));
      if (wrote <= 0) return;
      at += static_cast<std::size_t>(wrote);
    }
  });
  served.client.set_fd(6, "pipe", from.get());
  feeder.join();
  BOOST_TEST(is_generated(served.client.get(6, "pipe")->bytes(), static_cast<std::uint64_t>(length), 8));
}

BOOST_DATA_TEST_CASE(nothing_remains_of_an_aborted_set, boost::unit_test::data::make({true, false}), known) {
  Served served({"--segment-size=64MiB"});
  served.client.set(5, "kept", "what was there");
  served.client.flush();
  const std::uint64_t before = figure(served.client, "segment.used_bytes");
  const std::string piece = generated(5 * kMiB, 1);
  for (const char* name : {"kept", "new"}) {
    auto writer = served.client.begin(5, name, known ? 10 * kMiB : Client::kUnknownLength);
    writer->write(piece);
    BOOST_TEST(figure(served.client, "segment.used_bytes") > before);
    writer->abort();
  }
  BOOST_TEST(eventually([&] { return figure(served.client, "segment.used_bytes") == before; }));
  BOOST_TEST(served.client.get(5, "kept")->text() == "what was there");
  BOOST_TEST(!served.client.get(5, "new"));
  BOOST_TEST(served.client.list(5).size() == 1u);
}

BOOST_AUTO_TEST_CASE(a_stream_of_another_length_than_announced_is_refused) {
  Served served;
  for (const std::uint64_t announced : {1000 * kKiB, 10 * kKiB}) {
    std::string message;
    auto shorter = served.client.begin(5, "v", announced);
    shorter->write(generated(announced - 1, 1));
    BOOST_TEST(error_of([&] { shorter->commit(); }, &message) == STEPSTASH_EINVAL);
    BOOST_TEST(contains(message, std::to_string(announced)));
    BOOST_TEST(contains(message, std::to_string(announced - 1)));

    auto longer = served.client.begin(5, "v", announced);
    BOOST_TEST(error_of([&] { longer->write(generated(announced + 1, 1)); }, &message) == STEPSTASH_EINVAL);
    longer->abort();
    BOOST_TEST(!served.client.get(5, "v"));
  }
}

BOOST_AUTO_TEST_SUITE_END()

// ---- conditions ----------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_SUITE(conditions)

BOOST_DATA_TEST_CASE(if_absent_sets_once, boost::unit_test::data::make({10 * kKiB, 3 * kMiB}), length) {
  Served served;
  const SetOptions absent{.if_absent = true};
  const auto first = served.client.set(1, "once", generated(length, 1), "first", absent);
  BOOST_REQUIRE(first);
  BOOST_TEST(!served.client.set(1, "once", generated(length, 2), "second", absent));
  const auto view = served.client.get(1, "once");
  BOOST_TEST(is_generated(view->bytes(), length, 1));
  BOOST_TEST(view->revision() == first->revision);
  BOOST_TEST(view->source() == "first");
}

BOOST_DATA_TEST_CASE(if_revision_sets_only_what_was_not_changed_since,
                     boost::unit_test::data::make({10 * kKiB, 3 * kMiB}), length) {
  Served served;
  const auto first = served.client.set(1, "v", "first");
  const auto second = served.client.set(1, "v", generated(length, 2), "", {.if_revision = first->revision});
  BOOST_REQUIRE(second);
  BOOST_TEST(!served.client.set(1, "v", generated(length, 3), "", {.if_revision = first->revision}));
  BOOST_TEST(!served.client.set(1, "not there", generated(length, 3), "", {.if_revision = second->revision}));
  BOOST_TEST(is_generated(served.client.get(1, "v")->bytes(), length, 2));
  BOOST_TEST(!served.client.get(1, "not there"));
}

BOOST_AUTO_TEST_CASE(of_many_that_set_if_absent_at_once_one_succeeds) {
  Served served;
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> won{0};
    std::vector<Worker> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        const std::string value = generated(t % 2 == 0 ? 1000 : 100'000, static_cast<std::uint64_t>(t));
        if (served.client.set(1, "race " + std::to_string(round), value, "", {.if_absent = true})) ++won;
      });
    }
    for (auto& thread : threads) thread.join();
    BOOST_TEST(won == 1);
  }
}

BOOST_AUTO_TEST_CASE(a_condition_that_ceases_to_hold_during_a_stream_leaves_what_came_first) {
  Served served;
  auto slow = served.client.begin(1, "v", 2 * kMiB, "slow", {.if_absent = true});
  BOOST_REQUIRE(slow);
  slow->write(generated(2 * kMiB, 1));
  served.client.set(1, "v", "fast");
  BOOST_TEST(!slow->commit());
  BOOST_TEST(served.client.get(1, "v")->text() == "fast");
}

BOOST_AUTO_TEST_SUITE_END()

// ---- names ---------------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_SUITE(names)

BOOST_AUTO_TEST_CASE(every_legal_name_and_source_is_kept) {
  Served served;
  const std::string clef = "\xF0\x9D\x84\x9E";  // U+1D11E: four bytes
  const std::vector<std::string> names = {
      "", " ", "a", "/", "..", "\n\t\"\\", "-x", "na\xC3\xAFve", std::string(256, 'n'), repeated(clef, 256)};
  for (const std::string& name : names) {
    BOOST_TEST_CONTEXT(name.size() << " bytes of name") {
      served.client.set(1, name, "value of " + name, name);
      const auto view = served.client.get(1, name);
      BOOST_REQUIRE(view);
      BOOST_TEST(view->text() == "value of " + name);
      BOOST_TEST(view->name() == name);
      BOOST_TEST(view->source() == name);
      BOOST_TEST(served.client.list(1, name).size() == 1u);
    }
  }
  served.client.flush();
  served.daemon.terminate();
  served.daemon.remove_segment();
  served.daemon.start();
  Client client(served.daemon.socket());
  for (const std::string& name : names) BOOST_TEST(client.get(1, name)->text() == "value of " + name);
  BOOST_TEST(client.list(1).size() == names.size());
}

BOOST_AUTO_TEST_CASE(an_illegal_name_or_source_is_refused_with_the_limit) {
  Served served;
  Client& client = served.client;
  const std::string clef = "\xF0\x9D\x84\x9E";
  const std::vector<std::string> illegal = {
      std::string(257, 'n'), repeated(clef, 257),   "\xFF", "a\xC3", "\xC0\x80", "\xED\xA0\x80",
      "\xF4\x90\x80\x80",    std::string("a\0b", 3)};
  for (const std::string& text : illegal) {
    std::string message;
    const auto refused = [&](auto&& body) {
      message.clear();
      const int code = error_of(body, &message);
      // A NUL cannot even be passed in: that message does not need the number.
      BOOST_TEST((contains(message, "256") || text.find('\0') != text.npos), message);
      return code == STEPSTASH_EINVAL;
    };
    BOOST_TEST_CONTEXT(text.size() << " bytes") {
      BOOST_TEST(refused([&] { client.set(1, text, "v"); }));
      BOOST_TEST(refused([&] { client.set(1, "name", "v", text); }));
      BOOST_TEST(refused([&] { client.set(1, text, generated(100'000, 1)); }));
      BOOST_TEST(refused([&] { client.begin(1, text); }));
      BOOST_TEST(refused([&] { client.begin(1, "name", 100'000, text); }));
      BOOST_TEST(refused([&] { client.get(1, text); }));
      BOOST_TEST(refused([&] { client.stat(1, text); }));
      BOOST_TEST(refused([&] { client.wait(1, text, 10ms); }));
      BOOST_TEST(refused([&] { client.list(1, text); }));
    }
  }
  BOOST_TEST(client.list(1).empty());
}

BOOST_AUTO_TEST_CASE(builds_outside_their_range_are_refused_with_the_limit) {
  Served served;
  Client& client = served.client;
  for (const std::int64_t build : {std::int64_t{0}, std::int64_t{-1}, INT64_MIN}) {
    std::string message;
    const auto refused = [&](auto&& body) {
      message.clear();
      const int code = error_of(body, &message);
      BOOST_TEST(contains(message, "9223372036854775807"), message);
      return code == STEPSTASH_EINVAL;
    };
    BOOST_TEST_CONTEXT("build " << build) {
      BOOST_TEST(refused([&] { client.set(build, "n", "v"); }));
      BOOST_TEST(refused([&] { client.begin(build, "n"); }));
      BOOST_TEST(refused([&] { client.get(build, "n"); }));
      BOOST_TEST(refused([&] { client.stat(build, "n"); }));
      BOOST_TEST(refused([&] { client.wait(build, "n", 10ms); }));
      BOOST_TEST(refused([&] { client.list(build); }));
      BOOST_TEST(refused([&] { client.finish(build); }));
      BOOST_TEST(refused([&] { client.drop(build); }));
      BOOST_TEST(refused([&] { client.hold(build); }));
    }
  }
}

BOOST_AUTO_TEST_CASE(the_largest_build_is_as_good_as_any) {
  Served served;
  served.client.set(INT64_MAX, "n", "v");
  served.client.finish(INT64_MAX, epoch(10));
  served.daemon.terminate();
  served.daemon.remove_segment();
  served.daemon.start();
  Client client(served.daemon.socket());
  BOOST_TEST(client.get(INT64_MAX, "n")->text() == "v");
  BOOST_TEST(client.prune(epoch(11)) == 1u);
}

BOOST_AUTO_TEST_SUITE_END()
