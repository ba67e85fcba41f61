// SPDX-License-Identifier: Apache-2.0
#define BOOST_TEST_MODULE protocol
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <random>
#include <utility>

#include "tests/protocol/samples.hpp"

namespace stepstash::protocol {
namespace {

/// What decode_request and decode_reply have in common, so that the sweeps run over both.
struct AnyFrame {
  std::string what;
  std::vector<std::byte> bytes;
  bool is_request;
};

std::vector<AnyFrame> sample_frames() {
  std::vector<AnyFrame> frames;
  for (const Request& m : sample_requests()) {
    frames.push_back({"request " + std::to_string(m.index()), frame_of(m), true});
  }
  for (const Reply& m : sample_replies()) {
    frames.push_back({"reply " + std::to_string(m.index()), frame_of(m), false});
  }
  return frames;
}

/// Decodes and encodes again; the error when it is refused.
Result<std::vector<std::byte>> again(const AnyFrame& like, Head head, std::span<const std::byte> payload) {
  if (like.is_request) {
    auto message = decode_request(head, payload);
    if (!message) return message.error();
    return frame_of(message.value());
  }
  auto message = decode_reply(head, payload);
  if (!message) return message.error();
  return frame_of(message.value());
}

bool of_unknown_version(const std::vector<std::byte>& frame) {
  const unsigned type = head_of(frame).value().type;
  if (type != 1 && type != 129) return false;
  std::uint32_t version;
  std::memcpy(&version, frame.data() + kHeadBytes + (type == 1 ? 8 : 0), sizeof version);
  return !includes(kDaemonVersions, version);
}

Head with_payload(Head head, std::size_t bytes) {
  head.payload_bytes = static_cast<std::uint32_t>(bytes);
  return head;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(codec)

BOOST_AUTO_TEST_CASE(the_samples_cover_every_message) {
  std::vector<bool> requests(std::variant_size_v<Request>), replies(std::variant_size_v<Reply>);
  for (const Request& m : sample_requests()) requests[m.index()] = true;
  for (const Reply& m : sample_replies()) replies[m.index()] = true;
  for (std::size_t i = 0; i < requests.size(); ++i) BOOST_TEST(requests[i], "no sample of request " << i);
  for (std::size_t i = 0; i < replies.size(); ++i) BOOST_TEST(replies[i], "no sample of reply " << i);
}

BOOST_AUTO_TEST_CASE(every_message_survives_the_round_trip) {
  for (const AnyFrame& frame : sample_frames()) {
    const auto back = again(frame, head_of(frame.bytes).value(), payload_of(frame.bytes));
    BOOST_REQUIRE_MESSAGE(back.has_value(), frame.what);
    BOOST_TEST((back.value() == frame.bytes), frame.what);
  }
}

BOOST_AUTO_TEST_CASE(fields_arrive_where_they_were_put) {
  const auto frame = frame_of(Request(Set{sample_params(), as_bytes("the value")}));
  const auto request = decode_request(head_of(frame).value(), payload_of(frame));
  const Set& set = std::get<Set>(request.value());
  BOOST_TEST(set.params.build == 42);
  BOOST_TEST(set.params.name == "toolchain");
  BOOST_TEST(set.params.source == "compile step");
  BOOST_TEST(set.params.durable);
  BOOST_TEST(set.params.if_absent);
  BOOST_TEST(set.params.if_revision == 0x1122334455667788u);
  BOOST_TEST(set.params.deadline_ms == 10'000u);
  BOOST_TEST((std::memcmp(set.value.data(), "the value", 9) == 0 && set.value.size() == 9));

  const auto reply_frame = frame_of(sample_replies().front());
  const auto reply = decode_reply(head_of(reply_frame).value(), payload_of(reply_frame));
  const HelloOk& hello = std::get<HelloOk>(reply.value());
  BOOST_TEST(hello.segment_id[15] == 0xAB);
  BOOST_TEST(hello.segment_bytes == 1u << 30);
  BOOST_TEST(hello.max_value_bytes == 1u << 29);
  BOOST_TEST(hello.pin_page == 3u);
  BOOST_TEST(hello.resumed);
  BOOST_TEST(hello.server_version == "0.1.0");
}

BOOST_AUTO_TEST_CASE(the_type_numbers_are_the_documented_ones) {
  const std::vector<unsigned> requests = {1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 10, 10, 11, 12, 13, 13, 14, 15, 16};
  const std::vector<unsigned> replies = {129, 129, 130, 131, 132, 133, 133, 134, 135, 136, 137, 138, 139, 139};
  std::vector<unsigned> got;
  for (const Request& m : sample_requests()) got.push_back(head_of(frame_of(m)).value().type);
  BOOST_TEST(got == requests, boost::test_tools::per_element());
  got.clear();
  for (const Reply& m : sample_replies()) got.push_back(head_of(frame_of(m)).value().type);
  BOOST_TEST(got == replies, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(every_truncation_is_refused) {
  for (const AnyFrame& frame : sample_frames()) {
    const auto payload = payload_of(frame.bytes);
    const Head head = head_of(frame.bytes).value();
    for (std::size_t length = 0; length < payload.size(); ++length) {
      // Once with a head that tells the truth about what is left, once with one that promises more.
      BOOST_TEST(!again(frame, with_payload(head, length), payload.first(length)), frame.what << " cut to " << length);
      BOOST_TEST(!again(frame, head, payload.first(length)), frame.what << " short by " << payload.size() - length);
    }
  }
}

BOOST_AUTO_TEST_CASE(trailing_bytes_are_refused) {
  for (AnyFrame frame : sample_frames()) {
    const Head head = head_of(frame.bytes).value();
    frame.bytes.push_back(std::byte{0});
    const auto payload = payload_of(frame.bytes);
    BOOST_TEST(!again(frame, with_payload(head, payload.size()), payload), frame.what);
  }
}

BOOST_AUTO_TEST_CASE(a_frame_with_any_byte_changed_is_refused_or_read_as_what_it_says) {
  for (const AnyFrame& frame : sample_frames()) {
    for (std::size_t at = kHeadBytes; at < frame.bytes.size(); ++at) {
      for (unsigned value = 0; value < 256; ++value) {
        std::vector<std::byte> changed = frame.bytes;
        changed[at] = static_cast<std::byte>(value);
        const auto back = again(frame, head_of(changed).value(), payload_of(changed));
        // A Hello or HelloOk of a version that this side does not speak is the exception: not all of it is read.
        if (back && !of_unknown_version(changed)) {
          BOOST_TEST((back.value() == changed), frame.what << ": byte " << at << " = " << value);
        }
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(random_payloads_of_every_type_never_crash) {
  std::mt19937 random(20240229);
  std::vector<std::byte> bytes(300);
  std::size_t accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    const std::size_t length = random() % bytes.size();
    for (std::size_t i = 0; i < length; ++i) {
      bytes[i] = static_cast<std::byte>(random() % 4 == 0 ? random() : 0);  // zeros reach deeper than noise does
    }
    const Head head{static_cast<std::uint32_t>(length), static_cast<std::uint16_t>(random() % 160)};
    const auto payload = std::span<const std::byte>(bytes).first(length);
    accepted += decode_request(head, payload).has_value();
    accepted += decode_reply(head, payload).has_value();
  }
  BOOST_TEST(accepted > 0u);
}

BOOST_AUTO_TEST_CASE(unknown_flags_are_refused) {
  struct Place {
    Request request;
    std::size_t offset;  // of the flags word in the payload
    std::uint32_t known;
  };
  const std::vector<Place> places = {{Hello{}, 12, 1},      {Hello{.versions = {1, 1}}, 12, 1},
                                     {Set{}, 8, 3},         {SetBegin{}, 8, 3},
                                     {SetBegin{}, 28, 0},   {List{}, 16, 1},
                                     {Finish{1, 0}, 16, 1}, {HoldBuild{}, 8, 1}};
  for (const Place& place : places) {
    for (unsigned bit = 0; bit < 32; ++bit) {
      auto frame = frame_of(place.request);
      frame[kHeadBytes + place.offset + bit / 8] = static_cast<std::byte>(1u << bit % 8);
      for (std::size_t i = 0; i < 4; ++i) {
        if (i != bit / 8) frame[kHeadBytes + place.offset + i] = std::byte{0};
      }
      const bool accepted = decode_request(head_of(frame).value(), payload_of(frame)).has_value();
      BOOST_TEST(accepted == ((place.known >> bit & 1) != 0), "request " << place.request.index() << ", bit " << bit);
    }
  }
}

BOOST_AUTO_TEST_CASE(unknown_types_are_refused) {
  for (unsigned type = 0; type <= UINT16_MAX; ++type) {
    const Head head{0, static_cast<std::uint16_t>(type)};
    if (type == 0 || type > 15) BOOST_REQUIRE(!decode_request(head, {}));
    if (type < 129 || type > 138) BOOST_REQUIRE(!decode_reply(head, {}));
  }
}

BOOST_AUTO_TEST_CASE(a_head_that_announces_too_much_is_refused_before_anything_is_read) {
  std::array<std::byte, kHeadBytes> head{};
  const auto announce = [&](std::uint32_t bytes) {
    for (unsigned i = 0; i < 4; ++i) head[i] = static_cast<std::byte>(bytes >> 8 * i);
    return decode_head(head);
  };
  BOOST_TEST(announce(kMaxPayload).value().payload_bytes == kMaxPayload);
  for (const std::uint32_t bytes : {std::uint32_t{kMaxPayload + 1}, std::uint32_t{1} << 31, UINT32_MAX}) {
    BOOST_TEST((announce(bytes).error() == Errc::protocol_error), "bytes " << bytes);
  }
}

BOOST_AUTO_TEST_CASE(a_head_whose_reserved_field_is_not_zero_is_refused) {
  for (const std::size_t at : {6, 7}) {
    std::array<std::byte, kHeadBytes> head{};
    head[at] = std::byte{1};
    BOOST_TEST((decode_head(head).error() == Errc::protocol_error));
  }
}

BOOST_AUTO_TEST_CASE(the_largest_set_fits_a_frame_and_one_byte_more_is_refused) {
  SetParams params{.build = 1, .name = std::string(kMaxNameBytes, 'n'), .source = std::string(kMaxSourceBytes, 's')};
  const std::vector<std::byte> value(kInlineBytes, std::byte{7});
  auto frame = frame_of(Request(Set{params, value}));
  BOOST_TEST(frame.size() <= kHeadBytes + kMaxPayload);
  BOOST_TEST(decode_request(head_of(frame).value(), payload_of(frame)).has_value());

  // The same frame announcing, and carrying, one byte of value more than travels inline.
  frame.push_back(std::byte{7});
  frame[kHeadBytes + 28] = std::byte{1};
  const Head longer = with_payload(head_of(frame).value(), frame.size() - kHeadBytes);
  BOOST_TEST(!decode_request(longer, payload_of(frame)));
}

BOOST_AUTO_TEST_CASE(names_longer_than_the_limit_are_refused) {
  auto frame = frame_of(Request(Load{1, std::string(kMaxNameBytes, 'n'), 0}));
  BOOST_TEST(decode_request(head_of(frame).value(), payload_of(frame)).has_value());
  frame.push_back(std::byte{'n'});
  frame[kHeadBytes + 12] = static_cast<std::byte>((kMaxNameBytes + 1) & 0xFF);
  frame[kHeadBytes + 13] = static_cast<std::byte>((kMaxNameBytes + 1) >> 8);
  BOOST_TEST(!decode_request(with_payload(head_of(frame).value(), frame.size() - kHeadBytes), payload_of(frame)));
}

BOOST_AUTO_TEST_CASE(a_full_list_page_of_the_longest_names_fits_a_frame) {
  ListPage page;
  for (std::uint32_t i = 0; i < kListPageEntries; ++i) {
    page.entries.push_back({i, i, 1, i, std::string(kMaxNameBytes, 'n'), std::string(kMaxSourceBytes, 's')});
  }
  const auto frame = frame_of(Reply(page));
  BOOST_TEST(frame.size() <= kHeadBytes + kMaxPayload);
  const auto reply = decode_reply(head_of(frame).value(), payload_of(frame));
  BOOST_TEST(std::get<ListPage>(reply.value()).entries.size() == kListPageEntries);
}

BOOST_AUTO_TEST_CASE(a_list_page_that_counts_more_entries_than_it_has_is_refused) {
  auto frame = frame_of(Reply(ListPage{}));
  frame[kHeadBytes + 4] = std::byte{1};
  BOOST_TEST(!decode_reply(head_of(frame).value(), payload_of(frame)));
  for (std::size_t i = 4; i < 8; ++i) frame[kHeadBytes + i] = std::byte{0xFF};
  BOOST_TEST(!decode_reply(head_of(frame).value(), payload_of(frame)));
}

BOOST_AUTO_TEST_CASE(a_full_page_of_builds_fits_a_frame_and_no_fuller_one_is_taken) {
  BuildsPage page;
  for (std::uint32_t i = 1; i <= kBuildsPageRows; ++i) page.builds.push_back({i, i, i, i, i, true});
  auto frame = frame_of(Reply(page));
  BOOST_TEST(frame.size() <= kHeadBytes + kMaxPayload);
  const auto reply = decode_reply(head_of(frame).value(), payload_of(frame));
  BOOST_TEST(std::get<BuildsPage>(reply.value()).builds.size() == kBuildsPageRows);
  frame[kHeadBytes + 4] = std::byte{1};  // 257
  const std::vector<std::byte> another(frame.end() - 44, frame.end());
  frame.insert(frame.end(), another.begin(), another.end());
  BOOST_TEST(!decode_reply(with_payload(head_of(frame).value(), frame.size() - kHeadBytes), payload_of(frame)));
}

BOOST_AUTO_TEST_CASE(builds_that_are_none_or_out_of_order_are_refused) {
  using Numbers = std::vector<BuildId>;
  for (const Numbers& numbers : {Numbers{0}, {-1}, {2, 1}, {1, 1}, {1, 2, 2}}) {
    BuildsPage page;
    for (const BuildId build : numbers) page.builds.push_back({build, 1, 1, 1, std::nullopt, false});
    const auto frame = frame_of(Reply(page));
    BOOST_TEST(!decode_reply(head_of(frame).value(), payload_of(frame)), numbers.front());
  }
  BuildsPage page;
  page.builds.push_back({1, 1, 1, 1, 7, false});
  auto frame = frame_of(Reply(page));
  frame[frame.size() - 4] = std::byte{0};  // a time, and not finished
  BOOST_TEST(!decode_reply(head_of(frame).value(), payload_of(frame)));
  frame[frame.size() - 4] = std::byte{4};  // a flag that is not known
  BOOST_TEST(!decode_reply(head_of(frame).value(), payload_of(frame)));
}

BOOST_AUTO_TEST_CASE(long_texts_are_cut_to_a_frame_between_characters) {
  std::string text;
  while (text.size() < 2 * kMaxPayload) text += "\xE2\x82\xAC";  // three bytes each
  for (const Reply& reply : {Reply(Text{text}), Reply(Failure{Errc::too_large, "x" + text})}) {
    const auto frame = frame_of(reply);
    BOOST_TEST(frame.size() <= kHeadBytes + kMaxPayload);
    const auto back = decode_reply(head_of(frame).value(), payload_of(frame)).value();
    const std::string& got =
        std::holds_alternative<Text>(back) ? std::get<Text>(back).text : std::get<Failure>(back).message;
    BOOST_TEST(got.size() > kMaxPayload - 16);
    BOOST_TEST(got.substr(got.size() - 3) == "\xE2\x82\xAC");
  }
}

BOOST_AUTO_TEST_CASE(a_hello_of_a_later_version_is_read_without_what_it_adds) {
  Hello hello{.versions = {kVersion, kVersion + 7}, .attach = true, .resume_page = 7};
  hello.resume_segment.fill(0xAB);
  auto frame = frame_of(Request(hello));
  frame[kHeadBytes + 15] = std::byte{0x80};         // a flag
  frame.resize(frame.size() + 5, std::byte{0xEE});  // fields
  const auto request =
      decode_request(with_payload(head_of(frame).value(), frame.size() - kHeadBytes), payload_of(frame));
  const Hello& got = std::get<Hello>(request.value());
  BOOST_TEST((got.versions == hello.versions));
  BOOST_TEST(got.attach);
  BOOST_TEST(got.resume_page == 7u);
  BOOST_TEST((got.resume_segment == hello.resume_segment));
}

BOOST_AUTO_TEST_CASE(a_hello_from_before_the_first_version_says_its_version_and_no_more) {
  auto frame = frame_of(Request(Hello{.versions = {0, 0}, .attach = true}));
  frame.resize(frame.size() - 5);
  const auto request =
      decode_request(with_payload(head_of(frame).value(), frame.size() - kHeadBytes), payload_of(frame));
  BOOST_TEST((std::get<Hello>(request.value()).versions == Versions{0, 0}));
  BOOST_TEST(!std::get<Hello>(request.value()).attach);
}

BOOST_AUTO_TEST_CASE(a_hello_whose_range_ends_before_it_begins_is_refused) {
  const auto frame = frame_of(Request(Hello{.versions = {kVersion + 1, kVersion}}));
  BOOST_TEST(!decode_request(head_of(frame).value(), payload_of(frame)));
}

BOOST_AUTO_TEST_CASE(the_version_of_a_connection_is_the_highest_that_both_speak) {
  struct Case {
    Versions client, daemon;
    std::optional<std::uint32_t> version;
  };
  const Case cases[] = {{{1, 1}, {1, 2}, 1},
                        {{2, 2}, {1, 2}, 2},
                        {{1, 2}, {1, 2}, 2},
                        {{2, 3}, {1, 2}, 2},
                        {{1, 9}, {2, 3}, 3},
                        {{1, 1}, {2, 3}, std::nullopt},
                        {{3, 4}, {1, 2}, std::nullopt},
                        {{0, 0}, {1, 2}, std::nullopt}};
  for (const Case& one : cases) {
    BOOST_TEST((common_version(one.client, one.daemon) == one.version), to_text(one.client)
                                                                            << ", " << to_text(one.daemon));
    BOOST_TEST((common_version(one.daemon, one.client) == one.version), to_text(one.daemon)
                                                                            << ", " << to_text(one.client));
  }
}

BOOST_AUTO_TEST_CASE(the_daemon_speaks_the_version_before_the_newest_too) {
  BOOST_TEST((kDaemonVersions == Versions{kVersion - 1, kVersion}));
  BOOST_TEST(common_version(kClientVersions, kDaemonVersions).value() == kVersion);
}

BOOST_AUTO_TEST_CASE(a_hello_with_another_magic_is_refused) {
  auto frame = frame_of(Request(Hello{}));
  frame[kHeadBytes] ^= std::byte{1};
  BOOST_TEST(!decode_request(head_of(frame).value(), payload_of(frame)));
}

BOOST_AUTO_TEST_CASE(a_failure_with_a_code_from_the_future_is_passed_on) {
  const auto frame = frame_of(Reply(Failure{static_cast<Errc>(4711), "new"}));
  const auto reply = decode_reply(head_of(frame).value(), payload_of(frame));
  BOOST_TEST(static_cast<int>(std::get<Failure>(reply.value()).code) == 4711);
}

BOOST_AUTO_TEST_CASE(a_set_head_is_the_whole_frame_without_the_value) {
  const Set set{sample_params(), as_bytes("the value")};
  const auto whole = frame_of(Request(set));
  std::vector<std::byte> head;
  encode_set_head(set, head);
  BOOST_TEST(head.size() == whole.size() - set.value.size());
  BOOST_TEST((std::memcmp(head.data(), whole.data(), head.size()) == 0));
}

BOOST_AUTO_TEST_CASE(frames_are_appended_to_what_is_there) {
  std::vector<std::byte> out;
  encode(Request(Piece{0, 1}), out);
  encode(Request(Piece{1, 2}), out);
  BOOST_TEST(out.size() == 2 * (kHeadBytes + 8));
  const std::vector<std::byte> second(out.begin() + 16, out.end());
  const auto request = decode_request(head_of(second).value(), payload_of(second));
  BOOST_TEST(std::get<Piece>(request.value()).ring_offset == 1u);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace stepstash::protocol
