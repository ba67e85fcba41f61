// SPDX-License-Identifier: Apache-2.0
/// One run of a scenario: a daemon with crash points, one client that uses its protocol, and the promises made to the
/// client. Every operation announces, asks and confirms; throws Gone if the daemon dies in between.
///
/// Threads: one. Lifetime: removes everything it created.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "libclient/channel.hpp"
#include "protocol/message.hpp"
#include "shm/layout.hpp"
#include "shm/reader.hpp"
#include "tests/support/daemon_process.hpp"
#include "tests/support/promises.hpp"

namespace stepstash::test {

/// The daemon is gone; thrown by operations that needed it.
class Gone : public std::exception {
 public:
  const char* what() const noexcept override { return "the daemon is gone"; }
};

/// How often each point was passed.
using Counts = std::map<std::string, std::uint64_t>;
Counts read_counts(const std::string& path);

/// A connection that sends exactly what it is given and never retries.
class Session {
 public:
  /// Sends Hello; with `attach`, maps the segment as well.
  Session(const std::string& socket, bool attach);

  /// One request and its reply. Throws Gone.
  protocol::Reply ask(const protocol::Request& request);
  void send(const protocol::Request& request);
  protocol::Reply receive();

  client::Channel& channel() { return *channel_; }
  const shm::Reader& reader() const { return *reader_; }
  /// The pin page's own descriptor, which a well-behaved client closes.
  int pin_page_fd() const { return pin_page_fd_.get(); }

 private:
  client::DescriptorTable descriptors_;
  std::unique_ptr<client::Channel> channel_;
  std::optional<shm::Reader> reader_;
  UniqueFd pin_page_fd_;
};

struct SetOptions {
  std::string source = "step";
  bool durable = false;
  bool if_absent = false;
};

class Run {
 public:
  /// `kill` is where start_armed() kills, `second` where the first recovery is killed: "point:n", or empty.
  Run(std::string kill, std::string second);
  ~Run();

  // ---- lives ----

  using Options = std::vector<std::string>;
  /// A daemon for preparation. `kill` is a point for the preparation itself.
  void start(const Options& options, const std::string& kill = {});
  /// The daemon that is to die at `kill`. Throws Gone if it does so before it serves.
  void start_armed(const Options& options);
  void kill();
  void terminate();
  /// Whether the daemon is dead; throws if it ended other than by SIGKILL.
  bool dead();
  DaemonProcess& daemon() { return *daemon_; }

  // ---- what the client does; all throw Gone ----

  void attach();
  void detach();
  Session& session();
  void set(BuildId build, const std::string& name, std::uint64_t length, const SetOptions& options = {});
  /// Through the staging ring. `unknown`: the length is not announced. `between` is called after the first piece.
  void staged(BuildId build, const std::string& name, std::uint64_t length, const SetOptions& options = {},
              bool unknown = false, const std::function<void()>& between = {});
  void finish(BuildId build, std::int64_t at);
  void hold(BuildId build, bool held = true);
  void drop(BuildId build);
  void prune(std::int64_t older_than);
  void flush();
  void load(BuildId build, const std::string& name);
  void list(BuildId build);
  nlohmann::json stats();
  void until(const std::function<bool(const nlohmann::json&)>& condition, const char* what);
  /// Opens a view, which must keep its bytes in all cases until release_views().
  void view(BuildId build, const std::string& name);
  /// Returns the clients that owned the views; they stay attached until the caller drops them.
  std::vector<std::shared_ptr<Session>> release_views();
  Promises& promises() { return promises_; }
  /// Kept as long as this run; ends after its daemon.
  void keep_until_the_end(std::shared_ptr<void> what) { kept_.push_back(std::move(what)); }
  /// Run after the end of the armed life.
  void before_judging(std::function<void()> what) { before_judging_.push_back(std::move(what)); }
  /// The test damages something: quarantined data is not a failure.
  void expect_damage() { damage_ = true; }

  // ---- while no daemon runs ----

  /// Passes the segment's bytes to `change`.
  void poke(const std::function<void(std::byte* segment, std::size_t bytes)>& change);

  // ---- the judgement ----

  struct Verdict {
    bool killed = false;         ///< at the requested point
    bool second_killed = false;  ///< during the recovery as well
    Counts counts;               ///< of the armed life
    Counts until_served;         ///< of its start alone, if it got that far
    Counts recovery;             ///< of the following start
    std::uint64_t checks = 0;    ///< comparisons made
  };
  /// Call it after the end of the armed life, however it ended. Restarts the daemon, compares, empties it, compares.
  Verdict judge();

 private:
  bool launch(const Options& options, const std::string& kill, const std::string& counts);
  protocol::Reply ask(const protocol::Request& request);
  protocol::SetParams announce(BuildId build, const std::string& name, const Value& value, const SetOptions& options);
  void settle_set(BuildId build, const std::string& name, const protocol::Reply& reply);
  std::optional<bool> has_bytes(BuildId build, const Promises::Seen& entry, const Value& value);
  void see_all();
  void see_database();
  void see_views();
  void compare();
  void empty_and_compare();
  void expect(bool kept, const std::string& what);

  std::string kill_, second_;
  std::vector<std::shared_ptr<void>> kept_;
  std::vector<std::function<void()>> before_judging_;
  std::unique_ptr<DaemonProcess> daemon_;
  Options options_;
  std::unique_ptr<Session> session_;
  bool attached_ = false;
  bool damage_ = false;
  std::uint64_t slots_ = 0;  // of the index when the recovered daemon started
  Promises promises_;
  std::uint64_t next_seed_ = 0;
  struct HeldView {
    std::shared_ptr<Session> session;
    shm::Pinned pinned;
    Value value;
    std::string name;
  };
  std::vector<HeldView> views_;
  Verdict verdict_;
};

}  // namespace stepstash::test
