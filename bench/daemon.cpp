// SPDX-License-Identifier: Apache-2.0
#include "bench/daemon.hpp"

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "bench/support.hpp"

namespace stepstash::bench {

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
  stepstash_client* client = nullptr;
  while (stepstash_connect(socket_.c_str(), 20, &client) != STEPSTASH_OK) {
    require(::kill(process_.pid(), 0) == 0 && std::chrono::steady_clock::now() < deadline,
            "stepstashd does not start: " + first_line_of("tail -n 1 " + files_ + ".log"));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  stepstash_close(client);
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
