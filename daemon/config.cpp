// SPDX-License-Identifier: Apache-2.0
#include "daemon/config.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <toml++/toml.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <limits>
#include <system_error>
#include <utility>

#include "base/places.hpp"
#include "base/result.hpp"
#include "base/text.hpp"
#include "base/unique_fd.hpp"

namespace stepstash::daemon {
namespace {

using std::chrono::milliseconds;
using Text = std::string_view;

ConfigError bad(std::string message) { return {std::move(message), kExitConfig}; }

// ---- sizes and durations -------------------------------------------------------------------------------------------

struct Unit {
  Text name;
  std::uint64_t factor;
};
constexpr Unit kSizeUnits[] = {{"TiB", std::uint64_t{1} << 40},
                               {"GiB", std::uint64_t{1} << 30},
                               {"MiB", std::uint64_t{1} << 20},
                               {"KiB", std::uint64_t{1} << 10},
                               {"B", 1}};
constexpr Unit kTimeUnits[] = {{"d", 86'400'000}, {"h", 3'600'000}, {"min", 60'000}, {"s", 1000}, {"ms", 1}};
// Longer spans are typos; in milliseconds they could overflow when converted to nanoseconds.
constexpr std::uint64_t kMaxMilliseconds = std::uint64_t{36'500} * 86'400'000;

constexpr Text kSizeExample = "a size is a whole number with B, KiB, MiB, GiB or TiB, such as 256MiB";
constexpr Text kTimeExample = "a duration is a whole number with ms, s, min, h or d, such as 200ms, or never";

struct Amount {
  std::uint64_t number;
  Text unit;  // as written; empty: none
};

/// Splits `12 MiB`; one blank is allowed in between. nullopt: no digits first, or more than 64 bits.
std::optional<Amount> split_amount(Text text) {
  Amount amount{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, amount.number);
  if (error != std::errc{} || text.empty() || text.front() == '-') return std::nullopt;
  amount.unit = Text(stop, static_cast<std::size_t>(end - stop));
  if (amount.unit.starts_with(' ')) {
    amount.unit.remove_prefix(1);
    if (amount.unit.empty()) return std::nullopt;
  }
  return amount;
}

const Unit* find_unit(std::span<const Unit> units, Text name) {
  const auto found = std::find_if(units.begin(), units.end(), [&](const Unit& unit) { return unit.name == name; });
  return found == units.end() ? nullptr : &*found;
}

std::string lower(Text text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

/// The unit that `name` was probably meant to be: KB, kb, k and kib all suggest KiB.
Text suggested_size_unit(Text name) {
  const std::string word = lower(name);
  for (const Unit& unit : kSizeUnits) {
    const std::string full = lower(unit.name);
    if (word == full || word == full.substr(0, 1) || word == full.substr(0, 1) + "b" || word == full.substr(0, 1) + "i")
      return unit.name;
  }
  return {};
}

Text suggested_time_unit(Text name) {
  const std::string word = lower(name);
  if (word == "m" || word == "mins" || word == "minute" || word == "minutes") return "min";
  if (word == "sec" || word == "secs" || word == "second" || word == "seconds" || word == "s") return "s";
  if (word == "hour" || word == "hours" || word == "h") return "h";
  if (word == "day" || word == "days" || word == "d") return "d";
  if (word == "ms" || word == "msec" || word == "milliseconds") return "ms";
  return {};
}

// ---- texts of all kinds --------------------------------------------------------------------------------------------

template <class Integer>
Configured<Integer> parse_number(Text text, Integer least, Integer most) {
  Integer number{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (text.empty() || error != std::errc{} || stop != end || number < least || number > most)
    return bad(fmt::format("\"{}\" is not a whole number from {} to {}", text, least, most));
  return number;
}

Configured<std::uint64_t> parse_size_in(Text text, std::uint64_t least, std::uint64_t most) {
  const std::uint64_t size = STEPSTASH_TRY(parse_size(text));
  if (size < least || size > most)
    return bad(fmt::format("{} is outside {} to {}", text, format_size(least), format_size(most)));
  return size;
}

Configured<milliseconds> parse_duration_in(Text text, milliseconds least, milliseconds most) {
  const auto duration = STEPSTASH_TRY(parse_duration(text));
  if (!duration || *duration < least || *duration > most)
    return bad(fmt::format("\"{}\" is outside {} to {}", text, format_duration(least), format_duration(most)));
  return *duration;
}

Configured<std::string> parse_path(Text text) {
  if (text.empty()) return bad("a path is needed");
  if (text.find('\0') != Text::npos) return bad("a path holds no NUL");
  std::error_code error;
  const auto absolute = std::filesystem::absolute(std::filesystem::path(text), error);
  if (error) return bad(fmt::format("\"{}\": {}", text, error.message()));
  return absolute.lexically_normal().string();
}

constexpr std::size_t kMaxSocketPath = sizeof(sockaddr_un::sun_path) - 1;

Configured<std::string> parse_socket_path(Text text) {
  std::string path = STEPSTASH_TRY(parse_path(text));
  if (path.size() > kMaxSocketPath)
    return bad(fmt::format("\"{}\" has {} bytes, and the path of a unix socket has {} at most", path, path.size(),
                           kMaxSocketPath));
  if (path.ends_with('/')) return bad(fmt::format("\"{}\" is a directory, not a path for a socket", path));
  return path;
}

Configured<std::string> parse_segment_name(Text text) {
  const bool fine =
      !text.empty() && text.size() <= 200 && text.front() != '.' && std::all_of(text.begin(), text.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
               c == '-';
      });
  if (!fine)
    return bad(fmt::format("\"{}\" is no name for a segment: 1 to 200 of A-Z a-z 0-9 _ . - and no leading dot", text));
  return std::string(text);
}

Configured<std::uint32_t> parse_mode(Text text) {
  std::uint32_t mode = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, mode, 8);
  if (text.size() < 3 || text.size() > 4 || error != std::errc{} || stop != end || mode > 0777)
    return bad(fmt::format("\"{}\" is no mode: three or four octal digits, such as \"0660\"", text));
  if ((mode & 0600) != 0600)
    return bad(fmt::format("mode {:04o} locks the daemon's own user out: 0600 is the least", mode));
  return mode;
}

/// Looks up a name with a buffer that grows until the entry fits; -1: no such name, or NSS failed.
template <class Entry, class Lookup>
std::int64_t look_up(Lookup lookup, const std::string& name, std::uint32_t Entry::*id) {
  std::vector<char> buffer(1024);
  for (;;) {
    Entry entry{};
    Entry* found = nullptr;
    const int error = lookup(name.c_str(), &entry, buffer.data(), buffer.size(), &found);
    if (error == ERANGE && buffer.size() < (std::size_t{1} << 24)) {
      buffer.resize(buffer.size() * 2);
      continue;
    }
    if (error == EINTR) continue;
    return found == nullptr ? -1 : std::int64_t{entry.*id};
  }
}

enum class PrincipalKind { user, group };

Configured<Principal> parse_principal(Text text, PrincipalKind kind) {
  std::uint32_t number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  // (uid_t)-1 means "no change" to chown(2) and is no user's number.
  if (error == std::errc{} && stop == end && number != std::numeric_limits<std::uint32_t>::max())
    return Principal{std::string(text), number};
  const std::string name(text);
  const std::int64_t id = text.empty()                  ? -1
                          : kind == PrincipalKind::user ? look_up<passwd>(getpwnam_r, name, &passwd::pw_uid)
                                                        : look_up<group>(getgrnam_r, name, &group::gr_gid);
  if (id < 0)
    return bad(fmt::format("there is no {} \"{}\" here", kind == PrincipalKind::user ? "user" : "group", text));
  return Principal{name, static_cast<std::uint32_t>(id)};
}

/// A list in its text form: elements separated by commas.
Configured<std::vector<Principal>> parse_principals(Text text, PrincipalKind kind) {
  std::vector<Principal> list;
  if (text.empty()) return list;
  const Text whole = text;
  for (bool more = true; more;) {
    more = text.find(',') != Text::npos;
    const std::size_t comma = std::min(text.find(','), text.size());
    Text element = text.substr(0, comma);
    text.remove_prefix(std::min(comma + 1, text.size()));
    while (element.starts_with(' ')) element.remove_prefix(1);
    while (element.ends_with(' ')) element.remove_suffix(1);
    if (element.empty()) return bad(fmt::format("an element of the list is empty: \"{}\"", whole));
    list.push_back(STEPSTASH_TRY(parse_principal(element, kind)));
  }
  return list;
}

std::string toml_string(Text text) {
  std::string out = "\"";
  while (!text.empty()) {
    const CodePoint c = decode_utf8(text);
    if (c.bytes == 0) {  // TOML has no way to write it: shown as visible() shows it
      out += fmt::format("\\\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(text.front())));
    } else if (c.value == '"' || c.value == '\\') {
      out += {'\\', text.front()};
    } else if (is_visible(c.value)) {
      out += text.substr(0, c.bytes);
    } else {
      out += fmt::format("\\U{:08X}", static_cast<std::uint32_t>(c.value));
    }
    text.remove_prefix(std::max<std::size_t>(c.bytes, 1));
  }
  return out + '"';
}

std::string toml_list(const std::vector<Principal>& list) {
  std::string out;
  for (const Principal& principal : list) out += (out.empty() ? "" : ", ") + toml_string(principal.text);
  return '[' + out + ']';
}

constexpr std::pair<Text, LogLevel> kLogLevels[] = {
    {"debug", LogLevel::debug}, {"info", LogLevel::info}, {"warning", LogLevel::warning}, {"error", LogLevel::error}};

// ---- the table of settings -----------------------------------------------------------------------------------------

struct Setting {
  Text key;
  Text placeholder;
  Text help;
  bool reloadable;
  bool is_list;
  bool text_only;  // an integer in the file would be misleading (0o660 is 432)
  /// Parses the text into the configuration. Its error message does not contain the key; the caller adds it.
  Configured<> (*apply)(Config& config, Text text);
  std::string (*print)(const Config& config);  // as a TOML value
  bool may_be_empty = false;                   // an empty text has a meaning, given in the manual
};

using namespace std::chrono_literals;

template <std::uint32_t Config::*Member>
Configured<> apply_count(Config& config, Text text) {
  config.*Member = STEPSTASH_TRY(parse_number<std::uint32_t>(text, 1, 1'000'000));
  return boost::outcome_v2::success();
}
template <std::uint32_t Config::*Member>
std::string print_count(const Config& config) {
  return fmt::format("{}", config.*Member);
}

template <milliseconds Config::*Member, long long Least, long long Most>
Configured<> apply_duration(Config& config, Text text) {
  config.*Member = STEPSTASH_TRY(parse_duration_in(text, milliseconds{Least}, milliseconds{Most}));
  return boost::outcome_v2::success();
}
template <milliseconds Config::*Member>
std::string print_duration(const Config& config) {
  return toml_string(format_duration(config.*Member));
}

template <std::uint64_t Config::*Member, std::uint64_t Least, std::uint64_t Most>
Configured<> apply_size(Config& config, Text text) {
  config.*Member = STEPSTASH_TRY(parse_size_in(text, Least, Most));
  return boost::outcome_v2::success();
}
template <std::uint64_t Config::*Member>
std::string print_size(const Config& config) {
  return toml_string(format_size(config.*Member));
}

template <Principals Config::*Member>
Configured<> apply_users(Config& config, Text text) {
  (config.*Member).users = STEPSTASH_TRY(parse_principals(text, PrincipalKind::user));
  return boost::outcome_v2::success();
}
template <Principals Config::*Member>
Configured<> apply_groups(Config& config, Text text) {
  (config.*Member).groups = STEPSTASH_TRY(parse_principals(text, PrincipalKind::group));
  return boost::outcome_v2::success();
}
template <Principals Config::*Member>
std::string print_users(const Config& config) {
  return toml_list((config.*Member).users);
}
template <Principals Config::*Member>
std::string print_groups(const Config& config) {
  return toml_list((config.*Member).groups);
}

constexpr std::uint64_t kKiB = 1024;
constexpr std::uint64_t kMiB = 1024 * kKiB;
constexpr std::uint64_t kTiB = kMiB * 1024 * 1024;
constexpr std::uint64_t kMinSegment = 4 * kMiB;   // below this, tables and one staging ring's worth of values do not
                                                  // fit
constexpr std::uint64_t kMaxSegment = 64 * kTiB;  // 2^46: offsets have 48 bits (shm/layout.hpp)
constexpr long long kHour = 3'600'000;
constexpr long long kDay = 24 * kHour;

constexpr bool kReload = true, kRestart = false;

// In the order of --help and --print-config. A setting that may be unset has a word for that ("never"),
// since an empty text is an error and --print-config must read back.
constexpr Setting kSettings[] = {
    {"socket", "PATH", "unix socket that clients connect to", kRestart, false, true,
     [](Config& config, Text text) -> Configured<> {
       config.socket = STEPSTASH_TRY(parse_socket_path(text));
       config.private_directory.clear();
       return boost::outcome_v2::success();
     },
     [](const Config& config) { return toml_string(config.socket); }},
    {"socket_mode", "MODE", "permissions of the socket, octal", kRestart, false, true,
     [](Config& config, Text text) -> Configured<> {
       config.socket_mode = STEPSTASH_TRY(parse_mode(text));
       return boost::outcome_v2::success();
     },
     [](const Config& config) { return fmt::format("\"{:04o}\"", config.socket_mode); }},
    {"socket_group", "GROUP", "group that the socket is given to", kRestart, false, false,
     [](Config& config, Text text) -> Configured<> {
       config.socket_group.reset();
       if (!text.empty()) config.socket_group = STEPSTASH_TRY(parse_principal(text, PrincipalKind::group));
       return boost::outcome_v2::success();
     },
     [](const Config& config) { return toml_string(config.socket_group ? config.socket_group->text : std::string()); },
     /*may_be_empty=*/true},
    {"db", "PATH", "SQLite database behind the segment", kRestart, false, true,
     [](Config& config, Text text) -> Configured<> {
       config.db = STEPSTASH_TRY(parse_path(text));
       config.state_directory.clear();
       if (config.db.ends_with('/')) return bad(fmt::format("\"{}\" is a directory, not a path for a file", config.db));
       return boost::outcome_v2::success();
     },
     [](const Config& config) { return toml_string(config.db); }},
    {"segment_name", "NAME", "name of the shared-memory object", kRestart, false, true,
     [](Config& config, Text text) -> Configured<> {
       config.segment_name = STEPSTASH_TRY(parse_segment_name(text));
       return boost::outcome_v2::success();
     },
     [](const Config& config) { return toml_string(config.segment_name); }},
    {"segment_directory", "DIR", "tmpfs that the object lies in", kRestart, false, true,
     [](Config& config, Text text) -> Configured<> {
       config.segment_directory = STEPSTASH_TRY(parse_path(text));
       return boost::outcome_v2::success();
     },
     [](const Config& config) { return toml_string(config.segment_directory); }},
    {"segment_size", "SIZE", "bytes of shared memory", kRestart, false, false,
     [](Config& config, Text text) -> Configured<> {
       // Whole pages, as in the segment: it is later compared with the segment's actual size.
       constexpr std::uint64_t kPage = 4 * kKiB;
       config.segment_size = (STEPSTASH_TRY(parse_size_in(text, kMinSegment, kMaxSegment)) + kPage - 1) / kPage * kPage;
       return boost::outcome_v2::success();
     },
     print_size<&Config::segment_size>},
    {"flush_interval", "DURATION", "how long a value waits for the database at most", kReload, false, false,
     apply_duration<&Config::flush_interval, 1, kHour>, print_duration<&Config::flush_interval>},
    {"max_dirty", "SIZE", "bytes that may wait for the database (three quarters of the segment)", kReload, false, false,
     apply_size<&Config::max_dirty, kMiB, kMaxSegment>, print_size<&Config::max_dirty>},
    {"build_data_horizon", "DURATION", "keep the data of finished builds this long", kReload, false, false,
     [](Config& config, Text text) -> Configured<> {
       const auto horizon = STEPSTASH_TRY(parse_duration(text));
       if (horizon && *horizon < 1s) return bad(fmt::format("\"{}\" is less than 1s", text));
       config.build_data_horizon = horizon;
       return boost::outcome_v2::success();
     },
     [](const Config& config) { return toml_string(format_duration(config.build_data_horizon)); }},
    {"prune_interval", "DURATION", "how often expired builds are looked for", kReload, false, false,
     apply_duration<&Config::prune_interval, 100, kDay>, print_duration<&Config::prune_interval>},
    {"max_connections", "N", "connections at one time", kReload, false, false, apply_count<&Config::max_connections>,
     print_count<&Config::max_connections>},
    {"max_connections_per_user", "N", "connections of one user at one time", kReload, false, false,
     apply_count<&Config::max_connections_per_user>, print_count<&Config::max_connections_per_user>},
    {"max_rings", "N", "staging rings at one time", kReload, false, false, apply_count<&Config::max_rings>,
     print_count<&Config::max_rings>},
    {"ring_size", "SIZE", "bytes of one staging ring", kRestart, false, false,
     [](Config& config, Text text) -> Configured<> {
       config.ring_size = STEPSTASH_TRY(parse_size_in(text, 64 * kKiB, 1024 * kMiB));
       if (config.ring_size % (4 * kKiB) != 0) return bad(fmt::format("{} is not a multiple of 4KiB", text));
       return boost::outcome_v2::success();
     },
     print_size<&Config::ring_size>},
    {"frame_timeout", "DURATION", "a message that was begun must be whole after this", kReload, false, false,
     apply_duration<&Config::frame_timeout, 100, kHour>, print_duration<&Config::frame_timeout>},
    {"punch_after", "DURATION", "give free memory back to the kernel after this", kReload, false, false,
     apply_duration<&Config::punch_after, 0, kDay>, print_duration<&Config::punch_after>},
    {"log_level", "LEVEL", "debug, info, warning or error", kReload, false, true,
     [](Config& config, Text text) -> Configured<> {
       for (const auto& [name, level] : kLogLevels) {
         if (name != text) continue;
         config.log_level = level;
         return boost::outcome_v2::success();
       }
       return bad(fmt::format("\"{}\" is none of debug, info, warning, error", text));
     },
     [](const Config& config) {
       for (const auto& [name, level] : kLogLevels) {
         if (level == config.log_level) return toml_string(name);
       }
       return toml_string("info");
     }},
    {"read_users", "USERS", "who may read", kReload, true, false, apply_users<&Config::read>,
     print_users<&Config::read>},
    {"read_groups", "GROUPS", "who may read", kReload, true, false, apply_groups<&Config::read>,
     print_groups<&Config::read>},
    {"write_users", "USERS", "who may set, finish and hold, too", kReload, true, false, apply_users<&Config::write>,
     print_users<&Config::write>},
    {"write_groups", "GROUPS", "who may set, finish and hold, too", kReload, true, false, apply_groups<&Config::write>,
     print_groups<&Config::write>},
    {"admin_users", "USERS", "who may prune and drop, too", kReload, true, false, apply_users<&Config::admin>,
     print_users<&Config::admin>},
    {"admin_groups", "GROUPS", "who may prune and drop, too", kReload, true, false, apply_groups<&Config::admin>,
     print_groups<&Config::admin>},
};

const Setting* find_setting(Text key) {
  const auto found = std::find_if(std::begin(kSettings), std::end(kSettings),
                                  [&](const Setting& setting) { return setting.key == key; });
  return found == std::end(kSettings) ? nullptr : found;
}

std::string variable_of(Text key) {
  std::string name = "STEPSTASH_";
  for (const char c : key) name += c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  return name;
}

std::string option_of(Text key) {
  std::string name = "--" + std::string(key);
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

/// Levenshtein distance, one row at a time: the texts are a few dozen characters.
std::size_t edit_distance(Text word, Text candidate) {
  std::vector<std::size_t> row(candidate.size() + 1);
  for (std::size_t i = 0; i < row.size(); ++i) row[i] = i;
  for (std::size_t w = 0; w < word.size(); ++w) {
    std::size_t diagonal = row[0];
    row[0] = w + 1;
    for (std::size_t c = 0; c < candidate.size(); ++c) {
      const std::size_t above = row[c + 1];
      row[c + 1] = std::min({above + 1, row[c] + 1, diagonal + (word[w] == candidate[c] ? 0u : 1u)});
      diagonal = above;
    }
  }
  return row.back();
}

/// `; did you mean "flush_interval"?`, or empty.
std::string did_you_mean(Text key) {
  std::string word = lower(key);
  std::replace(word.begin(), word.end(), '-', '_');
  std::vector<std::string> keys;
  for (const Setting& setting : kSettings) keys.emplace_back(setting.key);
  const auto meant = nearest(word, keys);
  return meant ? fmt::format("; did you mean \"{}\"?", *meant) : std::string();
}

std::string errno_text(int error) { return std::system_category().message(error); }

// ---- the sources ---------------------------------------------------------------------------------------------------

struct Assignment {
  std::string text;
  std::string origin;
  bool empty_list = false;  ///< `[]` in the file: explicitly nobody
};
using Assignments = std::map<std::string, Assignment, std::less<>>;

/// The text of a single TOML element; nullopt for kinds that no setting has (tables, floats, dates, ...).
std::optional<std::string> scalar_text(const toml::node& node, bool text_only) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer(); number && !text_only) return std::to_string(number->get());
  return std::nullopt;
}

Configured<std::string> value_text(const Setting& setting, const toml::node& node, const std::string& place) {
  if (setting.is_list && node.is_array()) {
    std::string joined;
    for (const toml::node& element : *node.as_array()) {
      const auto text = scalar_text(element, setting.text_only);
      if (!text || text->empty() || text->find(',') != std::string::npos)
        return bad(fmt::format("{}: {}: the elements are names or numbers", place, setting.key));
      joined += (joined.empty() ? "" : ",") + *text;
    }
    return joined;
  }
  if (auto text = scalar_text(node, setting.text_only)) return std::move(*text);
  return bad(fmt::format("{}: {}: expected {}, for instance {}", place, setting.key,
                         setting.is_list     ? "a list of names"
                         : setting.text_only ? "text in quotation marks"
                                             : "a number or text in quotation marks",
                         setting.is_list ? "[\"buildbot\", 1001]" : setting.print(Config{})));
}

/// The text of the file. If it cannot be read, for whatever reason, that is an error with the reason, never an empty
/// file.
Configured<std::string> file_text(const std::string& path) {
  constexpr std::size_t kMost = 1 << 20;  // a mistyped path must not read a whole disk
  const auto cannot = [&](const std::string& why) { return bad(fmt::format("{}: cannot be read: {}", path, why)); };
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY));
  struct stat status {};
  if (!fd || ::fstat(fd.get(), &status) != 0) return cannot(errno_text(errno));
  if (S_ISDIR(status.st_mode)) return cannot("it is a directory");
  std::string text;
  for (char part[4096];;) {
    const ssize_t got = ::read(fd.get(), part, sizeof part);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return cannot(errno_text(errno));
    if (got == 0) return text;
    text.append(part, static_cast<std::size_t>(got));
    if (text.size() > kMost) return cannot(fmt::format("it is longer than {} bytes", kMost));
  }
}

Configured<> read_file(const std::string& path, Assignments& into) {
  const std::string text = STEPSTASH_TRY(file_text(path));
  toml::table table;
  try {
    table = toml::parse(text, path);
  } catch (const toml::parse_error& error) {
    const auto line = error.source().begin.line;
    if (line == 0) return bad(fmt::format("{}: {}", path, error.description()));
    return bad(fmt::format("{}:{}: {}", path, line, error.description()));
  }
  for (const auto& [key, node] : table) {
    const std::string place = fmt::format("{}:{}", path, key.source().begin.line);
    const Setting* setting = find_setting(key.str());
    if (setting == nullptr)
      return bad(fmt::format("{}: there is no setting \"{}\"{}", place, key.str(), did_you_mean(key.str())));
    std::string value = STEPSTASH_TRY(value_text(*setting, node, place));
    const bool empty_list = node.is_array() && node.as_array()->empty();
    into.insert_or_assign(std::string(setting->key), Assignment{std::move(value), place, empty_list});
  }
  return boost::outcome_v2::success();
}

Text find_variable(const Inputs& inputs, Text name) {
  const auto found = inputs.environment.find(name);
  return found == inputs.environment.end() ? Text() : Text(found->second);
}

/// The first directory of a systemd variable, which may contain several separated by colons; empty unless absolute.
std::string service_directory(const Inputs& inputs, Text name) {
  Text value = find_variable(inputs, name);
  value = value.substr(0, value.find(':'));
  return value.starts_with('/') ? std::string(value) : std::string();
}

/// A directory from a variable of the XDG specification: the whole value is the path; a relative one is ignored.
std::string xdg_directory(const Inputs& inputs, Text name) {
  const Text value = find_variable(inputs, name);
  return value.starts_with('/') ? std::string(value) : std::string();
}

struct Home {
  std::string path;         ///< empty: there is none to use
  std::string passed_over;  ///< message for the user
};

/// $HOME, or else the user database's entry. A directory owned by another user is never this user's home: su -m, sudo
/// -E and setpriv(1) leave HOME unchanged.
Home home_directory(const Inputs& inputs) {
  Home home;
  const auto take = [&](Text from, const std::string& path) {
    if (!path.starts_with('/')) return;
    struct stat status {};
    const int error = ::stat(path.c_str(), &status) == 0 ? 0 : errno;
    if (error == ENOENT || (error == 0 && S_ISDIR(status.st_mode) && status.st_uid == inputs.uid)) {
      home.path = path;
      return;
    }
    const std::string why = error != 0                 ? errno_text(error)
                            : !S_ISDIR(status.st_mode) ? std::string("is not a directory")
                                                       : fmt::format(
                                                             "belongs to user {}, and not to user {}, who runs "
                                                             "this daemon",
                                                             status.st_uid, inputs.uid);
    home.passed_over += fmt::format("{}{}, {}: {}", home.passed_over.empty() ? "" : "; ", from, path, why);
  };
  take("HOME", std::string(find_variable(inputs, "HOME")));
  if (!home.path.empty()) return home;
  std::vector<char> buffer(1 << 16);
  passwd entry{};
  passwd* found = nullptr;
  if (getpwuid_r(inputs.uid, &entry, buffer.data(), buffer.size(), &found) != 0 || found == nullptr) return home;
  if (found->pw_dir != nullptr) take("the home directory of the user database", found->pw_dir);
  return home;
}

constexpr uid_t kFirstLoginUser = 1000;  // login.defs' UID_MIN; system users have less

/// Whether this daemon serves the machine rather than one user.
bool is_service(const Inputs& inputs) {
  const bool from_systemd =
      !service_directory(inputs, "RUNTIME_DIRECTORY").empty() || !service_directory(inputs, "STATE_DIRECTORY").empty();
  return inputs.uid == 0 || (inputs.uid < kFirstLoginUser && from_systemd);
}

/// Which file to read; nullopt: none. An explicitly named file is not checked here: reading it reports what is wrong.
Configured<std::optional<std::string>> choose_file(const Inputs& inputs) {
  if (inputs.config_file) return inputs.config_file;
  if (const auto named = inputs.environment.find("STEPSTASH_CONFIG"); named != inputs.environment.end()) {
    if (named->second.empty()) return bad("environment STEPSTASH_CONFIG: is empty: name a file, or unset it");
    return std::optional<std::string>(named->second);
  }
  std::string candidate = inputs.system_config;
  if (!is_service(inputs)) {
    std::string base = xdg_directory(inputs, "XDG_CONFIG_HOME");
    if (base.empty()) {
      const std::string home = home_directory(inputs).path;
      if (home.empty()) return std::optional<std::string>();
      base = home + "/.config";
    }
    candidate = base + "/stepstash/stepstashd.conf";
  }
  // Only a file that does not exist means "not configured". Any other reason why it cannot be read is an error;
  // otherwise rights and paths would silently differ from the written configuration.
  struct stat status {};
  if (::stat(candidate.c_str(), &status) == 0 || errno != ENOENT) return std::optional<std::string>(candidate);
  // A dangling link, at the file or on the way to it, is not a missing file.
  for (std::filesystem::path at(candidate); at.has_relative_path(); at = at.parent_path()) {
    if (::lstat(at.c_str(), &status) != 0) continue;
    if (S_ISLNK(status.st_mode) && ::stat(at.c_str(), &status) != 0)
      return bad(fmt::format("{}: cannot be read: {} is a link that leads nowhere", candidate, at.string()));
    break;  // this component exists, and the rest below it does not
  }
  return std::optional<std::string>();
}

/// Paths that depend on the daemon's user and environment. `notes`: by key, what was ignored, and why.
void fill_in_places(const Inputs& inputs, Config& config, std::map<std::string, std::string, std::less<>>& notes) {
  Place place = place_to_listen(inputs.uid, service_directory(inputs, "RUNTIME_DIRECTORY"),
                                find_variable(inputs, "XDG_RUNTIME_DIR"));
  config.socket = std::move(place.path);
  config.private_directory = std::move(place.private_directory);
  notes["socket"] = std::move(place.passed_over);

  const std::string state = service_directory(inputs, "STATE_DIRECTORY");
  const std::string xdg_state = xdg_directory(inputs, "XDG_STATE_HOME");
  if (!state.empty()) {
    config.db = state + "/build_data.db";
  } else if (inputs.uid == 0) {
    config.db = "/var/lib/stepstash/build_data.db";
  } else if (!xdg_state.empty()) {
    config.db = xdg_state + "/stepstash/build_data.db";
  } else {
    Home home = home_directory(inputs);
    if (!home.path.empty()) config.db = home.path + "/.local/state/stepstash/build_data.db";
    notes["db"] = std::move(home.passed_over);
  }
  config.state_directory = std::filesystem::path(config.db).parent_path().string();

  config.segment_directory = "/dev/shm";
  config.segment_name = is_service(inputs) ? "stepstash" : fmt::format("stepstash-{}", inputs.uid);
}

/// Checks that involve several settings.
Configured<> check_whole(const Assignments& assignments, Text no_home, Config& config) {
  const auto origin = [&](Text key) {
    const auto found = assignments.find(key);
    return found == assignments.end() ? fmt::format("{}", key) : fmt::format("{}: {}", found->second.origin, key);
  };
  if (config.db.empty())
    return bad(fmt::format("db: this user has no home directory to keep a database in{}{}{}: name one with --db PATH",
                           no_home.empty() ? "" : " (", no_home, no_home.empty() ? "" : ")"));
  if (config.socket.size() > kMaxSocketPath)
    return bad(
        fmt::format("socket: the default, {}, has {} bytes, and the path of a unix socket has {} at most: name "
                    "another with --socket PATH",
                    config.socket, config.socket.size(), kMaxSocketPath));
  if (config.max_dirty == 0) config.max_dirty = config.segment_size / 4 * 3;
  if (config.max_dirty > config.segment_size)
    return bad(fmt::format("{}: {} is more than segment_size, {}", origin("max_dirty"), format_size(config.max_dirty),
                           format_size(config.segment_size)));
  if (config.socket == config.db) return bad(fmt::format("{}: socket and db are both {}", origin("db"), config.db));
  return boost::outcome_v2::success();
}

bool has_right(const Principals& principals, uid_t peer, std::span<const gid_t> peer_groups) noexcept {
  const auto is = [](std::uint32_t id) { return [id](const Principal& principal) { return principal.id == id; }; };
  if (std::any_of(principals.users.begin(), principals.users.end(), is(peer))) return true;
  return std::any_of(peer_groups.begin(), peer_groups.end(), [&](gid_t group) {
    return std::any_of(principals.groups.begin(), principals.groups.end(), is(group));
  });
}

/// mkdir -p, with `mode` for missing components.
Configured<> make_directories(const std::string& path, mode_t mode) {
  const std::filesystem::path whole(path);
  std::filesystem::path so_far;
  for (const auto& part : whole) {
    so_far /= part;
    struct stat status {};
    if (::stat(so_far.c_str(), &status) == 0) {
      if (S_ISDIR(status.st_mode)) continue;
      return bad(fmt::format("{} is not a directory", so_far.string()));
    }
    // Set the mode again: the umask removes bits that other users need to reach the socket.
    if (::mkdir(so_far.c_str(), mode) == 0 && ::chmod(so_far.c_str(), mode) == 0) continue;
    // EEXIST: another process was faster, which is just as good; the next step shows whether it is a directory.
    if (errno != EEXIST)
      return bad(fmt::format("cannot make the directory {}: {}", so_far.string(), errno_text(errno)));
  }
  return boost::outcome_v2::success();
}

/// Makes sure that nobody else reaches the database through its directory: a directory of our own is restricted,
/// whatever mode an earlier version gave it; for any other, returns warnings about what others could do there.
Configured<std::vector<std::string>> close_to_others(const std::string& path, uid_t own, bool own_place) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct stat status {};
  if (!fd || ::fstat(fd.get(), &status) != 0) return bad(fmt::format("{}: {}", path, errno_text(errno)));
  if (own_place && status.st_uid != own)
    return bad(
        fmt::format("{} belongs to user {}, and this daemon runs as user {}: give the directory to that user, or "
                    "name another place with --db PATH",
                    path, status.st_uid, own));
  if (own_place && (status.st_mode & 077) != 0 && ::fchmod(fd.get(), 0700) != 0)
    return bad(fmt::format("cannot close {} to others: {}", path, errno_text(errno)));
  std::vector<std::string> warnings;
  const bool replaceable = (status.st_mode & 022) != 0 && (status.st_mode & S_ISVTX) == 0;
  if (!own_place && ((status.st_uid != own && status.st_uid != 0) || replaceable))
    warnings.push_back(fmt::format(
        "the database's directory, {}, can be changed by others (owner {}, mode {:04o}): they can delete or "
        "replace the database",
        path, status.st_uid, status.st_mode & 07777u));
  return warnings;
}

}  // namespace

// ---- sizes and durations -------------------------------------------------------------------------------------------

Configured<std::uint64_t> parse_size(Text text) {
  const auto amount = split_amount(text);
  if (!amount) return bad(fmt::format("\"{}\" is no size: {}", text, kSizeExample));
  if (amount->unit.empty()) return amount->number;
  const Unit* unit = find_unit(kSizeUnits, amount->unit);
  if (unit == nullptr) {
    const Text meant = suggested_size_unit(amount->unit);
    if (meant.empty()) return bad(fmt::format("\"{}\" is no size: {}", text, kSizeExample));
    return bad(fmt::format("\"{}\" is no size: sizes are powers of two here, write {}{}", text, amount->number, meant));
  }
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(amount->number, unit->factor, &bytes))
    return bad(fmt::format("\"{}\" is more than 2^64 - 1 bytes", text));
  return bytes;
}

