// SPDX-License-Identifier: Apache-2.0
#include "tests/crash_matrix/run.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/errc.hpp"
#include "shm/index.hpp"
#include "tests/crash_matrix/counts.hpp"
#include "tests/support/harness.hpp"

namespace stepstash::test {

/// The daemon with crash points.
const char* DaemonProcess::program() noexcept { return STEPSTASHD_PATH; }

namespace {

using client::Channel;
namespace fs = std::filesystem;

/// Far more than any step here takes, even on a busy machine: reaching it is a failure.
constexpr auto kPatience = std::chrono::seconds(30);
/// Builds reserved for the judge.
constexpr BuildId kProbes = 999'983;
constexpr std::uint64_t kSlabBytes = 64 * 1024;

client::Deadline soon() { return std::chrono::steady_clock::now() + kPatience; }

template <class T>
T expect_reply(protocol::Reply reply, const char* what) {
  if (auto* wanted = std::get_if<T>(&reply)) return std::move(*wanted);
  if (const auto* failure = std::get_if<protocol::Failure>(&reply)) {
    throw Broken(std::string(what) + " was refused: " + failure->message);
  }
  throw Broken(std::string(what) + " was answered with another kind of reply");
}

/// An environment variable for the next daemon only.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    if (!value.empty()) ::setenv(name, value.c_str(), 1);
  }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;
  ~Variable() { ::unsetenv(name_); }

 private:
  const char* name_;
};

/// Reads the daemon's database, as another process would.
class Database {
 public:
  explicit Database(const std::string& path) {
    if (::sqlite3_open_v2(path.c_str(), &db_, SQLITE_OPEN_READWRITE, nullptr) != SQLITE_OK) {
      throw Broken(path + ": " + ::sqlite3_errmsg(db_));
    }
    ::sqlite3_busy_timeout(db_, 10'000);
  }
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;
  ~Database() { ::sqlite3_close(db_); }

  void each(const std::string& sql, const std::function<void(sqlite3_stmt*)>& row) {
    sqlite3_stmt* raw = nullptr;
    if (::sqlite3_prepare_v2(db_, sql.c_str(), -1, &raw, nullptr) != SQLITE_OK) {
      throw Broken(sql + ": " + ::sqlite3_errmsg(db_));
    }
    const std::unique_ptr<sqlite3_stmt, int (*)(sqlite3_stmt*)> statement(raw, ::sqlite3_finalize);
    int step = 0;
    while ((step = ::sqlite3_step(raw)) == SQLITE_ROW) row(raw);
    if (step != SQLITE_DONE) throw Broken(sql + ": " + ::sqlite3_errmsg(db_));
  }
  std::int64_t number(const std::string& sql) {
    std::int64_t found = 0;
    each(sql, [&](sqlite3_stmt* row) { found = ::sqlite3_column_int64(row, 0); });
    return found;
  }

 private:
  sqlite3* db_ = nullptr;
};

}  // namespace

Counts read_counts(const std::string& path) {
  Counts counts;
  std::ifstream file(path, std::ios::binary);
  Counted one;
  while (file.read(reinterpret_cast<char*>(&one), sizeof one)) {
    const std::uint64_t count = one.count.load();
    one.name[sizeof(one.name) - 1] = '\0';
    if (count != 0) counts[one.name] += count;
  }
  return counts;
}

// ---- one connection ------------------------------------------------------------------------------------------------

Session::Session(const std::string& socket, bool attach) {
  auto opened = Channel::open(client::Address::of(socket).value(), descriptors_);
  if (!opened) throw Gone();
  channel_ = std::move(opened).value();
  protocol::Hello hello;
  hello.attach = attach;
  expect_reply<protocol::HelloOk>(ask(hello), "Hello");
  if (!attach) return;
  UniqueFd segment = channel_->take_descriptor(0);
  UniqueFd page = channel_->take_descriptor(1);
  pin_page_fd_ = UniqueFd(::fcntl(page.get(), F_DUPFD_CLOEXEC, 3));
  auto reader = shm::Reader::attach(std::move(segment), std::move(page));
  if (!reader) throw Broken("the segment cannot be attached: " + reader.error().message());
  reader_.emplace(std::move(reader).value());
}

protocol::Reply Session::ask(const protocol::Request& request) {
  send(request);
  return receive();
}

