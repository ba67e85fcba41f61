// SPDX-License-Identifier: Apache-2.0
#include "bench/daemon.hpp"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "bench/support.hpp"

namespace stepstash::bench {
namespace {

bool listens_on(const std::string& path) {
  const int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  const bool connected = ::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  ::close(socket);
  return connected;
}

}  // namespace

Daemon::Daemon(const Directories& directories, std::string name, std::string segment_size)
    : name_(std::move(name)),
      segment_size_(std::move(segment_size)),
      segment_directory_(directories.shm),
      socket_(directories.shm + "/" + name_ + ".socket"),
      files_(directories.disk + "/" + name_) {
  std::ofstream(files_ + ".conf").flush();  // an empty one: no configuration of this machine shows through
  start();
}

void Daemon::start() {
  process_ =
      Process(BENCH_STEPSTASHD,
              {"stepstashd", "--config", files_ + ".conf", "--socket", socket_, "--db", files_ + ".db",
               "--segment-directory", segment_directory_, "--segment-name", name_, "--segment-size", segment_size_},
              files_ + ".log");
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(120);
  // By hand, since stepstash_connect waits longer and longer between its tries, and a start is measured.
  while (!listens_on(socket_)) {
    require(process_.running() && std::chrono::steady_clock::now() < deadline,
            "stepstashd does not start: " + first_line_of("tail -n 1 " + files_ + ".log"));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  connect();
}

void Daemon::kill() { process_.end(SIGKILL); }
void Daemon::stop() { process_.end(SIGTERM); }
void Daemon::delete_segment() { std::filesystem::remove_all(segment_directory_ + "/" + name_ + ".d"); }

Client Daemon::connect() const {
  stepstash_client* client = nullptr;
  require(stepstash_connect(socket_.c_str(), 0, &client) == STEPSTASH_OK, stepstash_error_message());
  return Client(client);
}

std::uint64_t Daemon::figure(const std::string& pointer) const {
  const Client client = connect();
  char* text = nullptr;
  require(stepstash_stats(client.get(), &text) == STEPSTASH_OK, stepstash_error_message());
  const auto json = nlohmann::json::parse(text);
  stepstash_free(text);
  return json.at(nlohmann::json::json_pointer(pointer)).get<std::uint64_t>();
}

std::uint64_t Daemon::anonymous_bytes() const {
  std::ifstream status("/proc/" + std::to_string(process_.pid()) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) return std::stoull(line.substr(8)) * kKiB;
  }
  fail("/proc has no RssAnon");
}

}  // namespace stepstash::bench