std::string format_size(std::uint64_t bytes) {
  if (bytes == 0) return "0B";
  for (const Unit& unit : kSizeUnits) {
    if (bytes % unit.factor == 0) return fmt::format("{}{}", bytes / unit.factor, unit.name);
  }
  return fmt::format("{}B", bytes);
}

Configured<std::optional<milliseconds>> parse_duration(Text text) {
  if (text == "never") return std::optional<milliseconds>();
  const auto amount = split_amount(text);
  if (!amount) return bad(fmt::format("\"{}\" is no duration: {}", text, kTimeExample));
  if (amount->unit.empty()) {
    if (amount->number == 0) return std::optional<milliseconds>(milliseconds{0});
    return bad(fmt::format("\"{}\" has no unit: {}", text, kTimeExample));
  }
  const Unit* unit = find_unit(kTimeUnits, amount->unit);
  if (unit == nullptr) {
    const Text meant = suggested_time_unit(amount->unit);
    if (meant.empty()) return bad(fmt::format("\"{}\" is no duration: {}", text, kTimeExample));
    return bad(fmt::format("\"{}\" is no duration: write {}{}", text, amount->number, meant));
  }
  std::uint64_t total = 0;
  if (__builtin_mul_overflow(amount->number, unit->factor, &total) || total > kMaxMilliseconds)
    return bad(fmt::format("\"{}\" is longer than 36500d; write never for no end", text));
  return std::optional<milliseconds>(milliseconds{static_cast<milliseconds::rep>(total)});
}

