// SPDX-License-Identifier: Apache-2.0
// A client that uses all of its functions: a view held throughout, a small set, a large one, another view. It is
// compiled with crash points and killed at one of them.
//
//   crash_client SOCKET BUILD VALUE-LETTER
#include <cstdio>
#include <cstdlib>
#include <stepstash/client.hpp>
#include <string>

#include "libclient/client.hpp"

using namespace stepstash;

int main(int argc, char** argv) {
  if (argc != 4) return 64;
  try {
    const std::int64_t build = std::atoll(argv[2]);
    const char letter = *argv[3];
    Client client(argv[1]);
    auto held = client.get(build, "viewed");
    if (!held) return 1;
    client.set(build, "inline", std::string(1000, letter));
    for (int round = 0; round < 2; ++round) {  // the second one finds its ring ready
      auto writer = client.begin(build, "staged", 200'000);
      writer->write(std::string(200'000, letter));
      writer->commit();
    }
    held.reset();
    // Like the command line tool, without the C ABI.
    auto direct = client::Client::connect(client::Address::of(argv[1]).value(), client::Milliseconds(10'000));
    shm::Pinned again;
    if (!direct || !direct.value()->get(build, "staged", client::Milliseconds(10'000), again).value()) return 2;
    const bool exact = again.value().size() == 200'000 && again.value().front() == std::byte(letter);
    again.release();
    return exact ? 0 : 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "crash_client: %s\n", error.what());
    return 3;
  }
}