void Session::send(const protocol::Request& request) {
  const auto sent = channel_->send(request, soon());
  if (sent) return;
  if (sent.error() == Errc::unavailable) throw Gone();
  throw Broken("a request cannot be sent: " + sent.error().message());
}

protocol::Reply Session::receive() {
  auto reply = channel_->receive(soon());
  if (reply) return std::move(reply).value();
  if (reply.error() == Errc::unavailable) throw Gone();
  throw Broken("no reply: " + reply.error().message());
}

// ---- lives ---------------------------------------------------------------------------------------------------------

Run::Run(std::string kill, std::string second)
    : kill_(std::move(kill)), second_(std::move(second)), daemon_(std::make_unique<DaemonProcess>()) {}

Run::~Run() {
  for (HeldView& view : views_) view.pinned.release();
  session_.reset();
  daemon_->kill();
  kept_.clear();  // before the directory that it may be mounted in
}

/// False if it was killed before it served.
bool Run::launch(const Options& options, const std::string& kill, const std::string& counts) {
  options_ = options;
  const Variable armed("CRASH_POINT_KILL", kill);
  const Variable counted("CRASH_POINT_COUNTS", counts);
  try {
    daemon_->start(options);
    return true;
  } catch (const std::runtime_error& error) {
    if (!kill.empty() && std::string_view(error.what()).find("ended with status 137;") != std::string_view::npos) {
      return false;
    }
    throw Broken(std::string("the daemon does not start: ") + error.what());
  }
}

void Run::start(const Options& options, const std::string& kill) {
  if (!launch(options, kill, {})) throw Gone();
}

void Run::start_armed(const Options& options) {
  const std::string counts = daemon_->directory().file("counts");
  const bool served = launch(options, kill_, counts);
  if (served) verdict_.until_served = read_counts(counts);
  if (!served) throw Gone();
}

void Run::kill() {
  session_.reset();
  daemon_->kill();
}

void Run::terminate() {
  session_.reset();
  const int status = daemon_->terminate();
  if (status == 128 + SIGKILL) throw Gone();
  if (status != 0) throw Broken("the daemon ended with status " + std::to_string(status));
}

