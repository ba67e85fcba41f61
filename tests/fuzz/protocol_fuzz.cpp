// SPDX-License-Identifier: Apache-2.0
// The codec over any bytes: frames are taken off the front as both sides do it. A frame that decodes encodes to itself,
// byte by byte; what does not decode is refused without a trace.
#include <algorithm>
#include <variant>
#include <vector>

#include "protocol/frame.hpp"
#include "tests/fuzz/check.hpp"

using namespace stepstash;
using namespace stepstash::protocol;
using stepstash::fuzz::check;

namespace {

/// Of a version that this side does not speak not all is read: the rest is lost on purpose.
bool of_another_version(const Request& request) {
  const auto* hello = std::get_if<Hello>(&request);
  return hello != nullptr && !includes(kDaemonVersions, hello->versions.newest);
}
bool of_another_version(const Reply& reply) {
  const auto* hello = std::get_if<HelloOk>(&reply);
  return hello != nullptr && !includes(kDaemonVersions, hello->version);
}
Versions version_of(const Request& request) { return std::get<Hello>(request).versions; }
std::uint32_t version_of(const Reply& reply) { return std::get<HelloOk>(reply).version; }

Result<Request> decode(Head head, std::span<const std::byte> payload, const Request*) {
  return decode_request(head, payload);
}
Result<Reply> decode(Head head, std::span<const std::byte> payload, const Reply*) {
  return decode_reply(head, payload);
}

template <class Any>
void round_trip(Head head, std::span<const std::byte> frame) {
  const auto message = decode(head, frame.subspan(kHeadBytes), static_cast<const Any*>(nullptr));
  if (!message) {
    check(message.error() == Errc::protocol_error, "what does not decode is a protocol error");
    return;
  }
  std::vector<std::byte> again;
  encode(message.value(), again);
  check(again.size() >= kHeadBytes, "a frame has a head");
  if (of_another_version(message.value())) {
    const auto second_head = decode_head(std::span(again).first<kHeadBytes>());
    check(second_head.has_value(), "what was encoded decodes");
    const auto second = decode(second_head.value(), std::span<const std::byte>(again).subspan(kHeadBytes),
                               static_cast<const Any*>(nullptr));
    check(second && version_of(second.value()) == version_of(message.value()), "another version stays that version");
    return;
  }
  check(std::equal(again.begin(), again.end(), frame.begin(), frame.end()), "a frame that decodes encodes to itself");
}

void set_in_two_parts(Head head, std::span<const std::byte> frame) {
  const auto request = decode_request(head, frame.subspan(kHeadBytes));
  if (!request) return;
  const auto* set = std::get_if<Set>(&request.value());
  if (set == nullptr) return;
  std::vector<std::byte> parts;
  encode_set_head(*set, parts);
  parts.insert(parts.end(), set->value.begin(), set->value.end());
  check(std::equal(parts.begin(), parts.end(), frame.begin(), frame.end()), "a set may be sent in two parts");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::span<const std::byte> rest(reinterpret_cast<const std::byte*>(data), size);
  while (rest.size() >= kHeadBytes) {
    const auto head = decode_head(rest.first<kHeadBytes>());
    if (!head) {
      check(head.error() == Errc::protocol_error, "a head that does not decode is a protocol error");
      break;
    }
    check(head.value().payload_bytes <= kMaxPayload, "a length is checked before it is used");
    // Also with less or more than the head announces, as a reader with a defect would hand it over.
    (void)decode_request(head.value(), rest.subspan(kHeadBytes));
    (void)decode_reply(head.value(), rest.subspan(kHeadBytes));
    const std::size_t frame = kHeadBytes + head.value().payload_bytes;
    if (rest.size() < frame) break;
    // A copy that ends where the frame ends: reading past it is found by AddressSanitizer.
    const std::vector<std::byte> whole(rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(frame));
    round_trip<Request>(head.value(), whole);
    round_trip<Reply>(head.value(), whole);
    set_in_two_parts(head.value(), whole);
    rest = rest.subspan(frame);
  }
  return 0;
}
