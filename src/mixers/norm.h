// The norms a block can have.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace lineal {

using at::Tensor;

class Norm : public torch::nn::Module {
 public:
  /// x [..., D] -> [..., D].
  virtual Tensor forward(const Tensor& x) const = 0;
  /// The norm of x + added, and that sum.
  virtual std::pair<Tensor, Tensor> add(const Tensor& x, const Tensor& added) const = 0;
  virtual void reset_parameters() = 0;
};

/// y = w (x - mean) / sqrt(var + eps) + b over the last dimension, var the mean square of x - mean.
///                                                                                   (Layer Normalization, 2016, eq. 4)
class LayerNorm : public Norm {
 public:
  LayerNorm(int64_t D, double eps);
  Tensor forward(const Tensor& x) const override;
  std::pair<Tensor, Tensor> add(const Tensor& x, const Tensor& added) const override;
  void reset_parameters() override;

  Tensor weight, bias;

 private:
  double eps_;
};

/// "rms", "layer".
std::vector<std::string> norm_names();
/// Throws Error for another name.
std::shared_ptr<Norm> make_norm(const std::string& name, int64_t D, double eps);

}  // namespace lineal
