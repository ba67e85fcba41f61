// SPDX-License-Identifier: Apache-2.0
// The crash matrix: kills the real daemon at every crash point, restarts it and compares the result with what clients
// were promised. Does the same to clients; after their death the daemon must be in its former state.
//
//   crash_matrix [--full] [--seed N] [--jobs N] [--only SCENARIO[/POINT:N[+POINT:N]]] [--report FILE]
//
// Points are found by enumeration: every scenario is first run to completion, and the points it passes are counted.
// Without --full every point is killed at twice: at its first passing, in a scenario drawn by the seed, and at a later
// passing, drawn as well, in the scenario that passes it most often. Every other recovery is killed as well, at a point
// that recoveries pass. With --full: every point of every scenario, at its first, middle and last passing.
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <new>
#include <random>
#include <regex>
#include <set>
#include <thread>

#include "tests/crash_matrix/run.hpp"
#include "tests/crash_matrix/scenarios.hpp"
#include "tests/support/harness.hpp"
#include "tests/support/temp_dir.hpp"

namespace {

using namespace stepstash;
using namespace stepstash::test;
using nlohmann::json;
namespace fs = std::filesystem;
using SteadyClock = std::chrono::steady_clock;

struct Arguments {
  bool full = false;
  std::uint64_t seed = 0;
  unsigned jobs = 4 * std::max(1U, std::thread::hardware_concurrency());  // a case waits most of its time
  std::string only;
  std::string report;
};

// ---- the points ----------------------------------------------------------------------------------------------------

/// name -> file, of every point in the source.
std::map<std::string, std::string> points_in_source() {
  std::map<std::string, std::string> points;
  const fs::path source = STEPSTASH_SOURCE_DIR;
  const std::regex call("STEPSTASH_CRASH_POINT\\(\"([a-z0-9_.]+)\"\\)");
  for (const char* folder : {"base", "shm", "persist", "protocol", "daemon", "libclient"}) {
    for (const auto& file : fs::directory_iterator(source / folder)) {
      if (file.path().extension() != ".cpp") continue;
      std::ifstream in(file.path());
      const std::string text(std::istreambuf_iterator<char>(in), {});
      for (std::sregex_iterator at(text.begin(), text.end(), call), end; at != end; ++at) {
        const std::string where = fs::relative(file.path(), source);
        if (!points.emplace((*at)[1], where).second) throw std::runtime_error((*at)[1].str() + " is there twice");
      }
    }
  }
  return points;
}

bool clients_point(const std::string& point) {
  return point.starts_with("libclient.") || point.starts_with("shm.reader.");
}

// ---- cases, in parallel --------------------------------------------------------------------------------------------

struct Case {
  const Scenario* scenario = nullptr;
  std::string kill;    ///< "point:n"; empty: enumeration
  std::string second;  ///< the recovery's kill point, or empty

