// Random features, of rows w_1..w_M.                        (Rethinking Attention with Performers, 2021, lemma 1)
//   softmax kernel exp(x . y), from u_j = w_j . x and h = |x|^2 / 2, with a shift and a small epsilon:
//     positive    M^{-1/2} (exp(u_j - h - shift) + epsilon)
//     hyperbolic  (2M)^{-1/2} (exp(+-u_j - h - shift) + epsilon)
//     trig        M^{-1/2} exp(h - shift) [sin u_j, cos u_j]
//   generalised kernels                f(u_j) + epsilon
// Rows of the projection                                          (the same, section 2.4; h_orf and g_orf, appendix)
//   iid    N(0, I)
//   r_orf  Gram-Schmidt of Gaussian blocks
//   h_orf  H D_1 H D_2 H D_3 of Hadamard matrices H and random signs D
//   g_orf  products of 3 K log2 K Givens rotations in random planes: after K log2 K the fourth moment along an axis is
//          still 1.6 (K = 8) to 2.7 (K = 64) times that of a uniform row, after these equal to 1 %
// then of norms chi(K), those of Gaussian rows, or sqrt(K). All are kept as matrices, which saves no time for h_orf.
#include "mixers/random_features.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"

namespace lineal {
namespace {

Tensor hadamard(int64_t K, at::TensorOptions options) {
  Tensor H = at::ones({1, 1}, options);
  while (H.size(0) < K) H = at::cat({at::cat({H, H}, 1), at::cat({H, -H}, 1)}, 0);
  return H / std::sqrt(static_cast<double>(K));
}

/// [K, K] for a K that is a power of two.
Tensor hadamard_block(int64_t K, at::TensorOptions options) {
  const Tensor H = hadamard(K, options);
  Tensor block = H;
  for (int i = 0; i < 3; ++i) {
    const Tensor signs = 2 * at::randint(2, {K}, options) - 1;
    block = i == 0 ? H * signs : at::matmul(block, H * signs);
  }
  return block;
}

Tensor givens_block(int64_t K, at::TensorOptions options) {
  if (K == 1) return 2 * at::randint(2, {1, 1}, options) - 1;
  const auto rotations = 3 * K * static_cast<int64_t>(std::ceil(std::log2(K)));
  const auto on_cpu = at::TensorOptions().dtype(at::kLong);
  const Tensor first = at::randint(K, {rotations}, on_cpu);
  const Tensor second = (first + 1 + at::randint(K - 1, {rotations}, on_cpu)).remainder(K);
  const Tensor angle = 2 * std::numbers::pi * at::rand({rotations}, on_cpu.dtype(at::kDouble));
  const Tensor block = at::eye(K, on_cpu.dtype(at::kDouble));
  const auto i = first.accessor<int64_t, 1>(), j = second.accessor<int64_t, 1>();
  const auto a = angle.accessor<double, 1>();
  auto w = block.accessor<double, 2>();
  for (int64_t n = 0; n < rotations; ++n) {
    const double c = std::cos(a[n]), s = std::sin(a[n]);
    for (int64_t column = 0; column < K; ++column) {
      const double u = w[i[n]][column], v = w[j[n]][column];
      w[i[n]][column] = c * u - s * v;
      w[j[n]][column] = s * u + c * v;
    }
  }
  return block.to(options);
}

}  // namespace

Drawing drawing(const std::string& name) {
  static const std::vector<std::string> names = {"iid", "r-orf", "h-orf", "g-orf"};
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) fail_unknown("features", "projection", name, names);
  return static_cast<Drawing>(found - names.begin());
}

Tensor orthogonal_rows(const Tensor& blocks) {
  const auto [Q, R] = at::linalg_qr(blocks);
  // The signs that LAPACK gives Q are not random: its first column always begins with a negative number.
  const Tensor signs = R.diagonal(0, -2, -1).sign().unsqueeze(1);  // [n, 1, K]
  return (Q * signs).transpose(1, 2).flatten(0, 1);
}