std::string format_duration(std::optional<milliseconds> duration) {
  if (!duration) return "never";
  const auto total = static_cast<std::uint64_t>(duration->count());
  if (total == 0) return "0s";
  for (const Unit& unit : kTimeUnits) {
    if (total % unit.factor == 0) return fmt::format("{}{}", total / unit.factor, unit.name);
  }
  return fmt::format("{}ms", total);
}

std::optional<std::string> nearest(Text word, const std::vector<std::string>& candidates) {
  const std::string* best = nullptr;
  std::size_t best_distance = 0;
  for (const std::string& candidate : candidates) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance > std::max<std::size_t>(1, candidate.size() / 4)) continue;
    if (best != nullptr && distance >= best_distance) continue;
    best = &candidate;
    best_distance = distance;
  }
  return best == nullptr ? std::nullopt : std::optional(*best);
}

std::vector<SettingInfo> setting_infos() {
  std::vector<SettingInfo> infos;
  for (const Setting& setting : kSettings)
    infos.push_back({std::string(setting.key), std::string(setting.placeholder), std::string(setting.help),
                     setting.is_list, setting.reloadable, setting.may_be_empty});
  return infos;
}

// ---- rights --------------------------------------------------------------------------------------------------------

Right Config::right_of(uid_t peer, std::span<const gid_t> peer_groups, uid_t own, gid_t socket_gid) const noexcept {
  if (peer == 0 || peer == own) return Right::admin;
  if (read.empty() && write.empty() && admin.empty()) {
    const bool member = std::find(peer_groups.begin(), peer_groups.end(), socket_gid) != peer_groups.end();
    return member ? Right::admin : Right::none;
  }
  if (has_right(admin, peer, peer_groups)) return Right::admin;
  if (has_right(write, peer, peer_groups)) return Right::write;
  if (has_right(read, peer, peer_groups)) return Right::read;
  return Right::none;
}

