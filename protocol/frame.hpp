// SPDX-License-Identifier: Apache-2.0
/// Frames: an 8-byte head {payload bytes: u32 LE, type: u16 LE, zero: u16}, then the payload.
///
/// The length is checked against kMaxPayload before anything is allocated or read.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.hpp"
#include "protocol/message.hpp"

namespace stepstash::protocol {

inline constexpr std::size_t kHeadBytes = 8;
/// The largest frame is a Set: its value, name, source and fixed fields.
inline constexpr std::size_t kMaxPayload = kInlineBytes + 2 * kMaxNameBytes + 256;
/// The type of a Piece. The daemon uses it to copy pieces that arrive together in one go.
inline constexpr std::uint16_t kPieceType = 4;
static_assert(kListPageEntries * (2 * kMaxNameBytes + 64) <= kMaxPayload);
static_assert(kBuildsPageRows * 64 <= kMaxPayload);

struct Head {
  std::uint32_t payload_bytes = 0;
  std::uint16_t type = 0;
};

/// Errors: Errc::protocol_error when the length exceeds kMaxPayload or the reserved field is not zero.
Result<Head> decode_head(std::span<const std::byte, kHeadBytes> bytes) noexcept;

/// Total: any bytes decode to a message or to Errc::protocol_error. Every length is checked against the bytes present;
/// trailing bytes and unknown flags are errors. Values are borrowed from `payload`, texts are copied. The length of
/// names and sources is bounded here (kMaxNameBytes); the store checks their characters.
Result<Request> decode_request(Head head, std::span<const std::byte> payload);
Result<Reply> decode_reply(Head head, std::span<const std::byte> payload);

/// Appends one whole frame, head included, to `out`. Truncates the text of a Failure or Text to what fits into a frame.
void encode(const Request& request, std::vector<std::byte>& out);
void encode(const Reply& reply, std::vector<std::byte>& out);

/// The frame of a Set up to, but without, its value: the value's bytes can then be sent from where they are.
void encode_set_head(const Set& set, std::vector<std::byte>& out);

}  // namespace stepstash::protocol
