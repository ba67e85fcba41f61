// SPDX-License-Identifier: Apache-2.0
// stepstash_history: checks random histories of real clients against a real daemon that is constantly killed.
//
//   stepstash_history [--cycles N] [--seed N] [--floor N] [--keep DIR]
//
// A cycle is one end of a daemon: SIGKILL, SIGTERM, SIGSTOP followed by SIGKILL, or SIGKILL in the middle of its start.
// Rounds of a few cycles run with clients that continue their calls. Between rounds, with the clients gone, the daemon
// is ended once more in one of several ways (in some the segment is removed, as by a reboot), everything is read and
// compared with the database, and the history of the round is checked (history.hpp). Exit status: 0; 1 and a directory
// with all available information if a promise was broken; 64 for wrong arguments.
//
// A seed determines the schedule and the values, but the machine determines the interleaving: reproducing a failure may
// take several runs.
#include <sqlite3.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <random>
#include <system_error>

#include "tests/history/clients.hpp"
#include "tests/history/history.hpp"
#include "tests/support/harness.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

/// Small enough that the values of all keys do not fit at once: they are constantly evicted and reloaded.
const std::vector<std::string> kOptions = {"--segment-size=6MiB", "--flush-interval=20ms"};

struct Settings {
  std::uint64_t cycles = 30;
  std::uint64_t seed = 1;
  std::uint64_t floor = 50;  // operations per cycle: with fewer the run proves nothing and fails
  std::string keep;
};

struct Tally {
  std::uint64_t killed = 0;           // SIGKILL while it served
  std::uint64_t terminated = 0;       // SIGTERM
  std::uint64_t stopped = 0;          // SIGSTOP, later SIGKILL
  std::uint64_t during_recovery = 0;  // SIGKILL before it was ready
  std::uint64_t cold = 0;             // of all starts: without the previous segment
  std::uint64_t clients_killed = 0;
  std::uint64_t rounds = 0;
  std::uint64_t reloads = 0;  // of evicted values, by the daemons that lived to the end of a round
  std::uint64_t unknown = 0;  // operations whose outcome the client does not know
  std::uint64_t cycles() const { return killed + terminated + stopped + during_recovery; }
};

/// A broken promise. Ends the run.
struct Broken {
  std::vector<std::string> problems;
};

