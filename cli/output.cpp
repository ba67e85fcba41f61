// SPDX-License-Identifier: Apache-2.0
#include "cli/output.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <utility>

#include "base/text.hpp"
#include "cli/arguments.hpp"
#include "cli/transfer.hpp"

namespace stepstash::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string dump(const Json& json) {
  // Names are valid UTF-8 by contract; an invalid one is shown with U+FFFD rather than not at all.
  return visible_json(json.dump(-1, ' ', false, Json::error_handler_t::replace)) + "\n";
}

/// The exit status and advice for the user.
struct Verdict {
  int status;
  const char* advice;
};

Verdict verdict_of(int code) noexcept {
  switch (code) {
    case STEPSTASH_EINVAL:
      return {kUsage, ""};
    case STEPSTASH_EUNAVAILABLE:
      return {kUnavailable, "; the socket is chosen by --socket or $STEPSTASH_SOCKET"};
    case STEPSTASH_EDEADLINE:
      return {kTryLater, "; try later, or with a longer --timeout"};
    case STEPSTASH_EFULL:
      return {kTryLater, "; try later, or prune"};
    case STEPSTASH_ENOMEM:
      return {kTryLater, ""};
    case STEPSTASH_ELIMIT:
      return {kTryLater, "; try later"};
    case STEPSTASH_ETOOLARGE:
      return {kCannotCreate, ""};
    case STEPSTASH_EPERM:
      return {kNotPermitted, ""};
    case STEPSTASH_ECORRUPT:
      return {kIoError, "; the value is not served: set it again"};
    case STEPSTASH_EIO:
      return {kIoError, ""};
    case STEPSTASH_EPROTOCOL:
      return {kUnavailable, "; are the versions of stepstash and stepstashd alike?"};
    default:
      return {kSoftware, "; please report this"};
  }
}

void put_lines(const Json& json, const std::string& prefix, std::vector<std::pair<std::string, std::string>>& lines) {
  for (const auto& [key, value] : json.items()) {
    const std::string name = prefix.empty() ? key : prefix + "." + key;
    if (value.is_structured()) {
      put_lines(value, name, lines);
    } else {
      lines.emplace_back(printable(name), value.is_string() ? printable(value.get<std::string>()) : value.dump());
    }
  }
}

std::string padded(std::string text, std::size_t width) {
  if (text.size() < width) text.append(width - text.size(), ' ');
  return text;
}

/// Columns of equal width; the first `numbers` of them are right-aligned.
template <std::size_t N>
std::string table(const std::vector<std::array<std::string, N>>& rows, std::size_t numbers) {
  std::array<std::size_t, N> widths{};
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < N; ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string out;
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < N; ++i) {
      if (i > 0) out += "  ";
      if (i < numbers) out.append(widths[i] - row[i].size(), ' ');
      out += i < numbers || i + 1 == N ? row[i] : padded(row[i], widths[i]);
    }
    out += '\n';
  }
  return out;
}

/// Seconds since 1970 as a UTC date; the number itself if there is no such date.
std::string date(std::int64_t seconds) {
  const std::time_t time = seconds;
  std::tm parts{};
  char text[64];
  if (::gmtime_r(&time, &parts) == nullptr || std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts) == 0) {
    return std::to_string(seconds);
  }
  return text;
}

}  // namespace

int complain(int status, std::string_view message) {
  const std::string line = "stepstash: " + visible(message) + "\n";
  write_all(STDERR_FILENO, line.data(), line.size());  // nowhere to report that this failed
  return status;
}

int complain(const Error& error, std::string_view what) {
  const Verdict verdict = verdict_of(error.code());
  std::string message(what);
  message += ": ";
  message += error.what();
  message += verdict.advice;
  return complain(verdict.status, message);
}

int print(std::string_view text) {
  // Report a closed stdout even if there is nothing to write.
  const int error = !open_for_writing(STDOUT_FILENO) ? EBADF : write_all(STDOUT_FILENO, text.data(), text.size());
  if (error == 0) return kDone;
  return complain(kIoError, std::string("standard output: ") + std::strerror(error));
}

int end_output(int status) {
  // A network file system may report a failed write only at close.
  if (::close(STDOUT_FILENO) == 0 || errno == EINTR) return status;
  return complain(kIoError, std::string("standard output: ") + std::strerror(errno));
}

