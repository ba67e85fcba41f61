#include "cli/transfer.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/support/temp_dir.hpp"

namespace stepstash::cli {
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

}  // namespace

BOOST_AUTO_TEST_SUITE(transfer)

BOOST_AUTO_TEST_CASE(a_file_appears_with_its_commit_only) {
  const test::TempDir directory;
  OutputFile file;
  BOOST_TEST_REQUIRE(file.open(directory.file("out")) == 0);
  BOOST_TEST(write_all(file.fd(), "whole", 5) == 0);
  BOOST_TEST(!fs::exists(directory.file("out")));
  BOOST_TEST(file.commit() == 0);
  BOOST_TEST(content(directory.file("out")) == "whole");
  BOOST_TEST(files_in(directory.path()) == 1u);
}

BOOST_AUTO_TEST_CASE(an_uncommitted_file_leaves_the_old_one_and_nothing_else) {
  const test::TempDir directory;
  std::ofstream(directory.file("out")) << "old";
  {
    OutputFile file;
    BOOST_TEST_REQUIRE(file.open(directory.file("out")) == 0);
    BOOST_TEST(write_all(file.fd(), "half", 4) == 0);
  }
  BOOST_TEST(content(directory.file("out")) == "old");
  BOOST_TEST(files_in(directory.path()) == 1u);
}

BOOST_AUTO_TEST_CASE(a_replaced_file_keeps_its_mode_and_a_link_to_it_stays_a_link) {
  const test::TempDir directory;
  std::ofstream(directory.file("real")) << "old";
  fs::permissions(directory.file("real"), fs::perms(0640));
  fs::create_symlink("real", directory.file("link"));
  OutputFile file;
  BOOST_TEST_REQUIRE(file.open(directory.file("link")) == 0);
  BOOST_TEST(write_all(file.fd(), "new", 3) == 0);
  BOOST_TEST(file.commit() == 0);
  BOOST_TEST(fs::is_symlink(directory.file("link")));
  BOOST_TEST(content(directory.file("real")) == "new");
  BOOST_TEST(mode_of(directory.file("real")) == 0640u);
}

BOOST_AUTO_TEST_CASE(a_new_file_has_the_mode_that_the_umask_leaves) {
  const test::TempDir directory;
  const mode_t before = ::umask(027);
  OutputFile file;
  BOOST_TEST(file.open(directory.file("out")) == 0);
  BOOST_TEST(file.commit() == 0);
  ::umask(before);
  BOOST_TEST(mode_of(directory.file("out")) == 0640u);
}

BOOST_AUTO_TEST_CASE(devices_and_pipes_are_written_directly) {
  OutputFile null;
  BOOST_TEST(null.open("/dev/null") == 0);
  BOOST_TEST(write_all(null.fd(), "x", 1) == 0);
  BOOST_TEST(null.commit() == 0);
  BOOST_TEST(fs::is_character_file("/dev/null"));
  OutputFile full;
  BOOST_TEST(full.open("/dev/full") == 0);
  BOOST_TEST(write_all(full.fd(), "x", 1) == ENOSPC);
}

BOOST_AUTO_TEST_CASE(a_directory_that_is_not_there_is_an_error) {
  OutputFile file;
  BOOST_TEST(file.open("/nonexistent/directory/out") == ENOENT);
}

BOOST_AUTO_TEST_CASE(a_signal_removes_the_unfinished_file) {
  const test::TempDir directory;
  int opened[2];
  BOOST_TEST_REQUIRE(::pipe2(opened, O_CLOEXEC) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    OutputFile file;
    const bool ok = file.open(directory.file("out")) == 0;
    if (::write(opened[1], ok ? "y" : "n", 1) != 1) ::_exit(2);
    for (;;) ::pause();
  }
  char byte = 0;
  BOOST_TEST(::read(opened[0], &byte, 1) == 1);
  BOOST_TEST(byte == 'y');
  BOOST_TEST(files_in(directory.path()) == 1u);
  ::kill(child, SIGTERM);
  int status = 0;
  ::waitpid(child, &status, 0);
  BOOST_TEST(WIFSIGNALED(status));
  BOOST_TEST(WTERMSIG(status) == SIGTERM);
  BOOST_TEST(files_in(directory.path()) == 0u);
  ::close(opened[0]);
  ::close(opened[1]);
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

BOOST_AUTO_TEST_SUITE_END()

}  // namespace stepstash::cli