  std::string name() const {
    return scenario->name + (kill.empty() ? "" : "/" + kill) + (second.empty() ? "" : "+" + second);
  }
};

struct Result {
  std::string failure;  ///< empty: every promise was kept
  Run::Verdict verdict;
};

void to_json(json& j, const Result& r) {
  j = {{"failure", r.failure},
       {"killed", r.verdict.killed},
       {"second", r.verdict.second_killed},
       {"counts", r.verdict.counts},
       {"until_served", r.verdict.until_served},
       {"recovery", r.verdict.recovery},
       {"checks", r.verdict.checks}};
}
void from_json(const json& j, Result& r) {
  j.at("failure").get_to(r.failure);
  j.at("killed").get_to(r.verdict.killed);
  j.at("second").get_to(r.verdict.second_killed);
  j.at("counts").get_to(r.verdict.counts);
  j.at("until_served").get_to(r.verdict.until_served);
  j.at("recovery").get_to(r.verdict.recovery);
  j.at("checks").get_to(r.verdict.checks);
}

Result play(const Case& one) {
  Result result;
  Run run(one.kill, one.second);
  try {
    try {
      one.scenario->play(run);
    } catch (const Gone&) {
      if (!eventually([&] { return run.dead(); }, 30s)) throw Broken("the daemon hung up, and lives");
    }
    result.verdict = run.judge();
  } catch (const std::exception& error) {
    const std::string log = run.daemon().log();
    result.failure = std::string(error.what()) + "\n  the daemon's log ends with: ..." +
                     log.substr(log.size() - std::min<std::size_t>(log.size(), 1500));
  }
  return result;
}

/// A counter shared by several processes.
class Tickets {
 public:
  Tickets() {
    void* at =
        ::mmap(nullptr, sizeof(std::atomic<std::size_t>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    next_ = new (at) std::atomic<std::size_t>(0);
  }
  std::size_t draw() const { return next_->fetch_add(1); }

 private:
  std::atomic<std::size_t>* next_;
};

/// Processes instead of threads: a case gets its parameters through the environment, and a daemon dies with the thread
/// that started it.
std::vector<Result> play_all(const std::vector<Case>& cases, unsigned jobs) {
  const Tickets tickets;
  const TempDir directory;
  std::vector<pid_t> workers;
  for (unsigned job = 0; job < jobs; ++job) {
    const pid_t pid = ::fork();
    if (pid < 0) throw std::runtime_error("fork");
    if (pid > 0) {
      workers.push_back(pid);
      continue;
    }
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    int status = 0;
    try {
      // No other process sees what is mounted here, and it is unmounted automatically.
      if (::geteuid() == 0 && ::unshare(CLONE_NEWNS) == 0) ::mount("", "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
      std::ofstream out(directory.file(std::to_string(job)));
      for (std::size_t i = tickets.draw(); i < cases.size(); i = tickets.draw()) {
        json line = play(cases[i]);
        if (!line["failure"].get<std::string>().empty()) {
          std::cerr << "FAILED " + cases[i].name() + ": " + line["failure"].get<std::string>() + "\n" << std::flush;
        }
        line["case"] = i;
        out << line.dump(-1, ' ', false, json::error_handler_t::replace) << "\n" << std::flush;
      }
    } catch (const std::exception& error) {
      std::cerr << error.what() << std::endl;
      status = 1;
    }
    ::_exit(status);
  }
  for (const pid_t pid : workers) {
    int status = 0;
    ::waitpid(pid, &status, 0);
  }
  std::vector<Result> results(cases.size(), Result{"it was not played: its process died", {}});
  for (unsigned job = 0; job < jobs; ++job) {
    std::ifstream in(directory.file(std::to_string(job)));
    for (std::string line; std::getline(in, line);) {
      const json parsed = json::parse(line);
      results[parsed.at("case").get<std::size_t>()] = parsed.get<Result>();
    }
  }
  return results;
}

// ---- clients that die ----------------------------------------------------------------------------------------------

struct ClientCase {
  std::string point;
  std::uint64_t n = 0;
  bool daemon_too = false;  ///< the daemon is killed before it can have noticed
};

/// One daemon; a client that dies at one point after the other; then the daemon's counters.
class ClientMatrix {
 public:
  ClientMatrix() {
    daemon_.start();
    reset();
    until_baseline("the baseline");
    baseline_ = used();
  }

  Counts enumerate() {
    const std::string file = daemon_.directory().file("client.counts");
    if (const Outcome done = client({"CRASH_POINT_COUNTS=" + file}, 'a'); done.status != 0) {
      throw Broken("the client does not work: " + done.err);
    }
    return read_counts(file);
  }

  /// Returns whether the client was killed at the requested point. Throws Broken.
  bool play(const ClientCase& one) {
    const bool killed = client({"CRASH_POINT_KILL=" + one.point + ":" + std::to_string(one.n)}, 'b').status == 137;
    if (one.daemon_too) {
      session_.reset();
      daemon_.kill();
      daemon_.start();
    }
    until_baseline("the return to the baseline");
    // Old or new, and nothing in between.
    for (const auto& [name, length] : {std::pair<std::string, std::uint64_t>{"inline", 1000}, {"staged", 200'000}}) {
      const Client reader(daemon_.socket());
      const auto view = reader.get(kBuild, name);
      if (!view || view->length() != length) throw Broken(name + " has lost its value");
      const char first = view->text().front();
      if ((first != 'a' && first != 'b') || view->text().find_first_not_of(first) != std::string_view::npos) {
        throw Broken(name + " is torn");
      }
      ++checks;
    }
    reset();
    until_baseline("the return to the baseline after all was set again");
    if (used() != baseline_) {
      throw Broken(std::to_string(used()) + " bytes are in use, not " + std::to_string(baseline_) + " as before");
    }
    checks += 6;
    return killed;
  }

  std::uint64_t checks = 0;

 private:
  static constexpr BuildId kBuild = 50;

  Outcome client(std::vector<std::string> environment, char letter) {
    return run({CRASH_CLIENT_PATH, daemon_.socket(), std::to_string(kBuild), std::string(1, letter)},
               {.environment = std::move(environment)});
  }
  /// Restores the initial state. What a dead client viewed is replaced, so its block must be freed.
  void reset() {
    const Client writer(daemon_.socket());
    writer_set(writer, "viewed", 40'000);
    writer_set(writer, "inline", 1000);
    writer_set(writer, "staged", 200'000);
  }
  static void writer_set(const Client& writer, const char* name, std::size_t length) {
    const_cast<Client&>(writer).set(kBuild, name, std::string(length, 'a'));
  }
  json figures() {
    if (!session_) session_ = std::make_unique<Session>(daemon_.socket(), false);
    return json::parse(std::get<protocol::Text>(session_->ask(protocol::Stats{})).text);
  }
  std::uint64_t used() { return figures().at("segment").at("used_bytes"); }
  void until_baseline(const char* what) {
    json last;
    const bool there = eventually(
        [&] {
          last = figures();
          return last.at("open_views") == 0 && last.at("pin_pages") == 0 && last.at("connections") == 1 &&
                 last.at("staging_rings") == 0 && last.at("segment").at("retired_blocks") == 0;
        },
        5s);
    if (!there) throw Broken(std::string(what) + " does not come within 5 s: " + last.dump());
  }

  DaemonProcess daemon_{{"--segment-size=8MiB", "--ring-size=256KiB", "--flush-interval=1h", "--punch-after=1h"}};
  std::unique_ptr<Session> session_;
  std::uint64_t baseline_ = 0;
};

// ---- the whole -----------------------------------------------------------------------------------------------------

struct Row {
  std::string where;
  std::set<std::string> scenarios;  ///< that pass it
  std::uint64_t kills = 0, second_kills = 0, failures = 0;
  std::uint64_t checks = 0;  ///< in the cases whose first kill was here
};

struct Matrix {
  std::map<std::string, Row> rows;
  std::uint64_t checks = 0;
  std::vector<std::string> problems;
  std::vector<std::string> left_out;
};

std::string point_of(const std::string& kill) { return kill.substr(0, kill.rfind(':')); }

void count_result(Matrix& matrix, const Case& one, const Result& result) {
  matrix.checks += result.verdict.checks;
  Row* row = one.kill.empty() ? nullptr : &matrix.rows[point_of(one.kill)];
  if (!result.failure.empty()) {
    matrix.problems.push_back(one.name());
    if (row != nullptr) ++row->failures;
    return;
  }
  if (row == nullptr || !result.verdict.killed) return;
  ++row->kills;
  row->checks += result.verdict.checks;
  if (result.verdict.second_killed) ++matrix.rows[point_of(one.second)].second_kills;
}

/// Chooses the point at which the next recovery of a scenario is killed: the one used least so far.
class Seconds {
 public:
  void add(const std::string& scenario, const Counts& passed) {
    for (const auto& [point, count] : passed) pools_[scenario].insert(point);
  }
  std::string next(const std::string& scenario) {
    const std::set<std::string>& pool = pools_[scenario];
    if (pool.empty()) return {};
    const auto least =
        std::min_element(pool.begin(), pool.end(), [&](const auto& a, const auto& b) { return used_[a] < used_[b]; });
    return *least + ":" + std::to_string(1 + used_[*least]++ % 2);
  }

 private:
  std::map<std::string, std::set<std::string>> pools_;
  std::map<std::string, std::uint64_t> used_;
};

/// For readers of docs/crash-matrix.md: every point with the scenarios that pass it, and what the kills there left.
void write_report(const Arguments& arguments, const Matrix& matrix, double seconds) {
  std::ofstream text(arguments.report);
  std::uint64_t kills = 0, seconds_killed = 0, failures = 0;
  for (const auto& [point, row] : matrix.rows) {
    kills += row.kills;
    seconds_killed += row.second_kills;
    failures += row.failures;
  }
  text << "# Crash matrix\n\n`crash_matrix" << (arguments.full ? " --full" : "") << " --seed " << arguments.seed
       << "`: " << matrix.rows.size() << " points, " << kills << " kills, " << seconds_killed
       << " more kills during the recovery, " << matrix.checks << " comparisons, " << failures << " promises broken, "
       << static_cast<std::uint64_t>(seconds) << " s with " << arguments.jobs << " processes.\n\n";
  text << "| scenario | the daemon is killed while |\n|---|---|\n";
  for (const Scenario& scenario : scenarios()) text << "| " << scenario.name << " | " << scenario.what << " |\n";
  text << "| client | the client is killed: a view, a small set, a large one, another view |\n\n";
  text << "| point | where | killed in | kills | kills during recovery | compared | result |\n"
          "|---|---|---|---|---|---|---|\n";
  for (const auto& [point, row] : matrix.rows) {
    text << "| `" << point << "` | `" << row.where << "` | ";
    if (row.scenarios.size() > 3) {
      text << row.scenarios.size() << " scenarios";
    } else {
      const char* separator = "";
      for (const std::string& name : row.scenarios) text << std::exchange(separator, ", ") << name;
    }
    text << " | " << row.kills << " | " << row.second_kills << " | " << row.checks << " | "
         << (row.failures > 0 ? std::to_string(row.failures) + " broken" : "kept") << " |\n";
  }
  if (!text.flush()) throw std::runtime_error(arguments.report + ": cannot be written");
}

void play_clients(const Arguments& arguments, Matrix& matrix, std::mt19937_64& random) {
  ClientMatrix clients;
  const Counts counts = clients.enumerate();
  std::vector<ClientCase> cases;
  for (auto& [point, row] : matrix.rows) {
    if (!clients_point(point)) continue;
    const auto found = counts.find(point);
    if (found == counts.end()) {
      matrix.problems.push_back(point + ": passed by no client");
      continue;
    }
    row.scenarios.insert("client");
    std::set<std::uint64_t> passings = {1, found->second};
    if (arguments.full) {
      for (std::uint64_t n = 1; n <= std::min<std::uint64_t>(found->second, 20); ++n) passings.insert(n);
    } else {
      passings.insert(1 + random() % found->second);
    }
    for (const std::uint64_t n : passings) {
      cases.push_back({point, n, false});
      if (arguments.full || n == 1) cases.push_back({point, n, true});
    }
  }
  for (const ClientCase& one : cases) {
    Row& row = matrix.rows[one.point];
    try {
      const std::uint64_t before = clients.checks;
      if (clients.play(one)) {
        ++row.kills;
        row.checks += clients.checks - before;
      }
    } catch (const std::exception& error) {
      const std::string name = "client/" + one.point + ":" + std::to_string(one.n);
      std::cerr << "FAILED " << name << ": " << error.what() << std::endl;
      matrix.problems.push_back(name);
      ++row.failures;
      break;  // the daemon's state has changed: further results would be meaningless
    }
  }
  matrix.checks += clients.checks;
}

int run_matrix(const Arguments& arguments) {
  const auto start = SteadyClock::now();
  std::mt19937_64 random(arguments.seed);
  std::cout << "seed " << arguments.seed << std::endl;
  Matrix matrix;
  for (const auto& [point, where] : points_in_source()) matrix.rows[point].where = where;

  const bool root = ::geteuid() == 0;
  std::vector<Case> enumeration;
  for (const Scenario& scenario : scenarios()) {
    if (scenario.needs_root && !root) {
      matrix.left_out.push_back(scenario.name);
      continue;
    }
    enumeration.push_back({&scenario, {}, {}});
  }
  const std::vector<Result> enumerated = play_all(enumeration, arguments.jobs);
  Seconds seconds;
  for (std::size_t i = 0; i < enumeration.size(); ++i) {
    count_result(matrix, enumeration[i], enumerated[i]);
    const Run::Verdict& verdict = enumerated[i].verdict;
    seconds.add(enumeration[i].scenario->name, verdict.until_served);
    seconds.add(enumeration[i].scenario->name, verdict.recovery);
    for (const auto& [point, count] : verdict.counts) {
      if (const auto row = matrix.rows.find(point); row != matrix.rows.end()) {
        row->second.scenarios.insert(enumeration[i].scenario->name);
      }
    }
  }

  std::vector<Case> cases;
  std::vector<std::string> not_passed;
  for (const auto& [point, row] : matrix.rows) {
    if (clients_point(point)) continue;
    struct Place {
      const Scenario* scenario;
      std::uint64_t passed;
    };
    std::vector<Place> places;
    for (std::size_t i = 0; i < enumeration.size(); ++i) {
      const auto passed = enumerated[i].verdict.counts.find(point);
      if (passed != enumerated[i].verdict.counts.end()) places.push_back({enumeration[i].scenario, passed->second});
    }
    if (places.empty()) {
      (matrix.left_out.empty() ? matrix.problems : not_passed).push_back(point + ": passed by no scenario");
      continue;
    }
    const auto add = [&, &name = point](const Place& place, std::uint64_t n) {
      Case one{place.scenario, name + ":" + std::to_string(n), {}};
      if (cases.size() % 2 == 1) one.second = seconds.next(place.scenario->name);
      cases.push_back(std::move(one));
    };
    if (arguments.full) {
      for (const Place& place : places) {
        for (const std::uint64_t n : std::set<std::uint64_t>{1, (place.passed + 1) / 2, place.passed}) add(place, n);
      }
      continue;
    }
    std::shuffle(places.begin(), places.end(), random);
    add(places.front(), 1);
    // Where it is passed most often: a later passing is most likely a different situation there.
    const Place& other = *std::max_element(places.begin(), places.end(),
                                           [](const Place& a, const Place& b) { return a.passed < b.passed; });
    add(other, other.passed == 1 ? 1 : 2 + random() % (other.passed - 1));
  }
  const std::vector<Result> results = play_all(cases, arguments.jobs);
  for (std::size_t i = 0; i < cases.size(); ++i) count_result(matrix, cases[i], results[i]);

  play_clients(arguments, matrix, random);

  std::uint64_t kills = 0, second_kills = 0;
  for (const auto& [point, row] : matrix.rows) {
    kills += row.kills;
    second_kills += row.second_kills;
    if (row.kills == 0 && row.failures == 0 && !row.scenarios.empty()) {
      matrix.problems.push_back(point + ": nothing was killed there");
    }
  }
  const double took = std::chrono::duration<double>(SteadyClock::now() - start).count();
  for (const std::string& name : matrix.left_out) {
    std::cout << "left out, for it needs root: " << name << std::endl;
  }
  for (const std::string& point : not_passed) std::cout << "so this is: " << point << std::endl;
  for (const std::string& problem : matrix.problems) std::cout << "PROBLEM " << problem << std::endl;
  std::cout << matrix.rows.size() << " points, " << kills << " kills, " << second_kills << " more during the recovery, "
            << matrix.checks << " comparisons, " << matrix.problems.size() << " problems, " << took << " s"
            << std::endl;
  if (!arguments.report.empty()) write_report(arguments, matrix, took);
  return matrix.problems.empty() ? 0 : 1;
}

int run_one(const Arguments& arguments) {
  const std::size_t slash = arguments.only.find('/');
  const std::string name = arguments.only.substr(0, slash);
  Case one;
  for (const Scenario& scenario : scenarios()) {
    if (scenario.name == name) one.scenario = &scenario;
  }
  if (one.scenario == nullptr) throw std::runtime_error("no scenario " + name);
  if (slash != std::string::npos) {
    const std::string rest = arguments.only.substr(slash + 1);
    const std::size_t plus = rest.find('+');
    one.kill = rest.substr(0, plus);
    if (plus != std::string::npos) one.second = rest.substr(plus + 1);
  }
  const Result result = play_all({one}, 1).front();
  for (const auto& [point, count] : result.verdict.counts) std::cout << count << " " << point << "\n";
  std::cout << one.name() << ": " << (result.failure.empty() ? "kept" : "broken")
            << (result.verdict.killed ? ", killed" : "") << (result.verdict.second_killed ? ", and again" : "") << "\n";
  return result.failure.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  arguments.seed = std::random_device()();
  try {
    for (int i = 1; i < argc; ++i) {
      const std::string word = argv[i];
      const auto value = [&]() -> std::string {
        if (i + 1 >= argc) throw std::runtime_error(word + " wants a value");
        return argv[++i];
      };
      if (word == "--full") {
        arguments.full = true;
      } else if (word == "--seed") {
        arguments.seed = std::stoull(value());
      } else if (word == "--jobs") {
        arguments.jobs = static_cast<unsigned>(std::stoul(value()));
      } else if (word == "--only") {
        arguments.only = value();
      } else if (word == "--report") {
        arguments.report = value();
      } else {
        throw std::runtime_error("what is " + word + "?");
      }
    }
    // Written data survives SIGKILL, synced or not: a real disk would only cost time.
    struct stat status {};
    if (std::getenv("TMPDIR") == nullptr && ::stat("/dev/shm", &status) == 0) ::setenv("TMPDIR", "/dev/shm", 1);
    return arguments.only.empty() ? run_matrix(arguments) : run_one(arguments);
  } catch (const std::exception& error) {
    std::cerr << "crash_matrix: " << error.what() << std::endl;
    return 64;
  }
}