class Shared {
 public:
  Shared() {
    void* memory =
        ::mmap(nullptr, sizeof(Arena), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::system_error(errno, std::system_category(), "mmap");
    arena_ = static_cast<Arena*>(memory);
  }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  ~Shared() { ::munmap(arena_, sizeof(Arena)); }
  /// Resets everything to the state before the first round.
  Arena& fresh() { return *new (arena_) Arena; }

 private:
  Arena* arena_ = nullptr;
};

/// One row of the database, value included.
struct Row {
  std::uint64_t id = 0;
  std::uint64_t revision = 0;
  std::uint64_t value = 0;
  bool exact = false;
};

struct CloseDatabase {
  void operator()(sqlite3* connection) const { ::sqlite3_close(connection); }
};
struct FinalizeStatement {
  void operator()(sqlite3_stmt* statement) const { ::sqlite3_finalize(statement); }
};
using Database = std::unique_ptr<sqlite3, CloseDatabase>;
using Select = std::unique_ptr<sqlite3_stmt, FinalizeStatement>;

Select prepare(sqlite3* connection, const char* sql) {
  sqlite3_stmt* raw = nullptr;
  if (::sqlite3_prepare_v2(connection, sql, -1, &raw, nullptr) != SQLITE_OK) {
    throw std::runtime_error(std::string(sql) + ": " + ::sqlite3_errmsg(connection));
  }
  return Select(raw);
}

std::string blob(sqlite3_stmt* statement, int column) {
  const auto* bytes = static_cast<const char*>(::sqlite3_column_blob(statement, column));
  return bytes == nullptr ? ""
                          : std::string(bytes, static_cast<std::size_t>(::sqlite3_column_bytes(statement, column)));
}

/// The rows of build_data by build and name, as another program reads them.
std::map<std::pair<std::int64_t, std::string>, Row> rows_of(sqlite3* connection) {
  std::map<std::pair<std::int64_t, std::string>, Row> rows;
  const Select entries =
      prepare(connection, "SELECT id, buildid, name, length, source, revision, chunks, value FROM build_data");
  const Select chunks = prepare(connection, "SELECT data FROM value_chunks WHERE revision = ?1 ORDER BY seq");
  while (::sqlite3_step(entries.get()) == SQLITE_ROW) {
    Row row;
    row.id = static_cast<std::uint64_t>(::sqlite3_column_int64(entries.get(), 0));
    row.revision = static_cast<std::uint64_t>(::sqlite3_column_int64(entries.get(), 5));
    row.value = value_of(blob(entries.get(), 4));
    std::string bytes = blob(entries.get(), 7);
    if (::sqlite3_column_int64(entries.get(), 6) > 0) {
      ::sqlite3_reset(chunks.get());
      ::sqlite3_bind_int64(chunks.get(), 1, static_cast<std::int64_t>(row.revision));
      while (::sqlite3_step(chunks.get()) == SQLITE_ROW) bytes += blob(chunks.get(), 0);
    }
    row.exact = row.value != 0 && bytes.size() == length_of(row.value) &&
                static_cast<std::size_t>(::sqlite3_column_int64(entries.get(), 3)) == bytes.size() &&
                is_exact(std::as_bytes(std::span(bytes)), row.value);
    rows.emplace(std::pair(::sqlite3_column_int64(entries.get(), 1), blob(entries.get(), 2)), row);
  }
  return rows;
}

class Run {
 public:
  explicit Run(const Settings& settings)
      : settings_(settings), random_(settings.seed), daemon_(kOptions), checker_(kBuilds) {}

  void run() {
    start();
    auto last_line = std::chrono::steady_clock::now();
    while (tally_.cycles() < settings_.cycles) {
      round();
      const auto now = std::chrono::steady_clock::now();
      if (now - last_line < 10s) continue;
      last_line = now;
      std::printf("seed %llu: cycle %llu of %llu, %llu operations checked, %llu kills during recovery\n",
                  ull(settings_.seed), ull(tally_.cycles()), ull(settings_.cycles), ull(checker_.checked()),
                  ull(tally_.during_recovery));
      std::fflush(stdout);
    }
    if (checker_.checked() < settings_.floor * tally_.cycles()) {
      throw Broken{{"too little traffic: " + std::to_string(checker_.checked()) + " operations in " +
                    std::to_string(tally_.cycles()) + " cycles, wanted " + std::to_string(settings_.floor) +
                    " per cycle"}};
    }
    if (checker_.judged() < 3 * checker_.unjudged()) {
      throw Broken{{"too little was looked at as one instant: " + std::to_string(checker_.judged()) + " builds, not " +
                    std::to_string(checker_.unjudged())}};
    }
    if (tally_.reloads == 0) throw Broken{{"too little data: nothing was evicted and came back"}};
    if (tally_.during_recovery * 10 < tally_.cycles() * 3) {
      throw Broken{{"only " + std::to_string(tally_.during_recovery) + " of " + std::to_string(tally_.cycles()) +
                    " kills were during recovery"}};
    }
  }

  void summary(const char* result) const {
    std::printf(
        "summary: result=%s seed=%llu cycles=%llu sigkill=%llu sigterm=%llu sigstop=%llu recovery=%llu cold=%llu "
        "clients=%llu rounds=%llu reloads=%llu operations=%llu unknown=%llu judged=%llu unjudged=%llu\n",
        result, ull(settings_.seed), ull(tally_.cycles()), ull(tally_.killed), ull(tally_.terminated),
        ull(tally_.stopped), ull(tally_.during_recovery), ull(tally_.cold), ull(tally_.clients_killed),
        ull(tally_.rounds), ull(tally_.reloads), ull(checker_.checked()), ull(tally_.unknown), ull(checker_.judged()),
        ull(checker_.unjudged()));
  }

