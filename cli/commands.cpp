// SPDX-License-Identifier: Apache-2.0
#include "cli/commands.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <stepstash/client.hpp>
#include <string>
#include <vector>

#include "base/standard_descriptors.hpp"
#include "base/text.hpp"
#include "cli/doctor.hpp"
#include "cli/output.hpp"
#include "cli/transfer.hpp"

namespace stepstash::cli {
namespace {

/// Values are written in parts of this size, so that progress can be shown in between.
constexpr std::size_t kPart = 4 * 1024 * 1024;

std::string datum(const Arguments& a) {
  return "build " + std::to_string(a.build) + ", name \"" + printable(a.name.value_or("")) + '"';
}

int not_found(const Arguments& a) { return complain(kNotFound, datum(a) + ": not found"); }

std::string place(const std::string& file, const char* standard) { return file == "-" ? standard : file; }

/// The input of `set`.
struct Input {
  int fd = STDIN_FILENO;
  /// The remaining size of a regular file from `start` on, if it is too large for the library to collect first. Only a
  /// hint: files in /sys claim 4096 bytes and have four, and any file may grow or shrink while it is read.
  std::uint64_t hint = Client::kUnknownLength;
  off_t start = 0;
  ~Input() {
    if (fd != STDIN_FILENO) ::close(fd);
  }
};

/// The library collects this much before it announces anything, so it knows the length of shorter values.
constexpr off_t kCollected = 64 * 1024;

int open_input(const Arguments& a, Input& input) {
  if (a.file != "-") {
    do {
      input.fd = ::open(a.file.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY);
    } while (input.fd < 0 && errno == EINTR);  // a FIFO waits for its writer
    if (input.fd < 0) {
      const int error = errno;
      input.fd = STDIN_FILENO;
      return complain(kIoError, a.file + ": cannot open: " + std::strerror(error));
    }
  } else if (was_closed(STDIN_FILENO)) {
    return complain(kIoError, std::string("standard input: ") + std::strerror(EBADF));
  } else if (::isatty(STDIN_FILENO) == 1) {
    complain(kDone, "reading the value from the terminal; end it with Ctrl-D at the start of a line");
  }
  const std::string from = place(a.file, "standard input");
  struct stat status {};
  if (::fstat(input.fd, &status) != 0) return complain(kIoError, from + ": " + std::strerror(errno));
  if (S_ISDIR(status.st_mode)) return complain(kIoError, from + ": is a directory");
  if (!S_ISREG(status.st_mode)) return kDone;
  input.start = ::lseek(input.fd, 0, SEEK_CUR);
  if (input.start >= 0 && status.st_size - input.start >= kCollected) {
    input.hint = static_cast<std::uint64_t>(status.st_size - input.start);
  }
  return kDone;
}

/// Outcome of copying the input into a set, announced with a length or without.
enum class Copied { whole, unmet, of_another_length, failed };

/// Copies until the end of the input, or until `length` bytes have been copied. `failed`: see errno.
Copied copy_input(const Input& input, std::uint64_t length, Writer& writer, Progress& progress, std::uint64_t& total) {
  while (total != length) {
    const auto room = writer.buffer();
    if (room.empty()) return Copied::unmet;
    const ssize_t got = read_some(input.fd, room.data(), room.size());
    if (got < 0) return Copied::failed;
    if (got == 0) return length == Client::kUnknownLength ? Copied::whole : Copied::of_another_length;
    writer.advance(static_cast<std::size_t>(got));
    total += static_cast<std::uint64_t>(got);
    progress.at(total);
  }
  char more = 0;
  const ssize_t got = read_some(input.fd, &more, 1);
  if (got < 0) return Copied::failed;
  return got == 0 ? Copied::whole : Copied::of_another_length;
}

int set(Client& client, const Arguments& a) {
  Input input;
  if (const int status = open_input(a, input); status != kDone) return status;
  SetOptions options;
  options.durable = a.durable;
  options.if_absent = a.if_absent;
  const auto unmet = [&] { return complain(kCannotCreate, datum(a) + ": is there already (--if-absent)"); };
  const auto unreadable = [&](const std::string& why) {
    return complain(kIoError, place(a.file, "standard input") + ": cannot read: " + why);
  };

  // At most twice: a set without an announced length ends where the input ends.
  for (std::uint64_t length = input.hint;; length = Client::kUnknownLength) {
    auto writer = client.begin(a.build, *a.name, length, a.source, options);
    if (!writer) return unmet();
    Progress progress("set " + *a.name, length == Client::kUnknownLength ? 0 : length);
    std::uint64_t total = 0;
    const Copied copied = copy_input(input, length, *writer, progress, total);
    if (copied == Copied::unmet) return unmet();
    if (copied == Copied::failed) return unreadable(std::strerror(errno));
    if (copied == Copied::of_another_length) {
      writer->abort();
      if (::lseek(input.fd, input.start, SEEK_SET) == input.start) continue;
      return unreadable("it does not hold the " + std::to_string(length) +
                        " bytes that it tells, nor can it be read again");
    }
    const auto result = writer->commit();
    if (!result) return unmet();
    if (!a.json) return kDone;
    return print("{\"id\":" + std::to_string(result->id) + ",\"revision\":" + std::to_string(result->revision) +
                 ",\"length\":" + std::to_string(total) + "}\n");
  }
}

std::string cannot_write(const Arguments& a, const std::string& why) { return a.file + ": cannot write: " + why; }

/// Writes the value in parts. 0 or an errno; `done` counts.
int write_value(int fd, const View& view, Progress& progress, std::uint64_t& done) {
  const auto bytes = view.bytes();
  while (done < bytes.size()) {
    const std::size_t part = std::min<std::size_t>(kPart, bytes.size() - done);
    std::size_t written = 0;
    const int error = write_all(fd, bytes.data() + done, part, &written);
    done += written;
    if (error != 0) return error;
    progress.at(done);
  }
  return 0;
}

int get(Client& client, const Arguments& a, OutputFile& file) {
  const auto view = a.wait ? client.wait(a.build, *a.name, *a.wait) : client.get(a.build, *a.name);
  if (!view && a.wait) {
    return complain(kTryLater, datum(a) + ": not found within " + std::to_string(a.wait->count()) + " ms");
  }
  if (!view) return not_found(a);
  Progress progress("get " + *a.name, view->length());
  std::uint64_t done = 0;
  const auto cut_short = [&](const std::string& where, int error) {
    return complain(kIoError, where + ": " + std::strerror(error) + " after " + std::to_string(done) + " of " +
                                  std::to_string(view->length()) + " bytes");
  };
  const bool to_file = a.file != "-";
  const std::string where = to_file ? a.file : "standard output";
  if (to_file) {
    if (const std::string why = file.open(); !why.empty()) return complain(kCannotCreate, cannot_write(a, why));
  }
  const int fd = to_file ? file.fd() : STDOUT_FILENO;
  if (::isatty(fd) == 1 && !is_text(view->text())) {
    return complain(kUsage, datum(a) + ": is binary (" + std::to_string(view->length()) + " bytes) and " + where +
                                " is a terminal: use -o FILE, or a pipe");
  }
  if (const int error = write_value(fd, *view, progress, done); error != 0) return cut_short(where, error);
  if (const int error = to_file ? file.commit() : 0; error != 0) return cut_short(where, error);
  return kDone;
}

int stat(Client& client, const Arguments& a) {
  const auto view = client.stat(a.build, *a.name);
  if (!view) return not_found(a);
  return print(a.json ? stat_json(*view) : stat_text(*view));
}

int list(Client& client, const Arguments& a) {
  const auto entries = a.name ? client.list(a.build, *a.name) : client.list(a.build);
  return print(a.json ? list_json(entries) : list_text(entries, ::isatty(STDOUT_FILENO) == 1));
}

int builds(Client& client, const Arguments& a) {
  std::vector<Build> all = client.builds();
  sort_builds(all, a.sort);
  return print(a.json ? builds_json(all) : builds_text(all, ::isatty(STDOUT_FILENO) == 1));
}

int print_deleted(const Arguments& a, std::uint64_t count) {
  if (a.json) return print("{\"deleted\":" + std::to_string(count) + "}\n");
  return print("deleted " + std::to_string(count) + (count == 1 ? " entry\n" : " entries\n"));
}

// The C++ API uses system_clock, which ends 292 years from 1970; here every number of seconds is legal.

void finish(Client& client, const Arguments& a) {
  const std::int64_t at = a.reopen ? STEPSTASH_REOPEN : a.at.value_or(STEPSTASH_NOW);
  if (const int code = stepstash_finish(client.handle(), a.build, at); code < 0) {
    throw Error(code, stepstash_error_message());
  }
}

std::uint64_t prune(Client& client, const Arguments& a) {
  std::uint64_t count = 0;
  if (const int code = stepstash_prune(client.handle(), *a.at, &count); code < 0) {
    throw Error(code, stepstash_error_message());
  }
  return count;
}

int run_with(Client& client, const Arguments& a, OutputFile& file) {
  switch (a.verb) {
    case Verb::set:
      return set(client, a);
    case Verb::get:
      return get(client, a, file);
    case Verb::stat:
      return stat(client, a);
    case Verb::list:
      return list(client, a);
    case Verb::builds:
      return builds(client, a);
    case Verb::finish:
      finish(client, a);
      return kDone;
    case Verb::prune:
      return print_deleted(a, prune(client, a));
    case Verb::drop:
      return print_deleted(a, client.drop(a.build));
    case Verb::hold:
      client.hold(a.build);
      return kDone;
    case Verb::unhold:
      client.unhold(a.build);
      return kDone;
    case Verb::flush:
      client.flush();
      return kDone;
    case Verb::doctor: {
      const std::vector<Finding> findings = diagnose(client.stats());
      const int status = print(a.json ? findings_json(findings) : findings_text(findings));
      return status == kDone && !findings.empty() ? kNotFound : status;
    }
    case Verb::stats: {
      const std::string json = client.stats();
      return print(a.json ? stats_json(json) : stats_text(json));
    }
    case Verb::help:  // handled by parse_arguments()
      break;
  }
  return kSoftware;
}

}  // namespace

int run(const Arguments& a) {
  std::string doing = command_of(a.verb).word;
  if (a.name) {
    doing += " " + datum(a);
  } else if (a.build != 0) {
    doing += " build " + std::to_string(a.build);
  }
  // Before doing anything whose result could not be printed, and before a descriptor of ours gets a number in /dev/fd.
  if (prints(a) && !open_for_writing(STDOUT_FILENO)) {
    return complain(kIoError, std::string("standard output: ") + std::strerror(EBADF));
  }
  OutputFile file;
  if (a.verb == Verb::get && a.file != "-") {
    if (const std::string why = file.inspect(a.file); !why.empty()) {
      return complain(kCannotCreate, cannot_write(a, why));
    }
  }
  try {
    Client client(a.socket, a.timeout);
    return run_with(client, a, file);
  } catch (const Error& error) {
    return complain(error, doing);
  }
}

}  // namespace stepstash::cli
