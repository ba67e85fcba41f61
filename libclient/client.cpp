// SPDX-License-Identifier: Apache-2.0
#include "libclient/client.hpp"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <mutex>
#include <optional>
#include <utility>

#include "base/crash_point.hpp"
#include "libclient/backoff.hpp"
#include "libclient/explain.hpp"
#include "shm/reader_fence.hpp"

namespace stepstash::client {
namespace {

/// How often hits look for a daemon while none serves their segment, and after one has refused us: each look costs a
/// few system calls.
constexpr Milliseconds kLookAgain{100};
constexpr Milliseconds kLookMuchLater{900};

/// Through the vDSO, without a system call; lags by a few milliseconds.
std::int64_t coarse_ms() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return std::int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

bool nobody_there(std::error_code error) noexcept {
  return error.category() == std::system_category() && (error.value() == ENOENT || error.value() == ECONNREFUSED ||
                                                        error.value() == ECONNRESET || error.value() == EPIPE);
}

bool is_errno(std::error_code error, int number) noexcept {
  return error.category() == std::system_category() && error.value() == number;
}

std::error_code unexpected_reply(const char* what) noexcept {
  return explain(Errc::protocol_error, "%s: the daemon answered with another kind of reply", what);
}

template <class Wanted>
Result<Wanted> expect(Result<protocol::Reply> reply, const char* what) {
  if (!reply) return reply.error();
  if (auto* wanted = std::get_if<Wanted>(&reply.value())) return std::move(*wanted);
  return unexpected_reply(what);
}

}  // namespace

/// Held while cleaning up after a fork or attaching. Not a mutex: one that another thread of the parent held at the
/// fork would stay locked in the child forever. Contention is rare (another segment serves, or the first call after a
/// fork), so waiting is a short sleep. But the holder may wait for the daemon as long as its own call allows, and other
/// calls must not be delayed by that.
class Client::AttachLock {
 public:
  /// Waits for the holder; with a `deadline`, only until then, and may not hold the lock afterwards.
  explicit AttachLock(std::atomic<std::uint64_t>& holder, std::optional<Deadline> deadline = std::nullopt) noexcept
      : holder_(holder) {
    while (!take()) {
      if (deadline && passed(*deadline)) return;
      const timespec span{0, 200'000};
      ::nanosleep(&span, nullptr);
    }
  }
  /// Does not wait: another thread may hold the lock afterwards.
  AttachLock(std::atomic<std::uint64_t>& holder, std::try_to_lock_t) noexcept : holder_(holder) { take(); }
  ~AttachLock() {
    if (held_) holder_.store(0);
  }
  bool held() const noexcept { return held_; }
  AttachLock(const AttachLock&) = delete;
  AttachLock& operator=(const AttachLock&) = delete;

 private:
  bool take() noexcept {
    const std::uint64_t me = fork_epoch();
    std::uint64_t seen = holder_.load();
    held_ = seen != me && holder_.compare_exchange_strong(seen, me);
    return held_;
  }

  std::atomic<std::uint64_t>& holder_;
  bool held_ = false;
};

Deadline answer_deadline(Deadline deadline) noexcept {
  // A tenth more: at least 50 ms for a busy machine, at most a second because a stopped daemon must not delay us for
  // long.
  const std::uint32_t extra = std::clamp<std::uint32_t>(remaining_ms(deadline) / 10, 50, 1000);
  return deadline + Milliseconds(extra);
}

std::error_code failed(const protocol::Failure& failure) noexcept {
  const std::error_code code = failure.code;
  if (failure.message.empty()) return explain(code, "%s", code.message().c_str());
  return explain(code, "%s", failure.message.c_str());
}

Result<> check_key(BuildId build, std::string_view name) {
  if (!valid_build(build)) {
    return explain(Errc::invalid_argument, "build %" PRId64 " is outside 1 .. 9223372036854775807", build);
  }
  if (!valid_text(name)) {
    return explain(Errc::invalid_argument, "name %s of %zu bytes is not 0..%zu characters of UTF-8 without NUL",
                   Quoted(name).c_str(), name.size(), kMaxNameChars);
  }
  return success();
}

Result<> check_params(const protocol::SetParams& params) {
  STEPSTASH_TRY(check_key(params.build, params.name));
  if (!valid_text(params.source)) {
    return explain(Errc::invalid_argument, "source %s of %zu bytes is not 0..%zu characters of UTF-8 without NUL",
                   Quoted(params.source).c_str(), params.source.size(), kMaxSourceChars);
  }
  return success();
}

Client::Client(const Address& address, Milliseconds deadline)
    : address_(address), deadline_(deadline), epoch_(fork_epoch()) {}

Result<std::unique_ptr<Client>> Client::connect(const Address& address, Milliseconds deadline) {
  watch_for_forks();
  std::unique_ptr<Client> client(new Client(address, deadline));
  client->listed_ = enlist(client.get());
  STEPSTASH_TRY(client->ensure_attached(client->deadline_after(deadline)));
  return client;
}

Client::~Client() {
  enter_process();
  const NoFork whole;
  if (listed_ != nullptr) delist(listed_);
  looking_.reset();
  while (take_idle() != nullptr) {
  }
  for (Attachment* at = all_.load(); at != nullptr;) {
    if (at->epoch != fork_epoch()) at->reader.forget(at->inherited);
    delete std::exchange(at, at->next);
  }
}

// ---- forks ---------------------------------------------------------------------------------------------------------

/// A child keeps a segment for the views that are open now, and nothing else: otherwise a replaced segment would stay
/// in memory as long as the child lives.
void Client::before_fork() noexcept {
  for (Attachment* at = all_.load(); at != nullptr; at = at->next) {
    if (at->epoch != fork_epoch() || at->memory.load() == Attachment::Memory::given_back) continue;
    at->inherited = at->reader.pins_in_use() != 0 && at->reader.inherit_segment(true);
  }
}

void Client::after_fork_in_parent() noexcept {
  for (Attachment* at = all_.load(); at != nullptr; at = at->next) {
    if (at->epoch != fork_epoch() || !at->inherited) continue;
    at->reader.inherit_segment(false);
    at->inherited = false;
  }
}

/// Sends nothing on the connections, which are the parent's. The rest is done when the child uses the client.
void Client::after_fork_in_child() noexcept { descriptors_.close_all(); }

// ---- connections ---------------------------------------------------------------------------------------------------

/// In a forked child: drops what belongs to the parent and sends nothing on its connections. Inherited segments stay
/// mapped, for the views the parent had opened.
void Client::enter_process() noexcept {
  if (epoch_.load() == fork_epoch()) return;
  AttachLock lock(locked_by_);  // in this process only threads doing the same hold it: none waits for the daemon
  if (epoch_.load() == fork_epoch()) return;
  descriptors_.close_all();
  while (take_idle() != nullptr) {
  }
  // Not freed: a thread of the parent may have been using it, even reallocating its buffer, at the fork.
  (void)looking_.release();
  next_look_ms_.store(0);
  resume_needed_.store(false);
  current_.store(nullptr);
  epoch_.store(fork_epoch());
}

std::unique_ptr<Channel> Client::take_idle() noexcept {
  for (auto& place : idle_) {
    if (Channel* channel = place.exchange(nullptr)) return std::unique_ptr<Channel>(channel);
  }
  return nullptr;
}

std::unique_ptr<Channel> Client::take_with_ring() noexcept {
  enter_process();
  for (auto& place : idle_) {
    std::unique_ptr<Channel> channel(place.exchange(nullptr));
    if (channel == nullptr) continue;
    if (channel->ring().bytes != 0 && attached_here() && !resume_needed_.load() && channel->idle_and_alive()) {
      return channel;
    }
    give_back(std::move(channel));
  }
  return nullptr;
}

void Client::give_back(std::unique_ptr<Channel> channel) noexcept {
  for (auto& place : idle_) {
    Channel* empty = nullptr;
    if (place.compare_exchange_strong(empty, channel.get())) {
      channel.release();
      return;
    }
  }
}

bool Client::attached_here() const noexcept {
  const Attachment* attached = current_.load(std::memory_order_acquire);
  return attached != nullptr && attached->epoch == fork_epoch() && !attached->reader.superseded();
}

Result<std::unique_ptr<Channel>> Client::take(Deadline deadline) {
  enter_process();
  do {
    if (!attached_here() || resume_needed_.load()) STEPSTASH_TRY(ensure_attached(deadline));
    while (auto channel = take_idle()) {
      // A restarted daemon has closed it. Detect that here, before a request whose outcome would be unknown.
      if (channel->idle_and_alive()) return channel;
      resume_needed_.store(true);
    }
    if (resume_needed_.load()) continue;
    auto channel = STEPSTASH_TRY(open_channel(false, deadline));
    if (!resume_needed_.load()) return channel;
    // Another segment serves: our next get must find what is set through this channel, so attach first.
    give_back(std::move(channel));
  } while (!passed(deadline));
  return explain(Errc::unavailable, "%s: the daemon restarts again and again", address_.path());
}

/// Attaches unless another thread has done so meanwhile. That thread may be at it with a longer deadline.
Result<> Client::ensure_attached(Deadline deadline) {
  enter_process();
  const AttachLock lock(locked_by_, deadline);
  if (!lock.held()) {
    return explain(Errc::unavailable,
                   "%s: another thread of this process has waited for the daemon until the deadline, and waits still: "
                   "is stepstashd running?",
                   address_.path());
  }
  if (attached_here() && !resume_needed_.load()) return success();
  auto channel = STEPSTASH_TRY(open_channel(true, deadline));
  give_back(std::move(channel));
  return success();
}

/// Connects and sends Hello, repeatedly until the deadline.
Result<std::unique_ptr<Channel>> Client::open_channel(bool attach, Deadline deadline) {
  for (Backoff backoff;; backoff.pause(deadline)) {
    auto opened = Channel::open(address_, descriptors_);
    if (!opened) {
      const std::error_code error = opened.error();
      if (is_errno(error, EACCES) || is_errno(error, EPERM)) {
        return explain(Errc::not_permitted, "%s: this user may not connect (is it in the socket's group?)",
                       address_.path());
      }
      const bool wait = is_errno(error, EAGAIN) || (nobody_there(error) && ever_connected_.load());
      if (nobody_there(error) && (!wait || passed(deadline))) {
        return explain(Errc::unavailable, "%s: %s: is stepstashd running?", address_.path(), error.message().c_str());
      }
      if (is_errno(error, EMFILE) || is_errno(error, ENFILE)) return error;  // explained; not the socket's fault
      if (!wait) return explain(error, "%s: cannot connect: %s", address_.path(), error.message().c_str());
      if (passed(deadline)) return explain(Errc::unavailable, "%s: the daemon takes no connections", address_.path());
      continue;
    }
    std::unique_ptr<Channel> channel = std::move(opened).value();

    auto reply = channel->call(hello(attach), answer_deadline(deadline));
    if (!reply) {
      // Connected, but no answer to Hello: a daemon that is shutting down, or one that this connection started and that
      // fails.
      if (reply.error() == Errc::unavailable && !passed(deadline)) continue;
      if (reply.error() == Errc::deadline_exceeded) {
        return explain(Errc::unavailable, "%s: connected, but no answer before the deadline", address_.path());
      }
      return reply.error();
    }
    if (const auto* failure = std::get_if<protocol::Failure>(&reply.value())) {
      if (failure->code == Errc::shutting_down && !passed(deadline)) continue;
      if (failure->code == Errc::version_mismatch) {
        return explain(failure->code, "%s (this library is %s; a daemon is upgraded before its clients)",
                       failure->message.c_str(), STEPSTASH_VERSION);
      }
      return failed(*failure);
    }
    STEPSTASH_TRY(greeted(*channel, reply.value(), attach));
    return channel;
  }
}

/// The Hello to send; an attaching one resumes the existing pin page, if any.
protocol::Hello Client::hello(bool attach) const noexcept {
  protocol::Hello hello;
  hello.attach = attach;
  if (attach && attached_here()) {
    const shm::Reader& reader = current_.load(std::memory_order_acquire)->reader;
    hello.resume_page = reader.pin_page();
    hello.resume_segment = reader.segment_id();
  }
  return hello;
}

/// Handles the answer to Hello.
Result<> Client::greeted(Channel& channel, const protocol::Reply& reply, bool attach) {
  const auto* ok = std::get_if<protocol::HelloOk>(&reply);
  if (ok == nullptr) return unexpected_reply("hello");
  if (!includes(protocol::kClientVersions, ok->version)) {
    return explain(Errc::version_mismatch, "the daemon chose protocol version %" PRIu32 ", this library (%s) speaks %s",
                   ok->version, STEPSTASH_VERSION, to_text(protocol::kClientVersions).c_str());
  }
  ever_connected_.store(true);
  STEPSTASH_CRASH_POINT("libclient.hello.answered");
  if (attach) return adopt(channel, *ok);
  const Attachment* attached = current_.load(std::memory_order_acquire);
  // Another segment serves, although our pin page does not say so: attach to it on the next call.
  if (attached == nullptr || ok->segment_id != attached->reader.segment_id()) resume_needed_.store(true);
  return success();
}

/// Takes over what an attaching Hello delivered.
Result<> Client::adopt(Channel& channel, const protocol::HelloOk& hello) {
  if (hello.resumed) {
    if (!attached_here()) return unexpected_reply("hello");
    resume_needed_.store(false);
    return success();
  }
  if (channel.descriptor_count() != 2) {
    return explain(Errc::protocol_error, "the daemon sent %zu descriptors instead of segment and pin page",
                   channel.descriptor_count());
  }
  STEPSTASH_TRY(attach(channel, hello));
  give_back_formers();
  return success();
}

Result<> Client::attach(Channel& channel, const protocol::HelloOk& hello) {
  const NoFork whole;
  auto reader = shm::Reader::attach(channel.take_descriptor(0), channel.take_descriptor(1));
  if (!reader) {
    return explain(reader.error(), "cannot attach the segment of daemon %s with library %s: %s",
                   Quoted(hello.server_version).c_str(), STEPSTASH_VERSION, reader.error().message().c_str());
  }
  reader.value().inherit_segment(false);  // except for views open at a fork (before_fork)
  STEPSTASH_CRASH_POINT("libclient.attach.mapped");
  auto* attachment = new Attachment(std::move(reader).value(), all_.load());
  Attachment* former = current_.load();
  all_.store(attachment);  // under the attach lock: no other thread pushes
  // Release: pairs with find().
  current_.store(attachment, std::memory_order_release);
  STEPSTASH_CRASH_POINT("libclient.attach.current");
  resume_needed_.store(false);
  if (former != nullptr && former->epoch == fork_epoch()) {
    former->reader.supersede();
    // A release stores its pin and then checks the state, without a fence of its own. After this fence either it sees
    // the state, or give_back_formers() sees the pin gone. If the kernel lacks such a fence, memory may stay until the
    // next view of that segment is released or the next segment is attached.
    shm::fence_all_threads();
  }
  return success();
}

// ---- former segments -----------------------------------------------------------------------------------------------

void Client::give_back_formers() noexcept {
  const Attachment* current = current_.load(std::memory_order_acquire);
  for (Attachment* at = all_.load(std::memory_order_acquire); at != nullptr; at = at->next) {
    if (at != current && at->epoch == fork_epoch()) at->give_back();
  }
}

/// One thread at a time. A thread that arrives meanwhile has already released its pin, which the second look sees. If
/// the kernel refuses (RLIMIT_AS, vm.max_map_count), it would refuse again: the next call retries.
void Client::Attachment::give_back() noexcept {
  const NoFork whole;  // otherwise a child could mistake the addresses for its parent's segment
  shm::GivenBack given = shm::GivenBack::pinned;
  do {
    Memory there = Memory::there;
    if (!memory.compare_exchange_strong(there, Memory::looked_at)) return;
    given = reader.give_back();
    memory.store(given == shm::GivenBack::all ? Memory::given_back : Memory::there);
  } while (given == shm::GivenBack::pinned && reader.pins_in_use() == 0);
}

/// The segment says that no daemon serves it (L12): there is none, or one with another segment. Asks at the socket, one
/// thread at a time, and never waits (I6): an answer that is not there yet is checked again at the next look. Hits
/// continue meanwhile.
void Client::look_for_daemon() noexcept {
  const std::int64_t now = coarse_ms();
  std::int64_t due = next_look_ms_.load(std::memory_order_relaxed);
  if (now < due || !next_look_ms_.compare_exchange_strong(due, now + kLookAgain.count())) return;
  const AttachLock lock(locked_by_, std::try_to_lock);
  if (!lock.held()) return;  // another thread is attaching
  try {
    if (!attached_here()) return;  // find() reports it
    next_look_ms_.store(now + look().count());
  } catch (...) {  // out of memory: retry at the next look
  }
}

/// Returns how long to wait for the next look.
std::chrono::milliseconds Client::look() {
  const Deadline at_once = std::chrono::steady_clock::now();
  if (looking_ == nullptr) {
    auto opened = Channel::open(address_, descriptors_);
    if (!opened) return kLookAgain;
    looking_ = std::move(opened).value();
    if (!looking_->send(hello(/*attach=*/true), at_once)) {
      looking_.reset();
      return kLookAgain;
    }
  }
  auto reply = looking_->receive(at_once);
  // The daemon is starting, or busy.
  if (!reply && reply.error() == Errc::deadline_exceeded && looking_->silent()) return kLookAgain;
  std::unique_ptr<Channel> channel = std::move(looking_);
  if (!reply) return kLookAgain;
  if (!greeted(*channel, reply.value(), /*attach=*/true)) return kLookMuchLater;
  give_back(std::move(channel));
  // If the word still says that nobody serves, the daemon cannot set it (no robust futexes).
  return kLookMuchLater;
}

// ---- asking --------------------------------------------------------------------------------------------------------

Result<protocol::Reply> Client::ask(const MakeRequest& make, Deadline deadline, Repeat repeat, const char* what,
                                    std::unique_ptr<Channel>* keep) {
  for (Backoff backoff;; backoff.pause(deadline)) {
    std::unique_ptr<Channel> channel = STEPSTASH_TRY(take(deadline));
    auto reply = channel->call(make(remaining_ms(deadline)), answer_deadline(deadline));
    if (reply) {
      if (const auto* failure = std::get_if<protocol::Failure>(&reply.value())) {
        if (failure->code == Errc::shutting_down && !passed(deadline)) {
          resume_needed_.store(true);
          continue;  // nothing was done: retry with the next daemon
        }
        give_back(std::move(channel));
        return failed(*failure);
      }
      if (keep != nullptr) {
        *keep = std::move(channel);
      } else {
        give_back(std::move(channel));
      }
      return reply;
    }
    const std::error_code error = reply.error();
    const bool acted = channel->sent_any();
    if (error == Errc::deadline_exceeded) {
      return explain(error, "%s: no answer from the daemon before the deadline%s", what,
                     repeat == Repeat::no && acted ? "; whether it was done is unknown" : "");
    }
    if (error != Errc::unavailable) return error;
    resume_needed_.store(true);
    if (repeat == Repeat::no && acted) {
      return explain(error, "%s: the connection broke before the answer; whether it was done is unknown", what);
    }
    if (passed(deadline)) return explain(error, "%s: the daemon closed the connection, again and again", what);
  }
}

// ---- reading -------------------------------------------------------------------------------------------------------

std::error_code Client::closed() const {
  const Attachment* attached = current_.load(std::memory_order_acquire);
  return explain(Errc::too_many,
                 "the views of user %" PRIu32
                 " hold more of the segment than one user may while others find no room: release some",
                 attached == nullptr ? 0 : attached->reader.uid());
}

Result<bool> Client::get(BuildId build, std::string_view name, Milliseconds wait, shm::Pinned& out) {
  shm::Found found = find(build, name, out);
  if (found == shm::Found::resident) return true;
  if (found != shm::Found::superseded) give_back_formers();  // pins that this thread may have held briefly
  if (found == shm::Found::miss) {
    STEPSTASH_TRY(check_key(build, name));  // such a key never exists: say why
    return false;
  }
  const Deadline deadline = deadline_after(wait);
  for (bool asked = false;; found = find(build, name, out)) {
    switch (found) {
      case shm::Found::resident:
        return true;
      case shm::Found::miss:
        return false;
      case shm::Found::superseded:
        STEPSTASH_TRY(ensure_attached(deadline));
        give_back_formers();  // pins that this thread may have held briefly
        continue;
      case shm::Found::closed:
        return closed();
      case shm::Found::no_pin:
        return explain(Errc::too_many, "%zu views are open, and that is all one client can have: release some",
                       shm::kPinsPerPage);
      case shm::Found::corrupt:
        if (asked) {
          return explain(Errc::corrupt_segment, "build %" PRId64 ", name %s: the segment's index is damaged there",
                         build, Quoted(name).c_str());
        }
        break;
      case shm::Found::evicted:
        out.release();
        // It may be evicted again before we look; more than once only with a full segment under heavy load.
        if (asked && passed(deadline)) {
          return explain(Errc::deadline_exceeded, "build %" PRId64 ", name %s: evicted again as often as it was loaded",
                         build, Quoted(name).c_str());
        }
        break;
    }
    STEPSTASH_TRY(check_key(build, name));
    auto loaded = ask(
        [&](std::uint32_t ms) {
          return protocol::Load{build, std::string(name), ms};
        },
        deadline, Repeat::yes, "get");
    if (!loaded && loaded.error() == Errc::not_found) return false;
    if (!loaded) return loaded.error();
    asked = true;
  }
}

Result<bool> Client::stat(BuildId build, std::string_view name, shm::Pinned& out) {
  for (;;) {
    switch (find(build, name, out)) {
      case shm::Found::resident:
      case shm::Found::evicted:
        return true;
      case shm::Found::miss:
        STEPSTASH_TRY(check_key(build, name));
        return false;
      case shm::Found::superseded:
        STEPSTASH_TRY(ensure_attached(deadline_after(deadline_)));
        give_back_formers();
        continue;
      case shm::Found::closed:
        return closed();
      case shm::Found::no_pin:
        return explain(Errc::too_many, "%zu views are open, and that is all one client can have: release some",
                       shm::kPinsPerPage);
      case shm::Found::corrupt:
        return explain(Errc::corrupt_segment, "build %" PRId64 ", name %s: the segment's index is damaged there", build,
                       Quoted(name).c_str());
    }
  }
}

Result<> Client::wait(BuildId build, std::string_view name, Milliseconds wait, shm::Pinned& out) {
  const Deadline deadline = deadline_after(wait);
  for (;;) {
    const bool there = STEPSTASH_TRY(get(build, name, std::max(wait, deadline_), out));
    if (there) return success();
    if (passed(deadline)) {
      return explain(Errc::deadline_exceeded, "build %" PRId64 ", name %s: not found within %lld ms", build,
                     Quoted(name).c_str(), static_cast<long long>(wait.count()));
    }
    auto reply = ask(
        [&](std::uint32_t ms) {
          return protocol::Wait{build, std::string(name), ms};
        },
        deadline, Repeat::yes, "wait");
    if (!reply && reply.error() == Errc::deadline_exceeded) {
      return explain(Errc::deadline_exceeded, "build %" PRId64 ", name %s: not found within %lld ms", build,
                     Quoted(name).c_str(), static_cast<long long>(wait.count()));
    }
    if (!reply) return reply.error();
  }
}

Result<std::vector<EntryInfo>> Client::list(BuildId build, std::optional<std::string_view> only) {
  STEPSTASH_TRY(check_key(build, only.value_or(std::string_view())));
  const Deadline deadline = deadline_after(deadline_);
  for (Backoff backoff;; backoff.pause(deadline)) {
    auto entries = list_once(build, only, deadline);
    if (entries || passed(deadline)) return entries;
    // All pages are from one instant, or there is no list: if it cannot be continued, start over.
    const std::error_code why = entries.error();
    if (why != Errc::unavailable && why != Errc::shutting_down && why != Errc::deadline_exceeded) return entries;
  }
}

/// The pages of a list, all through one connection: the daemon keeps the rest of the list for that connection.
Result<std::vector<EntryInfo>> Client::list_once(BuildId build, std::optional<std::string_view> only,
                                                 Deadline deadline) {
  std::vector<EntryInfo> entries;
  protocol::List request{build, std::nullopt, 0};
  if (only) request.name = std::string(*only);
  std::unique_ptr<Channel> channel;
  auto page = STEPSTASH_TRY(expect<protocol::ListPage>(
      ask([&](std::uint32_t) { return request; }, deadline, Repeat::yes, "list", &channel), "list"));
  for (;;) {
    for (EntryInfo& entry : page.entries) entries.push_back(std::move(entry));
    if (!page.more || page.entries.empty()) break;
    request.after_id = entries.back().id;
    auto reply = channel->call(request, answer_deadline(deadline));
    if (!reply) {
      if (reply.error() == Errc::unavailable) resume_needed_.store(true);
      return reply.error();
    }
    if (const auto* failure = std::get_if<protocol::Failure>(&reply.value())) {
      if (failure->code == Errc::shutting_down) resume_needed_.store(true);
      return failed(*failure);
    }
    page = STEPSTASH_TRY(expect<protocol::ListPage>(std::move(reply), "list"));
  }
  give_back(std::move(channel));
  return entries;
}

Result<std::vector<BuildInfo>> Client::builds() {
  const Deadline deadline = deadline_after(deadline_);
  std::vector<BuildInfo> builds;
  for (protocol::Builds request{};; request.after = builds.back().build) {
    auto page = STEPSTASH_TRY(expect<protocol::BuildsPage>(
        ask([&](std::uint32_t) { return request; }, deadline, Repeat::yes, "builds"), "builds"));
    if (!page.builds.empty() && page.builds.front().build <= request.after) {
      return explain(Errc::protocol_error, "builds: the daemon answered with builds that were not asked for");
    }
    builds.insert(builds.end(), page.builds.begin(), page.builds.end());
    if (!page.more || page.builds.empty()) return builds;
  }
}

// ---- writing -------------------------------------------------------------------------------------------------------

Result<protocol::SetOk> Client::set_inline(const protocol::SetParams& params, std::span<const std::byte> value,
                                           Milliseconds wait) {
  const bool conditional = params.if_absent || params.if_revision != 0;
  protocol::Set request{params, value};
  const auto make = [&](std::uint32_t ms) {
    request.params.deadline_ms = ms;
    return request;
  };
  return expect<protocol::SetOk>(ask(make, deadline_after(wait), conditional ? Repeat::no : Repeat::yes, "set"), "set");
}

Result<std::int64_t> Client::finish(BuildId build, std::optional<std::int64_t> complete_at) {
  STEPSTASH_TRY(check_key(build, {}));
  auto done = STEPSTASH_TRY(expect<protocol::Finished>(ask(
                                                           [&](std::uint32_t) {
                                                             return protocol::Finish{build, complete_at};
                                                           },
                                                           deadline_after(deadline_), Repeat::yes, "finish"),
                                                       "finish"));
  return done.complete_at;
}

Result<std::uint64_t> Client::prune(std::int64_t older_than) {
  auto count = STEPSTASH_TRY(expect<protocol::Count>(
      ask([&](std::uint32_t) { return protocol::Prune{older_than}; }, deadline_after(deadline_), Repeat::no, "prune"),
      "prune"));
  return count.count;
}

Result<std::uint64_t> Client::drop(BuildId build) {
  STEPSTASH_TRY(check_key(build, {}));
  auto count = STEPSTASH_TRY(expect<protocol::Count>(
      ask([&](std::uint32_t) { return protocol::Drop{build}; }, deadline_after(deadline_), Repeat::no, "drop"),
      "drop"));
  return count.count;
}

Result<> Client::hold(BuildId build, bool held) {
  STEPSTASH_TRY(check_key(build, {}));
  STEPSTASH_TRY(expect<protocol::Done>(ask(
                                           [&](std::uint32_t) {
                                             return protocol::HoldBuild{build, held};
                                           },
                                           deadline_after(deadline_), Repeat::yes, "hold"),
                                       "hold"));
  return success();
}

Result<> Client::flush(Milliseconds wait) {
  STEPSTASH_TRY(expect<protocol::Done>(
      ask([&](std::uint32_t ms) { return protocol::Flush{ms}; }, deadline_after(wait), Repeat::yes, "flush"), "flush"));
  return success();
}

Result<std::string> Client::stats() {
  auto text = STEPSTASH_TRY(expect<protocol::Text>(
      ask([&](std::uint32_t) { return protocol::Stats{}; }, deadline_after(deadline_), Repeat::yes, "stats"), "stats"));
  return std::move(text.text);
}

}  // namespace stepstash::client
