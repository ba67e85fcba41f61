// SPDX-License-Identifier: Apache-2.0
/// Encodes and decodes messages as docs/protocol.md draws them: little-endian, fixed fields first, then the texts.
#include <algorithm>
#include <cassert>
#include <cstring>
#include <string_view>
#include <type_traits>

#include "protocol/frame.hpp"

namespace stepstash::protocol {
namespace {

/// The type numbers on the wire. Never renumbered; a retired number stays unused.
enum class Type : std::uint16_t {
  hello = 1,
  set = 2,
  set_begin = 3,
  piece = kPieceType,
  set_commit = 5,
  set_abort = 6,
  load = 7,
  wait = 8,
  list = 9,
  finish = 10,
  prune = 11,
  drop = 12,
  hold_build = 13,
  flush = 14,
  stats = 15,
  builds = 16,

  hello_ok = 129,
  set_ok = 130,
  set_ready = 131,
  piece_done = 132,
  list_page = 133,
  count = 134,
  finished = 135,
  text = 136,
  done = 137,
  failure = 138,
  builds_page = 139,
};

constexpr std::size_t kMaxVersionBytes = 256;  // of HelloOk's server_version
constexpr std::uint32_t kFlag0 = 1, kFlag1 = 2;

// ---- writing -------------------------------------------------------------------------------------------------------

class Encoder {
 public:
  Encoder(std::vector<std::byte>& out, Type type) : out_(out), start_(out.size()) {
    u32(0);
    u16(static_cast<std::uint16_t>(type));
    u16(0);
  }
  /// Fills in the head's length: the bytes written, plus `follows` bytes that the caller adds.
  void finish(std::size_t follows = 0) {
    const std::size_t payload = out_.size() - start_ - kHeadBytes + follows;
    assert(payload <= kMaxPayload);
    for (unsigned i = 0; i < 4; ++i) out_[start_ + i] = static_cast<std::byte>(payload >> 8 * i);
  }

  void u16(std::uint16_t v) { little(v); }
  void u32(std::uint32_t v) { little(v); }
  void u64(std::uint64_t v) { little(v); }
  void i64(std::int64_t v) { little(static_cast<std::uint64_t>(v)); }
  void bytes(std::string_view text) { bytes(std::as_bytes(std::span(text))); }
  void bytes(std::span<const std::byte> span) { out_.insert(out_.end(), span.begin(), span.end()); }

 private:
  template <class U>
  void little(U v) {
    for (std::size_t i = 0; i < sizeof v; ++i) out_.push_back(static_cast<std::byte>(v >> 8 * i));
  }
  std::vector<std::byte>& out_;
  std::size_t start_;
};

std::uint16_t short_size(std::string_view text) {
  assert(text.size() <= kMaxNameBytes);
  return static_cast<std::uint16_t>(text.size());
}

/// At most `limit` bytes of `text`, without splitting a UTF-8 sequence.
std::string_view cut(std::string_view text, std::size_t limit) {
  if (text.size() <= limit) return text;
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xC0) == 0x80) --limit;
  return text.substr(0, limit);
}

void put_params(Encoder& e, const SetParams& p) {
  e.i64(p.build);
  e.u32((p.durable ? kFlag0 : 0) | (p.if_absent ? kFlag1 : 0));
  e.u32(p.deadline_ms);
  e.u64(p.if_revision);
  e.u16(short_size(p.name));
  e.u16(short_size(p.source));
}

void put_set(const Set& m, std::vector<std::byte>& out, bool with_value) {
  assert(m.value.size() <= kInlineBytes);
  Encoder e(out, Type::set);
  put_params(e, m.params);
  e.u32(static_cast<std::uint32_t>(m.value.size()));
  e.bytes(m.params.name);
  e.bytes(m.params.source);
  if (with_value) e.bytes(m.value);
  e.finish(with_value ? 0 : m.value.size());
}

