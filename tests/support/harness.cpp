// SPDX-License-Identifier: Apache-2.0
#include "tests/support/harness.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "tests/support/throw_errno.hpp"

namespace stepstash::test {
namespace {

using Clock = std::chrono::steady_clock;

std::uint64_t word(std::uint64_t seed, std::uint64_t index) {
  // The mixing function of splitmix64 over a counter: cheap, and every word differs for every seed.
  std::uint64_t z = (seed << 40) + index * 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  return z ^ (z >> 27);
}

int exit_status(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) throw_errno("waitpid");
  }
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

sqlite3* open_database(const std::string& db) {
  sqlite3* raw = nullptr;
  if (::sqlite3_open_v2(db.c_str(), &raw, SQLITE_OPEN_READWRITE, nullptr) != SQLITE_OK) {
    const std::string why = ::sqlite3_errmsg(raw);
    ::sqlite3_close(raw);
    throw std::runtime_error(db + ": " + why);
  }
  ::sqlite3_busy_timeout(raw, 10'000);
  return raw;
}

}  // namespace

bool eventually(const std::function<bool()>& condition, std::chrono::milliseconds wait) {
  const auto deadline = Clock::now() + wait;
  while (!condition()) {
    if (Clock::now() >= deadline) return condition();
    std::this_thread::sleep_for(2ms);
  }
  return true;
}

void generate(std::span<std::byte> out, std::uint64_t seed, std::uint64_t offset) {
  std::size_t at = 0;
  while (at < out.size()) {
    const std::uint64_t here = word(seed, (offset + at) / 8);
    const std::size_t skip = (offset + at) % 8;
    const std::size_t count = std::min<std::size_t>(8 - skip, out.size() - at);
    std::memcpy(out.data() + at, reinterpret_cast<const char*>(&here) + skip, count);
    at += count;
  }
}

std::string generated(std::uint64_t bytes, std::uint64_t seed) {
  std::string value(bytes, '\0');
  generate(std::as_writable_bytes(std::span(value)), seed);
  return value;
}

bool is_generated(std::span<const std::byte> value, std::uint64_t bytes, std::uint64_t seed) {
  if (value.size() != bytes) return false;
  std::vector<std::byte> expected(std::min<std::uint64_t>(bytes, kMiB));
  for (std::uint64_t at = 0; at < bytes; at += expected.size()) {
    expected.resize(std::min<std::uint64_t>(expected.size(), bytes - at));
    generate(expected, seed, at);
    if (std::memcmp(value.data() + at, expected.data(), expected.size()) != 0) return false;
  }
  return true;
}

nlohmann::json stats(const Client& client) { return nlohmann::json::parse(client.stats()); }

std::uint64_t figure(const Client& client, std::string_view name) {
  const nlohmann::json all = stats(client);
  const nlohmann::json* at = &all;
  while (!name.empty()) {
    const std::size_t dot = std::min(name.find('.'), name.size());
    at = &at->at(std::string(name.substr(0, dot)));
    name.remove_prefix(std::min(dot + 1, name.size()));
  }
  return at->get<std::uint64_t>();
}

std::int64_t query(const std::string& db, const std::string& sql) {
  const std::unique_ptr<sqlite3, int (*)(sqlite3*)> connection(open_database(db), ::sqlite3_close);
  sqlite3_stmt* raw = nullptr;
  if (::sqlite3_prepare_v2(connection.get(), sql.c_str(), -1, &raw, nullptr) != SQLITE_OK) {
    throw std::runtime_error(sql + ": " + ::sqlite3_errmsg(connection.get()));
  }
  const std::unique_ptr<sqlite3_stmt, int (*)(sqlite3_stmt*)> statement(raw, ::sqlite3_finalize);
  const int step = ::sqlite3_step(raw);
  if (step == SQLITE_DONE) return 0;  // a statement without a result
  if (step != SQLITE_ROW) throw std::runtime_error(sql + ": " + ::sqlite3_errmsg(connection.get()));
  return ::sqlite3_column_int64(raw, 0);
}

struct WriteLock::Database {
  sqlite3* connection;
};

void damage_schema(const std::string& db) {
  const Outcome done = run({"sqlite3", "-cmd", ".dbconfig defensive off", db,
                            "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = 'CREATE TABLE builds(' WHERE "
                            "name = 'builds'; PRAGMA schema_version = 4711;"});
  if (done.status != 0) throw std::runtime_error("sqlite3: " + done.err);
}

WriteLock::WriteLock(const std::string& db) : database_(new Database{open_database(db)}) {
  if (::sqlite3_exec(database_->connection, "BEGIN EXCLUSIVE", nullptr, nullptr, nullptr) != SQLITE_OK) {
    const std::string why = ::sqlite3_errmsg(database_->connection);
    ::sqlite3_close(database_->connection);
    delete database_;
    throw std::runtime_error(db + ": " + why);
  }
}

WriteLock::~WriteLock() {
  ::sqlite3_exec(database_->connection, "ROLLBACK", nullptr, nullptr, nullptr);
  ::sqlite3_close(database_->connection);
  delete database_;
}

ReadLock::ReadLock(const std::string& db) : database_(new WriteLock::Database{open_database(db)}) {
  if (::sqlite3_exec(database_->connection, "BEGIN; SELECT count(*) FROM build_data", nullptr, nullptr, nullptr) !=
      SQLITE_OK) {
    throw std::runtime_error(::sqlite3_errmsg(database_->connection));
  }
}

ReadLock::~ReadLock() {
  ::sqlite3_close(database_->connection);
  delete database_;
}

// ---- programs ------------------------------------------------------------------------------------------------------

Outcome run(const std::vector<std::string>& words, const RunOptions& options) {
  int input[2], output[2], errors[2];
  if (::pipe2(input, O_CLOEXEC) != 0 || ::pipe2(output, O_CLOEXEC) != 0 || ::pipe2(errors, O_CLOEXEC) != 0) {
    throw_errno("pipe");
  }
  UniqueFd to_child(input[1]), from_child(output[0]), errors_of_child(errors[0]);
  UniqueFd child_in(input[0]), child_out(output[1]), child_err(errors[1]);
  if (!options.out_path.empty()) {
    child_out = UniqueFd(::open(options.out_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0600));
    if (!child_out) throw_errno(options.out_path);
  }
  std::vector<std::string> strings = words;
  std::vector<std::string> environment;
  for (char** at = environ; *at != nullptr; ++at) {
    if (std::string_view(*at).starts_with("STEPSTASH_")) continue;
    environment.emplace_back(*at);
  }
  environment.insert(environment.end(), options.environment.begin(), options.environment.end());
  std::vector<char*> argv, envp;
  for (std::string& string : strings) argv.push_back(string.data());
  for (std::string& string : environment) envp.push_back(string.data());
  argv.push_back(nullptr);
  envp.push_back(nullptr);

  const pid_t pid = ::fork();
  if (pid < 0) throw_errno("fork");
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::dup2(child_in.get(), 0);
    ::dup2(child_out.get(), 1);
    ::dup2(child_err.get(), 2);
    if (options.file_size_limit != 0) {
      const rlimit limit{options.file_size_limit, options.file_size_limit};
      ::setrlimit(RLIMIT_FSIZE, &limit);
      ::signal(SIGXFSZ, SIG_IGN);
    }
    for (int fd = 0; fd <= 2; ++fd) {
      if ((options.closed >> fd & 1U) != 0) ::close(fd);
    }
    ::execvpe(argv[0], argv.data(), envp.data());
    ::_exit(127);
  }
  child_in.reset();
  child_out.reset();
  child_err.reset();
  ::signal(SIGPIPE, SIG_IGN);
  ::fcntl(to_child.get(), F_SETFL, O_NONBLOCK);

