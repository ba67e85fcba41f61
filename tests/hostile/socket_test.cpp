// SPDX-License-Identifier: Apache-2.0
// Hostile input on the socket. Throughout, a well-behaved client is served within a second; afterwards memory,
// descriptors and connections are what they were (siege.hpp).
#include <fcntl.h>

#include <random>
#include <thread>

#include "tests/hostile/siege.hpp"
#include "tests/protocol/samples.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string frame_text(const protocol::Request& request) { return text_of(protocol::frame_of(request)); }

std::string hello_text() { return frame_text(protocol::Hello{}); }

/// `text` with `bytes` written at `at`.
template <class U>
std::string patched(std::string text, std::size_t at, U value) {
  std::memcpy(text.data() + at, &value, sizeof value);
  return text;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(hostile_socket)

BOOST_AUTO_TEST_CASE(truncated_frames_harm_nobody) {
  Siege siege;
  int connections = 0;
  for (const protocol::Request& request : protocol::sample_requests()) {
    const std::string frame = frame_text(request);
    for (std::size_t length = 0; length < frame.size(); length += 1 + length / 16) {
      for (const bool greeted : {false, true}) {
        RawConnection raw(siege.daemon.socket());
        raw.send((greeted ? hello_text() : std::string()) + frame.substr(0, length));
        ++connections;
      }
    }
  }
  BOOST_TEST(connections > 500);
  siege.lift();
}

BOOST_AUTO_TEST_CASE(flipped_bits_harm_nobody) {
  Siege siege;
  std::mt19937 random(20221122);
  const std::vector<protocol::Request> requests = protocol::sample_requests();
  for (int i = 0; i < static_cast<int>(3000 / kScale); ++i) {
    std::string stream = i % 4 == 0 ? std::string() : hello_text();
    for (unsigned frames = 1 + random() % 4; frames > 0; --frames) {
      std::string frame = frame_text(requests[random() % requests.size()]);
      for (unsigned flips = random() % 4; flips > 0; --flips) {
        frame[random() % frame.size()] ^= static_cast<char>(1 << random() % 8);
      }
      stream += frame;
    }
    RawConnection raw(siege.daemon.socket());
    raw.send(stream);
    if (i % 8 == 0) ::shutdown(raw.fd(), SHUT_WR);
  }
  siege.lift();
}

BOOST_AUTO_TEST_CASE(random_bytes_of_any_length_harm_nobody) {
  Siege siege;
  std::mt19937 random(4);
  for (int i = 0; i < static_cast<int>(1000 / kScale); ++i) {
    std::string bytes(random() % (i % 10 == 0 ? 100'000 : 300), '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    RawConnection raw(siege.daemon.socket());
    if (i % 2 == 0) raw.send(hello_text());
    raw.send(bytes);
  }
  siege.lift();
}

BOOST_AUTO_TEST_CASE(every_length_field_is_refused_beyond_what_is_there) {
  Siege siege;
  const protocol::SetParams params = params_of(1, "name", "source");
  const std::string value(10, 'v');
  const std::string set = frame_text(protocol::Set{params, std::as_bytes(std::span(value))});
  const std::string begin = frame_text(protocol::SetBegin{params, 100'000});
  const std::string load = frame_text(protocol::Load{1, "name", 1});
  const std::string wait = frame_text(protocol::Wait{1, "name", 1});
  const std::string list = frame_text(protocol::List{1, "name", 0});
  struct Field {
    const char* name;
    std::string frame;
    std::size_t at;
    int width;
    std::uint64_t right;
  };
  // Offsets from docs/protocol.md, plus the 8 bytes of the head.
  const Field fields[] = {{"payload", set, 0, 4, set.size() - 8}, {"set's name", set, 8 + 24, 2, 4},
                          {"set's source", set, 8 + 26, 2, 6},    {"set's value", set, 8 + 28, 4, 10},
                          {"begin's name", begin, 8 + 24, 2, 4},  {"begin's source", begin, 8 + 26, 2, 6},
                          {"load's name", load, 8 + 12, 4, 4},    {"wait's name", wait, 8 + 12, 4, 4},
                          {"list's name", list, 8 + 20, 4, 4}};
  const std::uint64_t most = protocol::kMaxPayload;
  for (const Field& field : fields) {
    for (const std::uint64_t wrong :
         {std::uint64_t{0}, field.right - 1, field.right + 1, std::uint64_t{1024}, std::uint64_t{1025},
          std::uint64_t{65'535}, std::uint64_t{65'536}, std::uint64_t{65'537}, most, most + 1, std::uint64_t{INT32_MAX},
          std::uint64_t{1} << 31, std::uint64_t{UINT32_MAX}}) {
      if (field.width == 2 && wrong > UINT16_MAX) continue;
      RawConnection raw(siege.daemon.socket());
      raw.greet();
      raw.send(field.width == 2 ? patched(field.frame, field.at, static_cast<std::uint16_t>(wrong))
                                : patched(field.frame, field.at, static_cast<std::uint32_t>(wrong)));
      if (field.at == 0 && wrong <= most && wrong > field.right) continue;  // the daemon waits for the rest
      const auto code = raw.refusal();
      BOOST_TEST((code == Errc::protocol_error), field.name << " " << wrong);
      BOOST_TEST(raw.end() == 0, field.name << " " << wrong);
    }
  }
  // The length of a staged value is not the length of a frame: it is compared with the segment.
  const std::uint64_t largest = figure(siege.client, "segment.max_value_bytes");
  for (const std::uint64_t length : {largest + 1, std::uint64_t{1} << 31, std::uint64_t{1} << 32,
                                     std::uint64_t{INT64_MAX}, std::uint64_t{1} << 63, UINT64_MAX - 1}) {
    if (length <= largest) continue;
    RawConnection raw(siege.daemon.socket());
    raw.greet();
    raw.send(patched(begin, 8 + 32, length));
    BOOST_TEST((raw.refusal() == Errc::too_large), length);
    raw.send(protocol::Stats{});  // it is refused, but the connection continues
    BOOST_TEST(raw.receive().has_value());
  }
  for (const std::uint64_t length : {std::uint64_t{0}, std::uint64_t{1}, UINT64_MAX}) {
    RawConnection raw(siege.daemon.socket());
    raw.greet();
    raw.send(patched(begin, 8 + 32, length));
    BOOST_TEST(std::holds_alternative<protocol::SetReady>(raw.receive().value()), length);
  }
  // Builds, deadlines and revisions of any size are just numbers: nothing is reserved for them.
  for (const std::int64_t build : {INT64_MIN, std::int64_t{-1}, std::int64_t{0}}) {
    RawConnection raw(siege.daemon.socket());
    raw.greet();
    raw.send(protocol::Finish{build, 1});
    BOOST_TEST((raw.refusal() == Errc::invalid_argument));
    raw.send(protocol::Drop{build});
    BOOST_TEST((raw.refusal() == Errc::invalid_argument));
    raw.send(protocol::HoldBuild{build, true});
    BOOST_TEST((raw.refusal() == Errc::invalid_argument));
    raw.send(protocol::List{build, std::nullopt, UINT64_MAX});
    BOOST_TEST((raw.refusal() == Errc::invalid_argument));
  }
  siege.lift();
}

BOOST_AUTO_TEST_CASE(messages_in_any_order_harm_nobody) {
  Siege siege;
  const protocol::SetParams params = params_of(3, "order");
  const std::string value(70'000, 'v');
  const auto begin = protocol::Request(protocol::SetBegin{params, 8192});
  const std::vector<std::vector<protocol::Request>> orders = {
      {protocol::SetAbort{}, protocol::SetAbort{}},
      {begin, protocol::SetCommit{}, protocol::SetCommit{}},
      {begin, protocol::Piece{0, 8192}, protocol::SetCommit{}, protocol::SetCommit{}},
      {begin, protocol::Piece{0, 8192}, protocol::SetCommit{}, protocol::Piece{0, 8192}},
      {begin, protocol::SetAbort{}, protocol::Piece{0, 8192}},
      {begin, protocol::Piece{0, 8192}, protocol::Piece{0, 8192}, protocol::SetCommit{}},
      {begin, protocol::Hello{}},
      {begin, begin},
      {begin, protocol::Drop{3}, protocol::Piece{0, 8192}, protocol::SetCommit{}, protocol::Drop{3}},
      {begin, protocol::Set{params, {}}, protocol::Piece{0, 8192}, protocol::SetCommit{}},
      {protocol::SetBegin{params, UINT64_MAX - 1}, protocol::Piece{0, 8192}, protocol::SetCommit{}},
      {protocol::SetBegin{params, protocol::kUnknownLength}, protocol::Piece{0, UINT32_MAX}, protocol::SetAbort{},
       begin, protocol::Piece{8 << 20, 1}, protocol::SetAbort{}, begin},
      {protocol::Flush{UINT32_MAX}, protocol::Wait{3, "never", 1}, protocol::Load{3, "never", UINT32_MAX}},
      {protocol::Wait{3, "never", UINT32_MAX}, protocol::Stats{}}};  // the last one never ends
  for (int round = 0; round < 20; ++round) {
    for (const auto& order : orders) {
      RawConnection raw(siege.daemon.socket());
      raw.send(hello_text());
      for (const protocol::Request& request : order) raw.send(request);
      if (round % 2 == 0 || &order == &orders.back()) continue;  // closed before it is answered
      ::shutdown(raw.fd(), SHUT_WR);
      std::size_t replies = 0;
      while (raw.receive()) ++replies;
      BOOST_TEST(replies <= order.size() + 1);
    }
  }
  siege.lift();
}

BOOST_AUTO_TEST_CASE(thousands_of_idle_connections_cost_others_nothing) {
  Siege siege({"--max-connections=5000", "--max-connections-per-user=3000"});
  {
    std::vector<RawConnection> idle;
    for (int i = 0; i < 2900; ++i) {
      idle.emplace_back(siege.daemon.socket());
      if (i % 3 != 0) idle.back().send(hello_text());
      if (i % 3 == 1) idle.back().send(hello_text().substr(0, 5));
    }
    BOOST_TEST(eventually([&] { return figure(siege.client, "connections") >= 2900; }));
    // Each has a buffer of 4 KiB and a coroutine.
    if (kScale == 1) BOOST_TEST(siege.private_kib() < siege.private_kib_before() + 2900 * 32);
  }
  siege.lift();
}

BOOST_AUTO_TEST_CASE(a_flood_of_connections_is_refused_with_the_reason) {
  Siege siege({"--max-connections=40", "--max-connections-per-user=40"});
  std::vector<RawConnection> holders;
  for (std::uint64_t i = figure(siege.client, "connections"); i < 40; ++i) holders.emplace_back(siege.daemon.socket());
  BOOST_TEST(eventually([&] { return figure(siege.client, "connections") == 40; }));
  for (int i = 0; i < 3000; ++i) {
    RawConnection flood(siege.daemon.socket());
    if (i % 2 == 0) flood.send(std::string(1000, 'x'));
    if (i % 100 != 0) continue;
    std::string why;
    BOOST_TEST((flood.refusal(&why) == Errc::too_many));
    BOOST_TEST(why.find("40") != why.npos, why);
  }
  // Those that never hang up are closed as well, and their number is bounded.
  const std::size_t before = descriptors_of(siege.daemon.pid());
  std::vector<RawConnection> stay;
  for (int i = 0; i < 1000; ++i) {
    stay.emplace_back(siege.daemon.socket());
    if (i % 50 == 0) BOOST_TEST(descriptors_of(siege.daemon.pid()) <= before + 300);
  }
  BOOST_TEST(eventually([&] { return descriptors_of(siege.daemon.pid()) <= before; }, 10s));
  stay.clear();
  holders.clear();
  siege.lift();
}

BOOST_AUTO_TEST_CASE(a_refused_connection_reads_why_before_it_is_cut_off) {
  Siege siege({"--max-connections=3", "--max-connections-per-user=3"});
  BOOST_TEST(eventually([&] { return figure(siege.client, "connections") == 2; }));
  std::optional<RawConnection> third(siege.daemon.socket());
  BOOST_TEST(eventually([&] { return figure(siege.client, "connections") == 3; }));
  const std::vector<std::byte> hello = protocol::frame_of(protocol::Request(protocol::Hello{}));
  const std::vector<std::byte> large(50'000);
  for (int i = 0; i < 100; ++i) {
    RawConnection raw(siege.daemon.socket());
    BOOST_TEST(raw.try_send(hello));
    pollfd answered{raw.fd(), POLLIN, 0};
    BOOST_REQUIRE(::poll(&answered, 1, 10'000) == 1);
    // The refusal is there, unread. A client that sends more before reading it is not closed for that.
    BOOST_TEST(raw.try_send(large));
    BOOST_TEST((raw.refusal() == Errc::too_many));
    BOOST_TEST(raw.end() == 0);
  }
  third.reset();
  siege.lift();
}

BOOST_AUTO_TEST_CASE(who_breaks_the_protocol_reads_why_before_it_is_cut_off) {
  Siege siege;
  const std::vector<std::byte> more(50'000);
  for (int i = 0; i < 50; ++i) {
    RawConnection raw(siege.daemon.socket());
    raw.send(i % 2 == 0 ? head(UINT32_MAX, 1) : frame_text(protocol::Stats{}));
    pollfd answered{raw.fd(), POLLIN, 0};
    BOOST_REQUIRE(::poll(&answered, 1, 10'000) == 1);
    BOOST_TEST(raw.try_send(more));
    BOOST_TEST((raw.refusal() == Errc::protocol_error));
    BOOST_TEST(raw.end() == 0);
  }
  siege.lift();
}

BOOST_AUTO_TEST_CASE(who_talks_on_after_a_refusal_is_cut_off) {
  Siege siege;
  RawConnection raw(siege.daemon.socket());
  raw.send(head(UINT32_MAX, 1));
  const std::vector<std::byte> more(16 * 1024);
  const auto start = std::chrono::steady_clock::now();
  std::size_t sent = 0;
  while (raw.try_send(more) && std::chrono::steady_clock::now() - start < 20s) sent += more.size();
  BOOST_TEST(sent <= 4 * kMiB);  // what it drops, plus the socket's buffer
  BOOST_TEST((std::chrono::steady_clock::now() - start < 10s));
  siege.lift();
}

BOOST_AUTO_TEST_CASE(a_frame_has_its_time_however_its_bytes_come) {
  Siege siege({"--frame-timeout=500ms"});
  const auto start = std::chrono::steady_clock::now();
  std::vector<RawConnection> slow;
  for (int i = 0; i < 20; ++i) {
    slow.emplace_back(siege.daemon.socket());
    if (i % 2 == 0) slow.back().greet();
    slow.back().send(head(60'000, 2));
  }
  // One byte at a time, each well within the limit: that does not extend the limit.
  std::size_t open = slow.size();
  while (open > 0 && std::chrono::steady_clock::now() - start < 20s) {
    std::this_thread::sleep_for(20ms);
    const std::byte byte{'x'};
    open = static_cast<std::size_t>(std::count_if(
        slow.begin(), slow.end(), [&](const RawConnection& raw) { return raw.try_send(std::span(&byte, 1)); }));
  }
  BOOST_TEST(open == 0u);
  BOOST_TEST((std::chrono::steady_clock::now() - start < 5s));
  siege.lift();
}

BOOST_AUTO_TEST_CASE(readers_that_never_read_are_cut_off) {
  Siege siege({"--frame-timeout=500ms"});
  for (int i = 0; i < 300; ++i)
    siege.client.set(9, std::string(200, 'n') + std::to_string(i), "", std::string(200, 's'));
  {
    std::vector<RawConnection> deaf;
    std::string asks = hello_text();
    for (int i = 0; i < 1000; ++i)
      asks += frame_text(i % 2 == 0 ? protocol::Request(protocol::Stats{})
                                    : protocol::Request(protocol::List{9, std::nullopt, 0}));
    for (int i = 0; i < 50; ++i) {
      deaf.emplace_back(siege.daemon.socket());
      ::fcntl(deaf.back().fd(), F_SETFL, O_NONBLOCK);
      deaf.back().send(asks);
    }
    if (kScale == 1) BOOST_TEST(siege.private_kib() < siege.private_kib_before() + 50 * 256 + Siege::kGrowthKib);
    BOOST_TEST(eventually([&] { return figure(siege.client, "connections") <= 2; }, 10s));
  }
  siege.lift();
}

BOOST_AUTO_TEST_CASE(floods_of_descriptors_are_dropped_by_the_kernel) {
  Siege siege;
  constexpr std::size_t kPerMessage = 253;  // SCM_MAX_FD
  int ends[2];
  BOOST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd from(ends[0]);
  UniqueFd to(ends[1]);
  std::size_t most = 0;
  {
    RawConnection raw(siege.daemon.socket());
    raw.greet();
    for (int i = 0; i < 200; ++i) {
      raw.send_with_descriptors(protocol::Stats{}, to.get(), kPerMessage);
      BOOST_REQUIRE(raw.receive().has_value());
      most = std::max(most, descriptors_of(siege.daemon.pid()));
    }
  }
  // 50,600 were sent. The daemon may also hold the connection's own and further ones of the good client.
  BOOST_TEST(most <= siege.before().descriptors + 16);
  to.reset();
  pollfd watched{from.get(), POLLIN, 0};
  BOOST_REQUIRE(::poll(&watched, 1, 10'000) == 1);
  char byte = 0;
  BOOST_TEST(::read(from.get(), &byte, 1) == 0);  // the last copy is closed
  siege.lift();
}

BOOST_AUTO_TEST_SUITE_END()