void put(const Hello& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::hello);
  e.u64(kHelloMagic);
  e.u32(m.versions.newest);
  e.u32(m.attach ? kFlag0 : 0);
  e.bytes(std::as_bytes(std::span(m.resume_segment)));
  e.u32(m.resume_page);
  if (m.versions.newest >= kFirstRange) e.u32(m.versions.oldest);
  e.finish();
}
void put(const Set& m, std::vector<std::byte>& out) { put_set(m, out, true); }
void put(const SetBegin& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::set_begin);
  put_params(e, m.params);
  e.u32(0);
  e.u64(m.length);
  e.bytes(m.params.name);
  e.bytes(m.params.source);
  e.finish();
}
void put(const Piece& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::piece);
  e.u32(m.ring_offset);
  e.u32(m.bytes);
  e.finish();
}
void put(const SetCommit&, std::vector<std::byte>& out) { Encoder(out, Type::set_commit).finish(); }
void put(const SetAbort&, std::vector<std::byte>& out) { Encoder(out, Type::set_abort).finish(); }
void put(const Load& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::load);
  e.i64(m.build);
  e.u32(m.deadline_ms);
  e.u32(short_size(m.name));
  e.bytes(m.name);
  e.finish();
}
void put(const Wait& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::wait);
  e.i64(m.build);
  e.u32(m.deadline_ms);
  e.u32(short_size(m.name));
  e.bytes(m.name);
  e.finish();
}
void put(const List& m, std::vector<std::byte>& out) {
  const std::string_view name = m.name ? std::string_view(*m.name) : std::string_view();
  Encoder e(out, Type::list);
  e.i64(m.build);
  e.u64(m.after_id);
  e.u32(m.name ? kFlag0 : 0);
  e.u32(short_size(name));
  e.bytes(name);
  e.finish();
}
void put(const Finish& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::finish);
  e.i64(m.build);
  e.i64(m.complete_at.value_or(0));
  e.u32(m.complete_at ? kFlag0 : 0);
  e.finish();
}
void put(const Prune& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::prune);
  e.i64(m.older_than);
  e.finish();
}
void put(const Drop& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::drop);
  e.i64(m.build);
  e.finish();
}
void put(const HoldBuild& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::hold_build);
  e.i64(m.build);
  e.u32(m.held ? kFlag0 : 0);
  e.finish();
}
void put(const Flush& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::flush);
  e.u32(m.deadline_ms);
  e.finish();
}
void put(const Stats&, std::vector<std::byte>& out) { Encoder(out, Type::stats).finish(); }
void put(const Builds& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::builds);
  e.i64(m.after);
  e.finish();
}

void put(const HelloOk& m, std::vector<std::byte>& out) {
  const std::string_view server = cut(m.server_version, kMaxVersionBytes);
  Encoder e(out, Type::hello_ok);
  e.u32(m.version);
  e.u32(m.resumed ? kFlag0 : 0);
  e.bytes(std::as_bytes(std::span(m.segment_id)));
  e.u64(m.segment_bytes);
  e.u64(m.max_value_bytes);
  e.u32(m.pin_page);
  e.u32(static_cast<std::uint32_t>(server.size()));
  e.bytes(server);
  e.finish();
}
void put(const SetOk& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::set_ok);
  e.u64(m.id);
  e.u64(m.revision);
  e.finish();
}
void put(const SetReady& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::set_ready);
  e.u32(m.ring_bytes);
  e.u32(m.piece_bytes);
  e.u32(m.ring_attached ? kFlag0 : 0);
  e.finish();
}
void put(const PieceDone& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::piece_done);
  e.u64(m.received);
  e.finish();
}
void put(const ListPage& m, std::vector<std::byte>& out) {
  assert(m.entries.size() <= kListPageEntries);
  Encoder e(out, Type::list_page);
  e.u32(m.more ? kFlag0 : 0);
  e.u32(static_cast<std::uint32_t>(m.entries.size()));
  for (const EntryInfo& entry : m.entries) {
    e.u64(entry.id);
    e.u64(entry.revision);
    e.i64(entry.buildid);
    e.u64(entry.length);
    e.u16(short_size(entry.name));
    e.u16(short_size(entry.source));
    e.bytes(entry.name);
    e.bytes(entry.source);
  }
  e.finish();
}
void put(const Count& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::count);
  e.u64(m.count);
  e.finish();
}
void put(const Finished& m, std::vector<std::byte>& out) {
  Encoder e(out, Type::finished);
  e.i64(m.complete_at);
  e.finish();
}
void put(const Text& m, std::vector<std::byte>& out) {
  const std::string_view text = cut(m.text, kMaxPayload - 4);
  Encoder e(out, Type::text);
  e.u32(static_cast<std::uint32_t>(text.size()));
  e.bytes(text);
  e.finish();
}
void put(const Done&, std::vector<std::byte>& out) { Encoder(out, Type::done).finish(); }
void put(const BuildsPage& m, std::vector<std::byte>& out) {
  assert(m.builds.size() <= kBuildsPageRows);
  Encoder e(out, Type::builds_page);
  e.u32(m.more ? kFlag0 : 0);
  e.u32(static_cast<std::uint32_t>(m.builds.size()));
  for (const BuildInfo& build : m.builds) {
    e.i64(build.build);
    e.u64(build.entries);
    e.u64(build.resident_bytes);
    e.u64(build.evicted_bytes);
    e.i64(build.complete_at.value_or(0));
    e.u32((build.complete_at ? kFlag0 : 0) | (build.held ? kFlag1 : 0));
  }
  e.finish();
}
void put(const Failure& m, std::vector<std::byte>& out) {
  const std::string_view text = cut(m.message, kMaxPayload - 8);
  Encoder e(out, Type::failure);
  e.u32(static_cast<std::uint32_t>(m.code));
  e.u32(static_cast<std::uint32_t>(text.size()));
  e.bytes(text);
  e.finish();
}