  Outcome outcome;
  std::size_t sent = 0;
  const auto deadline = Clock::now() + 60s;
  while (from_child || errors_of_child) {
    if (to_child && sent == options.input.size()) to_child.reset();
    std::array<pollfd, 3> watched = {pollfd{to_child.get(), POLLOUT, 0}, pollfd{from_child.get(), POLLIN, 0},
                                     pollfd{errors_of_child.get(), POLLIN, 0}};
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) {
      ::kill(pid, SIGKILL);
      exit_status(pid);
      throw std::runtime_error(words[0] + " does not end; it said: " + outcome.err);
    }
    if (::poll(watched.data(), watched.size(), static_cast<int>(left)) < 0 && errno != EINTR) throw_errno("poll");
    if (watched[0].revents != 0) {
      const ssize_t wrote = ::write(to_child.get(), options.input.data() + sent, options.input.size() - sent);
      if (wrote > 0) sent += static_cast<std::size_t>(wrote);
      if (wrote < 0 && errno != EAGAIN) to_child.reset();  // the child wants no more
    }
    const auto drain = [](UniqueFd& from, std::string& into) {
      std::array<char, 65536> text{};
      const ssize_t got = ::read(from.get(), text.data(), text.size());
      if (got > 0) into.append(text.data(), static_cast<std::size_t>(got));
      if (got == 0) from.reset();
    };
    if (watched[1].revents != 0) drain(from_child, outcome.out);
    if (watched[2].revents != 0) drain(errors_of_child, outcome.err);
  }
  outcome.status = exit_status(pid);
  return outcome;
}

Child::Child(const std::function<int()>& body) {
  pid_ = ::fork();
  if (pid_ < 0) throw_errno("fork");
  if (pid_ > 0) return;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The test framework's handlers would continue the tests here.
  for (const int number : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL, SIGALRM}) ::signal(number, SIG_DFL);
  int status = 99;
  try {
    status = body();
  } catch (const std::exception& e) {
    static_cast<void>(!::write(2, e.what(), std::strlen(e.what())));
  } catch (...) {
  }
  ::_exit(status);  // do not destroy the parent's objects
}

Child::~Child() { kill(); }

int Child::join() {
  if (!eventually(
          [&] {
            siginfo_t info{};
            return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
                   info.si_pid == pid_;
          },
          60s)) {
    throw std::runtime_error("a child of the test does not end");
  }
  return exit_status(std::exchange(pid_, -1));
}

void Child::kill() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  exit_status(std::exchange(pid_, -1));
}

Worker::Worker(std::function<void()> body)
    : thread_([body = std::move(body), thrown = thrown_.get()] {
        try {
          body();
        } catch (...) {
          *thrown = std::current_exception();
        }
      }) {}

Worker::~Worker() {
  if (thread_.joinable()) thread_.join();
}

void Worker::join() {
  thread_.join();
  if (*thrown_) std::rethrow_exception(*thrown_);
}

Signal::Signal() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw_errno("pipe");
  read_ = UniqueFd(ends[0]);
  write_ = UniqueFd(ends[1]);
}

void Signal::raise() const {
  if (::write(write_.get(), "!", 1) != 1) throw_errno("write");
}

bool Signal::wait() const {
  pollfd watched{read_.get(), POLLIN, 0};
  int events = 0;
  do {
    events = ::poll(&watched, 1, 60'000);
  } while (events < 0 && errno == EINTR);
  char byte = 0;
  return events == 1 && ::read(read_.get(), &byte, 1) == 1;
}

}  // namespace stepstash::test
