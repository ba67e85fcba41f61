// SPDX-License-Identifier: Apache-2.0
/// One client of a daemon: the attached segment, and the connections for what the segment cannot answer.
///
/// Thread safety: any number of threads, except for closing (the destructor). Nothing here holds a mutex across a fork:
/// all state shared between threads is atomics that are consistent at every instruction, so a child can continue to use
/// its parent's Client. Lifetime: a Client outlives its Pinned and its StagedSets.
///
/// Deadlines bound each wait for the daemon. The daemon answers a request that carries a deadline of its own (room,
/// commit, wait) within that time; the client waits a little longer, so that the daemon's explanation still arrives.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"
#include "base/types.hpp"
#include "libclient/channel.hpp"
#include "libclient/fork_epoch.hpp"
#include "libclient/forks.hpp"
#include "protocol/message.hpp"
#include "shm/reader.hpp"

namespace stepstash::client {

using Milliseconds = std::chrono::milliseconds;

class Client {
 public:
  /// Connects and attaches. Fails at once if nothing listens at `address`: only a client that was connected before
  /// waits for its daemon to restart. Errors: Errc::unavailable, not_permitted, version_mismatch, format_mismatch,
  /// deadline_exceeded.
  static Result<std::unique_ptr<Client>> connect(const Address& address, Milliseconds deadline);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  Milliseconds default_deadline() const noexcept { return deadline_; }
  Deadline deadline_after(Milliseconds wait) const noexcept { return std::chrono::steady_clock::now() + wait; }

  /// Looks up the entry in the attached segment only: no lock, no system call, no allocation. If no daemon serves that
  /// segment any more, occasionally tries to find one, without waiting (look_for_daemon). Returns Found::superseded
  /// also if this process has not attached yet (after a fork).
  shm::Found find(BuildId build, std::string_view name, shm::Pinned& out) noexcept {
    // Acquire: pairs with attach(). The Attachment is complete.
    const Attachment* attached = current_.load(std::memory_order_acquire);
    if (attached == nullptr || attached->epoch != fork_epoch()) return shm::Found::superseded;
    if (!attached->reader.served()) [[unlikely]] {
      look_for_daemon();
      attached = current_.load(std::memory_order_acquire);
    }
    return attached->reader.find(build, name, out);
  }
  /// Called after releasing a view of a superseded segment: gives back memory that no view uses any more. Any thread.
  void give_back_formers() noexcept;

  /// Finds the entry with its value resident; asks the daemon for an evicted one. False: no such entry. Errors:
  /// invalid_argument, too_many (no free pin), corrupt_value, corrupt_segment, those of ask().
  Result<bool> get(BuildId build, std::string_view name, Milliseconds deadline, shm::Pinned& out);
  /// The same without the value, resident or not.
  Result<bool> stat(BuildId build, std::string_view name, shm::Pinned& out);
  /// As get, once the name exists. Errors: deadline_exceeded if it did not appear in time.
  Result<> wait(BuildId build, std::string_view name, Milliseconds deadline, shm::Pinned& out);

  Result<std::vector<EntryInfo>> list(BuildId build, std::optional<std::string_view> only);
  /// In ascending order; each page of builds is consistent, a snapshot of one instant.
  Result<std::vector<BuildInfo>> builds();
  /// Sets a value of at most protocol::kInlineBytes, inside the message. For larger ones: staged_set.hpp.
  Result<protocol::SetOk> set_inline(const protocol::SetParams& params, std::span<const std::byte> value,
                                     Milliseconds deadline);
  Result<std::int64_t> finish(BuildId build, std::optional<std::int64_t> complete_at);
  Result<std::uint64_t> prune(std::int64_t older_than);
  Result<std::uint64_t> drop(BuildId build);
  Result<> hold(BuildId build, bool held);
  Result<> flush(Milliseconds deadline);
  Result<std::string> stats();

  /// What to do if a connection breaks after a request was sent.
  enum class Repeat {
    yes,  ///< ask again: the request is idempotent
    no,   ///< report that the outcome is unknown
  };
  using MakeRequest = std::function<protocol::Request(std::uint32_t remaining_ms)>;