std::string stat_text(const View& view) {
  return "id        " + std::to_string(view.id()) + "\nrevision  " + std::to_string(view.revision()) + "\nbuildid   " +
         std::to_string(view.build()) + "\nname      " + printable(view.name()) + "\nlength    " +
         std::to_string(view.length()) + "\nsource    " + printable(view.source()) + "\n";
}

std::string stat_json(const View& view) {
  return dump({{"id", view.id()},
               {"revision", view.revision()},
               {"buildid", view.build()},
               {"name", std::string(view.name())},
               {"length", view.length()},
               {"source", std::string(view.source())}});
}

std::string list_text(const std::vector<Entry>& entries, bool for_people) {
  std::string out;
  if (!for_people) {
    for (const Entry& e : entries) {
      out += std::to_string(e.id) + "\t" + std::to_string(e.length) + "\t" + printable(e.name) + "\t" +
             printable(e.source) + "\n";
    }
    return out;
  }
  std::vector<std::array<std::string, 4>> rows = {{"ID", "LENGTH", "NAME", "SOURCE"}};
  for (const Entry& e : entries) {
    rows.push_back({std::to_string(e.id), std::to_string(e.length), printable(e.name), printable(e.source)});
  }
  return table(rows, 2);
}

std::string list_json(const std::vector<Entry>& entries) {
  Json all = Json::array();
  for (const Entry& e : entries) {
    all.push_back({{"id", e.id},
                   {"revision", e.revision},
                   {"buildid", e.build},
                   {"name", e.name},
                   {"length", e.length},
                   {"source", e.source}});
  }
  return dump(all);
}

std::string builds_text(const std::vector<Build>& builds, bool for_terminal) {
  std::vector<std::array<std::string, 6>> rows = {{"BUILD", "ENTRIES", "RESIDENT", "EVICTED", "FINISHED", "HELD"}};
  for (const Build& b : builds) {
    std::string finished = "-";
    if (b.complete_at) finished = for_terminal ? date(*b.complete_at) : std::to_string(*b.complete_at);
    rows.push_back({std::to_string(b.build), std::to_string(b.entries), std::to_string(b.resident_bytes),
                    std::to_string(b.evicted_bytes), std::move(finished), b.held ? "held" : "-"});
  }
  if (for_terminal) return table(rows, 4);
  std::string out;
  for (const auto& row : std::span(rows).subspan(1)) {
    for (std::size_t i = 0; i < row.size(); ++i) out += row[i] + (i + 1 < row.size() ? '\t' : '\n');
  }
  return out;
}

std::string builds_json(const std::vector<Build>& builds) {
  Json all = Json::array();
  for (const Build& b : builds) {
    all.push_back({{"buildid", b.build},
                   {"entries", b.entries},
                   {"resident_bytes", b.resident_bytes},
                   {"evicted_bytes", b.evicted_bytes},
                   {"complete_at", b.complete_at ? Json(*b.complete_at) : Json()},
                   {"held", b.held}});
  }
  return dump(all);
}

void sort_builds(std::vector<Build>& builds, Sort by) {
  std::stable_sort(builds.begin(), builds.end(), [by](const Build& a, const Build& b) {
    if (by == Sort::bytes && a.resident_bytes + a.evicted_bytes != b.resident_bytes + b.evicted_bytes) {
      return a.resident_bytes + a.evicted_bytes > b.resident_bytes + b.evicted_bytes;
    }
    if (by == Sort::time && a.complete_at != b.complete_at)
      return a.complete_at > b.complete_at;  // no time sorts
                                             // lowest
    return a.build < b.build;
  });
}

std::string stats_text(const std::string& json) {
  const Json parsed = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) return visible(json) + "\n";
  std::vector<std::pair<std::string, std::string>> lines;
  put_lines(parsed, "", lines);
  std::size_t width = 0;
  for (const auto& [name, value] : lines) width = std::max(width, name.size());
  std::string out;
  for (const auto& [name, value] : lines) out += padded(name, width + 2) + value + "\n";
  return out;
}

std::string stats_json(const std::string& json) {
  return (Json::accept(json) ? visible_json(json) : visible(json)) + "\n";
}

bool is_text(std::string_view bytes) noexcept {
  while (!bytes.empty()) {
    const CodePoint c = decode_utf8(bytes);
    if (c.bytes == 0 || (is_control(c.value) && c.value != '\t' && c.value != '\n' && c.value != '\r')) return false;
    bytes.remove_prefix(c.bytes);
  }
  return true;
}

}  // namespace stepstash::cli
