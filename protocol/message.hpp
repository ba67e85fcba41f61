// SPDX-License-Identifier: Apache-2.0
/// The messages between a client and the daemon, as plain structs. docs/protocol.md documents them for implementers.
///
/// A connection is a unix stream socket. Both sides send frames (frame.hpp); every request has one reply, in order. The
/// requests of a staged set may be pipelined without waiting for the replies: SetBegin (once the ring is mapped),
/// Pieces, SetCommit. Descriptors travel from the daemon to the client only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/errc.hpp"
#include "base/types.hpp"
#include "protocol/version.hpp"

namespace stepstash::protocol {

inline constexpr std::uint64_t kHelloMagic = 0x6B636F73'70657473;  // "stepsock" in memory order
/// Values up to this size travel inside Set; larger ones go through the staging ring.
inline constexpr std::size_t kInlineBytes = 64 * 1024;
inline constexpr std::uint64_t kUnknownLength = UINT64_MAX;
/// Maximum entries in one ListPage; the client requests the rest.
inline constexpr std::uint32_t kListPageEntries = 32;
/// Maximum builds in one BuildsPage.
inline constexpr std::uint32_t kBuildsPageRows = 256;

using SegmentId = std::array<std::uint8_t, 16>;

// ---- requests ------------------------------------------------------------------------------------------------------

/// First on every connection.
struct Hello {
  Versions versions = kClientVersions;
  bool attach = false;            ///< requests the segment's and a pin page's descriptors
  std::uint32_t resume_page = 0;  ///< with attach: the pin page this client already holds (0: none) ...
  SegmentId resume_segment{};     ///< ... of this segment. If both still serve, no descriptors are sent.
};

/// The parameters common to both ways of setting a value.
struct SetParams {
  BuildId build = 0;
  std::string name;
  std::string source;
  bool durable = false;           ///< acknowledge after the database's commit
  bool if_absent = false;         ///< fail with condition_failed if the name exists
  std::uint64_t if_revision = 0;  ///< non-zero: fail with condition_failed unless the entry has this revision
  std::uint32_t deadline_ms = 0;  ///< how long to wait for room or for the commit
};

struct Set {
  SetParams params;
  std::span<const std::byte> value;  ///< borrowed from the frame
};

/// Opens a staged set. The reply is SetReady, with the ring's descriptor the first time on a connection.
struct SetBegin {
  SetParams params;
  std::uint64_t length = 0;  ///< or kUnknownLength
};

/// `bytes` bytes at `ring_offset` are filled in. Each gets one PieceDone (or Failure), in order; its bytes may be
/// overwritten after that. After a Failure, all further pieces and the commit of this set fail the same way.
struct Piece {
  std::uint32_t ring_offset = 0;
  std::uint32_t bytes = 0;
};
struct SetCommit {};
struct SetAbort {};

/// Brings an evicted value back into the segment. Reply: Done, or Failure{not_found}.
struct Load {
  BuildId build = 0;
  std::string name;
  std::uint32_t deadline_ms = 0;  ///< for finding room
};

/// Done once the name exists; Failure{deadline_exceeded} otherwise.
struct Wait {
  BuildId build = 0;
  std::string name;
  std::uint32_t deadline_ms = 0;
};

struct List {
  BuildId build = 0;
  std::optional<std::string> name;
  std::uint64_t after_id = 0;  ///< entries with a larger id
};

struct Finish {
  BuildId build = 0;
  std::optional<std::int64_t> complete_at;  ///< seconds since 1970; none: the daemon's clock; INT64_MAX: reopen
};
struct Prune {
  std::int64_t older_than = 0;
};
struct Drop {
  BuildId build = 0;
};
struct HoldBuild {
  BuildId build = 0;
  bool held = true;
};
struct Flush {
  std::uint32_t deadline_ms = 0;
};
struct Stats {};

/// The builds that have data, in ascending order. Reply: BuildsPage.
struct Builds {
  BuildId after = 0;  ///< builds with a larger number
};

using Request = std::variant<Hello, Set, SetBegin, Piece, SetCommit, SetAbort, Load, Wait, List, Finish, Prune, Drop,
                             HoldBuild, Flush, Stats, Builds>;

// ---- replies -------------------------------------------------------------------------------------------------------

/// With attach, unless the old attachment was resumed, two descriptors follow: the segment (read-only) and the pin
/// page.
struct HelloOk {
  std::uint32_t version = kVersion;  ///< the highest that both speak; that of this connection
  SegmentId segment_id{};
  std::uint64_t segment_bytes = 0;
  std::uint32_t pin_page = 0;
  bool resumed = false;
  std::uint64_t max_value_bytes = 0;
  std::string server_version;
};
struct SetOk {
  std::uint64_t id = 0;
  std::uint64_t revision = 0;
};
struct SetReady {
  std::uint32_t ring_bytes = 0;
  std::uint32_t piece_bytes = 0;  ///< maximum for one Piece
  bool ring_attached = false;     ///< a descriptor comes with this reply
};
struct PieceDone {
  std::uint64_t received = 0;  ///< bytes of this value so far
};
struct ListPage {
  bool more = false;
  std::vector<EntryInfo> entries;
};
struct Count {
  std::uint64_t count = 0;
};
struct Finished {
  std::int64_t complete_at = 0;
};
struct Text {
  std::string text;  ///< JSON
};
struct Done {};
struct BuildsPage {
  bool more = false;
  std::vector<BuildInfo> builds;
};
struct Failure {
  Errc code = Errc::protocol_error;
  std::string message;  ///< human-readable: what happened, to what, with which numbers
};

using Reply =
    std::variant<HelloOk, SetOk, SetReady, PieceDone, ListPage, Count, Finished, Text, Done, Failure, BuildsPage>;

}  // namespace stepstash::protocol