// ---- reading -------------------------------------------------------------------------------------------------------

/// Reads fields from the front of a payload. A missing field reads as zero and is remembered: good() at the end says
/// whether every field was there, every check held and nothing is left over.
class Decoder {
 public:
  explicit Decoder(std::span<const std::byte> payload) noexcept : rest_(payload) {}

  std::uint16_t u16() noexcept { return little<std::uint16_t>(); }
  std::uint32_t u32() noexcept { return little<std::uint32_t>(); }
  std::uint64_t u64() noexcept { return little<std::uint64_t>(); }
  std::int64_t i64() noexcept { return static_cast<std::int64_t>(little<std::uint64_t>()); }
  std::span<const std::byte> bytes(std::size_t count) noexcept {
    if (count > rest_.size()) {
      good_ = false;
      return {};
    }
    const auto taken = rest_.first(count);
    rest_ = rest_.subspan(count);
    return taken;
  }
  std::string text(std::size_t count, std::size_t limit) {
    require(count <= limit);
    if (!good_) return {};
    const auto taken = bytes(count);
    return {reinterpret_cast<const char*>(taken.data()), taken.size()};
  }
  SegmentId segment_id() noexcept {
    SegmentId id{};
    const auto taken = bytes(id.size());
    if (!taken.empty()) std::memcpy(id.data(), taken.data(), id.size());
    return id;
  }
  /// A flags word in which only `known` bits may be set.
  std::uint32_t flags(std::uint32_t known) noexcept {
    const std::uint32_t word = u32();
    require((word & ~known) == 0);
    return word;
  }
  void require(bool holds) noexcept { good_ = good_ && holds; }
  void skip_rest() noexcept { rest_ = {}; }
  bool good() const noexcept { return good_ && rest_.empty(); }
  bool good_so_far() const noexcept { return good_; }

 private:
  template <class U>
  U little() noexcept {
    const auto taken = bytes(sizeof(U));
    U value = 0;
    for (std::size_t i = 0; i < taken.size(); ++i) {
      value = static_cast<U>(value | static_cast<U>(std::to_integer<U>(taken[i]) << 8 * i));
    }
    return value;
  }
  std::span<const std::byte> rest_;
  bool good_ = true;
};

struct ParamSizes {
  std::size_t name = 0, source = 0;
};
ParamSizes take_params(Decoder& d, SetParams& p) noexcept {
  p.build = d.i64();
  const std::uint32_t flags = d.flags(kFlag0 | kFlag1);
  p.durable = (flags & kFlag0) != 0;
  p.if_absent = (flags & kFlag1) != 0;
  p.deadline_ms = d.u32();
  p.if_revision = d.u64();
  const std::size_t name = d.u16();
  const std::size_t source = d.u16();
  return {name, source};
}
void take_texts(Decoder& d, SetParams& p, ParamSizes sizes) {
  p.name = d.text(sizes.name, kMaxNameBytes);
  p.source = d.text(sizes.source, kMaxSourceBytes);
}

