// SPDX-License-Identifier: Apache-2.0
// Segments and databases that are damaged, of another version, locked, missing or replaced: the service starts whenever
// anything can be served, quarantines what it does not trust under another name, and reports it in `stats`, the log and
// `doctor`.
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>

#include "shm/layout.hpp"
#include "tests/system/command.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

namespace fs = std::filesystem;

void overwrite(const std::string& path, std::uint64_t at, std::string_view bytes) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(at));
  file << bytes;
}

/// A segment and a database as a killed daemon left them, to be restored and damaged repeatedly: ten values of build 1
/// that are in both, ten of build 2 that only the segment has.
class Image {
 public:
  Image() : command_({"--flush-interval=1h", "--segment-size=4MiB"}) {
    Client client(daemon().socket());
    for (std::uint64_t i = 0; i < 10; ++i) client.set(1, std::to_string(i), generated(3000 + i, i));
    client.flush();
    for (std::uint64_t i = 0; i < 10; ++i) client.set(2, std::to_string(i), generated(2000 + i, 100 + i));
    daemon().kill();
    segment_ = content(daemon().segment_path());
    for (const char* suffix : kFiles) files_.push_back(content(daemon().db() + suffix));
  }

  DaemonProcess& daemon() { return command_.daemon; }
  const Command& command() const { return command_; }
  const std::string& segment() const { return segment_; }

