// SPDX-License-Identifier: Apache-2.0
#include "tests/support/daemon_process.hpp"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <utility>

#include "tests/support/throw_errno.hpp"

namespace stepstash::test {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kReadyDeadline = 60s;  // a sanitizer on a busy machine
constexpr auto kExitDeadline = 90s;   // the daemon gives the last flush 60 s

int milliseconds_until(Clock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
  return static_cast<int>(std::max<std::int64_t>(left.count(), 0));
}

}  // namespace

DaemonProcess::DaemonProcess(std::vector<std::string> options)
    : options_(std::move(options)), socket_(directory_.file("stepstash.sock")), db_(directory_.file("build_data.db")) {
  static std::atomic<int> next{0};
  segment_ = "stepstash-test-" + std::to_string(::getpid()) + "-" + std::to_string(++next);
}

DaemonProcess::~DaemonProcess() {
  try {
    kill();
    if (owns_segment_) remove_segment();
  } catch (const std::exception&) {  // a leftover file must not end the test run
  }
}

void DaemonProcess::use_segment(const std::string& name) {
  segment_ = name;
  owns_segment_ = false;
}

void DaemonProcess::run_as(uid_t user) {
  user_ = user;
  if (::chown(directory_.path().c_str(), user, user) != 0) throw_errno(directory_.path());
}

void DaemonProcess::spawn() {
  if (running()) throw std::logic_error("the daemon runs already");
  const std::string notify_path = this->notify_path();
  ::unlink(notify_path.c_str());
  notify_ = UniqueFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  notify_path.copy(address.sun_path, sizeof address.sun_path - 1);
  if (::bind(notify_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) throw_errno(notify_path);
  if (user_ != 0 && ::chmod(notify_path.c_str(), 0777) != 0) throw_errno(notify_path);
  const UniqueFd log(::open(directory_.file("daemon.log").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!log) throw_errno("daemon.log");

  std::vector<std::string> words = {program(),
                                    "--config=" + directory_.file("none.toml"),
                                    "--socket=" + socket_,
                                    "--db=" + db_,
                                    "--segment-directory=/dev/shm",
                                    "--segment-name=" + segment_};
  std::ofstream(directory_.file("none.toml"), std::ios::app).flush();
  words.insert(words.end(), options_.begin(), options_.end());
  std::vector<std::string> environment = {"NOTIFY_SOCKET=" + notify_path};
  for (char** at = environ; *at != nullptr; ++at) {
    const std::string_view variable = *at;
    // The daemon under test must not inherit the settings of the user running the tests.
    if (variable.starts_with("STEPSTASH_") || variable.starts_with("NOTIFY_SOCKET=") ||
        variable.starts_with("LISTEN_") || variable.starts_with("WATCHDOG_")) {
      continue;
    }
    environment.emplace_back(variable);
  }
  const auto pointers = [](std::vector<std::string>& strings) {
    std::vector<char*> all;
    for (std::string& string : strings) all.push_back(string.data());
    all.push_back(nullptr);
    return all;
  };
  const std::vector<char*> argv = pointers(words);
  const std::vector<char*> envp = pointers(environment);

  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ < 0) throw_errno("fork");
  if (pid_ == 0) {  // from here only async-signal-safe calls: the test may have threads
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(127);
    const rlimit few{descriptors_, descriptors_};
    if (descriptors_ != 0 && ::setrlimit(RLIMIT_NOFILE, &few) != 0) ::_exit(127);
    if (user_ != 0 && (::setgroups(0, nullptr) != 0 || ::setresgid(user_, user_, user_) != 0 ||
                       ::setresuid(user_, user_, user_) != 0 || ::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0)) {
      ::_exit(127);  // changing the user has cleared the death signal
    }
    const int null = ::open("/dev/null", O_RDONLY);
    ::dup2(null, 0);
    ::dup2(log.get(), 1);
    ::dup2(stderr_ >= 0 ? stderr_ : log.get(), 2);
    for (int fd = 0; fd <= 2; ++fd) {
      if ((closed_ >> fd & 1U) != 0) ::close(fd);
    }
    ::execve(argv[0], argv.data(), envp.data());
    ::_exit(127);
  }
  process_ =
      UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));  // glibc 2.36 declares it without extern "C"
  if (!process_) throw_errno("pidfd_open");
}

