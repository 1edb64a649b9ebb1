// One measurement: in a process of its own, repeated, the median taken.
#pragma once

#include <functional>

#include "core/config.h"

namespace lineal {

/// What f returns, computed in a forked child: its peak memory is its own, and running out of memory ends it alone and
/// gives
/// {"note": why}. What else f throws is thrown here: Error as Error, the rest as std::runtime_error. The caller must
/// not have computed with LibTorch before: its threads do not survive a fork.
Json in_child(const std::function<Json()>& f);

/// Bytes of this process in memory: now, and at most since it began.
int64_t resident_bytes();
int64_t peak_bytes();

/// The median time of f, in seconds: one run to warm up, then 3 to `most` runs while `budget` seconds last. When the
/// first alone takes them, it is the answer.
double median_seconds(const std::function<void()>& f, double budget, int64_t most = 15);

}  // namespace lineal
