// SPDX-License-Identifier: Apache-2.0
/// What people and scripts get to see: errors on one line, entries one per line, JSON.
#pragma once

#include <stepstash/client.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "cli/arguments.hpp"

namespace stepstash::cli {

/// Prints `stepstash: MESSAGE` on stderr, visible() (base/text.hpp), and returns `status`.
int complain(int status, std::string_view message);
/// The exit status and the complaint for an error of the library while doing `what`.
int complain(const Error& error, std::string_view what);

/// Writes all of `text` to stdout. 0, or kIoError with a complaint.
int print(std::string_view text);
/// Closes stdout. `status`, or kIoError with a complaint. Call it last.
int end_output(int status);

std::string stat_text(const View& view);
std::string stat_json(const View& view);
/// A table with a header for people, tabs for scripts.
std::string list_text(const std::vector<Entry>& entries, bool for_people);
std::string list_json(const std::vector<Entry>& entries);
/// As list_text: number, entries, bytes in the segment, bytes in the database alone, when it finished, whether it is
/// held. Scripts get seconds since 1970; a terminal gets the date, in UTC.
std::string builds_text(const std::vector<Build>& builds, bool for_terminal);
std::string builds_json(const std::vector<Build>& builds);
/// Puts them in order: by number; by bytes, most first; by when they finished, latest first, running ones at the end.
void sort_builds(std::vector<Build>& builds, Sort by);
/// The daemon's JSON as `name value` lines; nested names are joined by dots.
std::string stats_text(const std::string& json);
/// The daemon's JSON, nothing in it that a terminal obeys, whatever answers on the socket.
std::string stats_json(const std::string& json);

/// Whether a terminal can show the bytes: UTF-8 without control characters other than tab, line feed and carriage
/// return. O(bytes), and stops at the first offence.
bool is_text(std::string_view bytes) noexcept;

}  // namespace stepstash::cli