// ---- reading -------------------------------------------------------------------------------------------------------

std::map<std::string, std::string, std::less<>> Inputs::copy_environment(const char* const* envp) {
  std::map<std::string, std::string, std::less<>> environment;
  for (; envp != nullptr && *envp != nullptr; ++envp) {
    const Text line(*envp);
    const std::size_t equals = line.find('=');
    if (equals != Text::npos) environment.emplace(line.substr(0, equals), line.substr(equals + 1));
  }
  return environment;
}

Configured<Reading> read_config(const Inputs& inputs) {
  Reading reading;
  Assignments assignments;
  std::map<std::string, std::string, std::less<>> notes;
  fill_in_places(inputs, reading.config, notes);
  if (const auto file = STEPSTASH_TRY(choose_file(inputs))) {
    reading.config.config_file = STEPSTASH_TRY(parse_path(*file));
    STEPSTASH_TRY(read_file(reading.config.config_file, assignments));
  }
  for (const auto& [name, value] : inputs.environment) {
    constexpr Text kPrefix = "STEPSTASH_";
    if (!name.starts_with(kPrefix)) continue;
    const std::string key = lower(Text(name).substr(kPrefix.size()));
    // Clients' variables (STEPSTASH_BUILD) may be set here as well, so an unknown one is not an error.
    if (find_setting(key) != nullptr && name == variable_of(key)) {
      assignments.insert_or_assign(key, Assignment{value, "environment " + name});
    } else if (const std::string hint = did_you_mean(key); !hint.empty()) {
      reading.warnings.push_back(fmt::format("environment {}: there is no such setting{}", name, hint));
    }
  }
  for (const auto& [key, text] : inputs.options) assignments.insert_or_assign(key, Assignment{text, option_of(key)});

  for (const Setting& setting : kSettings) {
    const auto found = assignments.find(setting.key);
    reading.origins[std::string(setting.key)] = found == assignments.end() ? "default" : found->second.origin;
    if (found == assignments.end()) continue;
    // An empty text usually comes from an unset variable (`$IT`); it is not a request for the default.
    const bool missing = found->second.text.empty() && !found->second.empty_list && !setting.may_be_empty;
    const Configured<> applied =
        missing ? bad(fmt::format("is empty{}", setting.is_list ? ": [] in the file is nobody" : ""))
                : setting.apply(reading.config, found->second.text);
    if (applied) continue;
    const bool on_command_line = found->second.origin.starts_with("--");
    return ConfigError{on_command_line
                           ? fmt::format("{}: {}", found->second.origin, applied.error().message)
                           : fmt::format("{}: {}: {}", found->second.origin, setting.key, applied.error().message),
                       on_command_line ? kExitUsage : kExitConfig};
  }
  STEPSTASH_TRY(check_whole(assignments, notes["db"], reading.config));
  for (const auto& [key, note] : notes) {
    if (!note.empty() && !assignments.contains(key))
      reading.warnings.push_back(fmt::format("passed over, for the default of {}: {}", key, note));
  }
  return reading;
}

