// SPDX-License-Identifier: Apache-2.0
/// One of each message, with every field away from its default, for the sweeps.
#pragma once

#include <string>
#include <vector>

#include "protocol/frame.hpp"

namespace stepstash::protocol {

inline std::span<const std::byte> as_bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

inline SetParams sample_params() {
  return {.build = 42,
          .name = "toolchain",
          .source = "compile step",
          .durable = true,
          .if_absent = true,
          .if_revision = 0x1122334455667788,
          .deadline_ms = 10'000};
}

inline std::vector<Request> sample_requests() {
  Hello hello{.versions = {1, kVersion}, .attach = true, .resume_page = 7};
  for (std::size_t i = 0; i < hello.resume_segment.size(); ++i)
    hello.resume_segment[i] = static_cast<std::uint8_t>(i + 1);
  Hello former = hello;
  former.versions = {1, 1};
  return {hello,
          former,
          Set{sample_params(), as_bytes("the value")},
          SetBegin{sample_params(), std::uint64_t{1} << 40},
          Piece{1 << 20, 4096},
          SetCommit{},
          SetAbort{},
          Load{INT64_MAX, "name", 250},
          Wait{1, "na\xC3\xAFve", 250},
          List{42, "only this", 99},
          List{42, std::nullopt, 0},
          Finish{42, -1},
          Finish{42, std::nullopt},
          Prune{INT64_MIN},
          Drop{42},
          HoldBuild{42, true},
          HoldBuild{42, false},
          Flush{500},
          Stats{},
          Builds{INT64_MAX}};
}

inline std::vector<Reply> sample_replies() {
  HelloOk hello{.version = kVersion,
                .segment_bytes = 1 << 30,
                .pin_page = 3,
                .resumed = true,
                .max_value_bytes = 1 << 29,
                .server_version = "0.1.0"};
  hello.segment_id.fill(0xAB);
  HelloOk former = hello;
  former.version = 1;
  ListPage page;
  page.more = true;
  page.entries.push_back({1, 2, 42, 3, "a", "b"});
  page.entries.push_back({5, 6, 42, UINT64_MAX, "", ""});
  BuildsPage builds;
  builds.more = true;
  builds.builds.push_back({42, 3, 1 << 20, 1 << 30, 1'700'000'000, true});
  builds.builds.push_back({43, 1, 0, 0, std::nullopt, false});
  return {hello,
          former,
          SetOk{17, 18},
          SetReady{4 << 20, 1 << 20, true},
          PieceDone{4096},
          page,
          ListPage{},
          Count{4},
          Finished{1'700'000'000},
          Text{"{\"sets\":1}"},
          Done{},
          Failure{Errc::segment_full, "8 MiB do not fit: 1 MiB is free"},
          builds,
          BuildsPage{}};
}

/// Frames compare by their bytes: decoding and encoding again must give the same ones.
template <class Any>
std::vector<std::byte> frame_of(const Any& message) {
  std::vector<std::byte> out;
  encode(message, out);
  return out;
}

inline std::span<const std::byte> payload_of(const std::vector<std::byte>& frame) {
  return std::span(frame).subspan(kHeadBytes);
}

inline Result<Head> head_of(const std::vector<std::byte>& frame) {
  return decode_head(std::span(frame).first<kHeadBytes>());
}

}  // namespace stepstash::protocol
