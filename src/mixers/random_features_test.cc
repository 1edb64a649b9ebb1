#include "mixers/random_features.h"

#include <ATen/ATen.h>

#include <cmath>
#include <map>
#include <numbers>

#include "core/error.h"
#include "testing/testing.h"

namespace lineal {
namespace {

const std::map<std::string, Drawing> kRows = {
    {"iid", Drawing::iid}, {"r-orf", Drawing::r_orf}, {"h-orf", Drawing::h_orf}, {"g-orf", Drawing::g_orf}};

const at::TensorOptions kDouble = at::TensorOptions().dtype(at::kDouble);

Tensor draw(const std::string& rows, int64_t M, int64_t K, RowNorms norms = RowNorms::chi) {
  return draw_projection(M, K, kRows.at(rows), norms, kDouble);
}

/// phi(x) . phi(y) for x, y [n, K].
Tensor estimate(const std::string& kind, const Tensor& x, const Tensor& y, const Tensor& projection) {
  const FeatureMap phi(kind, 0);
  const Tensor none = at::zeros({1}, kDouble);
  return (phi(FeatureMap::project(x, projection), none) * phi(FeatureMap::project(y, projection), none)).sum(1);
}

Tensor kernel(const Tensor& x, const Tensor& y) { return (x * y).sum(1).exp(); }

/// Mean square errors of each kind's estimates from M rows, the same draws for all kinds.
std::map<std::string, double> errors(const std::string& rows, int64_t M, const Tensor& x, const Tensor& y, int draws) {
  std::map<std::string, double> sums;
  for (int i = 0; i < draws; ++i) {
    const Tensor projection = draw(rows, M, x.size(1));
    for (const auto& kind : FeatureMap::softmax_kinds()) {
      sums[kind] += (estimate(kind, x, y, projection) - kernel(x, y)).square().mean().item<double>() / draws;
    }
  }
  return sums;
}

/// x [n, K] of this length.
Tensor vectors(int64_t n, int64_t K, uint64_t seed, double length) {
  const Tensor x = normal({n, K}, seed, at::kDouble);
  return length * x / x.norm(2, {1}, true);
}

/// The mean square error of independent rows: the variance of one row's share, by M.
double theory(const std::string& kind, int64_t M, const Tensor& x, const Tensor& y) {
  const Tensor sum = (x + y).square().sum(1), difference = (x - y).square().sum(1);
  Tensor variance = kernel(x, y).square() * (sum.exp() - 1);
  if (kind == "hyperbolic") variance = kernel(x, y).square() * (sum.exp() + (-sum).exp() - 2) / 2;
  if (kind == "trig") {
    variance = (x.square() + y.square()).sum(1).exp() * (1 - (-difference).exp()).square() / 2;
  }
  return variance.mean().item<double>() / static_cast<double>(M);
}

TEST(RandomFeatures, EveryEstimateIsUnbiased) {
  at::manual_seed(5);
  const int64_t M = 12, K = 8;
  const int draws = 1000;
  const Tensor x = vectors(6, K, 1, 0.8), y = vectors(6, K, 2, 0.7);
  for (const auto& [rows, _] : kRows) {
    for (const auto& kind : FeatureMap::softmax_kinds()) {
      std::vector<Tensor> found;
      for (int i = 0; i < draws; ++i) found.push_back((estimate(kind, x, y, draw(rows, M, K)) / kernel(x, y)).mean());
      const Tensor all = at::stack(found);
      const double off = all.mean().item<double>() - 1;
      EXPECT_LT(std::abs(off), 3 * all.std().item<double>() / std::sqrt(1.0 * draws)) << kind << ", " << rows;
    }
  }
}

/// Of each pair in u, v [n] of variances |x|^2, |y|^2 and covariance x . y: E[f(u) f(v)], by the trapezoid rule over
/// two independent normal numbers.
Tensor expected_product(const FeatureMap& f, const Tensor& x, const Tensor& y) {
  const Tensor grid = at::linspace(-8, 8, 801, kDouble);
  const Tensor weight = (-0.5 * grid.square()).exp() / std::sqrt(2 * std::numbers::pi) * 0.02;
  const auto of = [&](const Tensor& u) { return f({u, Tensor()}, Tensor()); };
  std::vector<Tensor> found;
  for (int64_t i = 0; i < x.size(0); ++i) {
    const double a = x[i].norm().item<double>(), along = (x[i].dot(y[i]) / a).item<double>();
    const double across = std::sqrt(y[i].square().sum().item<double>() - along * along);
    const Tensor v = along * grid.unsqueeze(1) + across * grid.unsqueeze(0);  // given u = a times the first number
    found.push_back((weight * of(a * grid) * at::matmul(of(v), weight)).sum());
  }
  return at::stack(found);
}

TEST(RandomFeatures, EveryGeneralisedEstimateIsUnbiased) {
  at::manual_seed(5);
  const int64_t M = 12, K = 8, draws = 1000;
  const Tensor x = vectors(6, K, 1, 0.8), y = vectors(6, K, 2, 0.7);
  for (const auto& kind : FeatureMap::generalised_kinds()) {
    const FeatureMap f(kind, 1e-3);
    const Tensor expected = expected_product(f, x, y);
    for (const auto& [rows, _] : kRows) {
      std::vector<Tensor> found;
      for (int64_t i = 0; i < draws; ++i) {
        const Tensor w = draw(rows, M, K);
        const auto of = [&](const Tensor& z) { return f(FeatureMap::project(z, w), Tensor()); };
        found.push_back(((of(x) * of(y)).mean(1) - expected).mean());
      }
      const Tensor all = at::stack(found);
      EXPECT_LT(all.mean().abs().item<double>(), 3 * all.std().item<double>() / std::sqrt(1.0 * draws))
          << kind << ", " << rows;
    }
  }
}

/// Rows of one length, the root of K, estimate the regularised softmax kernel: exp(w . z) over the sphere has the mean
/// sum_n (K |z|^2 / 4)^n / (n! (K / 2) (K / 2 + 1) ... (K / 2 + n - 1)).
TEST(RandomFeatures, RowsOfOneLengthEstimateTheRegularisedKernel) {
  at::manual_seed(5);
  const int64_t M = 12, K = 8, draws = 1000;
  const Tensor x = vectors(6, K, 1, 0.8), y = vectors(6, K, 2, 0.7);
  const auto on_sphere = [&](const Tensor& squared_length) {
    Tensor term = at::ones_like(squared_length), sum = term.clone();
    for (int n = 0; n < 40; ++n) {
      term = term * squared_length * (K / 4.0 / ((n + 1) * (K / 2.0 + n)));
      sum += term;
    }
    return sum;
  };
  const Tensor h = 0.5 * (x.square() + y.square()).sum(1);
  const Tensor positive = (-h).exp() * on_sphere((x + y).square().sum(1));
  const Tensor trig = h.exp() * on_sphere(-(x - y).square().sum(1));
  EXPECT_GT(((positive / kernel(x, y) - 1).abs().min().item<double>()), 0.01) << "no other kernel than softmax's";
  for (const auto& [rows, _] : kRows) {
    for (const auto& kind : FeatureMap::softmax_kinds()) {
      const Tensor& expected = kind == "trig" ? trig : positive;
      std::vector<Tensor> found;
      for (int64_t i = 0; i < draws; ++i) {
        found.push_back((estimate(kind, x, y, draw(rows, M, K, RowNorms::sqrt)) / expected).mean());
      }
      const Tensor all = at::stack(found);
      const double off = all.mean().item<double>() - 1;
      EXPECT_LT(std::abs(off), 3 * all.std().item<double>() / std::sqrt(1.0 * draws)) << kind << ", " << rows;
    }
  }
}

TEST(RandomFeatures, IndependentRowsErrAsInTheory) {
  at::manual_seed(5);
  const Tensor x = vectors(200, 8, 1, 0.6), y = vectors(200, 8, 2, 0.5);
  for (const int64_t M : {4, 64}) {
    for (const auto& [kind, error] : errors("iid", M, x, y, 500)) {
      EXPECT_NEAR(error / theory(kind, M, x, y), 1, 0.08) << kind << ", " << M << " rows";
    }
  }
}

TEST(RandomFeatures, OrthogonalRowsErrLess) {
  at::manual_seed(5);
  const Tensor x = vectors(200, 8, 1, 0.6), y = vectors(200, 8, 2, 0.5);
  for (const char* rows : {"r-orf", "h-orf", "g-orf"}) {
    for (const int64_t M : {4, 8, 20}) {
      for (const auto& [kind, error] : errors(rows, M, x, y, 700)) {
        EXPECT_LT(error, theory(kind, M, x, y)) << kind << ", " << rows << ", " << M << " rows";
      }
    }
  }
}

/// Where the kernel is small, which is where softmax puts most of its pairs.
TEST(RandomFeatures, PositiveErrsLessThanTrigAtSmallValues) {
  at::manual_seed(5);
  const Tensor x = vectors(40, 8, 1, 2), y = vectors(40, 8, 2, 0.5) - x;
  for (const int64_t M : {4, 8, 16, 64, 256}) {
    auto error = errors("r-orf", M, x, y, 30);
    EXPECT_LT(error["positive"], 1e-3 * error["trig"]) << M << " rows";
    EXPECT_LT(error["hyperbolic"], error["positive"]) << M << " rows";
  }
}

TEST(RandomFeatures, GoldenOrthogonalRows) {
  for (const char* id : {"performer/favor_L64_d16_m32", "performer/favor_L64_d16_m40_small"}) {
    const Golden golden(id);
    const int64_t M = golden["gorm1"].size(0);
    const Tensor rows = orthogonal_rows(golden["raw_block"].to(at::kDouble)).slice(0, 0, M);
    // LAPACK's signs are not uniform, so ours are others.
    const Tensor signs = (rows * golden["gorm1"]).sum(1, true).sign();
    EXPECT_CLOSE(signs * rows * 4, golden["gorm1"], 1e-6);
    EXPECT_CLOSE(signs * rows * golden["raw_mult"].norm(2, {1}, true), golden["gorm0"], 1e-6);
  }
}

TEST(RandomFeatures, RowsAreWhatTheirNamesSay) {
  at::manual_seed(5);
  const int64_t K = 8, M = 20;
  for (const char* rows : {"r-orf", "h-orf", "g-orf"}) {
    const Tensor w = draw(rows, M, K, RowNorms::sqrt);
    EXPECT_CLOSE(w.square().sum(1), at::full({M}, 8.0, kDouble), 1e-12) << rows;
    for (const auto& [from, to] : std::vector<std::pair<int64_t, int64_t>>{{0, 8}, {8, 16}, {16, 20}}) {
      const Tensor block = w.slice(0, from, to);
      EXPECT_CLOSE(at::matmul(block, block.t()), 8 * at::eye(to - from, kDouble), 1e-12) << rows;
    }
    const Tensor chi = draw(rows, 4000, K).square().sum(1);  // mean K, variance 2 K
    EXPECT_NEAR(chi.mean().item<double>(), 8, 0.3) << rows;
    EXPECT_NEAR(chi.var().item<double>(), 16, 2) << rows;
  }
  for (const auto& [rows, _] : kRows) {  // also where Hadamard blocks are larger than the head
    EXPECT_CLOSE(draw(rows, M, 6, RowNorms::sqrt).square().sum(1), at::full({M}, 6.0, kDouble), 1e-12) << rows;
  }
}

/// The Gaussian's second moments, also for head sizes that are no power of two, and the fourth along each axis.
TEST(RandomFeatures, RowsHaveTheMomentsOfAGaussian) {
  at::manual_seed(5);
  for (const auto& [rows, _] : kRows) {
    for (const int64_t K : {1, 6, 8}) {
      const Tensor w = draw(rows, 12000, K);
      EXPECT_LT(w.mean(0).abs().max().item<double>(), 0.05) << rows << ", " << K;
      const Tensor moments = at::matmul(w.t(), w) / 12000;
      EXPECT_LT((moments - at::eye(K, kDouble)).abs().max().item<double>(), 0.07) << rows << ", " << K;
      EXPECT_LT((w.pow(4).mean(0) - 3).abs().max().item<double>(), 0.45) << rows << ", " << K;
    }
  }
}

TEST(RandomFeatures, GoldenFeatures) {
  const Golden golden("performer/favor_L64_d16_m32");
  const FeatureMap phi("positive", 1e-4);
  const double scale = std::pow(16.0, -0.25);
  // Its stabilisers are the largest u, of the query's own features and of all keys'.
  const auto queries = FeatureMap::project(golden["q"] * scale, golden["proj"]);
  EXPECT_CLOSE(phi(queries, queries.u.amax({-1}, true)), golden["phi_q"], 1e-5);
  const auto keys = FeatureMap::project(golden["k"] * scale, golden["proj"]);
  EXPECT_CLOSE(phi(keys, keys.u.max()), golden["phi_k"], 1e-5);
  const auto plain = FeatureMap::project(golden["q"], golden["proj"]);
  EXPECT_CLOSE(phi(plain, plain.u.amax({-1}, true)), golden["phi_q_nonorm"], 1e-5);

  const FeatureMap relu("relu", 1e-3);
  EXPECT_CLOSE(relu(queries, {}), golden["gen_relu_q"], 1e-5);
  EXPECT_CLOSE(relu(keys, {}), golden["gen_relu_k"], 1e-5);
  EXPECT_CLOSE(relu(FeatureMap::project(golden["q"] * scale, {}), {}), golden["gen_noproj_q"], 1e-5);
}

/// Every f by its definition, and the shift that makes the largest feature 1.
TEST(RandomFeatures, Definitions) {
  const Tensor x = normal({5, 4}, 1, at::kDouble), w = normal({7, 4}, 2, at::kDouble);
  const auto projected = FeatureMap::project(x, w);
  const Tensor u = at::einsum("nk,mk->nm", {x, w});
  const std::map<std::string, Tensor> expected = {{"relu", u.clamp_min(0)},
                                                  {"sigmoid", 1 / (1 + (-u).exp())},
                                                  {"exp", u.exp()},
                                                  {"abs", u * u.sign()},
                                                  {"gelu", u * 0.5 * (1 + (u / std::sqrt(2.0)).erf())},
                                                  {"cos", u.cos()},
                                                  {"tanh", u.sinh() / u.cosh()},
                                                  {"identity", u}};
  for (const auto& kind : FeatureMap::generalised_kinds()) {
    EXPECT_CLOSE(FeatureMap(kind, 0.25)(projected, {}), expected.at(kind) + 0.25, 1e-12) << kind;
  }
  for (const auto& kind : FeatureMap::softmax_kinds()) {
    const FeatureMap phi(kind, 0);
    const Tensor features = phi(projected, phi.peak(projected));
    EXPECT_EQ(features.size(1), phi.count(7)) << kind;
    const double most = kind == "hyperbolic" ? 1 / std::sqrt(14.0) : 1 / std::sqrt(7.0);
    if (kind == "trig") {
      EXPECT_CLOSE(features.square().sum(1), at::ones({5}, kDouble), 1e-12);
    } else {
      EXPECT_CLOSE(features.amax({1}), at::full({5}, most, kDouble), 1e-12) << kind;
    }
  }
}

}  // namespace
}  // namespace lineal
