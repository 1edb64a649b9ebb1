// What tests share: goldens, comparisons that show where they differ, gradients by finite differences. The main of
// every test program (main.cc beside this) fixes and prints the seed and fills fresh memory with NaN.
#pragma once

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "core/safetensors.h"
#include "testing/throws_error.h"

namespace lineal {

/// A file of testdata/ by its id in the manifest, "ttt/linear_transformer_L48": named tensors as stored.
class Golden {
 public:
  explicit Golden(const std::string& id);
  /// Throws Error when there is none of that name.
  const Tensor& operator[](const std::string& name) const;
  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  /// Names that begin with `prefix`, without it: names("param.") are the parameters.
  std::vector<std::string> names(const std::string& prefix = "") const;

 private:
  std::string id_;
  SafeTensors file_;
};

/// "" when |actual - expected| <= tolerance * max |expected| everywhere; else what differs, with the first ten
/// mismatches and their indices. Compared in float64; another shape and any NaN is a mismatch.
std::string difference(const Tensor& actual, const Tensor& expected, double tolerance);

/// The same for the root mean square of the error relative to that of `expected`.
std::string rms_difference(const Tensor& actual, const Tensor& expected, double tolerance);

/// "" when both hold the same numbers, bit for bit (NaN differs from NaN).
std::string bit_difference(const Tensor& actual, const Tensor& expected);

using Difference = std::string (*)(const Tensor&, const Tensor&, double);
template <Difference compare>
::testing::AssertionResult expect_close(const char* actual_text, const char* expected_text, const char*,
                                        const Tensor& actual, const Tensor& expected, double tolerance) {
  const std::string found = compare(actual, expected, tolerance);
  if (found.empty()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << actual_text << " is not " << expected_text << ": " << found;
}

#define EXPECT_CLOSE(actual, expected, tolerance) \
  EXPECT_PRED_FORMAT3(::lineal::expect_close<::lineal::difference>, actual, expected, tolerance)
#define EXPECT_CLOSE_RMS(actual, expected, tolerance) \
  EXPECT_PRED_FORMAT3(::lineal::expect_close<::lineal::rms_difference>, actual, expected, tolerance)

/// throws_error for one statement and one part.
#define EXPECT_ERROR(statement, part) EXPECT_TRUE(::lineal::throws_error([&] { statement; }, {part}))

using TensorsFunction = std::function<std::vector<Tensor>(const std::vector<Tensor>&)>;

struct GradientCheck {
  double step = 1e-5;       // central differences: error of order step^2
  double tolerance = 1e-6;  // of the largest gradient of the input
  int64_t elements = 24;    // checked one by one in each input, spread over it; all of them along a random direction
};

/// "" when autograd's gradient of f agrees with finite differences for every input; else which input and where. Inputs
/// are float64 and need not require gradients; f may return tensors that depend on none of them. The scalar that is
/// differentiated is a fixed random combination of all outputs.
std::string gradient_difference(const TensorsFunction& f, const std::vector<Tensor>& inputs,
                                const std::vector<std::string>& names = {}, const GradientCheck& check = {});

/// The same for a function of leaves it holds already, such as a module's parameters: they are moved in place for the
/// differences and are in the end as they were.
std::string gradient_difference(const std::function<std::vector<Tensor>()>& f, const std::vector<Tensor>& leaves,
                                const std::vector<std::string>& names = {}, const GradientCheck& check = {});

/// Reproducible N(0, 1) numbers, float32 unless told; the same for the same seed and shape in any test order.
Tensor normal(at::IntArrayRef shape, uint64_t seed, at::ScalarType type = at::kFloat);

}  // namespace lineal