  /// Restores everything except the segment.
  void put_back(std::string_view segment) {
    if (daemon().running()) daemon().kill();
    daemon().remove_segment();
    for (const auto& entry : fs::directory_iterator(daemon().directory().path())) {
      if (entry.path().string().starts_with(daemon().db())) fs::remove(entry.path());
    }
    for (std::size_t i = 0; i < files_.size(); ++i) std::ofstream(daemon().db() + kFiles[i]) << files_[i];
    fs::create_directory(daemon().segment_directory());
    const UniqueFd fd(::open(daemon().segment_path().c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    BOOST_TEST_REQUIRE(::write(fd.get(), segment.data(), segment.size()) == static_cast<ssize_t>(segment.size()));
  }

  /// From now on the whole database is in its file, and its WAL is empty.
  void checkpoint() {
    put_back(segment_);
    BOOST_TEST_REQUIRE(run({"sqlite3", daemon().db(), "PRAGMA wal_checkpoint(TRUNCATE)"}).status == 0);
    files_ = {content(daemon().db()), ""};
  }
  const std::string& file(std::size_t i) const { return files_.at(i); }

  /// How many of the ten values exist. None differs from what was set; a damaged one is reported as such.
  std::uint64_t served(std::int64_t build, const std::string& when) {
    const Client client(daemon().socket());
    std::uint64_t count = 0;
    for (std::uint64_t i = 0; i < 10; ++i) {
      std::optional<View> view;
      try {
        view = client.get(build, std::to_string(i));
      } catch (const Error& error) {
        BOOST_TEST(error.code() == STEPSTASH_ECORRUPT, when << ": " << error.what());
      }
      if (!view) continue;
      ++count;
      BOOST_TEST(
          (build == 1 ? is_generated(view->bytes(), 3000 + i, i) : is_generated(view->bytes(), 2000 + i, 100 + i)),
          when << ": build " << build << ", value " << i << " is another");
    }
    return count;
  }

  /// Checks that everything reports what was quarantined.
  void told(const std::string& when, const std::string& kept) {
    const nlohmann::json all = stats(Client(daemon().socket()));
    BOOST_TEST(!all.at("last_recovery").at("set_aside").empty(), when);
    const Outcome doctor = command_.cli({"doctor"});
    BOOST_TEST(doctor.status == 1, when << ": " << doctor.out << doctor.err);
    BOOST_TEST(contains(doctor.out, "set aside at the last start"), when << ": " << doctor.out);
    if (kept.empty()) return;
    BOOST_TEST(contains(all.at("kept_aside").dump(), kept), when << ": " << all.at("kept_aside").dump());
    BOOST_TEST(contains(doctor.out, "kept for examination: " + kept), when << ": " << doctor.out);
    BOOST_TEST(contains(daemon().log(), kept), when);
    BOOST_TEST(fs::exists(kept), when);
  }

 private:
  static constexpr std::array kFiles = {"", "-wal"};
  Command command_;
  std::string segment_;
  std::vector<std::string> files_;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(damage)

// ---- the segment ---------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(a_segment_that_is_no_segment_is_kept_aside_and_the_database_is_served) {
  Image image;
  const std::string whole = image.segment();
  std::string other_layout = whole;
  ++other_layout[offsetof(shm::Header, layout_version)];
  std::string later = whole;
  later.replace(0, shm::kPageBytes, shm::kPageBytes, '\0');
  std::vector<std::pair<std::string, std::string>> all = {{"all zeros", std::string(whole.size(), '\0')},
                                                          {"a zero header", later},
                                                          {"another layout", other_layout},
                                                          {"a text", "this is no segment\n"}};
  for (const std::size_t length : {std::size_t{0}, std::size_t{1}, shm::kPageBytes - 1, std::size_t{shm::kPageBytes},
                                   whole.size() / 2, whole.size() - shm::kPageBytes, whole.size() - 1}) {
    all.emplace_back("cut to " + std::to_string(length), whole.substr(0, length));
  }
  for (const auto& [what, segment] : all) {
    image.put_back(segment);
    image.daemon().start();
    BOOST_TEST(image.served(1, what) == 10u, what);
    image.served(2, what);
    const std::string kept = image.daemon().segment_path() + ".damaged.1";
    image.told(what, kept);
    BOOST_TEST((content(kept) == segment), what);  // for later analysis
    BOOST_TEST(image.command().cli({"set", "3", "n"}, {.input = "v"}).status == 0, what);
    BOOST_TEST(image.command().cli({"flush"}).status == 0, what);
  }
}

BOOST_AUTO_TEST_CASE(whatever_byte_of_the_header_flips_nothing_is_lost_without_a_word) {
  Image image;
  std::uint64_t aside = 0;
  for (std::size_t at = 0; at < sizeof(shm::Header); at += kScale) {
    std::string segment = image.segment();
    segment[at] = static_cast<char>(segment[at] ^ (1 << at % 8));
    const std::string what = "header byte " + std::to_string(at);
    image.put_back(segment);
    image.daemon().start();
    BOOST_TEST(image.served(1, what) == 10u, what);
    const std::uint64_t dirty = image.served(2, what);
    const bool said = !stats(Client(image.daemon().socket())).at("last_recovery").at("set_aside").empty();
    if (said) {
      ++aside;
      image.told(what, "");
    }
    const bool index_word =
        at >= offsetof(shm::Header, index) && at < offsetof(shm::Header, index) + sizeof(shm::IndexWord);
    BOOST_TEST((dirty == 10 || (said && !index_word)), what << ": " << dirty << " of 10");
    BOOST_TEST(image.command().cli({"flush"}).status == 0, what);
  }
  BOOST_TEST(aside >= 40 / kScale);
}

BOOST_AUTO_TEST_CASE(with_segment_and_database_damaged_what_is_sound_in_the_segment_is_served) {
  Image image;
  std::string segment = image.segment();
  segment[offsetof(shm::Header, segment_id)] ^= 1;
  image.put_back(segment);
  fs::remove(image.daemon().db() + "-wal");
  overwrite(image.daemon().db(), 0, std::string(16 * kKiB, 'Z'));
  image.daemon().start();
  // Those of build 1 are marked clean, and yet only the segment has them.
  BOOST_TEST(image.served(1, "both damaged") == 10u);
  BOOST_TEST(image.served(2, "both damaged") == 10u);
  image.told("both damaged", image.daemon().segment_path() + ".damaged.1");
  image.told("both damaged", image.daemon().db() + ".damaged-1");
  BOOST_TEST(image.command().cli({"flush"}).status == 0);
  BOOST_TEST(query(image.daemon().db(), "SELECT count(*) FROM build_data") == 20);
}

// ---- values --------------------------------------------------------------------------------------------------------

BOOST_AUTO_TEST_CASE(doctor_names_a_damaged_value_after_every_kind_of_restart_until_it_is_set_anew) {
  Command served({"--flush-interval=1h", "--segment-size=16MiB"});
  const std::string value = generated(200 * kKiB, 1);
  BOOST_TEST(served.cli({"set", "7", "report"}, {.input = "older"}).status == 0);
  BOOST_TEST(served.cli({"flush"}).status == 0);
  BOOST_TEST(served.cli({"set", "7", "report"}, {.input = value}).status == 0);
  BOOST_TEST(served.cli({"set", "7", "sound"}, {.input = "sound"}).status == 0);
  BOOST_TEST(served.cli({"doctor"}).out == "nothing is wrong\n");
  // A memory error, which no permissions can prevent.
  const std::size_t at = content(served.daemon.segment_path()).find(value.substr(1000, 64));
  BOOST_TEST_REQUIRE(at != std::string::npos);
  {
    std::fstream segment(served.daemon.segment_path(), std::ios::binary | std::ios::in | std::ios::out);
    segment.seekp(static_cast<std::streamoff>(at));
    segment.put(static_cast<char>(value[1000] ^ 1));
  }
  BOOST_TEST(served.cli({"flush"}).status == 0);
  const auto named = [&](const char* when) {
    const Outcome doctor = served.cli({"doctor"});
    BOOST_TEST(doctor.status == 1, when);
    BOOST_TEST(contains(doctor.out, "build 7, name \"report\""), when << ": " << doctor.out);
    const Outcome get = served.cli({"get", "7", "report"});
    BOOST_TEST(get.status == 74, when);
    BOOST_TEST(get.out == "", when);  // neither the damaged value nor the one before it
    BOOST_TEST(served.cli({"get", "7", "sound"}).out == "sound", when);
  };
  named("found by the flush");
  BOOST_TEST(served.cli({"flush"}).status == 0);
  served.daemon.kill();
  served.daemon.start();
  named("after SIGKILL");
  served.daemon.terminate();
  served.daemon.remove_segment();
  served.daemon.start();
  named("with the database alone");
  BOOST_TEST(served.cli({"set", "7", "report"}, {.input = "anew"}).status == 0);
  BOOST_TEST(served.cli({"doctor"}).status == 0);
  BOOST_TEST(served.cli({"get", "7", "report"}).out == "anew");
}

BOOST_AUTO_TEST_CASE(doctor_names_a_value_that_a_recovery_or_a_reload_finds_damaged) {
  Command served({"--flush-interval=1h", "--segment-size=4MiB"});
  const auto named = [&](const std::string& name) {
    const Outcome get = served.cli({"get", "7", name});
    BOOST_TEST(get.status == 74, name);
    BOOST_TEST(get.out == "", name);
    const Outcome doctor = served.cli({"doctor"});
    BOOST_TEST(doctor.status == 1, name);
    BOOST_TEST(contains(doctor.out, "build 7, name \"" + name + "\""), doctor.out);
  };
  const std::string value = generated(200 * kKiB, 1);
  BOOST_TEST(served.cli({"set", "7", "recovered"}, {.input = value}).status == 0);
  served.daemon.kill();
  const std::size_t at = content(served.daemon.segment_path()).find(value.substr(1000, 64));
  BOOST_TEST_REQUIRE(at != std::string::npos);
  overwrite(served.daemon.segment_path(), at, "damaged");
  served.daemon.start();
  named("recovered");

  BOOST_TEST(served.cli({"set", "7", "reloaded"}, {.input = generated(50 * kKiB, 2)}).status == 0);
  BOOST_TEST(served.cli({"flush"}).status == 0);
  BOOST_TEST(served.daemon.terminate() == 0);
  BOOST_TEST_REQUIRE(run({"sqlite3", served.daemon.db(),
                          "UPDATE build_data SET value = CAST(replace(hex(zeroblob(25600)), '0', 'x') AS BLOB) WHERE "
                          "name = 'reloaded'"})
                         .status == 0);
  served.daemon.remove_segment();
  served.daemon.start();
  named("reloaded");
  named("recovered");  // still reported
}

BOOST_AUTO_TEST_CASE(rows_that_break_the_contract_are_named) {
  Image image;
  image.put_back(image.segment());
  BOOST_TEST_REQUIRE(
      run({"sqlite3", image.daemon().db(),
           "UPDATE build_data SET length = -5 WHERE name = '4'; UPDATE build_data SET buildid = -1 WHERE "
           "name = '6';"})
          .status == 0);
  image.daemon().remove_segment();
  image.daemon().start();
  BOOST_TEST(image.served(1, "two rows spoiled") == 8u);
  image.told("two rows spoiled", "");
  const std::string doctor = image.command().cli({"doctor"}).out;
  BOOST_TEST(contains(doctor, "name \"4\", length -5"), doctor);
  BOOST_TEST(contains(doctor, "(build -1, name \"6\""), doctor);
}

// ---- the database --------------------------------------------------------------------------------------------------

/// With an intact segment everything is served; then the database as rewritten serves by itself. A database mistaken
/// for another program's, or for a newer one of stepstash or SQLite, is not written to: returns the number of those.
int serves_beside(Image& image, const char* suffix, const std::string& damaged, const std::string& what) {
  image.put_back(image.segment());
  std::ofstream(image.daemon().db() + suffix, std::ios::binary | std::ios::trunc) << damaged;
  image.daemon().start();
  BOOST_TEST(image.served(1, what) == 10u, what);
  BOOST_TEST(image.served(2, what) == 10u, what);
  BOOST_TEST(image.command().cli({"set", "3", "n"}, {.input = "v"}).status == 0, what);
  if (image.command().cli({"flush", "--timeout=2s"}).status != 0) {
    BOOST_TEST(image.command().cli({"doctor"}).status == 1, what);
    return 1;
  }
  image.daemon().kill();
  image.daemon().remove_segment();
  image.daemon().start();
  // Values that the segment considered written were not read: damage to one is detected now.
  const bool all = image.served(1, what) == 10;
  BOOST_TEST((all || contains(image.command().cli({"doctor"}).out, "build 1, name")), what);
  BOOST_TEST(image.served(2, what) == 10u, what);
  return 0;
}

BOOST_AUTO_TEST_CASE(wherever_the_database_or_its_wal_is_cut_the_segment_is_served_and_written_anew) {
  constexpr std::size_t kPage = 16 * kKiB;
  Image image;
  const auto cut_everywhere = [&](const char* suffix, const std::string& whole, const std::string& name) {
    std::set<std::size_t> lengths = {0, 1, 16, 24, 32, 99, 100, 512, whole.size() - 1};
    for (std::size_t at = kPage; at < whole.size(); at += kPage * kScale) lengths.insert({at - 1, at, at + 1});
    for (std::size_t at = 0; at < whole.size(); at += 4093 * kScale) lengths.insert(at);
    for (const std::size_t length : lengths) {
      const std::string what = name + " cut to " + std::to_string(length);
      BOOST_TEST(serves_beside(image, suffix, whole.substr(0, length), what) == 0, what);
    }
  };
  cut_everywhere("-wal", image.file(1), "WAL");
  image.checkpoint();
  cut_everywhere("", image.file(0), "database");
}

BOOST_AUTO_TEST_CASE(whatever_byte_of_the_databases_header_flips_the_segment_is_served_and_nothing_is_lost) {
  constexpr std::size_t kHeader = 100;  // sqlite.org/fileformat2.html, 1.3
  Image image;
  image.checkpoint();
  int untouched = 0;
  for (std::size_t at = 0; at < kHeader; at += kScale) {
    std::string damaged = image.file(0);
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << at % 8));
    untouched += serves_beside(image, "", damaged, "header byte " + std::to_string(at));
  }
  BOOST_TEST(untouched <= 4 + 4 + 1);  // user_version, application_id, and SQLite's write version
  BOOST_TEST(untouched >= 4 / kScale);
}