std::string print_config(const Reading& reading) {
  std::string out = reading.config.config_file.empty() ? std::string("# no configuration file\n")
                                                       : fmt::format("# {}\n", visible(reading.config.config_file));
  for (const Setting& setting : kSettings) {
    const auto origin = reading.origins.find(setting.key);
    const std::string line = fmt::format("{} = {}", setting.key, setting.print(reading.config));
    out += fmt::format("{:<56}  # {}\n", line, origin == reading.origins.end() ? "default" : visible(origin->second));
  }
  return out;
}

Configured<Reload> reload_config(const Config& running, const Inputs& inputs) {
  Reading reading = STEPSTASH_TRY(read_config(inputs));
  // A default derived from the segment's size uses the running segment's, not one that waits for a restart.
  if (reading.origins["max_dirty"] == "default") reading.config.max_dirty = running.segment_size / 4 * 3;
  reading.config.max_dirty = std::min(reading.config.max_dirty, running.segment_size);
  Reload reload;
  reload.config = running;
  reload.config.config_file = reading.config.config_file;
  reload.warnings = std::move(reading.warnings);
  for (const Setting& setting : kSettings) {
    const std::string old_value = setting.print(running);
    const std::string new_value = setting.print(reading.config);
    if (old_value == new_value) continue;
    const std::string line = fmt::format("{}: {} -> {}", setting.key, old_value, new_value);
    if (!setting.reloadable) {
      reload.needs_restart.push_back(line);
      continue;
    }
    reload.changed.push_back(line);
  }
  const Config& fresh = reading.config;
  reload.config.flush_interval = fresh.flush_interval;
  reload.config.build_data_horizon = fresh.build_data_horizon;
  reload.config.prune_interval = fresh.prune_interval;
  reload.config.max_dirty = fresh.max_dirty;
  reload.config.max_connections = fresh.max_connections;
  reload.config.max_connections_per_user = fresh.max_connections_per_user;
  reload.config.max_rings = fresh.max_rings;
  reload.config.frame_timeout = fresh.frame_timeout;
  reload.config.punch_after = fresh.punch_after;
  reload.config.log_level = fresh.log_level;
  reload.config.read = fresh.read;
  reload.config.write = fresh.write;
  reload.config.admin = fresh.admin;
  return reload;
}

// ---- directories ---------------------------------------------------------------------------------------------------

Configured<std::vector<std::string>> prepare_directories(const Config& config, uid_t own) {
  if (!config.private_directory.empty()) {
    const char* path = config.private_directory.c_str();
    if (::mkdir(path, 0700) != 0 && errno != EEXIST)
      return bad(fmt::format("cannot make the directory {}: {}", path, errno_text(errno)));
    // Anybody can create this name first, and could then swap the socket in it for another.
    if (!is_private_directory(config.private_directory, own))
      return bad(
          fmt::format("{} is not a directory of user {} alone (mode 0700): remove it, or set XDG_RUNTIME_DIR, or "
                      "name another place with --socket PATH",
                      path, own));
  }
  const auto parent = [](const std::string& path) { return std::filesystem::path(path).parent_path().string(); };
  STEPSTASH_TRY(make_directories(parent(config.socket), own == 0 ? 0755 : 0700));
  const std::string db_directory = parent(config.db);
  STEPSTASH_TRY(make_directories(db_directory, 0700));
  const bool own_place = db_directory == config.state_directory && db_directory != parent(config.socket);
  return close_to_others(db_directory, own, own_place);
}

}  // namespace stepstash::daemon
