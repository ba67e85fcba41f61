// SPDX-License-Identifier: Apache-2.0
#include "cli/transfer.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/support/temp_dir.hpp"

namespace stepstash::cli {

/// For the test framework.
static std::ostream& operator<<(std::ostream& out, OutputFile::Temporary kind) {
  return out << (kind == OutputFile::Temporary::with_name ? "with a name" : "without a name");
}

namespace {

namespace fs = std::filesystem;

std::string content(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::size_t files_in(const fs::path& directory) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(directory), fs::directory_iterator()));
}

mode_t mode_of(const fs::path& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 ? status.st_mode & 07777 : 0;
}

using Temporary = OutputFile::Temporary;

/// On file systems that make files without a name, and on others.
const auto kinds = boost::unit_test::data::make({Temporary::without_name, Temporary::with_name});

/// Empty, or why it cannot be written.
std::string opened(OutputFile& file, const std::string& path) {
  std::string why = file.inspect(path);
  return why.empty() ? file.open() : why;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(transfer)

BOOST_DATA_TEST_CASE(a_file_appears_with_its_commit_only, kinds, kind) {
  const test::TempDir directory;
  OutputFile file(kind);
  BOOST_TEST_REQUIRE(opened(file, directory.file("out")) == "");
  BOOST_TEST(write_all(file.fd(), "whole", 5) == 0);
  BOOST_TEST(!fs::exists(directory.file("out")));
  BOOST_TEST(files_in(directory.path()) == (kind == Temporary::with_name ? 1u : 0u));
  BOOST_TEST(file.commit() == 0);
  BOOST_TEST(content(directory.file("out")) == "whole");
  BOOST_TEST(files_in(directory.path()) == 1u);
}

BOOST_DATA_TEST_CASE(an_uncommitted_file_leaves_the_old_one_and_nothing_else, kinds, kind) {
  const test::TempDir directory;
  std::ofstream(directory.file("out")) << "old";
  {
    OutputFile file(kind);
    BOOST_TEST_REQUIRE(opened(file, directory.file("out")) == "");
    BOOST_TEST(write_all(file.fd(), "half", 4) == 0);
  }
  BOOST_TEST(content(directory.file("out")) == "old");
  BOOST_TEST(files_in(directory.path()) == 1u);
}

BOOST_DATA_TEST_CASE(a_replaced_file_keeps_its_mode_and_a_link_to_it_stays_a_link, kinds, kind) {
  const test::TempDir directory;
  std::ofstream(directory.file("real")) << "old";
  fs::permissions(directory.file("real"), fs::perms(0640));
  fs::create_symlink("real", directory.file("link"));
  OutputFile file(kind);
  BOOST_TEST_REQUIRE(opened(file, directory.file("link")) == "");
  BOOST_TEST(write_all(file.fd(), "new", 3) == 0);
  BOOST_TEST(content(directory.file("real")) == "old");
  BOOST_TEST(file.commit() == 0);
  BOOST_TEST(fs::is_symlink(directory.file("link")));
  BOOST_TEST(content(directory.file("real")) == "new");
  BOOST_TEST(mode_of(directory.file("real")) == 0640u);
  BOOST_TEST(files_in(directory.path()) == 2u);
}

BOOST_DATA_TEST_CASE(a_new_file_has_the_mode_that_the_umask_leaves, kinds, kind) {
  const test::TempDir directory;
  const mode_t before = ::umask(027);
  OutputFile file(kind);
  BOOST_TEST(opened(file, directory.file("out")) == "");
  BOOST_TEST(file.commit() == 0);
  ::umask(before);
  BOOST_TEST(mode_of(directory.file("out")) == 0640u);
}

BOOST_DATA_TEST_CASE(a_replaced_file_lends_nobody_its_owners_identity, kinds, kind) {
  const test::TempDir directory;
  std::ofstream(directory.file("out")) << "old";
  BOOST_TEST_REQUIRE(::chmod(directory.file("out").c_str(), 06755) == 0);
  OutputFile file(kind);
  BOOST_TEST(opened(file, directory.file("out")) == "");
  BOOST_TEST(file.commit() == 0);
  BOOST_TEST(mode_of(directory.file("out")) == 0755u);
}

BOOST_DATA_TEST_CASE(a_file_that_appears_meanwhile_is_replaced, kinds, kind) {
  const test::TempDir directory;
  OutputFile file(kind);
  BOOST_TEST(opened(file, directory.file("out")) == "");
  BOOST_TEST(write_all(file.fd(), "ours", 4) == 0);
  std::ofstream(directory.file("out")) << "another one's";
  BOOST_TEST(file.commit() == 0);
  BOOST_TEST(content(directory.file("out")) == "ours");
  BOOST_TEST(files_in(directory.path()) == 1u);
}

BOOST_DATA_TEST_CASE(a_name_that_cannot_be_given_is_an_error_and_leaves_nothing, kinds, kind) {
  const test::TempDir directory;
  OutputFile file(kind);
  BOOST_TEST(opened(file, directory.file("out")) == "");
  fs::create_directory(directory.file("out"));
  BOOST_TEST(file.commit() != 0);
  BOOST_TEST(files_in(directory.path()) == 1u);
}

BOOST_AUTO_TEST_CASE(devices_and_pipes_are_written_directly) {
  OutputFile null;
  BOOST_TEST(opened(null, "/dev/null") == "");
  BOOST_TEST(write_all(null.fd(), "x", 1) == 0);
  BOOST_TEST(null.commit() == 0);
  BOOST_TEST(fs::is_character_file("/dev/null"));
  OutputFile full;
  BOOST_TEST(opened(full, "/dev/full") == "");
  BOOST_TEST(write_all(full.fd(), "x", 1) == ENOSPC);
}

BOOST_AUTO_TEST_CASE(a_directory_that_is_not_there_is_an_error) {
  OutputFile file;
  BOOST_TEST(file.inspect("/nonexistent/directory/out") == "No such file or directory");
}

BOOST_AUTO_TEST_CASE(looking_changes_nothing) {
  const test::TempDir directory;
  std::ofstream(directory.file("old")) << "old";
  fs::create_symlink("nothing", directory.file("link"));
  fs::create_hard_link(directory.file("old"), directory.file("other"));
  for (const char* name : {"old", "link", "new", "other"}) {
    OutputFile file;
    BOOST_TEST(file.inspect(directory.file(name)) == "");
  }
  BOOST_TEST(content(directory.file("old")) == "old");
  BOOST_TEST(files_in(directory.path()) == 3u);
}

BOOST_DATA_TEST_CASE(no_signal_that_ends_the_process_leaves_an_unfinished_file, kinds, kind) {
  const test::TempDir directory;
  int tried = 0;
  for (int number = 1; number <= SIGRTMAX; ++number) {
    struct sigaction at_first {};
    if (::sigaction(number, nullptr, &at_first) != 0) continue;       // the C library's own
    if (number == SIGKILL && kind == Temporary::with_name) continue;  // nobody can do anything about that
    int ready[2];
    BOOST_TEST_REQUIRE(::pipe2(ready, O_CLOEXEC) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::signal(number, SIG_DFL);
      const rlimit no_core{0, 0};
      ::setrlimit(RLIMIT_CORE, &no_core);
      OutputFile file(kind);
      const bool ok = opened(file, directory.file("out")).empty() && write_all(file.fd(), "half", 4) == 0;
      if (::write(ready[1], ok ? "y" : "n", 1) != 1) ::_exit(2);
      for (;;) ::pause();
    }
    ::close(ready[1]);
    char byte = 0;
    BOOST_TEST(::read(ready[0], &byte, 1) == 1);
    ::close(ready[0]);
    BOOST_TEST(byte == 'y');
    BOOST_TEST(files_in(directory.path()) == (kind == Temporary::with_name ? 1u : 0u));
    ::kill(child, number);
    // A second one, for those that do not end a process: then it must still be there to be ended.
    ::kill(child, SIGCONT);
    if (number == SIGCHLD || number == SIGCONT || number == SIGURG || number == SIGWINCH || number == SIGSTOP ||
        number == SIGTSTP || number == SIGTTIN || number == SIGTTOU) {
      ::kill(child, SIGTERM);
    } else {
      ++tried;
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    BOOST_TEST(WIFSIGNALED(status), "signal " << number);
    BOOST_TEST(files_in(directory.path()) == 0u, "signal " << number << " leaves a file");
  }
  BOOST_TEST(tried > 40);
}

BOOST_AUTO_TEST_CASE(everything_is_written_to_a_pipe_that_does_not_block) {
  int ends[2];
  BOOST_TEST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  ::fcntl(ends[1], F_SETFL, O_NONBLOCK);
  const std::string sent(1'000'000, 'x');
  std::string got;
  std::thread reader([&] {
    char buffer[8192];
    for (ssize_t n; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;) got.append(buffer, static_cast<std::size_t>(n));
  });
  std::size_t done = 0;
  const int error = write_all(ends[1], sent.data(), sent.size(), &done);
  ::close(ends[1]);
  reader.join();
  ::close(ends[0]);
  BOOST_TEST(error == 0);
  BOOST_TEST(done == sent.size());
  BOOST_TEST((got == sent));
}

BOOST_AUTO_TEST_CASE(a_reader_that_goes_away_is_an_error_with_the_bytes_that_went_before) {
  int ends[2];
  BOOST_TEST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  ::close(ends[0]);
  struct sigaction ignore {
  }, before{};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &ignore, &before);
  std::size_t done = 99;
  BOOST_TEST(write_all(ends[1], "x", 1, &done) == EPIPE);
  BOOST_TEST(done == 0u);
  ::sigaction(SIGPIPE, &before, nullptr);
  ::close(ends[1]);
}

BOOST_AUTO_TEST_CASE(a_descriptor_that_is_not_open_for_writing_is_told) {
  int ends[2];
  BOOST_TEST_REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  BOOST_TEST(!open_for_writing(ends[0]));
  BOOST_TEST(open_for_writing(ends[1]));
  ::close(ends[0]);
  ::close(ends[1]);
  BOOST_TEST(!open_for_writing(ends[1]));
  const int path = ::open("/", O_PATH | O_CLOEXEC);
  BOOST_TEST(!open_for_writing(path));
  ::close(path);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace stepstash::cli
