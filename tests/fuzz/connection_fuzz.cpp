// SPDX-License-Identifier: Apache-2.0
// One connection of the daemon, with everything behind it but a disk: any frames in any order. Whatever came, the
// others' value stays, the connection ends when its client does, and everything that it held is given back.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "daemon/connection.hpp"
#include "tests/daemon/engine.hpp"
#include "tests/fuzz/check.hpp"

namespace stepstash::test {
std::string disorder(const shm::Segment& writer);  // of segment_fixture.hpp, whose names are the engine's, too
}

using namespace stepstash;
using namespace stepstash::test;
using stepstash::fuzz::check;

namespace {

struct Daemon {
  Daemon() {
    config.ring_size = 64 << 10;
    config.segment_size = Engine::kSegmentBytes;
    config.frame_timeout = 10s;
    services.stats.make = [] { return std::string("{}"); };
  }
  ~Daemon() { services.copiers.join(); }

  TempDir directory;
  MemoryStore disk;
  ManualClock clock;
  Engine engine{directory, disk, clock};
  daemon::Config config;
  daemon::Services services{engine.loop(), engine.store(), engine.flusher(), engine.database(), engine.segment(),
                            config,        clock};
};

void frame(std::vector<std::byte>& out, std::uint16_t type, std::span<const std::uint8_t> payload) {
  const auto bytes = static_cast<std::uint32_t>(payload.size());
  for (unsigned i = 0; i < 4; ++i) out.push_back(static_cast<std::byte>(bytes >> 8 * i));
  for (unsigned i = 0; i < 2; ++i) out.push_back(static_cast<std::byte>(type >> 8 * i));
  out.insert(out.end(), 2, std::byte{0});
  for (const std::uint8_t byte : payload) out.push_back(static_cast<std::byte>(byte));
}

/// Input: {right, then {what, length: u16, payload...}...}. `what` is a message's type (its length is right), or says
/// that the bytes go out as they are.
std::vector<std::byte> stream_of(fuzz::Input& input) {
  std::vector<std::byte> out;
  while (!input.empty()) {
    const std::uint8_t what = input.u8();
    const auto payload = input.bytes(input.u16());
    if ((what & 0x1F) <= 16 && what != 0) {  // 16: Builds, the last request (protocol/codec.cpp)
      frame(out, what & 0x1F, payload);
    } else {
      for (const std::uint8_t byte : payload) out.push_back(static_cast<std::byte>(byte));
    }
  }
  return out;
}

void one_input(Daemon& here, const std::uint8_t* data, std::size_t size) {
  fuzz::Input input(data, size);
  const std::uint8_t mode = input.u8();
  const std::vector<std::byte> stream = stream_of(input);
  Engine& engine = here.engine;
  engine.set(1000, "others", "stays");

  int ends[2];
  check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0, "socketpair(2)");
  UniqueFd client(ends[0]);
  daemon::Socket socket(engine.loop());
  socket.assign(boost::asio::local::stream_protocol(), ends[1]);
  const daemon::Right rights[] = {daemon::Right::admin, daemon::Right::write, daemon::Right::read};
  auto connection = std::make_shared<daemon::Connection>(here.services, std::move(socket), daemon::Peer{1, 2, {3}},
                                                         rights[mode % std::size(rights)]);
  bool ended = false;
  boost::asio::co_spawn(
      engine.loop(),
      [&, connection]() -> awaitable<void> {
        co_await connection->run();
        ended = true;
      },
      boost::asio::detached);
  connection.reset();

  std::span<const std::byte> rest(stream);
  const std::size_t step = (mode & 0x80) != 0 ? 7 : 64 << 10;
  std::array<std::byte, 4096> replies;
  for (int idle = 0; !rest.empty() && !ended && idle < 3;) {
    const ssize_t sent = ::send(client.get(), rest.data(), std::min(step, rest.size()), MSG_NOSIGNAL);
    if (sent > 0) rest = rest.subspan(static_cast<std::size_t>(sent));
    idle = sent > 0 ? 0 : idle + 1;
    engine.loop().poll();
    while ((mode & 0x40) == 0 && ::recv(client.get(), replies.data(), replies.size(), 0) > 0) {
    }
  }
  // Let what was asked for happen, now and then: a copier, the database.
  if ((mode & 0x20) != 0) engine.loop().run_for(2ms);
  client.reset();
  engine.run_until([&] { return ended; });

  check(engine.store().room().uploads().rings() == 0, "a staging ring goes with its connection");
  check(engine.value(1000, "others") == "stays", "others' values stay");
  std::vector<BuildId> builds;
  engine.segment().for_each_build([&](shm::BuildRecord& record) { builds.push_back(record.buildid.load()); });
  for (const BuildId build : builds)
    check(engine.run(engine.store().builds().drop(build)).has_value(), "a drop is never refused");
  check(engine.flush().has_value(), "what was acknowledged can be written");
  (void)engine.segment().pins().reap();
  (void)engine.segment().reclaim();
  engine.run_until([&] { return engine.segment().retired() == 0 || (engine.segment().reclaim(), false); });
  const std::string wrong = disorder(engine.segment());
  check(wrong.empty(), "nothing is left behind", wrong);
  check(engine.segment().index().entries() == 0, "everything can be dropped");
  check(engine.segment().pins().pages() == 0, "a pin page goes with its client");
  check(engine.store().damage().lines().empty(), "nothing is damaged");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static auto here = std::make_unique<Daemon>();
  static std::uint64_t executions = 0;
  if (++executions % 2000 == 0) {
    here.reset();
    here = std::make_unique<Daemon>();
  }
  one_input(*here, data, size);
  return 0;
}