  /// Asks until there is an answer or the deadline has passed; reconnects if a connection breaks. A Failure becomes an
  /// error with the daemon's explanation. `keep`, if given, receives the channel of the answer; otherwise it becomes
  /// idle.
  Result<protocol::Reply> ask(const MakeRequest& make, Deadline deadline, Repeat repeat, const char* what,
                              std::unique_ptr<Channel>* keep = nullptr);
  /// An idle channel whose staging ring is already mapped; null if there is none.
  std::unique_ptr<Channel> take_with_ring() noexcept;
  /// Returns a channel that a StagedSet has finished with.
  void give_back(std::unique_ptr<Channel> channel) noexcept;
  Result<std::vector<EntryInfo>> list_once(BuildId build, std::optional<std::string_view> only, Deadline deadline);

  // Only for the handlers of forks.hpp.
  void before_fork() noexcept;
  void after_fork_in_parent() noexcept;
  void after_fork_in_child() noexcept;

 private:
  /// A segment that is or was attached. The object stays until close, because a thread may still be in find() with it;
  /// its memory is freed once another segment has replaced it and nothing is pinned.
  struct Attachment {
    Attachment(shm::Reader&& attached, Attachment* before) noexcept
        : reader(std::move(attached)), epoch(fork_epoch()), next(before) {}
    void give_back() noexcept;

    enum class Memory { there, looked_at, given_back };
    shm::Reader reader;
    const std::uint64_t epoch;
    Attachment* const next;
    std::atomic<Memory> memory{Memory::there};
    bool inherited = false;  // by a child, which has the segment as well
  };
  class AttachLock;

  Client(const Address& address, Milliseconds deadline);
  Result<std::unique_ptr<Channel>> take(Deadline deadline);
  Result<std::unique_ptr<Channel>> open_channel(bool attach, Deadline deadline);
  Result<> ensure_attached(Deadline deadline);
  bool attached_here() const noexcept;
  protocol::Hello hello(bool attach) const noexcept;
  Result<> greeted(Channel& channel, const protocol::Reply& reply, bool attach);
  /// The error for a client whose pin page is closed.
  std::error_code closed() const;
  Result<> adopt(Channel& channel, const protocol::HelloOk& hello);
  Result<> attach(Channel& channel, const protocol::HelloOk& hello);
  void look_for_daemon() noexcept;
  std::chrono::milliseconds look();
  void enter_process() noexcept;
  std::unique_ptr<Channel> take_idle() noexcept;

  static constexpr std::size_t kIdleChannels = 4;  // so that a few threads that set concurrently need not reconnect

  const Address address_;
  const Milliseconds deadline_;
  std::atomic<Attachment*> current_{nullptr};
  std::atomic<Attachment*> all_{nullptr};    // pushed at the front, freed at close: views may refer to each
  std::atomic<std::uint64_t> epoch_{0};      // the process that idle_ and descriptors_ belong to
  std::atomic<std::uint64_t> locked_by_{0};  // epoch of the attach lock's holder; a parent's lock does not count
  std::atomic<bool> resume_needed_{false};   // a connection broke: check whether our pin page still serves
  std::atomic<bool> ever_connected_{false};
  DescriptorTable descriptors_;
  std::array<std::atomic<Channel*>, kIdleChannels> idle_{};
  std::atomic<std::int64_t> next_look_ms_{0};  // CLOCK_MONOTONIC_COARSE: no earlier look for a daemon
  std::unique_ptr<Channel> looking_;           // has sent Hello and awaits the answer; under the attach lock
  Listed* listed_ = nullptr;
};

/// How long the client itself waits for an answer if the daemon has until `deadline`.
Deadline answer_deadline(Deadline deadline) noexcept;
/// Converts a Failure to an error and keeps its message as the explanation.
std::error_code failed(const protocol::Failure& failure) noexcept;
/// Errors: Errc::invalid_argument with the limit in the explanation.
Result<> check_key(BuildId build, std::string_view name);
Result<> check_params(const protocol::SetParams& params);

}  // namespace stepstash::client
