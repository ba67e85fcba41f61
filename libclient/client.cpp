#include "libclient/client.hpp"

#include <time.h>

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <utility>

#include "base/crash_point.hpp"
#include "libclient/explain.hpp"
#include "libclient/staged_set.hpp"

namespace stepstash::client {
namespace {

/// Pauses between attempts: 1, 2, 4 ... 50 ms. A restarted daemon is back within about a second.
class Backoff {
 public:
  void pause(Deadline deadline) noexcept {
    const auto left = std::max<std::uint32_t>(remaining_ms(deadline), 1);
    const timespec span{0, long{1'000'000} * std::min(next_ms_, std::min<std::uint32_t>(left, 50))};
    ::nanosleep(&span, nullptr);  // a signal may cut it short: the next attempt is then a little early
    next_ms_ = std::min<std::uint32_t>(next_ms_ * 2, 50);
  }

 private:
  std::uint32_t next_ms_ = 1;
};

bool passed(Deadline deadline) noexcept { return std::chrono::steady_clock::now() >= deadline; }

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

/// Held by whoever cleans up after a fork or attaches. Not a mutex: one that another thread of the parent held at the
/// fork would stay locked in the child for ever. Contention is rare (another segment serves, or the first call after a
/// fork), so waiting is a short sleep.
class Client::AttachLock {
 public:
  explicit AttachLock(std::atomic<std::uint64_t>& holder) noexcept : holder_(holder) {
    const std::uint64_t me = fork_epoch();
    for (;;) {
      std::uint64_t seen = holder_.load();
      if (seen != me && holder_.compare_exchange_strong(seen, me)) return;
      const timespec span{0, 200'000};
      ::nanosleep(&span, nullptr);
    }
  }
  ~AttachLock() { holder_.store(0); }
  AttachLock(const AttachLock&) = delete;
  AttachLock& operator=(const AttachLock&) = delete;

 private:
  std::atomic<std::uint64_t>& holder_;
};

Deadline answer_deadline(Deadline deadline) noexcept {
  // A tenth more, at least 50 ms for a busy machine and at most a second: a daemon that is stopped must not hold us
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
  STEPSTASH_TRY(client->ensure_attached(client->deadline_after(deadline)));
  return client;
}

Client::~Client() {
  enter_process();
  while (take_idle() != nullptr) {
  }
  for (Attachment* at = all_.load(); at != nullptr;) delete std::exchange(at, at->next);
}

// ---- connections ---------------------------------------------------------------------------------------------------

/// In a forked child: drops what belongs to the parent, without a word on its connections. The attachments stay mapped,
/// for the views the parent had opened.
void Client::enter_process() noexcept {
  if (epoch_.load() == fork_epoch()) return;
  AttachLock lock(locked_by_);
  if (epoch_.load() == fork_epoch()) return;
  descriptors_.close_all();
  while (take_idle() != nullptr) {
  }
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
      // A daemon that restarted has closed it: found out here, before a request whose outcome would be unknown.
      if (channel->idle_and_alive()) return channel;
      resume_needed_.store(true);
    }
    if (resume_needed_.load()) continue;
    auto channel = STEPSTASH_TRY(open_channel(false, deadline));
    if (!resume_needed_.load()) return channel;
    // Another segment serves: what is set through this channel must be found by our next get, so attach first.
    give_back(std::move(channel));
  } while (!passed(deadline));
  return explain(Errc::unavailable, "%s: the daemon restarts again and again", address_.path());
}

/// Attaches unless that has been done meanwhile.
Result<> Client::ensure_attached(Deadline deadline) {
  enter_process();
  AttachLock lock(locked_by_);
  if (attached_here() && !resume_needed_.load()) return success();
  auto channel = STEPSTASH_TRY(open_channel(true, deadline));
  give_back(std::move(channel));
  return success();
}

/// Connects and says Hello, again and again until the deadline.
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
      if (!wait) return explain(error, "%s: cannot connect: %s", address_.path(), error.message().c_str());
      if (passed(deadline)) return explain(Errc::unavailable, "%s: the daemon takes no connections", address_.path());
      continue;
    }
    std::unique_ptr<Channel> channel = std::move(opened).value();

    protocol::Hello hello;
    hello.attach = attach;
    const Attachment* attached = current_.load(std::memory_order_acquire);
    if (attach && attached != nullptr && attached->epoch == fork_epoch() && !attached->reader.superseded()) {
      hello.resume_page = attached->reader.pin_page();
      hello.resume_segment = attached->reader.segment_id();
    }
    auto reply = channel->call(hello, answer_deadline(deadline));
    if (!reply) {
      // Connected but not greeted: a daemon that goes down, or one that is started by this very connection and fails.
      if (reply.error() == Errc::unavailable && !passed(deadline)) continue;
      if (reply.error() == Errc::deadline_exceeded) {
        return explain(Errc::unavailable, "%s: connected, but no answer before the deadline", address_.path());
      }
      return reply.error();
    }
    if (const auto* failure = std::get_if<protocol::Failure>(&reply.value())) {
      if (failure->code == Errc::shutting_down && !passed(deadline)) continue;
      return failed(*failure);
    }
    const auto* ok = std::get_if<protocol::HelloOk>(&reply.value());
    if (ok == nullptr) return unexpected_reply("hello");
    if (ok->version != protocol::kVersion) {
      return explain(Errc::version_mismatch, "the daemon speaks protocol version %u, this library %u", ok->version,
                     protocol::kVersion);
    }
    ever_connected_.store(true);
    STEPSTASH_CRASH_POINT("libclient.hello.answered");
    if (attach) {
      STEPSTASH_TRY(adopt(*channel, *ok));
    } else if (attached == nullptr || ok->segment_id != attached->reader.segment_id()) {
      // Another segment than the one we read from, although our pin page does not say so: attach to it on the next
      // call.
      resume_needed_.store(true);
    }
    return channel;
  }
}

