#include "core/memory.h"

#include <c10/util/Exception.h>
#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <new>
#include <string>

namespace lineal {
namespace {

std::atomic<rlim_t> set_to = 0;  // by limit_memory; 0: not

}  // namespace

int64_t machine_memory() { return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE); }

int64_t proc_bytes(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key + ":")) return std::stoll(line.substr(key.size() + 1)) * 1024;
  }
  return 0;
}

int64_t limit_memory() {
  const int64_t available = proc_bytes("/proc/meminfo", "MemAvailable");
  if (available == 0) return 0;
  const int64_t free = available / 10 * 9 + proc_bytes("/proc/meminfo", "SwapFree");
  const auto most = static_cast<rlim_t>(free + proc_bytes("/proc/self/status", "VmData"));
  rlimit limit;
  if (getrlimit(RLIMIT_DATA, &limit) != 0) return 0;
  if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur <= most) return free;
  set_to = most;
  widen_memory_limit(0);
  return free;
}

void widen_memory_limit(int64_t bytes) {
  rlimit limit;
  if (set_to == 0 || getrlimit(RLIMIT_DATA, &limit) != 0) return;
  limit.rlim_cur = std::min(set_to += static_cast<rlim_t>(bytes), limit.rlim_max);
  setrlimit(RLIMIT_DATA, &limit);
}

void keep_freed_memory() {
#ifdef __GLIBC__
  if (std::getenv("MALLOC_MMAP_THRESHOLD_") || std::getenv("MALLOC_TRIM_THRESHOLD_")) return;
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_ARENA_MAX, 1);  // another arena's heaps are too small for large tensors
#endif
}

bool is_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return true;
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr) return true;
  const auto* torch = dynamic_cast<const c10::Error*>(&error);
  return torch != nullptr && torch->msg().find("DefaultCPUAllocator: ") != std::string::npos;
}

}  // namespace lineal
