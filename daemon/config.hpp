// SPDX-License-Identifier: Apache-2.0
/// The configuration of stepstashd: built-in defaults, then one TOML file, then STEPSTASH_* in the environment, then
/// the command line; each overrides the one before. docs/man/stepstashd.conf.5 documents every setting.
///
/// Every source uses the same text (`256MiB`, `200ms`, `never`), and one table (config.cpp) defines for each setting
/// how that text is parsed, checked and printed. Threads: no function has state of its own, but names of users and
/// groups are looked up through NSS, which may block: call them before the loop runs, or off it.
#pragma once

#include <sys/types.h>

#include <boost/outcome/std_result.hpp>
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace stepstash::daemon {

/// Exit statuses of sysexits(3) for configuration errors; a unit file must not restart the service for these two.
inline constexpr int kExitUsage = 64;
inline constexpr int kExitConfig = 78;

/// Why there is no configuration, as a message for its author, and the exit status: kExitUsage if the command line is
/// at fault, else kExitConfig.
struct ConfigError {
  std::string message;
  int exit_status = kExitConfig;
};

/// A value, or a ConfigError; STEPSTASH_TRY propagates it. value() without a value ends the process.
template <class T = void>
using Configured = boost::outcome_v2::std_result<T, ConfigError, boost::outcome_v2::policy::terminate>;

/// Bytes from `268435456`, `256MiB`, `1 GiB`; units B, KiB, MiB, GiB, TiB. No fractions, no signs, no MB (10^6 or
/// 2^20?). Errors quote the text and say what is expected; exit_status is kExitConfig.
Configured<std::uint64_t> parse_size(std::string_view text);
/// The shortest exact spelling that parse_size reads back: `1GiB`, `1025MiB`, `12345B`.
std::string format_size(std::uint64_t bytes);

/// A time from `200ms`, `10s`, `5min`, `2h`, `7d`; nullopt for `never`. A number without a unit is an error, except 0.
Configured<std::optional<std::chrono::milliseconds>> parse_duration(std::string_view text);
/// The shortest exact spelling that parse_duration reads back: `90s`, `2h`, `never`.
std::string format_duration(std::optional<std::chrono::milliseconds> duration);

enum class LogLevel { debug, info, warning, error };

/// A user or group as configured, and its number at the time it was read.
struct Principal {
  std::string text;
  std::uint32_t id = 0;
};

/// The users and groups that have a right. Both lists empty: not configured.
struct Principals {
  std::vector<Principal> users;
  std::vector<Principal> groups;
  bool empty() const noexcept { return users.empty() && groups.empty(); }
};

/// What a peer may do. `admin` includes `write`, which includes `read`.
enum class Right { none, read, write, admin };

/// The settings in force. Plain data: copy it freely.
struct Config {
  std::string config_file;  ///< the file that was read; empty: none

  std::string socket;  ///< absolute path of the unix socket, at most 107 bytes
  std::uint32_t socket_mode = 0660;
  std::optional<Principal> socket_group;  ///< group of the socket; nullopt: the daemon's own group

  std::string db;                 ///< absolute path of the SQLite database
  std::string segment_directory;  ///< absolute path of a tmpfs
  std::string segment_name;       ///< base name of all objects in segment_directory
  std::uint64_t segment_size = std::uint64_t{1} << 30;

  std::chrono::milliseconds flush_interval{200};                ///< the oldest dirty value waits at most this long
  std::optional<std::chrono::milliseconds> build_data_horizon;  ///< nullopt: finished builds are kept forever
  std::chrono::milliseconds prune_interval{std::chrono::minutes{1}};
  std::uint64_t max_dirty = 0;  ///< bytes that may wait for the database; never 0 after reading

  std::uint32_t max_connections = 4096;
  std::uint32_t max_connections_per_user = 1024;
  std::uint32_t max_rings = 64;  ///< staging rings at one time
  std::uint64_t ring_size = std::uint64_t{8} << 20;
  std::chrono::milliseconds frame_timeout{std::chrono::seconds{10}};  ///< a partial frame must be complete after this
  std::chrono::milliseconds punch_after{std::chrono::seconds{10}};    ///< free memory is given back to the kernel after
                                                                      ///< this

  LogLevel log_level = LogLevel::info;

  Principals read, write, admin;

  /// A directory for the socket that the daemon chose below a world-writable one (/tmp/stepstash-UID): it must be ours
  /// alone before anything is bound in it. Empty otherwise.
  std::string private_directory;
  /// The database's directory, if the daemon chose it itself: it belongs to the daemon's user alone, mode 0700. A
  /// directory set in the configuration may contain other files and is left as it is. Empty otherwise.
  std::string state_directory;

  /// The rights of a peer with these credentials. The daemon's own user and root may do everything. While none of the
  /// six lists is configured, so may members of `socket_gid`, the group that owns the socket. O(lists).
  Right right_of(uid_t peer, std::span<const gid_t> peer_groups, uid_t own, gid_t socket_gid) const noexcept;
};

/// All inputs of the configuration except the file system: passed to read_config, and kept for SIGHUP.
struct Inputs {
  /// From the command line: text as written, by key as in the file (`flush_interval`).
  std::map<std::string, std::string, std::less<>> options;
  std::optional<std::string> config_file;  ///< --config; must exist if given
  std::map<std::string, std::string, std::less<>> environment;
  uid_t uid = 0;                                                 ///< the daemon's own
  std::string system_config = "/etc/stepstash/stepstashd.conf";  ///< default file when the daemon is a service

  static std::map<std::string, std::string, std::less<>> copy_environment(const char* const* envp);
};

struct Reading {
  Config config;
  /// Origin of each key's value: `default`, `FILE:LINE`, `environment STEPSTASH_DB`, `--db`.
  std::map<std::string, std::string, std::less<>> origins;
  std::vector<std::string> warnings;  ///< for the log: variables that look like settings, or that were ignored
};

/// Reads and checks everything. Unknown keys and values that are empty or out of range are errors that give the
/// location and what is allowed. A missing file is ignored only if it was not named explicitly; a file that cannot be
/// read is an error.
Configured<Reading> read_config(const Inputs& inputs);

/// The effective settings as a TOML file that read_config accepts, each with a comment giving its origin.
std::string print_config(const Reading& reading);

struct Reload {
  Config config;                           ///< the configuration to use from now on
  std::vector<std::string> changed;        ///< `key: old -> new`, applied
  std::vector<std::string> needs_restart;  ///< `key: old -> new`, not applied: fixed while the daemon runs
  std::vector<std::string> warnings;
};

/// Reads everything again for SIGHUP. On an error nothing changes: keep `running`.
Configured<Reload> reload_config(const Config& running, const Inputs& inputs);

/// Creates missing directories for the socket and the database, mode 0700 (0755 for the socket's if the daemon is root:
/// clients of other users must reach it), and closes `state_directory` to others. Returns warnings for the log: places
/// where others could replace the database. Errors: kExitConfig if a directory cannot be created, `private_directory`
/// is a link, another user's or open to others, or `state_directory` is another user's.
Configured<std::vector<std::string>> prepare_directories(const Config& config, uid_t own);

/// The candidate of which `word` is most likely a typo; nullopt if all differ too much.
std::optional<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates);

/// Keys of all settings in the order of the documentation, with their --help texts.
struct SettingInfo {
  std::string key;          ///< `flush_interval`
  std::string placeholder;  ///< `DURATION`
  std::string help;
  bool is_list = false;
  bool reloadable = false;
  bool may_be_empty = false;  ///< an empty text is allowed
};
std::vector<SettingInfo> setting_infos();

}  // namespace stepstash::daemon
