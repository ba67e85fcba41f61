// SPDX-License-Identifier: Apache-2.0
// Writes inputs to begin with: seeds DIRECTORY makes DIRECTORY/TARGET/*. They follow from the messages as the codec
// writes them and from the shape of the inputs as the targets describe it, so they are made rather than kept.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "shm/layout.hpp"
#include "tests/protocol/samples.hpp"

namespace {

using namespace stepstash;
using protocol::Request;

std::string bytes_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

class Seeds {
 public:
  explicit Seeds(std::filesystem::path directory) : directory_(std::move(directory)) {}

  void write(const std::string& target, std::string_view bytes) {
    std::filesystem::create_directories(directory_ / target);
    const auto path = directory_ / target / ("seed-" + std::to_string(++number_));
    std::ofstream out(path, std::ios::binary);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!out.flush()) {
      std::perror(path.c_str());
      std::exit(74);
    }
  }

 private:
  std::filesystem::path directory_;
  int number_ = 0;
};

/// As connection_fuzz takes it: {type, length: u16, payload}.
std::string step(const Request& request) {
  const std::string frame = bytes_of(protocol::frame_of(request));
  const auto length = static_cast<std::uint16_t>(frame.size() - protocol::kHeadBytes);
  std::string out(1, frame[4]);
  out.append(reinterpret_cast<const char*>(&length), sizeof length);
  return out + frame.substr(protocol::kHeadBytes);
}

protocol::SetParams params(std::string name) {
  protocol::SetParams made;
  made.build = 7;
  made.name = std::move(name);
  made.source = "s";
  made.deadline_ms = 1;
  return made;
}

void messages(Seeds& seeds) {
  std::string requests;
  for (const Request& request : protocol::sample_requests()) {
    const std::string frame = bytes_of(protocol::frame_of(request));
    seeds.write("protocol", frame);
    requests += frame;
  }
  seeds.write("protocol", requests);
  std::string replies;
  for (const protocol::Reply& reply : protocol::sample_replies()) {
    const std::string frame = bytes_of(protocol::frame_of(reply));
    seeds.write("protocol", frame);
    seeds.write("channel", std::string("\2\5\0", 3) + frame);
    seeds.write("channel", std::string("\x0E\5\0", 3) + frame);  // two, and two more in the middle of the reply
    replies += frame;
  }
  seeds.write("protocol", replies);
  seeds.write("channel", std::string("\0\0\1", 3) + replies);
}

void connections(Seeds& seeds) {
  const std::string hello = step(protocol::Hello{});
  const std::string attach = step(protocol::Hello{.attach = true});
  const std::string plain(1, '\0');
  for (const Request& request : protocol::sample_requests()) seeds.write("connection", plain + hello + step(request));
  const std::string value(3000, 'v');
  const std::string set = step(protocol::Set{params("n"), protocol::as_bytes(value)});
  seeds.write("connection", plain + attach + set + set + step(protocol::List{7, std::nullopt, 0}) +
                                step(protocol::Load{7, "n", 1}) + step(protocol::Flush{1}) + step(protocol::Drop{7}));
  const std::string begin = step(protocol::SetBegin{params("large"), 16'384});
  const std::string pieces = step(protocol::Piece{0, 8192}) + step(protocol::Piece{8192, 8192});
  seeds.write("connection", std::string(1, '\x20') + hello + begin + pieces + step(protocol::SetCommit{}));
  seeds.write("connection", std::string(1, '\x80') + hello + begin + pieces + step(protocol::SetAbort{}) + begin);
  const std::string unknown = step(protocol::SetBegin{params("any"), protocol::kUnknownLength});
  seeds.write("connection", std::string(1, '\x20') + hello + unknown + pieces + pieces + step(protocol::SetCommit{}) +
                                step(protocol::Finish{7, 1}) + step(protocol::Prune{2}));
  seeds.write("connection", std::string(1, '\x40') + hello + step(protocol::Wait{7, "w", 0}) + set);
  protocol::SetParams conditional = params("c");
  conditional.if_absent = conditional.durable = true;
  seeds.write("connection",
              std::string(1, '\x20') + hello + step(protocol::Set{conditional, protocol::as_bytes(value)}) + set);
}

/// As attach_fuzz takes it: {image and flags, patches, {what, ...}...}, then what a daemon does.
void segments(Seeds& seeds) {
  using namespace std::string_literals;
  const std::string day = "\x00\x08\x02\x03\x05\x44\x06\x07\x90\x22"s;
  for (const char image : {'\0', '\1', '\2'}) {
    seeds.write("attach", std::string(1, image) + '\0' + day);
    for (char what = 0; what < 10; ++what) {
      for (const char flags : {'\0', '\x40', static_cast<char>(0x80)}) {
        const char head[] = {static_cast<char>((flags / 3 * 3) + image), 2, what};
        seeds.write("attach",
                    std::string(head, sizeof head) + "\x05\x03\x02\x01\x07\x10"s + what + "\x14\x01\x28"s + day);
      }
    }
  }
}

/// Every field of a record with values that it should not have; the record's checksum is corrected.
void records(Seeds& seeds) {
  for (char at = 16; at < 88; at = static_cast<char>(at + 4)) {
    for (const char value : {'\0', '\3', '\20'}) {
      for (const char entry : {'\0', '\3'}) {
        const char bytes[] = {0, 1, static_cast<char>(136), value, entry, at};
        seeds.write("attach", std::string(bytes, sizeof bytes));
      }
    }
  }
}

void pages(Seeds& seeds) {
  const auto page = [](std::uint64_t word, std::uint64_t step_) {
    std::vector<std::uint64_t> words(shm::kPageBytes / sizeof(word));
    for (std::size_t i = 0; i < words.size(); ++i) words[i] = word + i * step_;
    std::string text(shm::kPageBytes, '\0');
    std::memcpy(text.data(), words.data(), text.size());
    return text;
  };
  for (const char flags : {'\0', '\2', '\4', '\7'}) {
    const std::string head = {flags, 0, 0x10};
    seeds.write("pins", head + page(0, 0));
    seeds.write("pins", head + page(69632, 64));       // every block there could be
    seeds.write("pins", head + page(69632 + 32, 64));  // and none
    seeds.write("pins", head + page(UINT64_MAX, 0));
    seeds.write("pins", std::string{flags, 1, 0} + page(78080, 0));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: seeds DIRECTORY\n", stderr);
    return 64;
  }
  Seeds seeds(argv[1]);
  messages(seeds);
  connections(seeds);
  segments(seeds);
  records(seeds);
  pages(seeds);
  return 0;
}
