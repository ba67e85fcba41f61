// SPDX-License-Identifier: Apache-2.0
/// Output for users and scripts: errors on one line, entries one per line, JSON.
#pragma once

#include <stepstash/client.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "cli/arguments.hpp"

namespace stepstash::cli {

/// Prints `stepstash: MESSAGE` on stderr, visible() (base/text.hpp), and returns `status`.
int complain(int status, std::string_view message);
/// Prints the message for a library error that occurred while doing `what`; returns the exit status.
int complain(const Error& error, std::string_view what);

/// Writes all of `text` to stdout. Returns 0, or kIoError after an error message.
int print(std::string_view text);
/// Closes stdout. Returns `status`, or kIoError after an error message. Call it last.
int end_output(int status);

std::string stat_text(const View& view);
std::string stat_json(const View& view);
/// A table with a header for terminals, tab-separated for scripts.
std::string list_text(const std::vector<Entry>& entries, bool for_people);
std::string list_json(const std::vector<Entry>& entries);
/// Like list_text: number, entries, bytes in the segment, bytes only in the database, time of finishing, whether held.
/// Scripts get seconds since 1970; a terminal gets the date, in UTC.
std::string builds_text(const std::vector<Build>& builds, bool for_terminal);
std::string builds_json(const std::vector<Build>& builds);
/// Sorts: by number; by bytes, largest first; by time of finishing, latest first, unfinished builds last.
void sort_builds(std::vector<Build>& builds, Sort by);
/// The daemon's JSON as `name value` lines; nested names are joined with dots.
std::string stats_text(const std::string& json);
/// The daemon's JSON without anything a terminal would interpret, whatever answers on the socket.
std::string stats_json(const std::string& json);

/// Whether a terminal can show the bytes: UTF-8 without control characters other than tab, line feed and carriage
/// return. O(bytes); stops at the first violation.
bool is_text(std::string_view bytes) noexcept;

}  // namespace stepstash::cli
