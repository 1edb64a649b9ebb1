#include "core/file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>

#include "core/error.h"
#include "testing/temporary_folder.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

using Names = std::vector<std::string>;

namespace fs = std::filesystem;

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(File, WritesAndReads) {
  const TemporaryFolder folder;
  const std::string bytes("a\0b\nc", 5);
  write_atomic(folder / "x", "something longer before");
  write_atomic(folder / "x", bytes);
  EXPECT_EQ(read_file(folder / "x"), bytes);
  EXPECT_EQ(MappedFile(folder / "x").bytes(), bytes);
  write_atomic(folder / "empty", "");
  EXPECT_EQ(read_file(folder / "empty"), "");
  EXPECT_EQ(MappedFile(folder / "empty").size(), 0u);
  EXPECT_EQ(folder.names(), Names({"empty", "x"}));
}

TEST(File, WritesBytesAgain) {
  const TemporaryFolder folder;
  write_atomic(folder / "x", [](FileWriter& writer) {
    writer.write("....", 4);
    writer.write("tail", 4);
    writer.write_at(1, "ab", 2);
    writer.write("!", 1);
  });
  EXPECT_EQ(read_file(folder / "x"), ".ab.tail!");
}

TEST(File, MapIsPrivate) {
  const TemporaryFolder folder;
  write_atomic(folder / "x", "abc");
  MappedFile map(folder / "x");
  map.data()[1] = 'X';
  EXPECT_EQ(map.bytes(), "aXc");
  EXPECT_EQ(read_file(folder / "x"), "abc");
  write_atomic(folder / "x", "new content");
  EXPECT_EQ(map.bytes(), "aXc");
}

TEST(File, KeepsPermissionsAndLinks) {
  const TemporaryFolder folder;
  write_atomic(folder / "x", "1");
  ASSERT_EQ(::chmod((folder / "x").c_str(), 0640), 0);
  fs::create_symlink("x", folder / "link");
  write_atomic(folder / "link", "2");
  EXPECT_TRUE(fs::is_symlink(folder / "link"));
  EXPECT_EQ(read_file(folder / "x"), "2");
  struct stat status;
  ASSERT_EQ(::stat((folder / "x").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0640u);
}

TEST(File, LongestName) {
  const TemporaryFolder folder;
  const std::string name(255, 'n');
  write_atomic(folder / name, "x");
  EXPECT_EQ(read_file(folder / name), "x");
  EXPECT_TRUE(throws_error([&] { write_atomic(folder / (name + "n"), "x"); }, {"too long"}));
  EXPECT_EQ(folder.names(), Names({name}));
}

TEST(File, RefusesWhatIsNoFile) {
  const TemporaryFolder folder;
  const std::string missing = (folder / "missing").string();
  EXPECT_EQ(error_of([&] { read_file(missing); }), "cannot read " + missing + ": No such file or directory");
  EXPECT_EQ(error_of([&] { MappedFile map(missing); }), "cannot read " + missing + ": No such file or directory");
  EXPECT_TRUE(throws_error([&] { read_file(folder.path()); }, {"it is a folder, expected a file"}));
  EXPECT_TRUE(throws_error([&] { MappedFile map(folder.path()); }, {"it is a folder, expected a file"}));
  EXPECT_TRUE(throws_error([&] { MappedFile map("/dev/zero"); }, {"expected a regular file"}));
  EXPECT_TRUE(throws_error([&] { write_atomic(folder.path(), "x"); }, {"it is a folder, expected a file name"}));
  EXPECT_TRUE(throws_error([&] { write_atomic(folder / "no/such", "x"); },
                           {(folder / "no").string() + " does not exist", "create it first"}));
  EXPECT_EQ(folder.names(), Names({}));
}

TEST(File, RefusesWithoutPermission) {
  const TemporaryFolder folder;
  write_atomic(folder / "x", "old");
  fs::create_directory(folder / "closed");
  ASSERT_EQ(::chmod((folder / "x").c_str(), 0444), 0);
  ASSERT_EQ(::chmod((folder / "closed").c_str(), 0555), 0);
  ASSERT_EQ(::chmod(folder.path().c_str(), 0777), 0);
  // Root may write anywhere, so the check runs in a child as somebody else. access() looks at the real user.
  const pid_t child = ::fork();
  if (child == 0) {
    if (::getuid() == 0 && ::setuid(65534) != 0) ::_exit(3);
    const std::string file = error_of([&] { write_atomic(folder / "x", "new"); });
    const std::string place = error_of([&] { write_atomic(folder / "closed/y", "new"); });
    const bool good = file == "cannot write " + (folder / "x").string() + ": Permission denied" &&
                      place == "cannot write " + (folder / "closed/y").string() + ": folder " +
                                   (folder / "closed").string() + ": Permission denied";
    ::_exit(good ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(read_file(folder / "x"), "old");
  EXPECT_EQ(folder.names(), Names({"closed", "x"}));
}

TEST(File, FailingContentLeavesTheOldFile) {
  const TemporaryFolder folder;
  write_atomic(folder / "x", "old");
  for (const std::string name : {"x", "y"}) {
    EXPECT_THROW(write_atomic(folder / name,
                              [](FileWriter& writer) {
                                writer.write("half", 4);
                                throw std::logic_error("stop");
                              }),
                 std::logic_error);
  }
  EXPECT_EQ(read_file(folder / "x"), "old");
  EXPECT_EQ(folder.names(), Names({"x"}));
}

TEST(File, FileTooLargeLeavesTheOldFile) {
  const TemporaryFolder folder;
  write_atomic(folder / "x", "old");
  struct rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small = {10'000, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string error = error_of([&] { write_atomic(folder / "x", std::string(30'001, 'n')); });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, handler);
  EXPECT_EQ(error, "cannot write " + (folder / "x").string() + ": File too large");
  EXPECT_EQ(read_file(folder / "x"), "old");
  EXPECT_EQ(folder.names(), Names({"x"}));
}

