// SPDX-License-Identifier: Apache-2.0
#include "libclient/staged_set.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/crash_point.hpp"
#include "libclient/backoff.hpp"
#include "libclient/explain.hpp"

namespace stepstash::client {
namespace {

/// Maximum bytes of one piece. Small enough that a piece is still in the cache when the daemon copies it, large enough
/// that the wake-ups cost little.
constexpr std::uint32_t kPieceBytes = 512 * 1024;
constexpr std::uint32_t kMinSlots = 4;

}  // namespace

StagedSet::StagedSet(Client& client, protocol::SetParams params, std::uint64_t length, Milliseconds deadline)
    : client_(client), params_(std::move(params)), length_(length), deadline_(deadline), epoch_(fork_epoch()) {}

Result<std::unique_ptr<StagedSet>> StagedSet::begin(Client& client, protocol::SetParams params, std::uint64_t length,
                                                    Milliseconds deadline) {
  STEPSTASH_TRY(check_params(params));
  std::unique_ptr<StagedSet> staged(new StagedSet(client, std::move(params), length, deadline));
  if (length != protocol::kUnknownLength && length > protocol::kInlineBytes) STEPSTASH_TRY(staged->open_ring());
  return staged;
}

StagedSet::~StagedSet() { abort(); }

/// Tells the daemon to discard the value and makes the channel ready for another request. After an error the channel is
/// closed instead, with the same effect: what was sent ahead is refused in ways not worth tracking.
void StagedSet::abort() noexcept {
  if (channel_ == nullptr) return;
  std::unique_ptr<Channel> channel = std::move(channel_);
  if (!open_at_daemon_ || epoch_ != fork_epoch() || error_ || commit_sent_) return;
  try {
    const Deadline soon = client_.deadline_after(std::min(deadline_, Milliseconds(1000)));
    if (!channel->send(protocol::SetAbort{}, soon)) return;
    for (std::uint64_t due = sent_pieces_ - done_pieces_ + (ready_pending_ ? 1 : 0); due > 0; --due) {
      auto reply = channel->receive(soon);
      if (!reply || std::holds_alternative<protocol::Failure>(reply.value())) return;
    }
    auto reply = channel->receive(soon);
    if (reply && std::holds_alternative<protocol::Done>(reply.value())) client_.give_back(std::move(channel));
  } catch (...) {  // out of memory: closing is sufficient
  }
}

std::error_code StagedSet::fail(std::error_code error) noexcept { return error_ = error; }

Result<> StagedSet::usable() const {
  if (epoch_ != fork_epoch()) {
    return explain(Errc::invalid_argument, "this writer was opened before a fork and belongs to the parent");
  }
  if (error_) return error_;
  return success();
}

/// Announces the set. On a channel whose ring is already mapped, does not wait for the answer: the pieces follow at
/// once, and receive() finds the SetReady before their PieceDones. For 1 MiB that saves one of three round trips.
Result<> StagedSet::open_ring() {
  const auto request = [&](std::uint32_t ms) {
    protocol::SetBegin begin{params_, length_};
    begin.params.deadline_ms = ms;
    return begin;
  };
  const Deadline deadline = client_.deadline_after(deadline_);
  auto channel = client_.take_with_ring();
  if (channel != nullptr && channel->send(request(remaining_ms(deadline)), deadline)) {
    channel_ = std::move(channel);
    ready_pending_ = true;
  } else {
    channel.reset();  // its daemon is gone: the slow path tries to reconnect
    auto reply = client_.ask(request, deadline, Client::Repeat::yes, "set", &channel_);
    if (!reply) return fail(reply.error());
    STEPSTASH_TRY(on_ready(reply.value()));
  }
  open_at_daemon_ = true;
  STEPSTASH_CRASH_POINT("libclient.staged.begun");
  const Channel::Ring& ring = channel_->ring();
  piece_bytes_ = std::min({ring.piece_bytes, kPieceBytes, std::max(ring.bytes / kMinSlots, std::uint32_t{1})});
  slots_ = ring.bytes / piece_bytes_;

  // Send the buffered bytes first. There are at most kInlineBytes; a ring larger than that has room for all of them.
  std::vector<std::byte> collected = std::exchange(small_, {});
  const auto total = std::exchange(total_, 0);
  return write(std::span(collected).first(total));
}

Result<> StagedSet::on_ready(const protocol::Reply& reply) {
  const auto* ready = std::get_if<protocol::SetReady>(&reply);
  if (ready == nullptr) {
    return fail(explain(Errc::protocol_error, "set: the daemon answered with another kind of reply"));
  }
  if (auto adopted = channel_->adopt_ring(*ready); !adopted) return fail(adopted.error());
  return success();
}

Result<std::span<std::byte>> StagedSet::buffer() {
  STEPSTASH_TRY(usable());
  if (missing() == 0) {
    return explain(Errc::invalid_argument, "all %llu bytes that were announced are there",
                   static_cast<unsigned long long>(length_));
  }
  if (channel_ == nullptr) {
    if (small_.empty()) small_.resize(std::min<std::uint64_t>(length_, protocol::kInlineBytes));
    if (total_ < small_.size()) return std::span(small_).subspan(total_);
    STEPSTASH_TRY(open_ring());  // the value is large after all
  }
  while (sent_pieces_ - done_pieces_ >= slots_) STEPSTASH_TRY(receive_done());
  const Channel::Ring& ring = channel_->ring();
  std::byte* slot = ring.mapping.data() + (sent_pieces_ % slots_) * piece_bytes_;
  return std::span(slot + filled_, std::min<std::uint64_t>(piece_bytes_ - filled_, missing()));
}

Result<> StagedSet::advance(std::size_t bytes) {
  STEPSTASH_TRY(usable());
  const std::uint64_t room = std::min<std::uint64_t>(
      missing(),
      channel_ == nullptr ? small_.size() - std::min<std::uint64_t>(total_, small_.size()) : piece_bytes_ - filled_);
  if (bytes > room) {
    return explain(Errc::invalid_argument, "%zu bytes were filled in where there was room for %llu", bytes,
                   static_cast<unsigned long long>(room));
  }
  total_ += bytes;
  if (channel_ == nullptr) return success();
  filled_ += static_cast<std::uint32_t>(bytes);
  STEPSTASH_CRASH_POINT("libclient.staged.bytes_filled");
  if (filled_ == piece_bytes_) STEPSTASH_TRY(send_piece());
  return success();
}

Result<> StagedSet::write(std::span<const std::byte> bytes) {
  if (bytes.size() > missing()) {
    return explain(Errc::invalid_argument, "%llu bytes were announced, and %llu more than that came",
                   static_cast<unsigned long long>(length_), static_cast<unsigned long long>(bytes.size() - missing()));
  }
  while (!bytes.empty()) {
    const auto room = STEPSTASH_TRY(buffer());
    const std::size_t count = std::min(room.size(), bytes.size());
    std::memcpy(room.data(), bytes.data(), count);
    STEPSTASH_TRY(advance(count));
    bytes = bytes.subspan(count);
  }
  return success();
}

Result<> StagedSet::send_piece() {
  const auto slot = static_cast<std::uint32_t>(sent_pieces_ % slots_);
  const protocol::Piece piece{slot * piece_bytes_, filled_};
  STEPSTASH_TRY(send(piece));
  STEPSTASH_CRASH_POINT("libclient.staged.piece_sent");
  ++sent_pieces_;
  filled_ = 0;
  return success();
}

Result<> StagedSet::send(const protocol::Request& request) {
  auto sent = channel_->send(request, client_.deadline_after(deadline_));
  if (sent) return sent;
  // A daemon that refused what was sent before says why and closes: the reason is among the replies not read yet.
  while (sent.error() == Errc::unavailable && (ready_pending_ || done_pieces_ < sent_pieces_)) {
    STEPSTASH_TRY(receive_done());
  }
  // Or it came unsolicited: the daemon aborted a stalled set.
  if (sent.error() == Errc::unavailable) STEPSTASH_TRY(receive());
  return fail(sent.error());
}

/// The next reply, whatever it answers; a Failure becomes an error.
Result<protocol::Reply> StagedSet::receive() {
  auto reply = channel_->receive(answer_deadline(client_.deadline_after(deadline_)));
  if (!reply && reply.error() == Errc::deadline_exceeded) {
    return fail(explain(reply.error(), "set: no answer from the daemon for %lld ms, after %llu bytes%s",
                        static_cast<long long>(deadline_.count()), static_cast<unsigned long long>(total_),
                        commit_sent_ ? "; whether it was done is unknown" : ""));
  }
  if (!reply && reply.error() == Errc::unavailable) {
    return fail(explain(reply.error(), "set: the connection broke after %llu bytes%s",
                        static_cast<unsigned long long>(total_),
                        commit_sent_ ? "; whether it was done is unknown" : ""));
  }
  if (!reply) return fail(reply.error());
  if (const auto* failure = std::get_if<protocol::Failure>(&reply.value())) return fail(failed(*failure));
  return reply;
}

/// Receives one answer to one piece; before the first of them, the answer to SetBegin.
Result<> StagedSet::receive_done() {
  if (ready_pending_) {
    const protocol::Reply reply = STEPSTASH_TRY(receive());
    ready_pending_ = false;
    STEPSTASH_TRY(on_ready(reply));
  }
  if (done_pieces_ == sent_pieces_) return success();
  const protocol::Reply reply = STEPSTASH_TRY(receive());
  ++done_pieces_;
  if (!std::holds_alternative<protocol::PieceDone>(reply)) {
    return fail(explain(Errc::protocol_error, "set: a piece was answered with another kind of reply"));
  }
  return success();
}

Result<protocol::SetOk> StagedSet::commit() {
  STEPSTASH_TRY(usable());
  if (length_ != protocol::kUnknownLength && missing() != 0) {
    return explain(Errc::invalid_argument, "%llu bytes were announced, and %llu came",
                   static_cast<unsigned long long>(length_), static_cast<unsigned long long>(total_));
  }
  if (channel_ == nullptr) {
    commit_sent_ = true;
    return client_.set_inline(params_, std::span(small_).first(total_), deadline_);
  }
  if (filled_ > 0) STEPSTASH_TRY(send_piece());
  // Sent after the last piece without waiting for its answer: the daemon handles them in order.
  commit_sent_ = true;
  STEPSTASH_TRY(send(protocol::SetCommit{}));
  STEPSTASH_CRASH_POINT("libclient.staged.commit_sent");
  while (ready_pending_ || done_pieces_ < sent_pieces_) STEPSTASH_TRY(receive_done());
  const protocol::Reply reply = STEPSTASH_TRY(receive());
  const auto* ok = std::get_if<protocol::SetOk>(&reply);
  if (ok == nullptr) return fail(explain(Errc::protocol_error, "set: the daemon answered with another kind of reply"));
  STEPSTASH_CRASH_POINT("libclient.staged.commit_answered");
  open_at_daemon_ = false;
  client_.give_back(std::move(channel_));
  return *ok;
}

Result<protocol::SetOk> set_value(Client& client, const protocol::SetParams& params, std::span<const std::byte> value,
                                  Milliseconds wait) {
  STEPSTASH_TRY(check_params(params));
  if (value.size() <= protocol::kInlineBytes) return client.set_inline(params, value, wait);
  const bool conditional = params.if_absent || params.if_revision != 0;
  const Deadline give_up = client.deadline_after(wait);
  for (Backoff backoff;; backoff.pause(give_up)) {
    auto staged = STEPSTASH_TRY(StagedSet::begin(client, params, value.size(), wait));
    auto written = staged->write(value);
    Result<protocol::SetOk> committed = written ? staged->commit() : Result<protocol::SetOk>(written.error());
    if (committed) return committed;
    const bool restarts = committed.error() == Errc::unavailable || committed.error() == Errc::shutting_down;
    // Before the commit was sent nothing can have been published, so even a conditional set may be repeated.
    const bool harmless = !conditional || !staged->commit_sent() || committed.error() == Errc::shutting_down;
    if (!restarts || !harmless || passed(give_up)) return committed;
  }
}

}  // namespace stepstash::client