void take(Decoder& d, Hello& m) noexcept {
  d.require(d.u64() == kHelloMagic);
  m.versions.newest = m.versions.oldest = d.u32();
  if (d.good_so_far() && m.versions.newest < kDaemonVersions.oldest) return d.skip_rest();  // refused: unknown fields
  // A newer client may speak a version of ours as well: what it has in addition is not for us.
  const bool newer = m.versions.newest > kVersion;
  m.attach = ((newer ? d.u32() : d.flags(kFlag0)) & kFlag0) != 0;
  m.resume_segment = d.segment_id();
  m.resume_page = d.u32();
  if (m.versions.newest >= kFirstRange) m.versions.oldest = d.u32();
  d.require(m.versions.oldest <= m.versions.newest);
  if (newer) d.skip_rest();
}
void take(Decoder& d, Set& m) {
  const ParamSizes sizes = take_params(d, m.params);
  const std::size_t value = d.u32();
  d.require(value <= kInlineBytes);
  take_texts(d, m.params, sizes);
  m.value = d.bytes(value);
}
void take(Decoder& d, SetBegin& m) {
  const ParamSizes sizes = take_params(d, m.params);
  d.flags(0);
  m.length = d.u64();
  take_texts(d, m.params, sizes);
}
void take(Decoder& d, Piece& m) noexcept {
  m.ring_offset = d.u32();
  m.bytes = d.u32();
}
void take(Decoder&, SetCommit&) noexcept {}
void take(Decoder&, SetAbort&) noexcept {}
void take(Decoder& d, Load& m) {
  m.build = d.i64();
  m.deadline_ms = d.u32();
  const std::size_t name = d.u32();
  m.name = d.text(name, kMaxNameBytes);
}
void take(Decoder& d, Wait& m) {
  m.build = d.i64();
  m.deadline_ms = d.u32();
  const std::size_t name = d.u32();
  m.name = d.text(name, kMaxNameBytes);
}
void take(Decoder& d, List& m) {
  m.build = d.i64();
  m.after_id = d.u64();
  const bool named = d.flags(kFlag0) != 0;
  const std::size_t bytes = d.u32();
  d.require(named || bytes == 0);
  std::string name = d.text(bytes, kMaxNameBytes);
  if (named) m.name = std::move(name);
}
void take(Decoder& d, Finish& m) noexcept {
  m.build = d.i64();
  const std::int64_t at = d.i64();
  const bool given = d.flags(kFlag0) != 0;
  d.require(given || at == 0);
  if (given) m.complete_at = at;
}
void take(Decoder& d, Prune& m) noexcept { m.older_than = d.i64(); }
void take(Decoder& d, Drop& m) noexcept { m.build = d.i64(); }
void take(Decoder& d, HoldBuild& m) noexcept {
  m.build = d.i64();
  m.held = d.flags(kFlag0) != 0;
}
void take(Decoder& d, Flush& m) noexcept { m.deadline_ms = d.u32(); }
void take(Decoder&, Stats&) noexcept {}
void take(Decoder& d, Builds& m) noexcept { m.after = d.i64(); }

void take(Decoder& d, HelloOk& m) {
  m.version = d.u32();
  // Of a version that this program does not know, the version alone is read.
  if (d.good_so_far() && !includes(kDaemonVersions, m.version)) return d.skip_rest();
  m.resumed = d.flags(kFlag0) != 0;
  m.segment_id = d.segment_id();
  m.segment_bytes = d.u64();
  m.max_value_bytes = d.u64();
  m.pin_page = d.u32();
  const std::size_t server = d.u32();
  m.server_version = d.text(server, kMaxVersionBytes);
}
void take(Decoder& d, SetOk& m) noexcept {
  m.id = d.u64();
  m.revision = d.u64();
}
void take(Decoder& d, SetReady& m) noexcept {
  m.ring_bytes = d.u32();
  m.piece_bytes = d.u32();
  m.ring_attached = d.flags(kFlag0) != 0;
}
void take(Decoder& d, PieceDone& m) noexcept { m.received = d.u64(); }
void take(Decoder& d, ListPage& m) {
  m.more = d.flags(kFlag0) != 0;
  const std::uint32_t count = d.u32();
  d.require(count <= kListPageEntries);
  for (std::uint32_t i = 0; i < count && d.good_so_far(); ++i) {
    EntryInfo entry;
    entry.id = d.u64();
    entry.revision = d.u64();
    entry.buildid = d.i64();
    entry.length = d.u64();
    const std::size_t name = d.u16();
    const std::size_t source = d.u16();
    entry.name = d.text(name, kMaxNameBytes);
    entry.source = d.text(source, kMaxSourceBytes);
    m.entries.push_back(std::move(entry));
  }
}
void take(Decoder& d, Count& m) noexcept { m.count = d.u64(); }
void take(Decoder& d, Finished& m) noexcept { m.complete_at = d.i64(); }
void take(Decoder& d, Text& m) {
  const std::size_t bytes = d.u32();
  m.text = d.text(bytes, kMaxPayload);
}
void take(Decoder&, Done&) noexcept {}
void take(Decoder& d, BuildsPage& m) {
  m.more = d.flags(kFlag0) != 0;
  const std::uint32_t count = d.u32();
  d.require(count <= kBuildsPageRows);
  for (std::uint32_t i = 0; i < count && d.good_so_far(); ++i) {
    BuildInfo build;
    build.build = d.i64();
    build.entries = d.u64();
    build.resident_bytes = d.u64();
    build.evicted_bytes = d.u64();
    const std::int64_t at = d.i64();
    const std::uint32_t flags = d.flags(kFlag0 | kFlag1);
    const bool finished = (flags & kFlag0) != 0;
    d.require(finished || at == 0);
    if (finished) build.complete_at = at;
    build.held = (flags & kFlag1) != 0;
    // In ascending order, so that a client that requests what follows the last one always terminates.
    d.require(valid_build(build.build) && (m.builds.empty() || m.builds.back().build < build.build));
    m.builds.push_back(build);
  }
}
void take(Decoder& d, Failure& m) {
  const std::uint32_t code = d.u32();
  // An unknown code is passed on unchanged: a newer daemon may have more.
  d.require(code != 0 && code <= INT32_MAX);
  m.code = static_cast<Errc>(static_cast<int>(code));
  const std::size_t bytes = d.u32();
  m.message = d.text(bytes, kMaxPayload);
}