TEST(File, FullDeviceIsAnError) {
  EXPECT_EQ(error_of([] { write_atomic("/dev/full", "x"); }), "cannot write /dev/full: No space left on device");
  EXPECT_FALSE(fs::is_regular_file("/dev/full"));
}

TEST(File, FullDiskLeavesTheOldFile) {
  const TemporaryFolder folder;
  if (::mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=64k") != 0) {
    GTEST_SKIP() << "mounting a small tmpfs: " << std::strerror(errno);
  }
  write_atomic(folder / "x", "old");
  EXPECT_EQ(error_of([&] { write_atomic(folder / "x", std::string(1'000'001, 'n')); }),
            "cannot write " + (folder / "x").string() + ": No space left on device");
  EXPECT_EQ(read_file(folder / "x"), "old");
  EXPECT_EQ(folder.names(), Names({"x"}));

  EXPECT_EQ(::mount("tmpfs", folder.path().c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, nullptr), 0);
  EXPECT_TRUE(throws_error([&] { write_atomic(folder / "x", "new"); }, {"Read-only file system"}));
  EXPECT_TRUE(throws_error([&] { write_atomic(folder / "y", "new"); }, {"Read-only file system"}));
  EXPECT_EQ(::umount(folder.path().c_str()), 0);
}

TEST(File, NamesOfKilledProcessesDoNotBlock) {
  const TemporaryFolder folder;
  constexpr int kLeft = 500;
  for (int n = 0; n < kLeft; ++n) std::ofstream(folder / text(".lineal-", ::getpid(), "-", n, ".tmp")) << "half";
  write_atomic(folder / "x", "new");
  EXPECT_EQ(read_file(folder / "x"), "new");
  EXPECT_EQ(folder.names().size(), kLeft + 1u);
}

TEST(File, StaleTemporariesGo) {
  const TemporaryFolder folder;
  const auto age = [](const fs::path& path, int seconds) {
    fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::seconds(seconds));
  };
  for (const char* name : {".lineal-1-0.tmp", ".lineal-1-1.tmp", ".lineal-1-2", "lineal-1-3.tmp", ".other.tmp"}) {
    std::ofstream(folder / name) << "half";
    age(folder / name, 100'000);
  }
  age(folder / ".lineal-1-1.tmp", 5);
  std::string writing;
  write_atomic(folder / "x", [&](FileWriter& writer) {
    writer.write("abc", 3);
    for (const std::string& name : folder.names()) {
      if (name.starts_with(text(".lineal-", ::getpid()))) writing = name;
    }
    age(folder / writing, 100'000);
    remove_stale_temporaries(folder.path());
    EXPECT_TRUE(fs::exists(folder / writing));
  });
  EXPECT_EQ(read_file(folder / "x"), "abc");
  EXPECT_EQ(folder.names(), Names({".lineal-1-1.tmp", ".lineal-1-2", ".other.tmp", "lineal-1-3.tmp", "x"}));
  remove_stale_temporaries(folder / "missing");
}

}  // namespace
}  // namespace lineal
