// SPDX-License-Identifier: Apache-2.0
/// One client of a daemon: the attached segment, and the connections for what the segment cannot answer.
///
/// Thread safety: any number of threads, but for close (the destructor). Nothing here holds a mutex across a fork: what
/// threads share are atomics that are whole at every instruction, so a child can go on with its parent's Client.
/// Lifetime: a Client outlives its Pinned and its StagedSets.
///
/// Deadlines bound each wait for the daemon. A request that carries a deadline of its own (room, commit, wait) is
/// answered by the daemon in that time; the client waits a little longer, so that the daemon's explanation still
/// arrives.
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
  /// Connects and attaches. Fails at once when nobody listens at `address`: waiting is for a client that has once been
  /// connected, whose daemon restarts.
  /// Errors: Errc::unavailable, not_permitted, version_mismatch, format_mismatch, deadline_exceeded.
  static Result<std::unique_ptr<Client>> connect(const Address& address, Milliseconds deadline);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  Milliseconds default_deadline() const noexcept { return deadline_; }
  Deadline deadline_after(Milliseconds wait) const noexcept { return std::chrono::steady_clock::now() + wait; }

  /// Looks up in the segment as it is attached, and nowhere else: no lock, no system call, nothing allocated. Where no
  /// daemon serves that segment any more, looks for one now and then, without waiting (look_for_daemon).
  /// Found::superseded also when this process has not attached yet (after a fork).
  shm::Found find(BuildId build, std::string_view name, shm::Pinned& out) noexcept {
    // Acquire pairs with attach(): the Attachment is complete.
    const Attachment* attached = current_.load(std::memory_order_acquire);
    if (attached == nullptr || attached->epoch != fork_epoch()) return shm::Found::superseded;
    if (!attached->reader.served()) [[unlikely]] {
      look_for_daemon();
      attached = current_.load(std::memory_order_acquire);
    }
    return attached->reader.find(build, name, out);
  }
  /// A view was released whose segment is superseded: gives back what nobody looks at any more. Any thread.
  void give_back_formers() noexcept;

  /// The entry with its value in place, asking the daemon for an evicted one. False: there is none.
  /// Errors: invalid_argument, too_many (no pin is free), corrupt_value, corrupt_segment, those of asking.
  Result<bool> get(BuildId build, std::string_view name, Milliseconds deadline, shm::Pinned& out);
  /// The same without the value, resident or not.
  Result<bool> stat(BuildId build, std::string_view name, shm::Pinned& out);
  /// As get, once the name is there. Errors: deadline_exceeded when it did not appear in time.
  Result<> wait(BuildId build, std::string_view name, Milliseconds deadline, shm::Pinned& out);

  Result<std::vector<EntryInfo>> list(BuildId build, std::optional<std::string_view> only);
  /// In the order of their numbers; each page of them is of one instant.
  Result<std::vector<BuildInfo>> builds();
  /// A value of at most protocol::kInlineBytes, inside the message. Larger ones: staged_set.hpp.
  Result<protocol::SetOk> set_inline(const protocol::SetParams& params, std::span<const std::byte> value,
                                     Milliseconds deadline);
  Result<std::int64_t> finish(BuildId build, std::optional<std::int64_t> complete_at);
  Result<std::uint64_t> prune(std::int64_t older_than);
  Result<std::uint64_t> drop(BuildId build);
  Result<> hold(BuildId build, bool held);
  Result<> flush(Milliseconds deadline);
  Result<std::string> stats();

  /// What may be done when a connection breaks after a request was sent.
  enum class Repeat {
    yes,  ///< ask again: doing it twice ends as doing it once
    no,   ///< say that the outcome is unknown
  };
  using MakeRequest = std::function<protocol::Request(std::uint32_t remaining_ms)>;

  /// Asks until there is an answer or the deadline has passed, on new connections where old ones broke.
  /// A Failure becomes an error with the daemon's explanation. `keep`, when given, receives the channel of the answer;
  /// otherwise it goes back to the idle ones.
  Result<protocol::Reply> ask(const MakeRequest& make, Deadline deadline, Repeat repeat, const char* what,
                              std::unique_ptr<Channel>* keep = nullptr);
  /// An idle channel whose staging ring is mapped already; null when there is none.
  std::unique_ptr<Channel> take_with_ring() noexcept;
  /// Puts a channel back that a StagedSet is done with.
  void give_back(std::unique_ptr<Channel> channel) noexcept;
  Result<std::vector<EntryInfo>> list_once(BuildId build, std::optional<std::string_view> only, Deadline deadline);

  // Called by the handlers of forks.hpp alone.
  void before_fork() noexcept;
  void after_fork_in_parent() noexcept;
  void after_fork_in_child() noexcept;

 private:
  /// One segment that was or is attached. Its object stays until close, for a thread may still be in find() with it;
  /// its memory goes when another segment has taken its place and nothing is pinned.
  struct Attachment {
    Attachment(shm::Reader&& attached, Attachment* before) noexcept
        : reader(std::move(attached)), epoch(fork_epoch()), next(before) {}
    void give_back() noexcept;

    enum class Memory { there, looked_at, given_back };
    shm::Reader reader;
    const std::uint64_t epoch;
    Attachment* const next;
    std::atomic<Memory> memory{Memory::there};
    bool inherited = false;  // by a child: it has the segment, too
  };
  class AttachLock;

  Client(const Address& address, Milliseconds deadline);
  Result<std::unique_ptr<Channel>> take(Deadline deadline);
  Result<std::unique_ptr<Channel>> open_channel(bool attach, Deadline deadline);
  Result<> ensure_attached(Deadline deadline);
  bool attached_here() const noexcept;
  protocol::Hello hello(bool attach) const noexcept;
  Result<> greeted(Channel& channel, const protocol::Reply& reply, bool attach);
  /// The error of a client whose pin page is closed.
  std::error_code closed() const;
  Result<> adopt(Channel& channel, const protocol::HelloOk& hello);
  Result<> attach(Channel& channel, const protocol::HelloOk& hello);
  void look_for_daemon() noexcept;
  std::chrono::milliseconds look();
  void enter_process() noexcept;
  std::unique_ptr<Channel> take_idle() noexcept;

  static constexpr std::size_t kIdleChannels = 4;  // what a few threads that set at once need not reconnect for

  const Address address_;
  const Milliseconds deadline_;
  std::atomic<Attachment*> current_{nullptr};
  std::atomic<Attachment*> all_{nullptr};    // pushed at the front, freed at close: views may refer to each
  std::atomic<std::uint64_t> epoch_{0};      // the process that idle_ and descriptors_ speak of
  std::atomic<std::uint64_t> locked_by_{0};  // the epoch of whoever holds the attach lock; a parent's lock is none
  std::atomic<bool> resume_needed_{false};   // a connection broke: ask whether our pin page still serves
  std::atomic<bool> ever_connected_{false};
  DescriptorTable descriptors_;
  std::array<std::atomic<Channel*>, kIdleChannels> idle_{};
  std::atomic<std::int64_t> next_look_ms_{0};  // CLOCK_MONOTONIC_COARSE: no look for a daemon before
  std::unique_ptr<Channel> looking_;           // has said Hello and waits for the answer; the attach lock's
  Listed* listed_ = nullptr;
};

/// How long the client itself waits for an answer that the daemon was given until `deadline` for.
Deadline answer_deadline(Deadline deadline) noexcept;
/// A Failure as an error, its message kept as the explanation.
std::error_code failed(const protocol::Failure& failure) noexcept;
/// Errors: Errc::invalid_argument with the limit in the explanation.
Result<> check_key(BuildId build, std::string_view name);
Result<> check_params(const protocol::SetParams& params);

}  // namespace stepstash::client
