/// What people and scripts get to see: errors on one line, entries one per line, JSON.
#pragma once

#include <stepstash/client.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace stepstash::cli {

/// Prints `stepstash: MESSAGE` on stderr, visible() (base/text.hpp), and returns `status`.
int complain(int status, std::string_view message);
/// The exit status and the complaint for an error of the library while doing `what`.
int complain(const Error& error, std::string_view what);

/// Writes all of `text` to stdout. 0, or kIoError with a complaint.
int print(std::string_view text);

std::string stat_text(const View& view);
std::string stat_json(const View& view);
/// A table with a header for people, tabs for scripts.
std::string list_text(const std::vector<Entry>& entries, bool for_people);
std::string list_json(const std::vector<Entry>& entries);
/// The daemon's JSON as `name value` lines; nested names are joined by dots.
std::string stats_text(const std::string& json);
/// The daemon's JSON, nothing in it that a terminal obeys, whatever answers on the socket.
std::string stats_json(const std::string& json);

/// Whether a terminal can show the bytes: UTF-8 without control characters other than tab, line feed and carriage
/// return. O(bytes), and stops at the first offence.
bool is_text(std::string_view bytes) noexcept;

}  // namespace stepstash::cli
