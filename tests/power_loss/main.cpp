// SPDX-License-Identifier: Apache-2.0
// stepstash_power_loss: what is left when the power fails, and whether it is what was promised.
//
//   stepstash_power_loss [--losses N] [--seed N] [--no-sync LIBRARY]
//
// The database lies on an ext4 of its own in a file, mounted through a loop device with commit=300: what is not written
// through (fsync) stays in the page cache above the loop device and never reaches the file. Power fails by stopping the
// daemon and copying the file; then the daemon is killed, the segment removed, and the next daemon runs on the copy.
// Copying the database's files instead would prove nothing: reading them reads the page cache.
//
// Promised is (docs/durability.md): every set acknowledged as durable is there, and all that was acknowledged before it
// was asked for; so is all that is older than oldest_dirty_seconds said, and in any case than the flush interval plus a
// commit; the rest is there or not, but no older value in a newer one's place than that allows; no id and no revision
// is given again, also not of what was lost.
//
// With --no-sync a daemon with that library preloaded (no_sync.c), whose fsync does nothing, loses power at last, and
// this test fails unless it finds values missing. Exit status: 0; 1; 77 where there is no root or no loop device.
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <thread>

#include "tests/support/harness.hpp"
#include "tests/support/numbered_values.hpp"

using namespace stepstash;
using namespace stepstash::test;

namespace {

constexpr std::chrono::milliseconds kFlushInterval = 100ms;
const std::vector<std::string> kOptions = {"--flush-interval=100ms", "--segment-size=64MiB"};

/// For a machine that has other things to do: a commit may be that much longer than the last one was.
constexpr std::int64_t kSlack = 1'500'000'000;

constexpr std::size_t kThreads = 4;  // each with a build that nobody else sets
constexpr std::size_t kKeys = 8;
constexpr std::size_t kSteps = 20'000;

enum class Told : std::uint8_t { begun, acknowledged, unknown, failed };

/// What one thread did, in its order.
struct Step {
  std::atomic<Told> outcome{Told::begun};
  bool used = false;
  bool durable = false;
  std::uint8_t key = 0;     // kKeys: the whole build was dropped
  std::uint64_t value = 0;  // 0: dropped
  std::uint64_t id = 0;
  std::uint64_t revision = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

struct Arena {
  std::atomic<std::uint64_t> acknowledged{0};
  std::atomic<std::uint64_t> durable{0};
  Step steps[kThreads][kSteps];
};

std::int64_t build_of(std::size_t thread) { return static_cast<std::int64_t>(thread) + 1; }
std::string name_of(std::size_t key) { return "value " + std::to_string(key); }

/// With `patient` nothing is durable, little is set, and so nothing makes the daemon write but the age of what waits.
void run_thread(Arena& arena, Client& client, std::size_t thread, std::uint64_t loss, std::uint64_t seed,
                bool patient) {
  std::mt19937_64 random(mixed(seed ^ mixed(loss << 8 | thread)));
  const auto one_in = [&](std::uint64_t n) { return random() % n == 0; };
  for (std::size_t i = 0; i < kSteps; ++i) {
    Step& step = arena.steps[thread][i];
    const bool drop = one_in(60);
    step.key = static_cast<std::uint8_t>(drop ? kKeys : random() % kKeys);
    step.value = drop ? 0 : (loss + 1) << 32 | thread << 24 | i;
    step.durable = !drop && !patient && one_in(40);
    if (patient) std::this_thread::sleep_for(5ms);  // the pace of the traffic, not to wait for anything
    step.begin = now_ns();
    step.used = true;
    try {
      if (drop) {
        client.drop(build_of(thread));
      } else {
        const auto set = client.set(build_of(thread), name_of(step.key), bytes_of(step.value), source_of(step.value),
                                    {.durable = step.durable});
        step.id = set->id;
        step.revision = set->revision;
      }
      step.end = now_ns();
      step.outcome = Told::acknowledged;
      arena.acknowledged.fetch_add(1);
      if (step.durable) arena.durable.fetch_add(1);
    } catch (const Error& error) {
      step.end = now_ns();
      step.outcome = error.code() == STEPSTASH_EFULL ? Told::failed : Told::unknown;
    }
  }
}

std::string command(const std::vector<std::string>& words) {
  const Outcome outcome = run(words);
  return outcome.status == 0 ? "" : words.front() + ": " + outcome.err;
}

/// An ext4 in a file. Unmounted when it is destroyed; and by the kernel, with our mount namespace, when we die.
class Disk {
 public:
  Disk(std::string image, std::string mount_point) : image_(std::move(image)), at_(std::move(mount_point)) {}
  Disk(const Disk&) = delete;
  Disk& operator=(const Disk&) = delete;
  ~Disk() {
    try {
      unmount();
    } catch (const std::exception&) {
    }
  }

