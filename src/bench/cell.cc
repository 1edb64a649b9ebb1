#include "bench/cell.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstring>

#include "core/error.h"
#include "core/memory.h"

namespace lineal {
namespace {

/// What f returns as "result", or what it throws as "error" or "failure".
Json guarded(const std::function<Json()>& f) {
  const int64_t free = limit_memory();
  try {
    return {{"result", f()}};
  } catch (const Error& error) {
    return {{"error", error.what()}};
  } catch (const std::exception& error) {
    if (is_out_of_memory(error)) {
      return {{"result", {{"note", text("needs more than the ", free >> 20, " MiB free")}}}};
    }
    return {{"failure", error.what()}};
  }
}

}  // namespace

Json in_child(const std::function<Json()>& f) {
  std::array<int, 2> ends;
  if (pipe(ends.data()) != 0) fail("bench: cannot make a pipe: ", std::strerror(errno));
  const pid_t child = fork();
  if (child < 0) fail("bench: cannot start a process: ", std::strerror(errno));
  if (child == 0) {
    close(ends[0]);
    const std::string answer = guarded(f).dump();
    for (size_t done = 0; done < answer.size();) {
      const ssize_t n = write(ends[1], answer.data() + done, answer.size() - done);
      if (n <= 0) _exit(1);
      done += static_cast<size_t>(n);
    }
    _exit(0);  // nothing of the parent's is flushed twice
  }
  close(ends[1]);
  std::string answer;
  std::array<char, 4096> buffer;
  for (ssize_t n; (n = read(ends[0], buffer.data(), buffer.size())) > 0;) {
    answer.append(buffer.data(), static_cast<size_t>(n));
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
    return {{"note", "ended by signal 9, perhaps for want of memory"}};
  }
  Json found = Json::parse(answer, nullptr, /*allow_exceptions=*/false);
  if (found.contains("error")) throw Error(found["error"].get<std::string>());
  if (found.contains("failure")) throw std::runtime_error(found["failure"].get<std::string>());
  if (!found.contains("result")) throw std::runtime_error(text("a measuring process ended with status ", status));
  return std::move(found["result"]);
}

int64_t resident_bytes() { return proc_bytes("/proc/self/status", "VmRSS"); }
int64_t peak_bytes() { return proc_bytes("/proc/self/status", "VmHWM"); }

double median_seconds(const std::function<void()>& f, double budget, int64_t most) {
  const auto timed = [&] {
    const auto start = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  double spent = timed();
  if (spent > budget) return spent;
  std::vector<double> times;
  while (static_cast<int64_t>(times.size()) < most && (times.size() < 3 || spent < budget)) {
    times.push_back(timed());
    spent += times.back();
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

}  // namespace lineal