bool Run::dead() {
  if (!daemon_->running()) return true;
  siginfo_t info{};
  if (::waitid(P_PID, static_cast<id_t>(daemon_->pid()), &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) {
    return false;
  }
  if (info.si_code != CLD_KILLED || info.si_status != SIGKILL) {
    throw Broken("the daemon ended by itself, with status or signal " + std::to_string(info.si_status));
  }
  return true;
}

// ---- what the client does ------------------------------------------------------------------------------------------

void Run::attach() {
  session_ = std::make_unique<Session>(daemon_->socket(), true);
  attached_ = true;
}

void Run::detach() {
  session_.reset();
  attached_ = false;
}

Session& Run::session() {
  if (!session_) session_ = std::make_unique<Session>(daemon_->socket(), attached_);
  return *session_;
}

protocol::Reply Run::ask(const protocol::Request& request) { return session().ask(request); }

protocol::SetParams Run::announce(BuildId build, const std::string& name, const Value& value,
                                  const SetOptions& options) {
  promises_.will_set(build, name, value);
  protocol::SetParams params;
  params.build = build;
  params.name = name;
  params.source = options.source;
  params.durable = options.durable;
  params.if_absent = options.if_absent;
  params.deadline_ms = 20'000;
  return params;
}

void Run::settle_set(BuildId build, const std::string& name, const protocol::Reply& reply) {
  if (const auto* failure = std::get_if<protocol::Failure>(&reply)) {
    if (failure->code != Errc::condition_failed) throw Broken("a set was refused: " + failure->message);
    promises_.was_not_set(build, name);
    return;
  }
  const auto ok = expect_reply<protocol::SetOk>(reply, "Set");
  promises_.was_set(build, name, ok.id, ok.revision);
}

void Run::set(BuildId build, const std::string& name, std::uint64_t length, const SetOptions& options) {
  const Value value{++next_seed_, length, options.source};
  session();
  const std::string bytes = generated(length, value.seed);
  protocol::Set request{announce(build, name, value, options), std::as_bytes(std::span(bytes))};
  settle_set(build, name, ask(request));
}

void Run::staged(BuildId build, const std::string& name, std::uint64_t length, const SetOptions& options, bool unknown,
                 const std::function<void()>& between) {
  const Value value{++next_seed_, length, options.source};
  Session& with = session();
  protocol::SetBegin begin{announce(build, name, value, options), unknown ? protocol::kUnknownLength : length};
  promises_.was_not_set(build, name);  // nothing can be published before the commit is sent
  const auto ready = expect_reply<protocol::SetReady>(with.ask(begin), "SetBegin");
  if (auto adopted = with.channel().adopt_ring(ready); !adopted) throw Broken(adopted.error().message());
  const auto ring = std::span(with.channel().ring().mapping.data(), ready.ring_bytes);
  std::uint32_t at = 0;
  for (std::uint64_t sent = 0; sent < length;) {
    const auto bytes = static_cast<std::uint32_t>(std::min<std::uint64_t>(ready.piece_bytes, length - sent));
    if (at + bytes > ready.ring_bytes) at = 0;
    generate(ring.subspan(at, bytes), value.seed, sent);
    expect_reply<protocol::PieceDone>(with.ask(protocol::Piece{at, bytes}), "Piece");
    at += bytes;
    sent += bytes;
    if (between && sent == bytes) between();
  }
  promises_.will_set(build, name, value);
  settle_set(build, name, with.ask(protocol::SetCommit{}));
}

void Run::finish(BuildId build, std::int64_t at) {
  session();
  promises_.will_finish(build, at);
  expect_reply<protocol::Finished>(ask(protocol::Finish{build, at}), "Finish");
  promises_.was_finished(build);
}

void Run::hold(BuildId build, bool held) {
  session();
  promises_.will_hold(build, held);
  expect_reply<protocol::Done>(ask(protocol::HoldBuild{build, held}), "HoldBuild");
  promises_.was_held(build);
}

void Run::drop(BuildId build) {
  session();
  promises_.will_drop(build);
  expect_reply<protocol::Count>(ask(protocol::Drop{build}), "Drop");
  promises_.was_dropped(build);
}

void Run::prune(std::int64_t older_than) {
  session();
  const std::vector<BuildId> concerned = promises_.will_prune(older_than);
  expect_reply<protocol::Count>(ask(protocol::Prune{older_than}), "Prune");
  for (const BuildId build : concerned) promises_.was_dropped(build);
}

void Run::flush() { expect_reply<protocol::Done>(ask(protocol::Flush{30'000}), "Flush"); }

void Run::load(BuildId build, const std::string& name) {
  expect_reply<protocol::Done>(ask(protocol::Load{build, name, 20'000}), "Load");
}

void Run::list(BuildId build) { expect_reply<protocol::ListPage>(ask(protocol::List{build, std::nullopt, 0}), "List"); }

nlohmann::json Run::stats() {
  return nlohmann::json::parse(expect_reply<protocol::Text>(ask(protocol::Stats{}), "Stats").text);
}

void Run::until(const std::function<bool(const nlohmann::json&)>& condition, const char* what) {
  nlohmann::json last;
  const bool came = eventually(
      [&] {
        last = stats();
        return condition(last);
      },
      kPatience);
  expect(came, std::string(what) + " does not come; stats: " + last.dump());
}

void Run::view(BuildId build, const std::string& name) {
  HeldView held{std::make_shared<Session>(daemon_->socket(), true), {}, {}, name};
  const shm::Found found = held.session->reader().find(build, name, held.pinned);
  if (found != shm::Found::resident) throw Broken("no view of " + name);
  held.value = promises_.build(build).data.at(name).confirmed.value().value;
  views_.push_back(std::move(held));
}

std::vector<std::shared_ptr<Session>> Run::release_views() {
  see_views();
  std::vector<std::shared_ptr<Session>> clients;
  for (HeldView& view : views_) {
    view.pinned.release();
    clients.push_back(std::move(view.session));
  }
  views_.clear();
  return clients;
}

void Run::poke(const std::function<void(std::byte* segment, std::size_t bytes)>& change) {
  const UniqueFd fd(::open(daemon_->segment_path().c_str(), O_RDWR | O_CLOEXEC));
  struct stat status {};
  if (!fd || ::fstat(fd.get(), &status) != 0) throw Broken("there is no segment");
  const auto bytes = static_cast<std::size_t>(status.st_size);
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (at == MAP_FAILED) throw Broken("the segment cannot be mapped");
  change(static_cast<std::byte*>(at), bytes);
  ::munmap(at, bytes);
}

// ---- the judgement -------------------------------------------------------------------------------------------------

void Run::expect(bool kept, const std::string& what) {
  ++verdict_.checks;
  if (!kept) throw Broken(what);
}

std::optional<bool> Run::has_bytes(BuildId build, const Promises::Seen& entry, const Value& value) {
  ++verdict_.checks;
  for (int attempt = 0; attempt < 8; ++attempt) {
    shm::Pinned pinned;
    const shm::Found found = session().reader().find(build, entry.name, pinned);
    if (found == shm::Found::miss) throw Broken("\"" + entry.name + "\" is listed, and a get finds nothing");
    if (found == shm::Found::resident) {
      const bool exact = pinned.entry->revision == entry.revision && pinned.entry->id == entry.id &&
                         pinned.source() == value.source && is_generated(pinned.value(), value.length, value.seed);
      pinned.release();
      return exact;
    }
    if (found != shm::Found::evicted) throw Broken("\"" + entry.name + "\": the index is corrupt");
    pinned.release();
    const protocol::Reply reply = ask(protocol::Load{build, entry.name, 20'000});
    if (std::holds_alternative<protocol::Failure>(reply)) return std::nullopt;
  }
  return std::nullopt;
}

/// Compares everything that clients can see of the segment.
void Run::see_all() {
  std::uint64_t entries = 0;
  for (const BuildId build : promises_.builds()) {
    std::vector<Promises::Seen> list;
    protocol::List request{build, std::nullopt, 0};
    for (bool more = true; more;) {
      const auto page = expect_reply<protocol::ListPage>(ask(request), "List");
      for (const EntryInfo& entry : page.entries) {
        list.push_back({entry.name, entry.source, entry.id, entry.revision, entry.length});
      }
      more = page.more;
      if (more) request.after_id = list.back().id;
    }
    entries += list.size();
    promises_.see(build, list, [this](BuildId of, const Promises::Seen& entry, const Value& value) {
      return has_bytes(of, entry, value);
    });
  }
  const nlohmann::json figures = stats();
  expect(figures.at("entries") == entries, "there are entries that no list shows: " + figures.at("entries").dump());
  if (!damage_) {
    expect(figures.at("last_recovery").at("entries_set_aside") == 0,
           "something was set aside: " + figures.at("last_recovery").dump());
    expect(figures.at("damaged_values") == 0, "damaged values: " + figures.at("damaged").dump());
  }
}

/// Checks the database after a flush: intact, with the same contents.
void Run::see_database() {
  const nlohmann::json figures = stats();
  expect(figures.at("dirty_values") == 0 && figures.at("dirty_bytes") == 0,
         "after a flush there are dirty values: " + figures.at("dirty_values").dump());
  Database database(daemon_->db());
  database.each("PRAGMA integrity_check", [&](sqlite3_stmt* row) {
    const std::string text = reinterpret_cast<const char*>(::sqlite3_column_text(row, 0));
    expect(text == "ok", "integrity_check: " + text);
  });
  std::map<std::pair<BuildId, std::string>, Promises::Seen> rows;
  database.each("SELECT id, buildid, name, length, source, revision FROM build_data", [&](sqlite3_stmt* row) {
    Promises::Seen seen{reinterpret_cast<const char*>(::sqlite3_column_text(row, 2)),
                        reinterpret_cast<const char*>(::sqlite3_column_text(row, 4)),
                        static_cast<std::uint64_t>(::sqlite3_column_int64(row, 0)),
                        static_cast<std::uint64_t>(::sqlite3_column_int64(row, 5)),
                        static_cast<std::uint64_t>(::sqlite3_column_int64(row, 3))};
    rows.emplace(std::pair(::sqlite3_column_int64(row, 1), seen.name), seen);
  });
  std::map<BuildId, std::pair<std::optional<std::int64_t>, bool>> facts;
  database.each("SELECT id, complete_at, held FROM builds", [&](sqlite3_stmt* row) {
    auto& [complete_at, held] = facts[::sqlite3_column_int64(row, 0)];
    if (::sqlite3_column_type(row, 1) != SQLITE_NULL) complete_at = ::sqlite3_column_int64(row, 1);
    held = ::sqlite3_column_int64(row, 2) != 0;
  });
  std::uint64_t expected = 0;
  for (const BuildId id : promises_.builds()) {
    Promises::Build& build = promises_.build(id);
    for (const auto& [name, datum] : build.data) {
      if (!datum.confirmed || datum.damaged) continue;
      ++expected;
      const auto row = rows.find({id, name});
      expect(row != rows.end() && row->second.revision == datum.confirmed->revision &&
                 row->second.id == datum.confirmed->id && row->second.length == datum.confirmed->value.length,
             "\"" + name + "\" was flushed, and its row is not in the database");
      rows.erase(row);
    }
    std::erase_if(rows, [&](const auto& row) {
      const auto datum = build.data.find(row.first.second);
      return row.first.first == id && datum != build.data.end() && datum->second.damaged;
    });
    promises_.see_row(id, facts[id].first, facts[id].second);
    ++verdict_.checks;
  }
  expect(rows.empty(),
         rows.empty() ? "" : "the database has a row of \"" + rows.begin()->second.name + "\", which is not there");
  expect(database.number("SELECT count(*) FROM value_chunks WHERE revision NOT IN (SELECT revision FROM build_data "
                         "UNION SELECT revision FROM chunks_to_delete)") == 0,
         "chunks are left that nothing will ever delete");
}

void Run::see_views() {
  for (const HeldView& view : views_) {
    expect(is_generated(view.pinned.value(), view.value.length, view.value.seed),
           "the view of \"" + view.name + "\" has changed its bytes");
  }
}

void Run::compare() {
  detach();
  attach();
  slots_ = stats().at("segment").at("index_slots");
  see_all();
  see_views();
  set(kProbes, "probe", 100);
  staged(kProbes, "large probe", 200'000);
  flush();
  see_database();
  see_all();
  see_views();
}

/// Deleted data stays deleted, and nothing of it remains.
void Run::empty_and_compare() {
  for (const BuildId build : promises_.builds()) drop(build);
  see_views();
  release_views();
  detach();
  flush();
  see_database();
  until(
      [](const nlohmann::json& now) {
        return now.at("segment").at("retired_blocks") == 0 && now.at("segment").at("retired_bytes") == 0 &&
               now.at("open_views") == 0 && now.at("pin_pages") == 0 && now.at("staging_rings") == 0 &&
               now.at("connections") == 1 && now.at("builds") == 0;
      },
      "the return of everything to the baseline");
  const nlohmann::json figures = stats();
  const auto table = [](std::uint64_t slots) { return shm::IndexWriter::kTableHeader + slots * sizeof(shm::Slot); };
  const std::uint64_t used = figures.at("segment").at("used_bytes");
  const std::uint64_t least = table(figures.at("segment").at("index_slots")) + kSlabBytes;
  const std::uint64_t former = table(slots_);  // a former table stays after the index was rebuilt
  expect(used <= least + former, "everything was dropped, and " + std::to_string(used) +
                                     " bytes of the segment are in use; " + figures.at("segment").dump());
  const bool slab_was_cut = figures.at("evictions") != 0 || figures.at("last_recovery").at("entries_loaded") != 0;
  expect(slab_was_cut || damage_ || used == least || used == least + former,
         "everything was dropped, nothing had been evicted, and " + std::to_string(used) + " bytes are in use, not " +
             std::to_string(least));
  terminate();
  for (const auto& object : fs::directory_iterator(daemon_->segment_directory())) {
    const std::string name = object.path().filename();
    const bool kept = name == "lock" || name == "segment" || name.starts_with("segment.damaged.");
    expect(kept, name + " is left in " + daemon_->segment_directory());
  }
  daemon_->remove_segment();
  if (!launch(options_, {}, {})) throw Gone();
  attach();
  see_all();
  set(kProbes, "after all", 10);
  kill();
}

Run::Verdict Run::judge() {
  const std::string counts = daemon_->directory().file("counts");
  const std::string again = daemon_->directory().file("again");
  session_.reset();
  if (!kill_.empty()) verdict_.killed = dead();
  verdict_.counts = read_counts(counts);
  daemon_->kill();
  for (const auto& what : before_judging_) what();
  for (int attempt = 0;; ++attempt) {
    const std::string armed = attempt == 0 ? second_ : std::string();
    try {
      if (!launch(options_, armed, attempt == 0 ? again : std::string())) throw Gone();
      if (attempt == 0) verdict_.recovery = read_counts(again);
      compare();
      empty_and_compare();
      return verdict_;
    } catch (const Gone&) {
      session_.reset();
      expect(!armed.empty() && eventually([&] { return dead(); }, kPatience), "the daemon hung up, and lives");
      verdict_.second_killed = true;
      daemon_->kill();
    }
  }
}

}  // namespace stepstash::test