  /// A sentence when it cannot be had.
  std::string make() {
    const UniqueFd file(::open(image_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!file || ::ftruncate(file.get(), 256 << 20) != 0) return image_ + ": cannot be made";
    return command({"mkfs.ext4", "-q", "-F", "-m", "0", image_});
  }
  std::string mount() {
    std::filesystem::create_directories(at_);
    std::string why = command({"mount", "-o", "loop,commit=300", image_, at_});
    mounted_ = why.empty();
    if (!mounted_) return why;
    struct ::stat status {};
    if (::stat(at_.c_str(), &status) != 0) return at_ + ": " + std::strerror(errno);
    device_ = "/sys/dev/block/" + std::to_string(major(status.st_dev)) + ":" + std::to_string(minor(status.st_dev));
    return why;
  }
  void unmount() {
    if (!std::exchange(mounted_, false)) return;
    if (const std::string why = command({"umount", at_}); !why.empty()) throw std::runtime_error(why);
  }
  /// What the power leaves of it, as a file of its own that takes its place. Power fails at one instant: a copy during
  /// which the disk was written to is none of that instant (what ext4 took out of its journal meanwhile would be
  /// missing at both places), and is made again. A daemon that stands still may have had a thread in fsync, and the
  /// kernel writes by itself what is older than 30 s. Returns how many copies were thrown away.
  std::uint64_t copy_to(const std::string& copy) const {
    for (std::uint64_t discarded = 0; discarded < 100; ++discarded) {
      const std::optional<std::uint64_t> before = writes_if_idle();
      if (before) {
        // Read as a whole: cp(1) asks the file system for holes, and what is on its way to the disk must not be taken
        // for one.
        const std::string why = command({"dd", "if=" + image_, "of=" + copy, "bs=64K", "conv=sparse", "status=none"});
        if (!why.empty()) throw std::runtime_error(why);
        if (writes_if_idle() == before) return discarded;
      }
      std::this_thread::sleep_for(20ms);  // the pace of the tries, not to wait for anything
    }
    throw std::runtime_error(device_ + " is written to all the time, though the daemon stands still");
  }
  void become(const std::string& copy) {
    unmount();  // this writes the rest into the old file, which nobody reads again
    std::filesystem::rename(copy, image_);
    if (const std::string why = mount(); !why.empty()) throw std::runtime_error(why);
  }

 private:
  /// How many writes and flushes the device has done; none while one is under way. The fields are those of the kernel's
  /// Documentation/block/stat.rst: the 5th is write I/Os, the 9th in flight, the 16th flushes.
  std::optional<std::uint64_t> writes_if_idle() const {
    std::ifstream file(device_ + "/stat");
    std::uint64_t fields[17] = {};
    std::size_t count = 0;
    while (count < std::size(fields) && file >> fields[count]) ++count;
    if (count < 11) throw std::runtime_error(device_ + "/stat: cannot be read");
    if (fields[8] != 0) return std::nullopt;
    return fields[4] + fields[15];
  }

  std::string image_;
  std::string at_;
  std::string device_;
  bool mounted_ = false;
};

struct Tally {
  std::uint64_t losses = 0;
  std::uint64_t sets = 0;     // acknowledged
  std::uint64_t durable = 0;  // of them
  std::uint64_t lost = 0;     // acknowledged and gone, as is allowed
  std::uint64_t copied_again = 0;
};

class PowerLoss {
 public:
  explicit PowerLoss(std::uint64_t seed)
      : seed_(seed),
        random_(seed),
        daemon_(kOptions),
        disk_(daemon_.directory().file("disk.ext4"), daemon_.directory().file("disk")) {
    daemon_.use_db(daemon_.directory().file("disk/build_data.db"));
    void* memory =
        ::mmap(nullptr, sizeof(Arena), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    arena_ = static_cast<Arena*>(memory);
  }
  PowerLoss(const PowerLoss&) = delete;
  PowerLoss& operator=(const PowerLoss&) = delete;
  ~PowerLoss() {
    daemon_.kill();
    ::munmap(arena_, sizeof(Arena));
  }

  /// A sentence when this machine cannot do it.
  std::string prepare() {
    std::string why = disk_.make();
    if (why.empty()) why = disk_.mount();
    if (why.empty()) daemon_.start();
    return why;
  }

  /// Traffic, loss of power, recovery; what is not as promised, a text each.
  std::vector<std::string> lose() {
    Arena& arena = *new (arena_) Arena;
    const bool patient = tally_.losses % 3 == 1;
    Child clients([&] {
      Client client(daemon_.socket(), 60s);
      std::vector<Worker> threads;
      for (std::size_t thread = 0; thread < kThreads; ++thread) {
        threads.emplace_back([&, thread] { run_thread(arena, client, thread, tally_.losses, seed_, patient); });
      }
      for (Worker& thread : threads) thread.join();
      return 0;
    });
    const std::uint64_t aim = 300 + random_() % 700;
    const std::int64_t not_before = patient ? now_ns() + 2 * kSlack : 0;
    const auto enough = [&] {
      return arena.acknowledged >= aim && (patient || arena.durable >= 4) && now_ns() >= not_before;
    };
    if (!eventually(enough, 60s)) {
      throw std::runtime_error("too little traffic: " + std::to_string(arena.acknowledged.load()) +
                               " sets in a minute");
    }
    // Not to wait for anything: so that power fails at any place between two commits.
    std::this_thread::sleep_for(std::chrono::microseconds(random_() % 150'000));

    // What the daemon says itself: all that is older than this is in the database already.
    const std::int64_t asked_at = now_ns();
    const auto figures = stats(Client(daemon_.socket()));
    const auto oldest_dirty = static_cast<std::int64_t>(figures["oldest_dirty_seconds"].get<double>() * 1e9);
    const auto commit = static_cast<std::int64_t>(figures["last_flush_seconds"].get<double>() * 1e9);
    daemon_.stop();
    const std::int64_t stopped_at = now_ns();
    const std::string copy = daemon_.directory().file("copy.ext4");
    tally_.copied_again += disk_.copy_to(copy);
    daemon_.kill();
    clients.kill();
    daemon_.remove_segment();
    disk_.become(copy);
    daemon_.start();
    ++tally_.losses;

    // One commit may have been under way when the interval of the next began.
    const std::int64_t interval = std::chrono::nanoseconds(kFlushInterval).count();
    const std::int64_t by_age = stopped_at - interval - 2 * commit - kSlack;
    return check(arena, std::max(by_age, asked_at - oldest_dirty));
  }

  const Tally& tally() const noexcept { return tally_; }
  std::string log() const { return daemon_.log(); }
  /// The daemon that follows runs in another environment.
  void restart() {
    if (daemon_.terminate() != 0) throw std::runtime_error("SIGTERM: the daemon did not end well");
    daemon_.start();
  }

 private:
  std::vector<std::string> check(const Arena& arena, std::int64_t safe_before) {
    std::vector<std::string> problems;
    // What was acknowledged before a durable set was asked for is in the database when that is acknowledged.
    for (const auto& thread : arena.steps) {
      for (const Step& step : thread) {
        if (!step.used || step.outcome.load() != Told::acknowledged) continue;
        ++tally_.sets;
        if (step.durable) {
          ++tally_.durable;
          safe_before = std::max(safe_before, step.begin);
        }
        given_.insert(step.revision);
        given_.insert(step.id);
      }
    }
    if (query(daemon_.db(), "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'") != 1) {
      problems.push_back("integrity_check");
    }
    Client client(daemon_.socket());
    for (std::size_t thread = 0; thread < kThreads; ++thread) {
      for (std::size_t key = 0; key < kKeys; ++key) check_key(client, arena, thread, key, safe_before, problems);
    }
    // Also what is gone has had its id.
    for (int i = 0; i < 3; ++i) {
      const std::uint64_t value = (tally_.losses << 32) | (std::uint64_t{0xFF} << 24) | static_cast<std::uint64_t>(i);
      const auto set = client.set(1000, "after loss " + std::to_string(tally_.losses) + "." + std::to_string(i),
                                  std::string_view(), source_of(value));
      if (given_.contains(set->id) || given_.contains(set->revision)) {
        problems.push_back("id " + std::to_string(set->id) + " or revision " + std::to_string(set->revision) +
                           " was given before the loss of power, too");
      }
      given_.insert(set->id);
      given_.insert(set->revision);
    }
    return problems;
  }

  void check_key(Client& client, const Arena& arena, std::size_t thread, std::size_t key, std::int64_t safe_before,
                 std::vector<std::string>& problems) {
    const std::string what = "build " + std::to_string(build_of(thread)) + ", " + name_of(key) + ": ";
    const auto view = client.get(build_of(thread), name_of(key));
    const std::uint64_t found = view ? value_of(view->source()) : 0;
    if (view && (found == 0 || !is_exact(view->bytes(), found)))
      problems.push_back(what + "not the bytes that were set");

    std::uint64_t& before = states_[{thread, key}];
    std::vector<std::pair<std::uint64_t, const Step*>> could_be = {{before, nullptr}};
    for (const Step& step : arena.steps[thread]) {
      if (!step.used || step.outcome.load() == Told::failed) continue;
      if (step.key != key && step.key != kKeys) continue;
      const bool safe = step.outcome.load() == Told::acknowledged && (step.durable || step.end < safe_before);
      if (safe) could_be.clear();
      could_be.emplace_back(step.value, &step);
    }
    std::size_t last = could_be.size();
    for (std::size_t i = 0; i < could_be.size(); ++i) {
      if (could_be[i].first == found) last = i;
    }
    if (last == could_be.size()) {
      problems.push_back(
          what + "holds " + (found == 0 ? "nothing" : source_of(found)) + " where " +
          source_of(could_be.front().first) + " or one of " + std::to_string(could_be.size() - 1) +
          " later ones has to be" +
          (could_be.front().second != nullptr && could_be.front().second->durable ? ", set as durable" : ""));
    } else {
      for (std::size_t i = last + 1; i < could_be.size(); ++i) {
        if (could_be[i].second->outcome.load() == Told::acknowledged) ++tally_.lost;
      }
    }
    before = found;
  }

  std::uint64_t seed_;
  std::mt19937_64 random_;
  DaemonProcess daemon_;
  Disk disk_;
  Arena* arena_ = nullptr;
  Tally tally_;
  std::map<std::pair<std::size_t, std::size_t>, std::uint64_t> states_;
  std::set<std::uint64_t> given_;
};

struct Settings {
  std::uint64_t losses = 3;
  std::uint64_t seed = 1;
  std::string no_sync;
};

int run_all(const Settings& settings) {
  PowerLoss power(settings.seed);
  if (const std::string why = power.prepare(); !why.empty()) {
    std::printf("skipped: no file system on a loop device can be had here: %s\n", why.c_str());
    return 77;
  }
  const auto ull = [](std::uint64_t number) { return static_cast<unsigned long long>(number); };
  auto last_line = std::chrono::steady_clock::now();
  for (std::uint64_t loss = 0; loss < settings.losses; ++loss) {
    const auto problems = power.lose();
    for (const std::string& problem : problems) std::printf("BROKEN: loss %llu: %s\n", ull(loss + 1), problem.c_str());
    if (!problems.empty()) {
      std::printf("the daemon's log:\n%s\nthe same again: tests/soak --cycles 0 --losses %llu --seed %llu\n",
                  power.log().c_str(), ull(settings.losses), ull(settings.seed));
      return 1;
    }
    if (std::chrono::steady_clock::now() - last_line > 10s) {
      last_line = std::chrono::steady_clock::now();
      std::printf("loss %llu of %llu, %llu sets acknowledged\n", ull(loss + 1), ull(settings.losses),
                  ull(power.tally().sets));
      std::fflush(stdout);
    }
  }
  const Tally tally = power.tally();
  if (tally.lost == 0) {
    std::printf("BROKEN: nothing at all was lost: this is no loss of power\n");
    return 1;
  }
  bool bites = settings.no_sync.empty();
  if (!bites) {
    // The library is for the daemon alone.
    ::setenv("LD_PRELOAD", settings.no_sync.c_str(), 1);
    power.restart();
    ::unsetenv("LD_PRELOAD");
    const auto problems = power.lose();
    bites = !problems.empty();
    if (bites) std::printf("without fsync, as it should be: %s\n", problems.front().c_str());
    if (!bites) std::printf("BROKEN: a daemon whose fsync does nothing lost nothing that was promised\n");
  }
  std::printf("summary: result=%s seed=%llu losses=%llu sets=%llu durable=%llu lost=%llu copied_again=%llu\n",
              bites ? "ok" : "BROKEN", ull(settings.seed), ull(tally.losses), ull(tally.sets), ull(tally.durable),
              ull(tally.lost), ull(tally.copied_again));
  return bites ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  CLI::App app("What is left when the power fails, and whether it is what was promised.", "stepstash_power_loss");
  app.add_option("--losses", settings.losses, "losses of power")->capture_default_str();
  app.add_option("--seed", settings.seed, "of the traffic")->capture_default_str();
  app.add_option("--no-sync", settings.no_sync, "preloaded at last, to see that the test can fail")
      ->type_name("LIBRARY");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 64;
  }
  // A mount namespace of our own: whatever becomes of this process, the kernel unmounts with it.
  if (::geteuid() != 0 || ::unshare(CLONE_NEWNS) != 0 ||
      ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    std::printf("skipped: only root can mount a file system\n");
    return 77;
  }
  const char* path = std::getenv("PATH");
  ::setenv("PATH", (std::string(path == nullptr ? "" : path) + ":/usr/sbin:/sbin:/usr/bin:/bin").c_str(), 1);
  try {
    return run_all(settings);
  } catch (const std::exception& error) {
    std::printf("BROKEN: %s\n", error.what());
    return 1;
  }
}