/// True if it sent READY=1, false if it exited instead. Throws if neither happened in time.
bool DaemonProcess::wait_ready() {
  if (ready_within(kReadyDeadline)) return true;
  pollfd watched{process_.get(), POLLIN, 0};
  if (::poll(&watched, 1, 0) != 1) throw std::runtime_error("stepstashd is not ready in time; its log:\n" + log());
  return false;
}

/// True if it sent READY=1; false if it exited, or the time passed.
bool DaemonProcess::ready_within(std::chrono::nanoseconds time) {
  const auto deadline = Clock::now() + time;
  for (;;) {
    std::array<pollfd, 2> watched = {pollfd{notify_.get(), POLLIN, 0}, pollfd{process_.get(), POLLIN, 0}};
    const auto left = std::max<std::chrono::nanoseconds>(deadline - Clock::now(), 0ns);
    const timespec wait{static_cast<time_t>(left / 1s), static_cast<long>((left % 1s).count())};
    const int events = ::ppoll(watched.data(), watched.size(), &wait, nullptr);
    if (events < 0 && errno == EINTR) continue;
    if (events <= 0) return false;
    std::array<char, 4096> text{};
    ssize_t got = 0;
    while ((got = ::recv(notify_.get(), text.data(), text.size(), 0)) > 0) {
      const std::string_view message(text.data(), static_cast<std::size_t>(got));
      if (message.starts_with("READY=1\n") || message.find("\nREADY=1") != message.npos) return true;
    }
    if (watched[1].revents != 0) return false;
  }
}

void DaemonProcess::start() {
  spawn();
  if (wait_ready()) {
    if (!unread_notices_) notify_.reset();  // nobody reads it from here on
    return;
  }
  const int status = wait_exit(kExitDeadline);
  throw std::runtime_error("stepstashd ended with status " + std::to_string(status) + "; its log:\n" + log());
}

void DaemonProcess::start(std::vector<std::string> options) {
  options_ = std::move(options);
  start();
}

bool DaemonProcess::start_killed_after(std::chrono::microseconds time) {
  spawn();
  if (ready_within(time)) {
    notify_.reset();
    return true;
  }
  kill();
  return false;
}

void DaemonProcess::start_unready() { spawn(); }

int DaemonProcess::start_refused() {
  spawn();
  if (wait_ready()) throw std::runtime_error("stepstashd serves, though it should have refused to; its log:\n" + log());
  return wait_exit(kExitDeadline);
}

int DaemonProcess::wait_exit(std::chrono::milliseconds wait) {
  const auto deadline = Clock::now() + wait;
  pollfd watched{process_.get(), POLLIN, 0};
  int events = 0;
  do {
    events = ::poll(&watched, 1, milliseconds_until(deadline));
  } while (events < 0 && errno == EINTR);
  if (events <= 0) throw std::runtime_error("stepstashd does not end; its log:\n" + log());
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0) {
    if (errno != EINTR) throw_errno("waitpid");
  }
  pid_ = -1;
  process_.reset();
  notify_.reset();
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

void DaemonProcess::kill() {
  if (!running()) return;
  ::kill(pid_, SIGKILL);
  wait_exit(kExitDeadline);
}

int DaemonProcess::terminate() {
  ::kill(pid_, SIGTERM);
  return wait_exit(kExitDeadline);
}

void DaemonProcess::stop() {
  ::kill(pid_, SIGSTOP);
  siginfo_t info{};
  if (::waitid(P_PID, static_cast<id_t>(pid_), &info, WSTOPPED | WNOWAIT) != 0) throw_errno("waitid");
}

void DaemonProcess::resume() { ::kill(pid_, SIGCONT); }

std::string DaemonProcess::log() const {
  std::ifstream file(directory_.file("daemon.log"));
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void DaemonProcess::flatten_segment() const {
  const std::string base = "/dev/shm/" + segment_;
  for (const auto& object : std::filesystem::directory_iterator(segment_directory())) {
    std::string name = object.path().filename();
    if (name.starts_with("segment.pin.")) name.resize(name.rfind('.'));  // pages had no user in their names
    std::filesystem::rename(object.path(), base + (name == "lock" ? ".lock" : name.substr(std::strlen("segment"))));
  }
  std::filesystem::remove(segment_directory());
}

void DaemonProcess::remove_segment() {
  for (const auto& object : std::filesystem::directory_iterator("/dev/shm")) {
    const std::string name = object.path().filename();
    if (name == segment_ || name.starts_with(segment_ + ".")) std::filesystem::remove_all(object.path());
  }
}

}  // namespace stepstash::test