Tensor draw_projection(int64_t M, int64_t K, Drawing rows, RowNorms norms, at::TensorOptions options) {
  int64_t size = K;  // of a block
  if (rows == Drawing::h_orf) {
    for (size = 1; size < K;) size *= 2;
  }
  const int64_t count = (M + size - 1) / size;
  Tensor w;
  if (rows == Drawing::iid) {
    w = at::randn({M, K}, options);
    if (norms == RowNorms::chi) return w;
    w = w / w.norm(2, {1}, /*keepdim=*/true);
  } else if (rows == Drawing::r_orf) {
    w = orthogonal_rows(at::randn({count, K, K}, options)).slice(0, 0, M);
  } else {
    std::vector<Tensor> blocks;
    for (int64_t i = 0; i < count; ++i) {
      blocks.push_back(rows == Drawing::h_orf ? hadamard_block(size, options) : givens_block(size, options));
    }
    w = at::cat(blocks, 0).slice(0, 0, M).slice(1, 0, K);
  }
  if (norms == RowNorms::sqrt) return w * (std::sqrt(static_cast<double>(K)) / w.norm(2, {1}, /*keepdim=*/true));
  return w * at::randn({M, size}, options).norm(2, {1}, /*keepdim=*/true);
}

const std::vector<std::string>& FeatureMap::softmax_kinds() {
  static const std::vector<std::string> kinds = {"positive", "hyperbolic", "trig"};
  return kinds;
}

const std::vector<std::string>& FeatureMap::generalised_kinds() {
  static const std::vector<std::string> kinds = {"relu", "sigmoid", "exp", "abs", "gelu", "cos", "tanh", "identity"};
  return kinds;
}

FeatureMap::FeatureMap(std::string kind, double epsilon)
    : kind_(std::move(kind)),
      softmax_(std::find(softmax_kinds().begin(), softmax_kinds().end(), kind_) != softmax_kinds().end()),
      epsilon_(epsilon) {}

bool FeatureMap::is_signed() const {
  return kind_ == "trig" || kind_ == "gelu" || kind_ == "cos" || kind_ == "tanh" || kind_ == "identity";
}

int64_t FeatureMap::count(int64_t M) const { return kind_ == "trig" || kind_ == "hyperbolic" ? 2 * M : M; }

FeatureMap::Projected FeatureMap::project(const Tensor& x, const Tensor& projection) {
  return {projection.defined() ? at::matmul(x, projection.t()) : x, 0.5 * x.square().sum(-1, /*keepdim=*/true)};
}

Tensor FeatureMap::peak(const Projected& x) const {
  if (kind_ == "trig") return x.h;
  return (kind_ == "hyperbolic" ? x.u.abs() : x.u).amax({-1}, /*keepdim=*/true) - x.h;
}

Tensor FeatureMap::operator()(const Projected& x, const Tensor& shift) const {
  const double scale = 1 / std::sqrt(static_cast<double>(x.u.size(-1)));
  if (kind_ == "trig") return scale * (x.h - shift).exp() * at::cat({x.u.sin(), x.u.cos()}, -1);
  if (kind_ == "positive") return scale * ((x.u - (x.h + shift)).exp() + epsilon_);
  if (kind_ == "hyperbolic") {
    return scale / std::numbers::sqrt2 * ((at::cat({x.u, -x.u}, -1) - (x.h + shift)).exp() + epsilon_);
  }
  const Tensor& u = x.u;
  const auto f = [&]() -> Tensor {
    if (kind_ == "relu") return u.relu();
    if (kind_ == "sigmoid") return u.sigmoid();
    if (kind_ == "exp") return u.exp();
    if (kind_ == "abs") return u.abs();
    if (kind_ == "gelu") return at::gelu(u);
    if (kind_ == "cos") return u.cos();
    if (kind_ == "tanh") return u.tanh();
    if (kind_ == "identity") return u;
    fail_unknown("features", "kind", kind_, generalised_kinds());
  };
  return f() + epsilon_;
}

}  // namespace lineal
