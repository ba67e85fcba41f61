// SPDX-License-Identifier: Apache-2.0
// Whatever a client sends, the daemon answers with an error or hangs up, and continues to serve the others.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <random>

#include "base/errc.hpp"
#include "protocol/frame.hpp"
#include "tests/support/harness.hpp"
#include "tests/support/raw_connection.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

struct Watched : Served {
  explicit Watched(std::vector<std::string> options = {}) : Served(std::move(options)) { client.set(1, "v", "value"); }
  /// The original daemon still serves, and no connection is left over.
  ~Watched() {
    try {
      BOOST_TEST(client.get(1, "v")->text() == "value");
      client.set(1, "after", generated(200 * kKiB, 1));
      BOOST_TEST(stats(client).at("pid") == daemon.pid());
      BOOST_TEST(eventually([&] { return figure(client, "connections") == 1; }));
    } catch (const std::exception& error) {
      BOOST_ERROR(error.what() << "; the daemon's log:\n" << daemon.log());
    }
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(frames)

BOOST_AUTO_TEST_CASE(garbage_is_refused) {
  Watched served;
  for (const std::string& bytes :
       {std::string("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), head(0xFFFFFFFF, 1), head(1 << 20, 1), head(0, 0),
        head(0, 0xFFFF), head(10, 2, 1) + std::string(10, 'x'), head(4, 1) + "abcd", std::string(100'000, '\xFF')}) {
    RawConnection raw(served.daemon.socket());
    raw.send(bytes);
    if (raw.refusal()) BOOST_TEST(raw.hung_up());
  }
}

BOOST_AUTO_TEST_CASE(random_bytes_after_the_greeting_are_refused) {
  Watched served;
  std::mt19937 random(1);
  for (int i = 0; i < 100; ++i) {
    RawConnection raw(served.daemon.socket());
    raw.greet();
    std::string payload(random() % 200, '\0');
    for (char& c : payload) c = static_cast<char>(random());
    raw.send(head(static_cast<std::uint32_t>(payload.size()), static_cast<std::uint16_t>(random() % 20)) + payload);
  }
  // They were closed without waiting for an answer; all of them are gone in the end (~Watched).
}

BOOST_AUTO_TEST_CASE(the_first_message_must_be_hello) {
  Watched served;
  RawConnection raw(served.daemon.socket());
  raw.send(protocol::Drop{1});
  BOOST_TEST((raw.refusal() == Errc::protocol_error));
  BOOST_TEST(raw.hung_up());
}

BOOST_AUTO_TEST_CASE(hello_comes_once) {
  Watched served;
  RawConnection raw(served.daemon.socket());
  raw.greet();
  raw.send(protocol::Hello{});
  BOOST_TEST((raw.refusal() == Errc::protocol_error));
}

BOOST_AUTO_TEST_CASE(a_client_without_a_common_version_is_told_both_ranges_and_what_to_upgrade) {
  Watched served;
  const auto refused = [&](protocol::Versions versions) {
    RawConnection raw(served.daemon.socket());
    raw.send(protocol::Hello{.versions = versions});
    std::string message;
    BOOST_TEST((raw.refusal(&message) == Errc::version_mismatch));
    BOOST_TEST(raw.hung_up());
    BOOST_TEST(message.find(to_text(versions)) != message.npos, message);
    BOOST_TEST(message.find(to_text(protocol::kDaemonVersions)) != message.npos, message);
    return message;
  };
  const std::string newer = refused({4711, 4712});
  BOOST_TEST(newer.find("upgrade the daemon") != newer.npos, newer);
  const std::string older = refused({0, 0});
  BOOST_TEST(older.find("upgrade the client's library") != older.npos, older);
}

BOOST_AUTO_TEST_CASE(a_connection_has_the_highest_version_that_both_speak) {
  Watched served;
  const std::uint32_t former = protocol::kVersion - 1;
  for (const auto& [versions, chosen] : {std::pair<protocol::Versions, std::uint32_t>{{former, former}, former},
                                         {{protocol::kVersion, protocol::kVersion}, protocol::kVersion},
                                         {{1, protocol::kVersion + 7}, protocol::kVersion}}) {
    RawConnection raw(served.daemon.socket());
    raw.send(protocol::Hello{.versions = versions});
    BOOST_TEST(std::get<protocol::HelloOk>(raw.receive().value()).version == chosen, to_text(versions));
  }
}

/// Every byte as the library of version 0.1 sent it: docs/protocol.md has the same in its examples.
BOOST_AUTO_TEST_CASE(a_client_of_protocol_version_1_is_served) {
  Watched served;
  RawConnection raw(served.daemon.socket());
  const std::string id(16, '\0');
  raw.send(head(36, 1) + "stepsock" + std::string("\1\0\0\0\1\0\0\0", 8) + id + std::string(4, '\0'));
  const auto ok = std::get<protocol::HelloOk>(raw.receive().value());
  BOOST_TEST(ok.version == 1u);
  BOOST_TEST(ok.pin_page != 0u);
  BOOST_TEST(!ok.resumed);
  BOOST_TEST(raw.descriptors().size() == 2u);
  raw.send(head(51, 2) + std::string("\x2a\0\0\0\0\0\0\0", 8) + std::string(4, '\0') + std::string("\x10\x27\0\0", 4) +
           std::string(8, '\0') + std::string("\6\0\x0a\0\3\0\0\0", 8) + "reportunit testsok\n");
  BOOST_TEST(std::holds_alternative<protocol::SetOk>(raw.receive().value()));
  BOOST_TEST(served.client.get(42, "report")->text() == "ok\n");
  raw.send(head(24, 9) + std::string("\x2a\0\0\0\0\0\0\0", 8) + std::string(16, '\0'));
  BOOST_TEST(std::get<protocol::ListPage>(raw.receive().value()).entries.size() == 1u);

  // A second connection, as after a restart of the daemon: it resumes.
  RawConnection again(served.daemon.socket());
  const std::string segment(reinterpret_cast<const char*>(ok.segment_id.data()), ok.segment_id.size());
  again.send(head(36, 1) + "stepsock" + std::string("\1\0\0\0\1\0\0\0", 8) + segment +
             std::string(1, static_cast<char>(ok.pin_page)) + std::string(3, '\0'));
  BOOST_TEST(std::get<protocol::HelloOk>(again.receive().value()).resumed);
  BOOST_TEST(figure(served.client, "connections_of_former_protocol") == 2u);  // and not the client that asks
}

BOOST_AUTO_TEST_CASE(a_stream_out_of_order_is_refused) {
  Watched served;
  const protocol::SetParams params = params_of(1, "raw");
  {
    RawConnection raw(served.daemon.socket());
    raw.greet();
    raw.send(protocol::Piece{0, 10});
    BOOST_TEST((raw.refusal() == Errc::protocol_error));
  }
  {
    RawConnection raw(served.daemon.socket());
    raw.greet();
    raw.send(protocol::SetCommit{});
    BOOST_TEST((raw.refusal() == Errc::protocol_error));
  }
  {
    RawConnection raw(served.daemon.socket());
    raw.greet();
    raw.send(protocol::SetBegin{params, 100'000});
    BOOST_REQUIRE(raw.receive());
    raw.send(protocol::SetBegin{params, 100'000});
    BOOST_TEST((raw.refusal() == Errc::protocol_error));
  }
  for (const protocol::Piece piece : {protocol::Piece{0xFFFFFFF0, 100}, protocol::Piece{0, 0xFFFFFFFF},
                                      protocol::Piece{0, 0}, protocol::Piece{8 << 20, 1}}) {
    RawConnection raw(served.daemon.socket());
    raw.greet();
    raw.send(protocol::SetBegin{params, 100'000});
    BOOST_REQUIRE(raw.receive());
    raw.send(piece);
    BOOST_TEST((raw.refusal() == Errc::protocol_error));
    raw.send(protocol::SetCommit{});
    BOOST_TEST(raw.refusal().has_value());
  }
  BOOST_TEST(!served.client.get(1, "raw"));
}

BOOST_AUTO_TEST_CASE(the_daemon_checks_names_builds_and_sources_itself) {
  Watched served;
  const auto refused = [&](const protocol::SetParams& params) {
    RawConnection raw(served.daemon.socket());
    raw.greet();
    raw.send(protocol::Set{params, {}});
    std::string message;
    const auto code = raw.refusal(&message);
    BOOST_TEST((code == Errc::invalid_argument));
    BOOST_TEST(message.find("256") != message.npos, message);
    RawConnection staged(served.daemon.socket());
    staged.greet();
    staged.send(protocol::SetBegin{params, 100'000});
    BOOST_TEST((staged.refusal() == Errc::invalid_argument));
  };
  refused(params_of(0, "n"));
  refused(params_of(-1, "n"));
  refused(params_of(1, std::string(257, 'n')));
  refused(params_of(1, std::string("a\0b", 3)));
  refused(params_of(1, "\xFF"));
  refused(params_of(1, "n", "\xC0\x80"));
}

BOOST_AUTO_TEST_CASE(a_frame_begun_has_to_be_whole_in_time) {
  Watched served({"--frame-timeout=200ms"});
  RawConnection half(served.daemon.socket());
  half.greet();
  half.send(head(1000, 2));
  BOOST_TEST(half.hung_up());
  RawConnection idle(served.daemon.socket());  // no time limit between frames
  idle.greet();
  BOOST_TEST(figure(served.client, "connections") == 2u);
  idle.send(protocol::Stats{});
  BOOST_TEST(idle.receive().has_value());
}

BOOST_AUTO_TEST_CASE(a_frame_may_come_byte_by_byte) {
  Watched served;
  RawConnection raw(served.daemon.socket());
  std::vector<std::byte> bytes;
  protocol::encode(protocol::Request(protocol::Hello{}), bytes);
  protocol::encode(protocol::Request(protocol::Stats{}), bytes);
  for (const std::byte& byte : bytes) raw.send(std::span(&byte, 1));
  BOOST_TEST(std::holds_alternative<protocol::HelloOk>(raw.receive().value()));
  BOOST_TEST(std::holds_alternative<protocol::Text>(raw.receive().value()));
}

BOOST_AUTO_TEST_CASE(a_descriptor_sent_to_the_daemon_is_not_kept) {
  Watched served;
  RawConnection raw(served.daemon.socket());
  raw.greet();
  int ends[2];
  BOOST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd from(ends[0]);
  UniqueFd to(ends[1]);
  raw.send_with_descriptors(protocol::Stats{}, to.get(), 1);
  BOOST_TEST(raw.receive().has_value());
  to.reset();
  // Only once the last copy of the write end is closed does the read end reach its end.
  pollfd watched{from.get(), POLLIN, 0};
  BOOST_REQUIRE(::poll(&watched, 1, 10'000) == 1);
  char byte = 0;
  BOOST_TEST(::read(from.get(), &byte, 1) == 0);
}

BOOST_AUTO_TEST_CASE(connections_beyond_the_bound_are_refused_with_the_number) {
  Watched served({"--max-connections=3"});
  {
    RawConnection first(served.daemon.socket());
    first.greet();
    RawConnection second(served.daemon.socket());
    second.greet();
    RawConnection third(served.daemon.socket());
    std::string message;
    BOOST_TEST((third.refusal(&message) == Errc::too_many));
    BOOST_TEST(message.find('3') != message.npos, message);
  }
  BOOST_TEST(eventually([&] { return figure(served.client, "connections") == 1; }));
  RawConnection again(served.daemon.socket());
  again.greet();
}

BOOST_AUTO_TEST_SUITE_END()
