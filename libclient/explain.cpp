#include "libclient/explain.hpp"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace stepstash::client {
namespace {

struct Explanation {
  int code;
  const std::error_category* category;
  char text[1024];
};
thread_local Explanation kept = {};  // constant-initialised: no guard on the way to it

}  // namespace

std::error_code explain(std::error_code code, const char* format, ...) noexcept {
  kept.code = code.value();
  kept.category = &code.category();
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(kept.text, sizeof kept.text, format, arguments);
  va_end(arguments);
  return code;
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
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    // A whole UTF-8 sequence, an escape or the dots must still fit, and the closing quote.
    if (at + 10 > sizeof text_ && (c & 0xC0) != 0x80) {
      std::memcpy(text_ + at, "...", 3);
      at += 3;
      break;
    }
    if (c < 0x20 || c == 0x7F) {
      at += static_cast<std::size_t>(std::snprintf(text_ + at, 5, "\\x%02x", c));
    } else {
      if (at + 7 > sizeof text_) break;  // invalid UTF-8: continuation bytes without end
      if (c == '"' || c == '\\') text_[at++] = '\\';
      text_[at++] = static_cast<char>(c);
    }
  }
  text_[at++] = '"';
  text_[at] = 0;
}

}  // namespace stepstash::client
