// SPDX-License-Identifier: Apache-2.0
/// A stepstashd of our own: socket and segment in the directory in memory, the database in the one on a disk.
#pragma once

#include <stepstash/client.h>

#include <cstdint>
#include <memory>
#include <string>

#include "bench/directories.hpp"
#include "bench/process.hpp"

namespace stepstash::bench {

struct CloseClient {
  void operator()(stepstash_client* client) const noexcept { stepstash_close(client); }
};
using Client = std::unique_ptr<stepstash_client, CloseClient>;

class Daemon {
 public:
  /// Starts it with the default of every setting that is not a place, except the segment's size.
  Daemon(const Directories& directories, std::string name, std::string segment_size);

  /// Returns when a client is served.
  void start();
  void kill();  ///< as if it had crashed
  void stop();  ///< in order: everything is in the database afterwards
  void delete_segment();

  Client connect() const;
  const std::string& socket() const noexcept { return socket_; }
  /// A figure of `stats`, e.g. "/segment/used_bytes".
  std::uint64_t figure(const std::string& pointer) const;
  /// Memory that is the daemon's own: neither the segment nor program text.
  std::uint64_t anonymous_bytes() const;

 private:
  std::string name_;
  std::string segment_size_;
  std::string segment_directory_;
  std::string socket_;
  std::string files_;  ///< the database's path, and the log's, but for their endings
  Process process_;
};

}  // namespace stepstash::bench