BOOST_AUTO_TEST_CASE(a_database_damaged_on_any_page_keeps_nobody_from_what_the_segment_has) {
  constexpr std::uint64_t kPage = 16 * kKiB;
  int set_aside = 0;
  for (const bool warm : {true, false}) {
    for (std::uint64_t page = 0, pages = 1; page < std::min<std::uint64_t>(pages, 12); ++page) {
      DaemonProcess daemon({"--flush-interval=10ms", "--segment-size=16MiB"});
      daemon.start();
      {
        Client client(daemon.socket());
        for (std::uint64_t i = 0; i < 40; ++i) client.set(1, std::to_string(i), generated(i * 200, i));
        client.set(2, "in chunks", generated(kMiB, 99));
        client.finish(2);
      }
      BOOST_TEST_REQUIRE(daemon.terminate() == 0);
      pages = std::filesystem::file_size(daemon.db()) / kPage;
      if (!warm) daemon.remove_segment();
      {
        std::fstream file(daemon.db(), std::ios::binary | std::ios::in | std::ios::out);
        file.seekp(static_cast<std::streamoff>(page * kPage));
        file << std::string(kPage, 'Z');
      }
      daemon.start();
      Client client(daemon.socket());
      const auto exact = [&] {
        try {
          const auto view = client.get(1, "7");
          return view ? is_generated(view->bytes(), 1400, 7) : !warm;
        } catch (const Error&) {
          return !warm;  // reported as damaged
        }
      };
      BOOST_TEST(exact(), "page " << page << (warm ? ", with its segment" : ", alone"));
      BOOST_TEST(client.set(3, "new", "value").has_value());
      if (!stats(client)["kept_aside"].empty()) {
        ++set_aside;
        client.flush();
        BOOST_TEST(contains(daemon.log(), "is damaged"));
      }
    }
  }
  BOOST_TEST(set_aside >= 6);
}