  /// Saves all available information to a directory and returns its name.
  std::string keep(const std::vector<std::string>& problems) {
    namespace fs = std::filesystem;
    fs::path to = settings_.keep;
    if (to.empty()) {
      to = fs::temp_directory_path() /
           ("stepstash-history-" + std::to_string(settings_.seed) + "-" + std::to_string(::getpid()));
    }
    std::error_code ignored;
    fs::create_directories(to, ignored);
    std::ofstream text(to / "problems.txt");
    for (const std::string& problem : problems) text << problem << "\n";
    std::ofstream history(to / "history.txt");
    for (const Life& life : lives_) history << "daemon [" << life.begin << " .. " << life.end << "]\n";
    for (std::size_t i = 0; i < records_.size(); ++i) history << i << " " << describe(*records_[i]) << "\n";
    std::ofstream(to / "daemon.log") << daemon_.log();
    daemon_.kill();  // the files no longer change from here on
    for (const char* suffix : {"", "-wal"}) {
      fs::copy_file(daemon_.db() + suffix, to / (std::string("build_data.db") + suffix),
                    fs::copy_options::overwrite_existing, ignored);
    }
    fs::copy_file(daemon_.segment_path(), to / "segment", fs::copy_options::overwrite_existing, ignored);
    return to;
  }

 private:
  static unsigned long long ull(std::uint64_t number) { return number; }
  std::uint64_t below(std::uint64_t bound) {
    return std::uniform_int_distribution<std::uint64_t>(0, bound - 1)(random_);
  }

  // ---- the daemon's lives ----

  void start() {
    lives_.push_back({now_ns(), INT64_MAX});
    const auto before = std::chrono::steady_clock::now();
    daemon_.start();
    start_takes_ = std::chrono::steady_clock::now() - before;
  }

  /// Restarts the daemon; before that, kills it several times during its start. At least three kills in ten are of that
  /// kind, so that the share is reached whatever the random numbers are.
  void start_again() {
    for (int times = 0; times < 3; ++times) {
      const bool behind = tally_.during_recovery * 100 < 36 * (tally_.cycles() + 1);
      if (!behind && below(3) != 0) break;
      lives_.push_back({now_ns(), INT64_MAX});
      // From the first instruction until shortly after it serves; never after, if the share must still be reached.
      const auto usual = std::chrono::duration_cast<std::chrono::microseconds>(start_takes_).count();
      const auto time =
          std::chrono::microseconds(below(static_cast<std::uint64_t>(usual) * (behind ? 8 : 11) / 10 + 1));
      const auto before = std::chrono::steady_clock::now();
      if (daemon_.start_killed_after(time)) {
        start_takes_ = std::chrono::steady_clock::now() - before;
        return;
      }
      lives_.back().end = now_ns();
      ++tally_.during_recovery;
    }
    start();
  }

  /// A daemon that ends by itself is a defect, not a cycle.
  void must_live() const {
    siginfo_t info{};
    ::waitid(P_PID, static_cast<id_t>(daemon_.pid()), &info, WEXITED | WNOHANG | WNOWAIT);
    if (info.si_pid != 0) throw Broken{{"the daemon ended by itself, with " + std::to_string(info.si_status)}};
  }

