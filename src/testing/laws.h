// The laws every mixer obeys, as functions that say how one is broken.                       docs/laws.md
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "mixers/mixer.h"

namespace lineal {

/// A mixer under test and what its spec declares; its parameters are of order 1. In float64 both sides of a law differ
/// by the order of their sums.
struct Subject {
  std::shared_ptr<Mixer> mixer;
  int64_t D;
  bool causal = true;
  bool constant_state = true;
  bool mixes = true;
  at::ScalarType type = at::kDouble;
  double tolerance = 1e-10;

  /// The same mixer in float32, for laws over fused kernels.
  Subject float32() const;
};

/// The subject for a line of the table; every parameter is moved by something from the global generator, so that none
/// is an initial zero or one behind which a mistake could hide.
Subject make_subject(const MixerSpec& spec, const Json& options, int64_t D);

/// Each returns "" when the law holds, else who differs from what and where. The numbers are those of docs/laws.md.
std::string split_law(const Subject& subject);           // 1
std::string past_law(const Subject& subject);            // 2
std::string segments_law(const Subject& subject);        // 3
std::string batch_law(const Subject& subject);           // 4
std::string round_trip_law(const Subject& subject);      // 5
std::string gradient_law(const Subject& subject);        // 6
std::string fused_law(const Subject& subject);           // 7, for a float32 subject
std::string constant_state_law(const Subject& subject);  // 8
std::string step_law(const Subject& subject);            // 9

/// "" when both states have the same parts with the same numbers. Growing parts may differ in length by zeros at the
/// front, if `growing`.
std::string state_difference(const State& actual, const State& expected, double tolerance, bool growing);

}  // namespace lineal