BOOST_AUTO_TEST_CASE(a_database_of_a_newer_schema_is_left_alone_and_the_segment_is_served) {
  Command served({"--flush-interval=20ms", "--segment-size=16MiB"});
  const std::string large = generated(6 * 1024 * kKiB, 1);
  std::ofstream(served.file("large"), std::ios::binary) << large;
  BOOST_TEST(served.cli({"set", "7", "old"}, {.input = "in the database"}).status == 0);
  BOOST_TEST(served.cli({"set", "7", "large", served.file("large")}).status == 0);
  BOOST_TEST(served.cli({"flush"}).status == 0);
  BOOST_TEST(served.daemon.terminate() == 0);
  const std::int64_t version = query(served.daemon.db(), "SELECT user_version FROM pragma_user_version");
  const auto set_version = [&](std::int64_t number) {
    return run({"sqlite3", served.daemon.db(), "PRAGMA user_version = " + std::to_string(number)}).status;
  };
  BOOST_TEST_REQUIRE(set_version(version + 1) == 0);
  served.daemon.start();
  BOOST_TEST(served.cli({"get", "7", "old"}).out == "in the database");
  BOOST_TEST(served.cli({"set", "7", "new"}, {.input = "set meanwhile"}).status == 0);
  const Outcome durable = served.cli({"set", "7", "durable", "--durable", "--timeout=300ms"}, {.input = "too"});
  BOOST_TEST(durable.status == 74);
  BOOST_TEST(contains(durable.err, "newer"), durable.err);
  BOOST_TEST(contains(served.cli({"doctor"}).out, "newer"));
  // Nothing is evicted that could not be reloaded.
  BOOST_TEST(served.cli({"set", "8", "a", served.file("large")}).status == 0);
  BOOST_TEST(served.cli({"set", "8", "b", served.file("large"), "--timeout=300ms"}).status == 75);
  BOOST_TEST((served.cli({"get", "7", "large"}).out == large));
  BOOST_TEST(served.daemon.terminate() == 74);  // unwritten values stay in the segment
  BOOST_TEST(query(served.daemon.db(), "SELECT count(*) FROM build_data") == 2);
  BOOST_TEST_REQUIRE(set_version(version) == 0);
  served.daemon.start();
  BOOST_TEST(served.cli({"flush"}).status == 0);
  BOOST_TEST(served.cli({"get", "7", "new"}).out == "set meanwhile");
  BOOST_TEST(query(served.daemon.db(), "SELECT count(*) FROM build_data") == 5);
  BOOST_TEST(served.cli({"doctor"}).out == "nothing is wrong\n");
  // With nothing to serve there is no reason to start.
  BOOST_TEST(served.daemon.terminate() == 0);
  BOOST_TEST_REQUIRE(set_version(version + 1) == 0);
  served.daemon.remove_segment();
  BOOST_TEST(served.daemon.start_refused() == 78);
  BOOST_TEST(contains(served.daemon.log(), "no segment"));
}

