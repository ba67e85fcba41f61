// SPDX-License-Identifier: Apache-2.0
/// What stepstashd is told to do: built-in defaults, then one TOML file, then STEPSTASH_* in the environment, then the
/// command line, each outweighing the one before. docs/man/stepstashd.conf.5 describes every setting for people.
///
/// Every source carries the same text (`256MiB`, `200ms`, `never`), and one table (config.cpp) says for each setting
/// how that text is read, checked and printed. Threads: all functions are free of state of their own, but names of
/// users and groups are looked up through NSS, which may block: call them before the loop runs, or off it.
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

/// Exit statuses of sysexits(3) that concern configuration; a unit file must not restart the service for these two.
inline constexpr int kExitUsage = 64;
inline constexpr int kExitConfig = 78;

/// Why there is no configuration, in words for the person who wrote it, and what the process should exit with:
/// kExitUsage when the command line is at fault, else kExitConfig.
struct ConfigError {
  std::string message;
  int exit_status = kExitConfig;
};

/// A value, or a ConfigError; STEPSTASH_TRY passes it upward. value() without one ends the process.
template <class T = void>
using Configured = boost::outcome_v2::std_result<T, ConfigError, boost::outcome_v2::policy::terminate>;

/// Bytes from `268435456`, `256MiB`, `1 GiB`; units B, KiB, MiB, GiB, TiB. No fractions, no signs, no MB (10^6 or
/// 2^20?). Errors name the text and what is expected; exit_status is kExitConfig.
Configured<std::uint64_t> parse_size(std::string_view text);
/// The shortest exact spelling that parse_size reads back: `1GiB`, `1025MiB`, `12345B`.
std::string format_size(std::uint64_t bytes);

/// A time from `200ms`, `10s`, `5min`, `2h`, `7d`; nullopt for `never`. A number without a unit is refused but for 0.
Configured<std::optional<std::chrono::milliseconds>> parse_duration(std::string_view text);
/// The shortest exact spelling that parse_duration reads back: `90s`, `2h`, `never`.
std::string format_duration(std::optional<std::chrono::milliseconds> duration);

enum class LogLevel { debug, info, warning, error };

/// A user or group as it was configured, and the number it stood for when it was read.
struct Principal {
  std::string text;
  std::uint32_t id = 0;
};

/// Who may do something. Both lists empty means: nothing was configured for this right.
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
  std::optional<Principal> socket_group;  ///< chgrp the socket to it; else the socket keeps the daemon's own group

  std::string db;                 ///< absolute path of the SQLite database
  std::string segment_directory;  ///< absolute path of a tmpfs
  std::string segment_name;       ///< of the object in segment_directory; names of all other objects begin with it
  std::uint64_t segment_size = std::uint64_t{1} << 30;

  std::chrono::milliseconds flush_interval{200};                ///< the oldest dirty value waits this long at most
  std::optional<std::chrono::milliseconds> build_data_horizon;  ///< nullopt: finished builds are kept for ever
  std::chrono::milliseconds prune_interval{std::chrono::minutes{1}};
  std::uint64_t max_dirty = 0;  ///< bytes that may wait for the database; never 0 after reading

  std::uint32_t max_connections = 4096;
  std::uint32_t max_connections_per_user = 1024;
  std::uint32_t max_rings = 64;  ///< staging rings at one time
  std::uint64_t ring_size = std::uint64_t{8} << 20;
  std::chrono::milliseconds frame_timeout{std::chrono::seconds{10}};  ///< a frame begun must be whole after this
  std::chrono::milliseconds punch_after{std::chrono::seconds{10}};  ///< free memory goes back to the kernel after this

  LogLevel log_level = LogLevel::info;

  Principals read, write, admin;

  /// A directory for the socket that the daemon chose below a world-writable one (/tmp/stepstash-UID): it must be ours
  /// alone before anything is bound in it. Empty otherwise.
  std::string private_directory;
  /// The database's directory, where the daemon chose it itself. It is then the daemon's user's alone, mode 0700; one
  /// that somebody named may have other files in it, and stays as it is. Empty otherwise.
  std::string state_directory;

  /// What the peer with these credentials may do. The daemon's own user and root may do everything. While none of the
  /// six lists is configured, so may members of `socket_gid`, the group that owns the socket. O(lists).
  Right right_of(uid_t peer, std::span<const gid_t> peer_groups, uid_t own, gid_t socket_gid) const noexcept;
};

/// Everything that configuration is made from but for the file system: given to read_config, and kept for SIGHUP.
struct Inputs {
  /// By key as in the file (`flush_interval`), text as written; from the command line.
  std::map<std::string, std::string, std::less<>> options;
  std::optional<std::string> config_file;  ///< --config; must exist when given
  std::map<std::string, std::string, std::less<>> environment;
  uid_t uid = 0;                                                 ///< the daemon's own
  std::string system_config = "/etc/stepstash/stepstashd.conf";  ///< read by default when the daemon is a service

  static std::map<std::string, std::string, std::less<>> copy_environment(const char* const* envp);
};

struct Reading {
  Config config;
  /// For each key where its value came from: `default`, `FILE:LINE`, `environment STEPSTASH_DB`, `--db`.
  std::map<std::string, std::string, std::less<>> origins;
  std::vector<std::string> warnings;  ///< for the log: variables that look like settings, or that were passed over
};

/// Reads and checks everything. Unknown keys and values that are empty or out of range are errors that name the place
/// and what is allowed. A file that is not there is no file only where nobody named it; what cannot be read is an
/// error.
Configured<Reading> read_config(const Inputs& inputs);

/// The effective settings as a TOML file that read_config accepts, each with a comment that says where it came from.
std::string print_config(const Reading& reading);

struct Reload {
  Config config;                           ///< the one to go on with
  std::vector<std::string> changed;        ///< `key: old -> new`, taken over
  std::vector<std::string> needs_restart;  ///< `key: old -> new`, not taken over: these are fixed while the daemon runs
  std::vector<std::string> warnings;
};

/// Reads everything anew for SIGHUP. On an error nothing changes: go on with `running`.
Configured<Reload> reload_config(const Config& running, const Inputs& inputs);

/// Makes the directories that the socket and the database are to lie in, mode 0700 where they are missing (0755 for the
/// socket's when the daemon is root: clients of other users must reach it), and closes `state_directory` to others.
/// Returns warnings for the log: where others could replace the database. Errors: kExitConfig when a directory cannot
/// be made, `private_directory` is a link, somebody else's or open to others, or `state_directory` is somebody else's.
Configured<std::vector<std::string>> prepare_directories(const Config& config, uid_t own);

/// The candidate that `word` is most likely a slip of the keyboard for; nullopt when all differ by too much.
std::optional<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates);

/// Keys of all settings in the order of the documentation, and what --help says of each.
struct SettingInfo {
  std::string key;          ///< `flush_interval`
  std::string placeholder;  ///< `DURATION`
  std::string help;
  bool is_list = false;
  bool reloadable = false;
  bool may_be_empty = false;  ///< an empty text is no error
};
std::vector<SettingInfo> setting_infos();

}  // namespace stepstash::daemon