/// Takes over what an attaching Hello brought.
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
  auto reader = shm::Reader::attach(channel.take_descriptor(0), channel.take_descriptor(1));
  if (!reader) {
    return explain(reader.error(), "cannot attach the segment of daemon %s with library %s: %s",
                   Quoted(hello.server_version).c_str(), STEPSTASH_VERSION, reader.error().message().c_str());
  }
  STEPSTASH_CRASH_POINT("libclient.attach.mapped");
  auto* attachment = new Attachment{std::move(reader).value(), fork_epoch(), all_.load()};
  all_.store(attachment);  // the attach lock is held: nobody else pushes
  // Release pairs with find().
  current_.store(attachment, std::memory_order_release);
  STEPSTASH_CRASH_POINT("libclient.attach.current");
  resume_needed_.store(false);
  return success();
}

Result<protocol::Reply> Client::ask(const MakeRequest& make, Deadline deadline, Repeat repeat, const char* what,
                                    std::unique_ptr<Channel>* keep) {
  for (Backoff backoff;; backoff.pause(deadline)) {
    std::unique_ptr<Channel> channel = STEPSTASH_TRY(take(deadline));
    auto reply = channel->call(make(remaining_ms(deadline)), answer_deadline(deadline));
    if (reply) {
      if (const auto* failure = std::get_if<protocol::Failure>(&reply.value())) {
        if (failure->code == Errc::shutting_down && !passed(deadline)) {
          resume_needed_.store(true);
          continue;  // nothing was done: the next daemon will
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
  if (found == shm::Found::miss) {
    STEPSTASH_TRY(check_key(build, name));  // such a key is never there: say why
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
        // It may be evicted again before we look; only a full segment under heavy load does that more than once.
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
  std::vector<EntryInfo> entries;
  protocol::List request{build, std::nullopt, 0};
  if (only) request.name = std::string(*only);
  for (;;) {
    auto page = STEPSTASH_TRY(
        expect<protocol::ListPage>(ask([&](std::uint32_t) { return request; }, deadline, Repeat::yes, "list"), "list"));
    for (EntryInfo& entry : page.entries) entries.push_back(std::move(entry));
    if (!page.more || page.entries.empty()) return entries;
    request.after_id = entries.back().id;
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

Result<protocol::SetOk> Client::set(const protocol::SetParams& params, std::span<const std::byte> value,
                                    Milliseconds wait) {
  STEPSTASH_TRY(check_params(params));
  if (value.size() <= protocol::kInlineBytes) return set_inline(params, value, wait);
  const bool conditional = params.if_absent || params.if_revision != 0;
  const Deadline give_up = deadline_after(wait);
  for (Backoff backoff;; backoff.pause(give_up)) {
    auto staged = STEPSTASH_TRY(StagedSet::begin(*this, params, value.size(), wait));
    auto written = staged->write(value);
    Result<protocol::SetOk> committed = written ? staged->commit() : Result<protocol::SetOk>(written.error());
    if (committed) return committed;
    const bool restarts = committed.error() == Errc::unavailable || committed.error() == Errc::shutting_down;
    // Before the commit was sent nothing can have been published: then even a conditional set may be repeated.
    const bool harmless = !conditional || !staged->commit_sent() || committed.error() == Errc::shutting_down;
    if (!restarts || !harmless || passed(give_up)) return committed;
  }
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
