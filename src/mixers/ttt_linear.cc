// TTT-Linear: the inner model is one linear map.        (Learning to (Learn at Test Time), Sun et al., 2024,
// section 2.7)
//   inner    f(x; W, b) = x W + b                                               W [K, K], b [1, K]
//   gradient G_j = d l / d f(k_j) at the batch's start; grad_W = k_j^T G_j, grad_b = G_j
//   dual     f(q_i; W_i, b_i) = q_i W + b - s_i ( sum_{j<=i} (q_i . k_j + 1) eta_j G_j + q_i D_W + D_b )
//   cost     O(T K (K + C)) time, 2 K^2 state per head
#include <ATen/ATen.h>

#include "mixers/ttt.h"

namespace lineal {
namespace {

class Linear : public InnerModel {
 public:
  explicit Linear(bool bias) : bias_(bias) {}

  std::vector<Weight> weights(int64_t K) const override {
    std::vector<Weight> list = {{"W1", {K, K}, 0.02}};
    if (bias_) list.push_back({"b1", {1, K}, 0});
    return list;
  }

  Tensor forward(const Tensor& x, const Weights& W) const override {
    return bias_ ? at::matmul(x, W[0]) + W[1] : at::matmul(x, W[0]);
  }

  bool has_dual() const override { return true; }
  const kernels::Operation<kernels::TTTOutput, kernels::TTTInput>* kernel() const override {
    return &kernels::ttt_linear;
  }

  Tensor dual(const InnerBatch& batch, const InnerNorm& norm, const Weights& W, Weights& D) const override {
    const auto f = [&](const Tensor& x) { return forward(x, W); };
    const Tensor G = norm.loss_gradient(f(batch.k), batch.target) * batch.eta;  // [B, H, C, K]
    Tensor moved = at::matmul(bias_ ? batch.qk1 : batch.qk, G);
    if (D[0].defined()) moved = moved + forward(batch.q, D);
    const Tensor z = at::addcmul(f(batch.q), batch.scale, moved, -1);
    const Tensor sum = at::matmul(batch.k.transpose(-1, -2), G);
    D[0] = D[0].defined() ? D[0] + sum : sum;
    if (bias_) D[1] = D[1].defined() ? D[1] + G.sum(2, true) : G.sum(2, true);
    return z;
  }

 private:
  bool bias_;
};

}  // namespace

std::unique_ptr<InnerModel> linear_inner_model(bool bias) { return std::make_unique<Linear>(bias); }

extern const MixerSpec ttt_linear_spec;
const MixerSpec ttt_linear_spec = {
    .name = "ttt_linear",
    .help = "TTT layer whose state is a linear model (Learning to (Learn at Test Time), 2024)",
    .config = make_config<TTTConfig>,
    .make = [](const Config& config, int64_t D) -> std::shared_ptr<Mixer> {
      const auto& options = dynamic_cast<const TTTConfig&>(config);
      return std::make_shared<TTT>("ttt_linear", options, D, linear_inner_model(options.bias));
    },
};

}  // namespace lineal
