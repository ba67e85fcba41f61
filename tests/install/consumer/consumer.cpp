// SPDX-License-Identifier: Apache-2.0
#include <iostream>
#include <stepstash/client.hpp>

// usage: consumer NAME: sets build datum 7/NAME, gets it back.
int main(int argc, char** argv) {
  if (argc != 2) return 64;
  try {
    stepstash::Client client;
    client.set(7, argv[1], "from C++", argv[0]);
    const auto view = client.get(7, argv[1]);
    if (view && view->text() == "from C++") return 0;
    std::cerr << "got something else than was set\n";
  } catch (const stepstash::Error& error) {
    std::cerr << error.what() << '\n';
  }
  return 1;
}