  void end_life() {
    must_live();
    switch (below(10)) {
      case 0:
      case 1:
        if (const int status = daemon_.terminate(); status != 0) {
          throw Broken{{"SIGTERM: the daemon ended with status " + std::to_string(status)}};
        }
        ++tally_.terminated;
        break;
      case 2:
      case 3:
        daemon_.stop();
        pause(below(15'000));  // clients encounter it meanwhile
        daemon_.kill();
        ++tally_.stopped;
        break;
      default:
        daemon_.kill();
        ++tally_.killed;
    }
    lives_.back().end = now_ns();
  }

  /// Deletions are few and change the most, so sometimes kills the daemon within the microseconds that one takes.
  void kill_in_a_deletion(const Arena& arena) {
    must_live();
    const std::uint64_t before = arena.deletions.load();
    const std::int64_t give_up = now_ns() + 100'000'000;
    while (arena.deletions.load() == before && now_ns() < give_up) continue;
    const std::int64_t then = now_ns() + static_cast<std::int64_t>(below(150'000));
    while (now_ns() < then) continue;
    daemon_.kill();
    lives_.back().end = now_ns();
    ++tally_.killed;
  }

  /// Not a wait for an event: it makes the next kill hit the daemon at a random point.
  static void pause(std::uint64_t microseconds) {
    std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
  }

  // ---- a round ----

  void round() {
    ++tally_.rounds;
    Arena& arena = shared_.fresh();
    lives_.assign(1, {now_ns(), INT64_MAX});
    records_.clear();
    std::vector<std::unique_ptr<Child>> clients;
    for (std::size_t process = 0; process < kProcesses; ++process) {
      clients.push_back(std::make_unique<Child>(
          [&, process] { return run_client(arena, daemon_.socket(), process, tally_.rounds, settings_.seed); }));
    }
    if (!eventually([&] { return arena.attached.load() == kProcesses; }, 60s)) {
      throw Broken{{"the clients did not all connect"}};
    }
    const std::uint64_t kills = 3 + below(4);
    const std::uint64_t kill_client_at = below(3 * kills);
    for (std::uint64_t kill = 0; kill < kills && tally_.cycles() < settings_.cycles; ++kill) {
      const std::uint64_t aim = arena.done.load() + 60 + below(500);
      eventually([&] { return arena.done.load() >= aim; }, 3s);  // the floor decides whether that was too little
      pause(below(4000));
      if (kill == kill_client_at) {
        clients.back()->kill();
        ++tally_.clients_killed;
      }
      if (below(4) == 0) {
        kill_in_a_deletion(arena);
      } else {
        end_life();
      }
      start_again();
    }
    const std::uint64_t aim = arena.done.load() + 60;
    eventually([&] { return arena.done.load() >= aim; }, 3s);
    arena.stop = true;
    for (std::size_t process = 0; process < kProcesses; ++process) {
      const bool killed = process + 1 == kProcesses && kill_client_at < kills;
      if (killed) continue;
      if (const int status = clients[process]->join(); status != 0) {
        throw Broken{{"a client process ended with status " + std::to_string(status)}};
      }
    }
    clients.clear();
    look_over(arena);
  }

  /// Checks the state while no client is active: the baseline, another restart, every key, the database, the history.
  void look_over(Arena& arena) {
    Recorder recorder(arena.of_driver, arena.done);
    burn_ids(recorder);
    abandon_sets();
    const std::uint64_t used_before = baseline();
    tally_.reloads += last_reloads_;
    const std::int64_t quiet = now_ns();
    const bool cold = restart();
    const std::uint64_t used_after = baseline();
    // A start determines what is in use from the stored facts alone. If more was in use before it, that memory had
    // leaked; the allowance is for the slab that records are cut from, and for tables that the index has outgrown.
    constexpr std::uint64_t kAllowance = 192 * kKiB;
    if (!cold && used_before > used_after + kAllowance) {
      throw Broken{{std::to_string(used_before - used_after) + " bytes of the segment were in use that no entry has"}};
    }
    {
      const Client client(daemon_.socket(), 30s);
      for (std::size_t build = 0; build < kBuilds; ++build) {
        record_list(recorder, client, build);
        for (std::size_t name = 0; name < kNames; ++name) record_get(recorder, client, build, name);
      }
    }
    baseline();
    std::vector<std::string> problems;
    compare_with_database(recorder, arena, problems);

    for (auto& process : arena.of_clients) {
      for (auto& thread : process) {
        for (Record& record : thread) collect(record);
      }
    }
    for (Record& record : arena.of_driver) collect(record);
    tally_.unknown += static_cast<std::uint64_t>(std::count_if(records_.begin(), records_.end(), [](const Record* r) {
      const Answer answer = r->answer.load();
      return answer == Answer::unknown || answer == Answer::pending;
    }));
    const auto found = checker_.check({records_, lives_, quiet});
    problems.insert(problems.end(), found.begin(), found.end());
    if (!problems.empty()) throw Broken{problems};
  }

  /// Makes the largest ids and revisions those of a deleted entry: a daemon that continues from the remaining ones
  /// would reuse them.
  void burn_ids(Recorder& recorder) {
    Client client(daemon_.socket(), 30s);
    const std::size_t build = below(kBuilds);
    const std::size_t name = below(kNames);
    Record* record = recorder.begin(Action::set, build, name);
    record->value = tally_.rounds << 32 | std::uint64_t{0xFF} << 24;  // no client process has this number
    const auto result =
        client.set(build_number(build), name_of(name), bytes_of(record->value), source_of(record->value));
    record->seen[0] = {record->value, result->id, result->revision, true};
    recorder.end(*record, Answer::ok);
    record = recorder.begin(Action::drop, build, 0);
    record->count = client.drop(build_number(build));
    recorder.end(*record, Answer::ok);
  }

  /// Begins sets and does not commit them: their memory must be free again afterwards (look_over).
  void abandon_sets() {
    Client client(daemon_.socket(), 30s);
    for (const std::uint64_t length : {300 * kKiB, Client::kUnknownLength}) {
      auto writer = client.begin(build_number(0), name_of(0), length);
      writer->write(std::string(250 * kKiB, 'x'));
      writer->abort();
    }
  }

  void collect(const Record& record) {
    if (record.action != Action::none) records_.push_back(&record);
  }

  /// Waits until nothing of the clients is left and everything is written; returns the segment's bytes in use.
  std::uint64_t baseline() {
    Client client(daemon_.socket(), 30s);
    client.flush();
    nlohmann::json figures;
    const bool reached = eventually(
        [&] {
          figures = stats(client);
          return figures["connections"] == 1 && figures["open_views"] == 0 && figures["staging_rings"] == 0 &&
                 figures["pin_pages"] == 1 && figures["dirty_values"] == 0 && figures["dirty_bytes"] == 0 &&
                 figures["segment"]["retired_blocks"] == 0;
        },
        10s);
    if (!reached) throw Broken{{"the figures are not back where they were: " + figures.dump(2)}};
    if (figures["damaged_values"] != 0 || figures["last_recovery"]["entries_set_aside"] != 0 ||
        figures["reload_errors"] != 0) {
      throw Broken{{"something was damaged: " + figures.dump(2)}};
    }
    last_reloads_ = figures["reloads"].get<std::uint64_t>();
    return figures["segment"]["used_bytes"].get<std::uint64_t>();
  }

  /// One more end and start, sometimes without the segment; returns whether it was without.
  bool restart() {
    bool cold = false;
    switch (below(6)) {
      case 0:  // all is in the database, by SIGTERM
      case 1:
        if (const int status = daemon_.terminate(); status != 0) {
          throw Broken{{"SIGTERM: the daemon ended with status " + std::to_string(status)}};
        }
        ++tally_.terminated;
        cold = true;
        break;
      case 2:  // or because baseline() has flushed
        daemon_.kill();
        ++tally_.killed;
        cold = true;
        break;
      case 3:
        return false;
      default:
        end_life();
    }
    lives_.back().end = now_ns();
    if (cold) {
      daemon_.remove_segment();
      ++tally_.cold;
    }
    start_again();
    return cold;
  }

  void compare_with_database(Recorder& recorder, Arena& arena, std::vector<std::string>& problems) {
    sqlite3* raw = nullptr;
    const int opened = ::sqlite3_open_v2(daemon_.db().c_str(), &raw, SQLITE_OPEN_READWRITE, nullptr);
    const Database connection(raw);
    if (opened != SQLITE_OK) throw Broken{{"the database cannot be opened"}};
    ::sqlite3_busy_timeout(raw, 10'000);
    const Select integrity = prepare(raw, "PRAGMA integrity_check");
    if (::sqlite3_step(integrity.get()) != SQLITE_ROW || blob(integrity.get(), 0) != "ok") {
      problems.push_back("integrity_check: " + blob(integrity.get(), 0));
    }
    const Select orphans =
        prepare(raw,
                "SELECT count(*) FROM value_chunks WHERE revision NOT IN (SELECT revision FROM build_data) AND "
                "revision NOT IN (SELECT revision FROM chunks_to_delete)");
    if (::sqlite3_step(orphans.get()) != SQLITE_ROW || ::sqlite3_column_int64(orphans.get(), 0) != 0) {
      problems.push_back("the database has chunks of values that are not there");
    }
    auto rows = rows_of(raw);
    for (const Record& record : arena.of_driver) {
      if (record.action != Action::get) continue;
      const Sight& seen = record.seen[0];
      const auto found = rows.find({build_number(record.build), name_of(record.name)});
      const Row row = found == rows.end() ? Row{0, 0, 0, true} : found->second;
      if (row.value != seen.value || row.id != seen.id || row.revision != seen.revision || !row.exact) {
        problems.push_back("the database has value " + source_of(row.value) + " id " + std::to_string(row.id) +
                           " revision " + std::to_string(row.revision) + (row.exact ? "" : ", not exact") + " for\n  " +
                           describe(record));
      }
      if (found != rows.end()) rows.erase(found);
    }
    for (const auto& [key, row] : rows) {
      problems.push_back("the database has build " + std::to_string(key.first) + ", name \"" + key.second +
                         "\", which the segment has not");
    }
    const auto read = [&](Action action, const char* sql, std::int64_t otherwise) {
      const Select select = prepare(raw, sql);
      for (std::size_t build = 0; build < kBuilds; ++build) {
        Record* record = recorder.begin(action, build, 0);
        ::sqlite3_reset(select.get());
        ::sqlite3_bind_int64(select.get(), 1, build_number(build));
        record->at = ::sqlite3_step(select.get()) == SQLITE_ROW ? ::sqlite3_column_int64(select.get(), 0) : otherwise;
        recorder.end(*record, Answer::ok);
      }
    };
    read(Action::completion, "SELECT complete_at FROM builds WHERE id = ?1 AND complete_at IS NOT NULL", kUnfinished);
    read(Action::holding, "SELECT held FROM builds WHERE id = ?1", 0);
  }

  Settings settings_;
  std::mt19937_64 random_;
  Shared shared_;
  DaemonProcess daemon_;
  HistoryChecker checker_;
  Tally tally_;
  std::chrono::nanoseconds start_takes_{0};
  std::uint64_t last_reloads_ = 0;
  std::vector<Life> lives_;
  std::vector<const Record*> records_;
};

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  CLI::App app("Random histories against a daemon that is killed all the time.", "stepstash_history");
  app.add_option("--cycles", settings.cycles, "ends of a daemon")->capture_default_str();
  app.add_option("--seed", settings.seed, "of the schedule")->capture_default_str();
  app.add_option("--floor", settings.floor, "operations per cycle; with fewer the run fails")->capture_default_str();
  app.add_option("--keep", settings.keep, "where to leave what broke a promise")->type_name("DIR");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 64;
  }
  Run run(settings);
  std::vector<std::string> problems;
  try {
    run.run();
    run.summary("ok");
    return 0;
  } catch (const Broken& broken) {
    problems = broken.problems;
  } catch (const std::exception& error) {
    problems = {error.what()};
  }
  for (const std::string& problem : problems) std::printf("BROKEN: %s\n", problem.c_str());
  std::printf("history, log, database and segment are in %s\n", run.keep(problems).c_str());
  std::printf("the same schedule again: tests/soak --cycles %llu --seed %llu --jobs 1\n",
              static_cast<unsigned long long>(settings.cycles), static_cast<unsigned long long>(settings.seed));
  run.summary("BROKEN");
  return 1;
}
