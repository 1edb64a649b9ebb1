// Runs the program as a user would, as a process of its own.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>
#include <vector>

#include "core/file.h"
#include "testing/temporary_folder.h"

namespace lineal {

struct ProgramResult {
  int code = -1;   // exit code; -1 when a signal ended it
  int signal = 0;  // that signal
  std::string out, err;
  int64_t peak_kib = 0;  // resident memory at its highest
};

struct ProgramSettings {
  std::string input = "";   // standard input
  std::string out = "";     // where standard output goes, when not to ProgramResult::out
  bool terminal = false;    // standard error is a terminal
  int64_t most_memory = 0;  // allocations fail beyond so many bytes, libraries included; 0: no bound
};

/// A process running LINEAL_PROGRAM; killed at the end of its scope if it still runs. Its cache lies in `home`.
class Program {
 public:
  Program(const std::vector<std::string>& args, const std::filesystem::path& home,
          const ProgramSettings& settings = {}) {
    std::vector<std::string> words = {LINEAL_PROGRAM};
    words.insert(words.end(), args.begin(), args.end());
    std::vector<char*> argv;
    for (auto& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    write_atomic(files_ / "in", settings.input);
    out_ = settings.out.empty() ? (files_ / "out").string() : settings.out;
    const std::string in = files_ / "in", err = files_ / "err", cache = home / "cache";
    if (settings.terminal) {
      terminal_ = ::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
      if (terminal_ < 0 || ::grantpt(terminal_) != 0 || ::unlockpt(terminal_) != 0) ADD_FAILURE() << "no terminal";
    }
    const std::string err_name = settings.terminal ? ::ptsname(terminal_) : err;
    write_atomic(err, "");
    if (settings.out.empty()) write_atomic(out_, "");
    pid_ = ::fork();
    if (pid_ != 0) return;
    if (!std::freopen(in.c_str(), "r", stdin) || !std::freopen(out_.c_str(), "w", stdout)) ::_exit(97);
    if (!std::freopen(err_name.c_str(), "w", stderr)) ::_exit(98);
    const auto most = static_cast<rlim_t>(settings.most_memory);
    if (const rlimit limit{most, most}; most > 0 && ::setrlimit(RLIMIT_DATA, &limit) != 0) ::_exit(96);
    ::setenv("XDG_CACHE_HOME", cache.c_str(), 1);
    ::execv(LINEAL_PROGRAM, argv.data());
    ::_exit(99);
  }
  ~Program() {
    if (running()) signal(SIGKILL), wait();
    if (terminal_ >= 0) ::close(terminal_);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  pid_t id() const { return pid_; }
  void signal(int number) const { ::kill(pid_, number); }
  bool running() {
    if (!done_) done_ = ::wait4(pid_, &status_, WNOHANG, &usage_) == pid_;
    return !done_;
  }
  std::string out() const { return read_file(out_); }
  std::string err() const { return read_file(files_ / "err"); }

  ProgramResult wait() {
    if (terminal_ >= 0) read_terminal();
    if (!done_) ::wait4(pid_, &status_, 0, &usage_);
    done_ = true;
    ProgramResult result;
    if (WIFEXITED(status_)) result.code = WEXITSTATUS(status_);
    if (WIFSIGNALED(status_)) result.signal = WTERMSIG(status_);
    if (std::filesystem::is_regular_file(out_)) result.out = read_file(out_);
    result.err = terminal_ < 0 ? err() : shown_;
    result.peak_kib = usage_.ru_maxrss;
    return result;
  }

 private:
  /// What the program writes to its terminal, until it closes it.
  void read_terminal() {
    std::array<char, 4096> buffer;
    for (ssize_t n; (n = ::read(terminal_, buffer.data(), buffer.size())) > 0;) {
      shown_.append(buffer.data(), static_cast<size_t>(n));
    }
  }

  TemporaryFolder files_;
  std::string out_, shown_;
  int terminal_ = -1;
  struct rusage usage_ = {};
  pid_t pid_ = -1;
  int status_ = 0;
  bool done_ = false;
};

inline ProgramResult run_program(const std::vector<std::string>& args, const std::filesystem::path& home,
                                 const ProgramSettings& settings = {}) {
  return Program(args, home, settings).wait();
}

/// About the least most_memory in which the program starts at all: LibTorch's libraries for GPUs take most of a GiB.
inline int64_t start_memory() {
  static const int64_t found = [] {
    const TemporaryFolder home;
    int64_t most = int64_t{1} << 26;
    while (run_program({"--version"}, home.path(), {.most_memory = most}).code != 0 && most < int64_t{1} << 34) {
      most += most / 4;
    }
    return most;
  }();
  return found;
}

/// A user's mistake: exit code 2, nothing on standard output, one line on standard error with every part.
inline ::testing::AssertionResult refused(const ProgramResult& result, const std::vector<std::string>& parts) {
  const auto lines = std::count(result.err.begin(), result.err.end(), '\n');
  bool good = result.code == 2 && result.out.empty() && lines == 1 && result.err.starts_with("lineal: ");
  for (const auto& part : parts) good = good && result.err.find(part) != std::string::npos;
  std::string wanted;
  for (const auto& part : parts) wanted += " '" + part + "'";
  return (good ? ::testing::AssertionSuccess() : ::testing::AssertionFailure())
         << "exit code " << result.code << ", signal " << result.signal << ", stdout: " << result.out
         << "\nstderr: " << result.err << "\nexpected exit code 2 and one line with" << wanted;
}

}  // namespace lineal
