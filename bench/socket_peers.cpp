// SPDX-License-Identifier: Apache-2.0
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <charconv>

#include "bench/peers.hpp"

namespace stepstash::bench {
namespace {

std::size_t number(std::string_view text) {
  std::size_t parsed = 0;
  require(std::from_chars(text.data(), text.data() + text.size(), parsed).ec == std::errc(), "no number in an answer");
  return parsed;
}

std::string_view text(std::span<const char> bytes) { return {bytes.data(), bytes.size()}; }

}  // namespace

TextConnection::TextConnection(const std::string& path) : socket_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  require(path.size() < sizeof address.sun_path, path + " is too long");
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  require(::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0,
          "cannot connect to " + path);
}
TextConnection::~TextConnection() { ::close(socket_); }

void TextConnection::send(std::initializer_list<std::string_view> parts) {
  std::vector<iovec> pieces;
  for (std::string_view part : parts) pieces.push_back({const_cast<char*>(part.data()), part.size()});
  for (std::size_t i = 0; i < pieces.size();) {
    ssize_t sent = ::writev(socket_, &pieces[i], static_cast<int>(pieces.size() - i));
    require(sent >= 0, "a server does not take a request");
    for (; i < pieces.size() && sent >= static_cast<ssize_t>(pieces[i].iov_len); ++i) sent -= pieces[i].iov_len;
    if (sent > 0) pieces[i] = {static_cast<char*>(pieces[i].iov_base) + sent, pieces[i].iov_len - sent};
  }
}

void TextConnection::more() {
  if (begin_ == end_) begin_ = end_ = 0;
  const ssize_t got = ::read(socket_, buffer_.data() + end_, buffer_.size() - end_);
  require(got > 0, "a server does not answer");
  end_ += static_cast<std::size_t>(got);
}

std::string_view TextConnection::line() {
  while (true) {
    const std::string_view there(buffer_.data() + begin_, end_ - begin_);
    if (const std::size_t at = there.find("\r\n"); at != std::string_view::npos) {
      begin_ += at + 2;
      return there.substr(0, at);
    }
    more();
  }
}

void TextConnection::body(std::size_t bytes) {
  if (value_.size() < bytes) value_.resize(bytes);
  std::size_t have = std::min(bytes, end_ - begin_);
  std::memcpy(value_.data(), buffer_.data() + begin_, have);
  begin_ += have;
  while (have < bytes) {
    const ssize_t got = ::read(socket_, value_.data() + have, bytes - have);
    require(got > 0, "a server does not answer");
    have += static_cast<std::size_t>(got);
  }
  benchmark::DoNotOptimize(value_.data());
}

const char* Redis::missing() {
  return ::access(World::get().redis_socket.c_str(), F_OK) == 0 ? nullptr : "Redis is not installed";
}

void Redis::get(const Key& key) {
  connection_.send({"*2\r\n$3\r\nGET\r\n$", std::to_string(key.length), "\r\n", key.name, "\r\n"});
  const std::string_view head = connection_.line();
  require(head.starts_with('$') && head[1] != '-', "redis: get");
  connection_.body(number(head.substr(1)));
  connection_.line();
}

void Redis::set(const Key& key, std::span<const char> bytes) {
  connection_.send({"*3\r\n$3\r\nSET\r\n$", std::to_string(key.length), "\r\n", key.name, "\r\n$",
                    std::to_string(bytes.size()), "\r\n", text(bytes), "\r\n"});
  require(connection_.line() == "+OK", "redis: set");
}

const char* Memcached::missing() {
  return ::access(World::get().memcached_socket.c_str(), F_OK) == 0 ? nullptr : "memcached is not installed";
}

void Memcached::get(const Key& key) {
  connection_.send({"get ", key.name, "\r\n"});
  const std::string_view head = connection_.line();  // VALUE name flags bytes
  require(head.starts_with("VALUE "), "memcached: get");
  connection_.body(number(head.substr(head.rfind(' ') + 1)));
  connection_.line();
  require(connection_.line() == "END", "memcached: get");
}

void Memcached::set(const Key& key, std::span<const char> bytes) {
  connection_.send({"set ", key.name, " 0 0 ", std::to_string(bytes.size()), "\r\n", text(bytes), "\r\n"});
  require(connection_.line() == "STORED", "memcached: set");
}

}  // namespace stepstash::bench
