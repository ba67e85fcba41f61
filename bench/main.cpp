// SPDX-License-Identifier: Apache-2.0
/// stepstash-bench [--quick] [--benchmark_...]: all rows, by Google Benchmark. bench/run builds and runs it,
/// bench/report.py reads what it writes; `--benchmark_filter=^set/stepstash` runs some rows alone.
#include <benchmark/benchmark.h>
#include <lmdb.h>
#include <sqlite3.h>
#include <stepstash/client.h>
#include <sys/utsname.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "bench/process.hpp"
#include "bench/rows.hpp"
#include "bench/world.hpp"

namespace stepstash::bench {
namespace {

std::string line_of(const char* path) {
  std::string line;
  std::getline(std::ifstream(path) >> std::ws, line);
  return line;
}

std::string file_system_of(const std::string& path) { return first_line_of("stat -f -c %T '" + path + "'"); }

/// Whatever a reader of the figures has to know; the report prints it in this order.
void describe(const World& world, const Plan& plan) {
  const auto add = [](const char* what, const std::string& value) {
    benchmark::AddCustomContext(what, value.empty() ? "not installed" : value);
  };
  utsname kernel = {};
  ::uname(&kernel);
  add("processor", first_line_of("sed -n 's/^model name[^:]*: //p' /proc/cpuinfo"));
  add("kernel", kernel.release);
  add("memory", first_line_of("awk '/MemTotal/ {printf \"%.0f GiB\", $2 / 1048576}' /proc/meminfo"));
  add("huge pages", line_of("/sys/kernel/mm/transparent_hugepage/enabled"));
  add("huge pages in /dev/shm", line_of("/sys/kernel/mm/transparent_hugepage/shmem_enabled"));
  add("file system of databases", file_system_of(world.directories.disk));
  add("compiler", __VERSION__);
  add("stepstash", stepstash_version());
  add("LMDB", mdb_version(nullptr, nullptr, nullptr));
  add("SQLite", sqlite3_libversion());
  add("Redis", first_line_of("redis-cli --version 2> /dev/null"));
  add("memcached", first_line_of("memcached --version 2> /dev/null"));
  add("repetitions", plan.quick ? "3" : "5");
  add("quick", plan.quick ? "yes" : "no");
}

int run(int argc, char** argv) {
  Plan plan;
  // Google Benchmark takes the last of each option: those of the caller follow these.
  std::vector<std::string> arguments = {argv[0]};
  for (int i = 1; i < argc; ++i) plan.quick = plan.quick || std::string_view(argv[i]) == "--quick";
  arguments.emplace_back(plan.quick ? "--benchmark_min_time=0.02" : "--benchmark_min_time=0.1");
  arguments.emplace_back(plan.quick ? "--benchmark_repetitions=3" : "--benchmark_repetitions=5");
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) != "--quick") arguments.emplace_back(argv[i]);
  }
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  int count = static_cast<int>(pointers.size());
  benchmark::Initialize(&count, pointers.data());
  if (benchmark::ReportUnrecognizedArguments(count, pointers.data())) return 64;

  World world;
  describe(world, plan);
  register_warm_get(plan);
  register_random_get(plan);
  register_scan(plan);
  register_new_process(plan);
  register_python_get(plan);
  register_set(plan);
  register_durable_set(plan);
  register_tail(plan);
  register_growth(plan);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace
}  // namespace stepstash::bench

int main(int argc, char** argv) { return stepstash::bench::run(argc, argv); }
