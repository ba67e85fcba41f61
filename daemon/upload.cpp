// SPDX-License-Identifier: Apache-2.0
#include "daemon/upload.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "base/crash_point.hpp"
#include "base/errc.hpp"
#include "daemon/room.hpp"
#include "daemon/store.hpp"
#include "shm/validate.hpp"

namespace stepstash::daemon {
namespace {

/// A piece is this fraction of the ring: while one is copied out, others are filled.
constexpr std::uint32_t kPiecesPerRing = 8;
/// Copied and hashed in slices that fit the second-level cache, so that hashing does not fetch them again.
constexpr std::size_t kSlice = 128 * 1024;
/// Initial room for a value of unknown length.
constexpr std::uint64_t kFirstGuess = 1 << 20;

}  // namespace

// ---- the beginning -------------------------------------------------------------------------------------------------

Result<> Upload::make_ring() {
  const std::uint64_t bytes = services_.config.ring_size;
  Ring ring;
  ring.fd = UniqueFd(::memfd_create("stepstash-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!ring.fd) return last_errno();
  STEPSTASH_CRASH_POINT("daemon.ring.made");
  // Reserved, like all memory that others can make us touch (I8); sealed, so that a client cannot truncate it under us.
  if (const int error = ::posix_fallocate(ring.fd.get(), 0, static_cast<off_t>(bytes)); error != 0) {
    return std::error_code(error, std::system_category());
  }
  STEPSTASH_CRASH_POINT("daemon.ring.reserved");
  if (::fcntl(ring.fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) return last_errno();
  STEPSTASH_CRASH_POINT("daemon.ring.sealed");
  ring.mapping = STEPSTASH_TRY(shm::Mapping::map(ring.fd.get(), bytes, shm::Mapping::Access::read_only));
  ring_ = std::move(ring);
  row_.set_ring(true);
  STEPSTASH_CRASH_POINT("daemon.ring.mapped");
  return success();
}

void Upload::start(protocol::SetBegin begin, OwnedDraft draft) {
  row_.begin(std::move(draft));
  params_ = std::move(begin.params);
  length_ = begin.length;
  hash_ = shm::StreamHash();
}

awaitable<bool> Upload::begin(protocol::SetBegin begin) {
  Waiter& waiter = link_.waiter();
  const TimePoint deadline = deadline_after(begin.params.deadline_ms);
  if (!ring_) {
    UploadTable& uploads = services_.store.room().uploads();
    auto free = co_await uploads.wait_for_ring(services_.config.max_rings, waiter, deadline);
    if (!free && free.error() == Errc::shutting_down) {
      co_return co_await link_.send_failure(free.error(), "the daemon is stopping");
    }
    if (!free) {
      co_return co_await link_.send_failure(
          free.error(), fmt::format("all {} staging rings are in use (max_rings)", uploads.rings()));
    }
    if (auto made = make_ring(); !made) {
      co_return co_await link_.send_failure(made.error(), "no staging ring: " + made.error().message());
    }
  }
  const std::uint64_t first = begin.length != protocol::kUnknownLength ? begin.length : kFirstGuess;
  auto draft = co_await services_.store.reserve(begin.params, first, waiter, deadline);
  if (!draft) co_return co_await link_.send(protocol::Reply(services_.failure(draft.error(), first)));
  start(std::move(begin), std::move(draft).value());
  STEPSTASH_CRASH_POINT("daemon.staged.room.found");

  protocol::SetReady ready;
  ready.ring_bytes = static_cast<std::uint32_t>(ring_->mapping.size());
  ready.piece_bytes = ready.ring_bytes / kPiecesPerRing;
  if (ring_->sent) co_return co_await link_.send(protocol::Reply(ready));
  ready.ring_attached = true;
  ring_->sent = true;
  const int descriptors[] = {ring_->fd.get()};
  const bool sent = co_await link_.send_with_descriptors(protocol::Reply(ready), descriptors);
  ring_->fd.reset();
  co_return sent;
}

// ---- pieces --------------------------------------------------------------------------------------------------------

bool Upload::add(const protocol::Piece& piece) {
  pieces_.push_back(piece);
  return pieces_.size() >= kPiecesPerRing;  // more than the ring holds cannot be outstanding
}

protocol::Failure Upload::wrong_length(std::uint64_t bytes) const {
  return {Errc::invalid_argument, fmt::format("{} bytes came of a value that was announced with {}", bytes, length_)};
}

awaitable<bool> Upload::copy() {
  link_.set_work(Link::Work::answering);
  std::uint64_t total = 0;
  for (const protocol::Piece& piece : pieces_) {
    if (piece.bytes == 0 || piece.bytes > ring_->mapping.size() ||
        piece.ring_offset > ring_->mapping.size() - piece.bytes) {
      row_.fail({Errc::protocol_error, fmt::format("a piece of {} bytes at {} lies outside the ring of {} bytes",
                                                   piece.bytes, piece.ring_offset, ring_->mapping.size())});
    }
    total += piece.bytes;
  }
  std::uint64_t bytes = row_.bytes();
  const std::uint64_t needed = bytes + total;
  if (!row_.failure()) {
    if (known() && needed > length_) {
      row_.fail(wrong_length(needed));
    } else if (auto room = co_await grow(needed); !room) {
      row_.fail(services_.failure(room.error(), needed));
    }
  }
  if (!row_.failure()) {
    auto job = [this]() { return copy_pieces(); };
    const Result<> copied = co_await with_pages(job, row_.draft(), needed);
    if (!copied) row_.fail(services_.failure(copied.error(), needed));
  }
  for (const protocol::Piece& piece : pieces_) {
    bytes += piece.bytes;
    if (row_.failure()) {
      link_.add(protocol::Reply(*row_.failure()));
    } else {
      link_.add(protocol::Reply(protocol::PieceDone{bytes}));
    }
  }
  if (!row_.failure()) row_.add(total);
  row_.start_clock();
  STEPSTASH_CRASH_POINT("daemon.staged.pieces.taken");
  pieces_.clear();
  link_.set_work(Link::Work::none);
  co_return co_await link_.write_out();
}

/// Runs `job` on a copier's thread; repeats it whenever it found no pages for the first `bytes` bytes of `draft`, until
/// it has them.
template <class Job>
awaitable<Result<>> Upload::with_pages(Job job, OwnedDraft& draft, std::uint64_t bytes) {
  Room& room = services_.store.room();
  const TimePoint deadline = growth_deadline();
  for (;;) {
    const Result<> done = co_await run_on(services_.copiers, job);
    room.promise_pages(draft, known() ? length_ : bytes);
    if (done) co_return success();
    auto again = co_await room.wait_for_pages(done.error(), 0, link_.waiter(), deadline);
    if (!again) co_return again.error();
  }
}

TimePoint Upload::growth_deadline() const {
  return std::min(deadline_after(params_.deadline_ms), std::chrono::steady_clock::now() + kIdle);
}

/// On a copier's thread, while the coroutine waits.
Result<> Upload::copy_pieces() {
  shm::Draft& draft = *row_.draft();
  std::uint64_t at = row_.bytes();
  std::uint64_t end = at;
  for (const protocol::Piece& piece : pieces_) end += piece.bytes;
  STEPSTASH_TRY(services_.segment.reserve(draft, end));  // all of it first: after a failure this can be repeated
  STEPSTASH_CRASH_POINT("daemon.staged.pages.reserved");
  for (const protocol::Piece& piece : pieces_) {
    const std::span<std::byte> to = services_.segment.value_bytes(draft);
    const std::byte* from = ring_->mapping.data() + piece.ring_offset;
    for (std::size_t done = 0; done < piece.bytes;) {
      const std::size_t slice = std::min<std::size_t>(kSlice, piece.bytes - done);
      std::memcpy(to.data() + at, from + done, slice);
      // Hash the copy, not the ring: the client may change the ring at any time.
      hash_.update(to.subspan(at, slice));
      STEPSTASH_CRASH_POINT("daemon.staged.slice.copied");
      at += slice;
      done += slice;
    }
  }
  return success();
}

/// Makes sure that the draft holds `needed` bytes: in place if the memory behind it is free, otherwise elsewhere at
/// twice the size.
awaitable<Result<>> Upload::grow(std::uint64_t needed) {
  Room& room = services_.store.room();
  Waiter& waiter = link_.waiter();
  OwnedDraft& draft = row_.draft();
  if (needed <= draft->capacity) co_return success();
  const std::uint64_t doubled = std::min(std::max(needed, 2 * draft->capacity), room.max_value_bytes());
  if (needed > doubled) co_return Errc::too_large;
  const TimePoint deadline = growth_deadline();
  auto extended = room.extend(draft, doubled);
  while (!extended) {
    auto again = co_await room.wait_for_pages(extended.error(), shm::kPageBytes, waiter, deadline);
    if (!again) co_return again.error();
    extended = room.extend(draft, doubled);
  }
  STEPSTASH_CRASH_POINT("daemon.staged.room.extended");
  if (extended.value()) co_return success();
  auto larger = co_await services_.store.reserve(params_, doubled, waiter, deadline);
  if (!larger && needed < doubled) larger = co_await services_.store.reserve(params_, needed, waiter, deadline);
  if (!larger) co_return larger.error();
  OwnedDraft to = std::move(larger).value();
  const std::uint64_t bytes = row_.bytes();
  auto job = [this, &to, &draft, bytes]() -> Result<> {
    STEPSTASH_TRY(services_.segment.reserve(*to, bytes));
    std::memcpy(services_.segment.value_bytes(*to).data(), services_.segment.value_bytes(*draft).data(), bytes);
    return success();
  };
  const Result<> copied = co_await with_pages(job, to, bytes);
  if (!copied) co_return copied.error();
  STEPSTASH_CRASH_POINT("daemon.staged.value.moved");
  draft = std::move(to);
  co_return success();
}

// ---- the end -------------------------------------------------------------------------------------------------------

awaitable<protocol::Reply> Upload::commit() {
  const std::optional<protocol::Failure> failed = row_.failure();
  const std::uint64_t bytes = row_.bytes();
  OwnedDraft draft = std::move(row_.draft());
  row_.end();
  if (failed) co_return *failed;
  if (known() && bytes != length_) co_return wrong_length(bytes);
  const TimePoint deadline = deadline_after(params_.deadline_ms);
  for (;;) {
    const auto reserved = services_.segment.reserve(*draft, bytes);
    services_.store.room().promise_pages(draft, bytes);
    if (reserved) break;
    auto again = co_await services_.store.room().wait_for_pages(reserved.error(), 0, link_.waiter(), deadline);
    if (!again) co_return services_.failure(again.error(), bytes);
  }
  STEPSTASH_CRASH_POINT("daemon.staged.commit.due");
  auto done =
      co_await services_.store.publish(params_, std::move(draft), bytes, hash_.digest(), link_.waiter(), deadline);
  if (!done) co_return services_.failure(done.error(), bytes);
  co_return done.value();
}

void Upload::close() {
  row_.end();
  ring_.reset();
  row_.set_ring(false);
}

}  // namespace stepstash::daemon
