// SPDX-License-Identifier: Apache-2.0
#include "libclient/explain.hpp"

#include <sys/resource.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "base/text.hpp"

namespace stepstash::client {
namespace {

struct Explanation {
  int code;
  const std::error_category* category;
  char text[1024];
};
thread_local Explanation kept = {};  // constant-initialised: access needs no guard

/// The front of `text` as visible() shows it: the bytes unchanged, or one byte as \xNN in `escape`.
std::string_view shown(std::string_view text, char (&escape)[5]) noexcept {
  if (const std::size_t seen = visible_sequence(text); seen != 0) return text.substr(0, seen);
  return {escape,
          static_cast<std::size_t>(std::snprintf(escape, 5, "\\x%02x", static_cast<unsigned char>(text.front())))};
}

/// Drops a last character that vsnprintf(3) has cut in two.
std::string_view whole_characters(std::string_view text) noexcept {
  for (std::size_t tail = 1; tail <= 3 && tail <= text.size(); ++tail) {
    const auto byte = static_cast<unsigned char>(text[text.size() - tail]);
    if (byte >= 0xC0)
      return decode_utf8(text.substr(text.size() - tail)).bytes == 0 ? text.substr(0, text.size() - tail) : text;
    if (byte < 0x80) break;
  }
  return text;
}

}  // namespace

std::error_code explain(std::error_code code, const char* format, ...) noexcept {
  kept.code = code.value();
  kept.category = &code.category();
  char raw[sizeof kept.text];
  std::va_list arguments;
  va_start(arguments, format);
  const int length = std::vsnprintf(raw, sizeof raw, format, arguments);
  va_end(arguments);
  std::string_view text(raw);
  if (length >= static_cast<int>(sizeof raw)) text = whole_characters(text);
  // Here, once for all: the caller's paths and everything a daemon sends pass through here.
  std::size_t at = 0;
  while (!text.empty()) {
    char escape[5];
    const std::string_view piece = shown(text, escape);
    if (at + piece.size() >= sizeof kept.text) break;
    std::memcpy(kept.text + at, piece.data(), piece.size());
    at += piece.size();
    text.remove_prefix(piece.data() == escape ? 1 : piece.size());
  }
  kept.text[at] = 0;
  return code;
}

std::error_code explain_lack_of_descriptors(std::error_code code) noexcept {
  if (code == std::errc::too_many_files_open_in_system) {
    return explain(code, "this machine has no file descriptors left (fs.file-max)");
  }
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  return explain(code, "this process has no file descriptors left: it may have %llu (RLIMIT_NOFILE, ulimit -n)",
                 static_cast<unsigned long long>(limit.rlim_cur));
}

const char* explanation(std::error_code code) noexcept {
  if (kept.category != &code.category() || kept.code != code.value()) {
    try {
      explain(code, "%s", code.message().c_str());
    } catch (...) {  // message() may allocate
      explain(code, "error %d", code.value());
    }
  }
  return kept.text;
}

void forget_explanation() noexcept { kept.category = nullptr; }

const char* last_explanation() noexcept { return kept.text; }

Quoted::Quoted(std::string_view text) noexcept {
  std::size_t at = 0;
  text_[at++] = '"';
  while (!text.empty()) {
    // There must be room for an escape or a whole character, or the dots, and the closing quote.
    if (at + 9 > sizeof text_) {
      std::memcpy(text_ + at, "...", 3);
      at += 3;
      break;
    }
    char escape[5];
    const std::string_view piece = shown(text, escape);
    if (text.front() == '"' || text.front() == '\\') text_[at++] = '\\';
    std::memcpy(text_ + at, piece.data(), piece.size());
    at += piece.size();
    text.remove_prefix(piece.data() == escape ? 1 : piece.size());
  }
  text_[at++] = '"';
  text_[at] = 0;
}

}  // namespace stepstash::client
