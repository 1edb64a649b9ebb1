// Times of short computations in this process, by Google Benchmark.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace lineal {

struct Repeated {
  std::string name;
  std::function<void()> run;
};

/// Seconds of one run: over repetitions of as many runs as take their share of the time.
struct RunTime {
  double median = 0, least = 0, most = 0;
};

/// Times each for about `seconds`, all of them in turn in an order that changes, so that what else the machine does
/// meets all. Each runs once before; what it throws then is thrown here. `progress` hears what runs now and how much of
/// the time has gone, about, from 0 to 1.
std::vector<RunTime> repeat(const std::vector<Repeated>& computations, double seconds,
                            const std::function<void(const std::string& name, double fraction)>& progress = {});

}  // namespace lineal
