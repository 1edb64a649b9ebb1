// Random features: phi with E[phi(x) . phi(y)] = a kernel of x and y; formulas in random_features.cc.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace lineal {

using at::Tensor;

/// How the rows w_j of a projection are drawn, and how long they are.
enum class Drawing { iid, r_orf, h_orf, g_orf };
enum class RowNorms { chi, sqrt };

/// "iid", "r-orf", "h-orf" or "g-orf"; anything else is an Error.
Drawing drawing(const std::string& name);

/// [M, K] from the global generator. Each row alone is N(0, I) with chi norms, and uniform on the sphere of radius
/// sqrt(K) with sqrt (regularised softmax); rows of an orthogonal block of K are orthogonal, but for h-orf's where K is
/// no power of two: those are cut from blocks of the next one.
Tensor draw_projection(int64_t M, int64_t K, Drawing rows, RowNorms norms, at::TensorOptions options);

/// Standard normal blocks [n, K, K] -> [n K, K], the rows of each block orthonormal and uniformly distributed.
Tensor orthogonal_rows(const Tensor& blocks);

/// phi of one kind. Features of the softmax kernel come as exp(shift) phi and are stabilised by their caller's shift.
class FeatureMap {
 public:
  /// Kinds of the softmax kernel, and functions f of generalised kernels.
  static const std::vector<std::string>& softmax_kinds();
  static const std::vector<std::string>& generalised_kinds();

  /// `epsilon` is added to every feature, trig features excepted.
  FeatureMap(std::string kind, double epsilon);

  bool is_softmax() const { return softmax_; }
  double epsilon() const { return epsilon_; }
  /// Features may be negative, and so may sums of them.
  bool is_signed() const;
  /// Features of M rows.
  int64_t count(int64_t M) const;

  struct Projected {
    Tensor u;  // [..., M]   w_j . x
    Tensor h;  // [..., 1]   |x|^2 / 2
  };
  /// x [..., K], scaled by its caller; projection [M, K], or undefined: u = x.
  static Projected project(const Tensor& x, const Tensor& projection);
  /// The logarithm of the largest feature of each x before epsilon and M^{-1/2}, [..., 1]; of the softmax kernel.
  Tensor peak(const Projected& x) const;
  /// [..., count(M)]; shift [..., 1], or undefined: 0, as generalised kernels have it.
  Tensor operator()(const Projected& x, const Tensor& shift) const;

 private:
  std::string kind_;
  bool softmax_;
  double epsilon_;
};

}  // namespace lineal