template <class Message, class Any>
Result<Any> decode_as(std::span<const std::byte> payload) {
  Message message;
  Decoder decoder(payload);
  take(decoder, message);
  if (!decoder.good()) return Errc::protocol_error;
  return Any(std::move(message));
}

}  // namespace

Result<Head> decode_head(std::span<const std::byte, kHeadBytes> bytes) noexcept {
  Decoder decoder(bytes);
  Head head;
  head.payload_bytes = decoder.u32();
  head.type = decoder.u16();
  const std::uint16_t reserved = decoder.u16();
  if (head.payload_bytes > kMaxPayload || reserved != 0) return Errc::protocol_error;
  return head;
}

Result<Request> decode_request(Head head, std::span<const std::byte> payload) {
  if (payload.size() != head.payload_bytes) return Errc::protocol_error;
  switch (static_cast<Type>(head.type)) {
    case Type::hello:
      return decode_as<Hello, Request>(payload);
    case Type::set:
      return decode_as<Set, Request>(payload);
    case Type::set_begin:
      return decode_as<SetBegin, Request>(payload);
    case Type::piece:
      return decode_as<Piece, Request>(payload);
    case Type::set_commit:
      return decode_as<SetCommit, Request>(payload);
    case Type::set_abort:
      return decode_as<SetAbort, Request>(payload);
    case Type::load:
      return decode_as<Load, Request>(payload);
    case Type::wait:
      return decode_as<Wait, Request>(payload);
    case Type::list:
      return decode_as<List, Request>(payload);
    case Type::finish:
      return decode_as<Finish, Request>(payload);
    case Type::prune:
      return decode_as<Prune, Request>(payload);
    case Type::drop:
      return decode_as<Drop, Request>(payload);
    case Type::hold_build:
      return decode_as<HoldBuild, Request>(payload);
    case Type::flush:
      return decode_as<Flush, Request>(payload);
    case Type::stats:
      return decode_as<Stats, Request>(payload);
    case Type::builds:
      return decode_as<Builds, Request>(payload);
    default:
      return Errc::protocol_error;
  }
}

Result<Reply> decode_reply(Head head, std::span<const std::byte> payload) {
  if (payload.size() != head.payload_bytes) return Errc::protocol_error;
  switch (static_cast<Type>(head.type)) {
    case Type::hello_ok:
      return decode_as<HelloOk, Reply>(payload);
    case Type::set_ok:
      return decode_as<SetOk, Reply>(payload);
    case Type::set_ready:
      return decode_as<SetReady, Reply>(payload);
    case Type::piece_done:
      return decode_as<PieceDone, Reply>(payload);
    case Type::list_page:
      return decode_as<ListPage, Reply>(payload);
    case Type::count:
      return decode_as<Count, Reply>(payload);
    case Type::finished:
      return decode_as<Finished, Reply>(payload);
    case Type::text:
      return decode_as<Text, Reply>(payload);
    case Type::done:
      return decode_as<Done, Reply>(payload);
    case Type::failure:
      return decode_as<Failure, Reply>(payload);
    case Type::builds_page:
      return decode_as<BuildsPage, Reply>(payload);
    default:
      return Errc::protocol_error;
  }
}

void encode(const Request& request, std::vector<std::byte>& out) {
  std::visit([&](const auto& message) { put(message, out); }, request);
}

void encode(const Reply& reply, std::vector<std::byte>& out) {
  std::visit([&](const auto& message) { put(message, out); }, reply);
}

void encode_set_head(const Set& set, std::vector<std::byte>& out) { put_set(set, out, false); }

}  // namespace stepstash::protocol