BOOST_AUTO_TEST_CASE(a_start_that_waits_for_a_locked_database_serves_when_it_is_free_and_ends_when_told_to) {
  DaemonProcess daemon;
  std::ofstream(daemon.db());
  std::optional<WriteLock> lock(daemon.db());
  daemon.start_unready();
  const auto waiting = [&] { return daemon.log().find("trying again") != std::string::npos; };
  BOOST_TEST_REQUIRE(eventually(waiting));
  BOOST_TEST(daemon.terminate() == 128 + SIGTERM);
  daemon.start_unready();
  lock.reset();
  const auto serves = [&] {
    try {
      return Client(daemon.socket()).set(1, "v", "value").has_value();
    } catch (const Error&) {
      return false;
    }
  };
  BOOST_TEST(eventually(serves));
}

BOOST_AUTO_TEST_CASE(a_database_found_damaged_while_it_is_in_use_is_replaced_at_once) {
  for (const bool schema : {true, false}) {
    Command served({"--flush-interval=10ms", "--segment-size=16MiB"});
    DaemonProcess& daemon = served.daemon;
    Client client(daemon.socket());
    for (std::uint64_t i = 0; i < 40; ++i) client.set(1, std::to_string(i), generated(i * 2000, i));
    client.finish(1, epoch(1000));
    client.flush();
    const auto view = client.get(1, "7");
    const pid_t pid = stats(client).at("pid");
    const auto place = [&] {
      struct stat status {};
      BOOST_TEST(::lstat(daemon.socket().c_str(), &status) == 0);
      return status.st_ino;
    };
    const ino_t socket = place();
    if (schema) {
      damage_schema(daemon.db());
    } else {
      BOOST_TEST_REQUIRE(run({"sqlite3", daemon.db(), "PRAGMA wal_checkpoint(TRUNCATE)"}).status == 0);
      overwrite(daemon.db(), 0, std::string(fs::file_size(daemon.db()), 'Z'));
    }
    for (std::uint64_t i = 0; i < 20; ++i) client.set(2, std::to_string(i), generated(i * 3000, 100 + i));
    const std::string kept = daemon.db() + ".damaged-1";
    BOOST_TEST(eventually([&] { return fs::exists(kept) && fs::exists(daemon.db()); }), daemon.log());
    client.set(3, "durable", "value", "", {.durable = true, .deadline = 20s});
    client.flush(20s);
    BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data") == 61);
    BOOST_TEST(query(daemon.db(), "SELECT complete_at FROM builds WHERE id = 1") == 1000);
    BOOST_TEST(is_generated(view->bytes(), 14'000, 7));
    for (std::uint64_t i = 0; i < 40; ++i) {
      BOOST_TEST(is_generated(client.get(1, std::to_string(i))->bytes(), i * 2000, i));
    }
    BOOST_TEST(stats(client).at("pid") == pid);  // the same process
    BOOST_TEST(place() == socket);               // connections made meanwhile waited in its queue
    std::string name;
    std::getline(std::ifstream("/proc/" + std::to_string(pid) + "/comm"), name);
    BOOST_TEST(name == "stepstashd");
    BOOST_TEST(stats(client).at("last_flush_error") == "");
    const Outcome doctor = served.cli({"doctor"});
    BOOST_TEST(doctor.status == 1);
    BOOST_TEST(contains(doctor.out, "kept for examination: " + kept), doctor.out);
    BOOST_TEST(contains(daemon.log(), "is damaged"), daemon.log());
    BOOST_TEST(daemon.terminate() == 0);
    BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data") == 61);
  }
}

BOOST_AUTO_TEST_CASE(a_new_database_that_is_damaged_at_once_is_not_replaced_again_and_nothing_goes_there) {
  Served served({"--flush-interval=10ms", "--segment-size=16MiB", "--max-dirty=16MiB"});
  DaemonProcess& daemon = served.daemon;
  Client& client = served.client;
  for (std::uint64_t i = 0; i < 20; ++i) client.set(1, std::to_string(i), generated(200'000, i));
  const auto damage = [&](std::int64_t build) {
    client.flush();
    damage_schema(daemon.db());
    client.set(build, "meets it", "value");
  };
  damage(2);
  BOOST_TEST(eventually([&] { return fs::exists(daemon.db() + ".damaged-1") && fs::exists(daemon.db()); }));
  client.flush();
  const auto schema = [&](const std::string& sql) {
    return run({"sqlite3", "-cmd", ".dbconfig defensive off", daemon.db(), "PRAGMA writable_schema = ON; " + sql});
  };
  client.flush();
  std::string sound = schema("SELECT quote(sql) FROM sqlite_schema WHERE name = 'builds'").out;
  sound.erase(0, sound.find('\''));  // skips the output of .dbconfig
  damage(3);
  BOOST_TEST(eventually([&] { return contains(daemon.log(), "not replaced: "); }), daemon.log());
  // That it would accept writes again proves nothing.
  BOOST_TEST_REQUIRE(
      schema("UPDATE sqlite_schema SET sql = " + sound + " WHERE name = 'builds'; PRAGMA schema_version = 4712;")
          .status == 0);
  BOOST_CHECK_EXCEPTION(client.set(3, "durable", "v", "", {.durable = true, .deadline = 3s}), Error,
                        [](const Error& error) { return error.code() == STEPSTASH_EIO; });
  damage_schema(daemon.db());
  // Nothing is evicted for new values: when memory is full, it is full.
  std::uint64_t count = 0;
  for (bool room = true; room && count < 200; count += room ? 1 : 0) {
    try {
      client.set(4, std::to_string(count), generated(200'000, 100 + count), "", {.deadline = kFullAfter});
    } catch (const Error& error) {
      BOOST_TEST(error.code() == STEPSTASH_EFULL, error.what());
      room = false;
    }
  }
  BOOST_TEST(count < 100u);
  BOOST_TEST(figure(client, "values_evicted") == 0u);
  BOOST_TEST(!fs::exists(daemon.db() + ".damaged-2"));
  BOOST_TEST(daemon.terminate() == 74);
  daemon.start();  // which replaces it
  client.flush(30s);
  BOOST_TEST(fs::exists(daemon.db() + ".damaged-2"));
  BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data") == static_cast<std::int64_t>(23 + count));
  for (std::uint64_t i = 0; i < 20; ++i) {
    BOOST_TEST(is_generated(client.get(1, std::to_string(i))->bytes(), 200'000, i));
  }
}

BOOST_AUTO_TEST_CASE(a_signal_that_comes_while_the_daemon_starts_over_is_not_lost) {
  for (int round = 0; round < 12; ++round) {
    DaemonProcess daemon({"--flush-interval=10ms", "--segment-size=16MiB"});
    daemon.start();
    Client client(daemon.socket());
    for (std::uint64_t i = 0; i < 20; ++i) client.set(1, std::to_string(i), generated(i * 1000, i));
    client.flush();
    damage_schema(daemon.db());
    client.set(2, "meets it", "value");
    std::this_thread::sleep_for(round * 8ms);  // anywhere: before, during and after
    ::kill(daemon.pid(), SIGHUP);
    const int status = daemon.terminate();
    // While it starts, SIGTERM ends it at once.
    BOOST_TEST((status == 0 || status == 74 || status == 128 + SIGTERM), "round " << round << ": " << status << "\n"
                                                                                  << daemon.log());
    daemon.start();
    client.flush(30s);
    BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data") == 21);
    BOOST_TEST(client.get(2, "meets it")->text() == "value");
  }
}

BOOST_AUTO_TEST_CASE(a_log_that_grows_under_a_reader_is_told_and_emptied_when_that_ends) {
  Command served({"--flush-interval=10ms", "--segment-size=64MiB"});
  Client client(served.daemon.socket());
  client.set(1, "v", "value", "", {.durable = true});
  std::optional<ReadLock> reader(served.daemon.db());
  const auto database = [&](const char* figure) {
    return stats(client).at("database").at(figure).get<std::uint64_t>();
  };
  for (std::uint64_t i = 0; i < 20; ++i) client.set(1, "large", generated(4 * kMiB, i), "", {.durable = true});
  BOOST_TEST(eventually([&] { return database("log_bytes") > 64 * kMiB && database("log_held_bytes") > 0; }));
  const Outcome doctor = served.cli({"doctor"});
  BOOST_TEST(doctor.status == 1);
  BOOST_TEST(contains(doctor.out, "write-ahead log has grown to"), doctor.out);
  reader.reset();
  BOOST_TEST(eventually([&] { return database("log_held_bytes") == 0; }));  // without another commit
  BOOST_TEST(served.cli({"doctor"}).status == 0);
}

BOOST_AUTO_TEST_CASE(nothing_is_evicted_into_a_database_that_was_deleted) {
  Served served({"--flush-interval=10ms", "--segment-size=8MiB"});
  DaemonProcess& daemon = served.daemon;
  Client& client = served.client;
  const auto set = [&](std::int64_t build, std::uint64_t i, bool durable) {
    client.set(build, std::to_string(i), generated(60'000, i), "", {.durable = durable, .deadline = kFullAfter});
  };
  for (std::uint64_t i = 0; i < 100; ++i) set(1, i, true);
  for (const char* suffix : {"", "-wal", "-shm"}) fs::remove(daemon.db() + suffix);
  BOOST_TEST(eventually([&] { return stats(client).at("database").at("in_place") == false; }));  // within 0.1 s
  // There is room for a few, and none is made by evicting values that exist nowhere else.
  BOOST_CHECK_EXCEPTION(for (std::uint64_t i = 100; i < 200; ++i) set(2, i, false), Error,
                        [](const Error& error) { return error.code() == STEPSTASH_EFULL; });
  BOOST_TEST(figure(client, "values_evicted") == 0u);
  daemon.kill();
  daemon.start();
  client.flush(30s);
  for (std::uint64_t i = 0; i < 100; ++i) {
    BOOST_TEST(is_generated(client.get(1, std::to_string(i))->bytes(), 60'000, i));
  }
  BOOST_TEST(stats(client).at("damaged").empty());
}

BOOST_AUTO_TEST_CASE(a_database_deleted_while_it_is_in_use_is_written_anew_by_the_next_daemon) {
  Command served({"--flush-interval=10ms", "--segment-size=16MiB"});
  DaemonProcess& daemon = served.daemon;
  const auto set_all = [&](const char* build) {
    for (const char* name : {"a", "b", "c"}) {
      BOOST_TEST(served.cli({"set", build, name}, {.input = std::string(build) + name}).status == 0);
    }
  };
  set_all("1");
  BOOST_TEST(served.cli({"flush"}).status == 0);
  for (const char* suffix : {"", "-wal", "-shm"}) fs::remove(daemon.db() + suffix);
  set_all("2");
  const Outcome durable = served.cli({"set", "3", "d", "--durable", "--timeout=300ms"}, {.input = "durable"});
  BOOST_TEST(durable.status == 74);
  BOOST_TEST(contains(durable.err, "deleted, renamed or replaced"), durable.err);
  const Outcome doctor = served.cli({"doctor"});
  BOOST_TEST(doctor.status == 1);
  BOOST_TEST(contains(doctor.out, "deleted, renamed or replaced"), doctor.out);
  daemon.kill();
  daemon.start();
  BOOST_TEST(served.cli({"flush"}).status == 0);
  BOOST_TEST(query(daemon.db(), "SELECT count(*) FROM build_data") == 7);
  for (const char* build : {"1", "2"}) {
    for (const char* name : {"a", "b", "c"}) {
      BOOST_TEST(served.cli({"get", build, name}).out == std::string(build) + name);
    }
  }
  BOOST_TEST(served.cli({"get", "3", "d"}).out == "durable");
}

BOOST_AUTO_TEST_SUITE_END()
