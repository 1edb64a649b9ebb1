// TTT-MLP: the inner model has two layers, 4 K wide.     (Learning to (Learn at Test Time), Sun et al., 2024,
// section 2.7)
//   inner    f(x) = gelu(x W1 + b1) W2 + b2                                     W1 [K, 4K], W2 [4K, K], tanh gelu
//   gradient G2_j = d l / d f(k_j),  G1_j = (G2_j W2^T) gelu'(k_j W1 + b1), all at the batch's start
//   dual     u_i = q_i W1 + b1 - s_i ( sum_{j<=i} (q_i . k_j + 1) eta_j G1_j + q_i D_W1 + D_b1 )
//            f(q_i; W_i) = a_i W2 + b2 - s_i ( sum_{j<=i} (a_i . h_j + 1) eta_j G2_j + a_i D_W2 + D_b2 )
//            with a_i = gelu(u_i), h_j = gelu(k_j W1 + b1)
//   cost     O(T K (8 K + 5 C)) time, 16 K^2 state per head
#include <ATen/ATen.h>

#include "mixers/ttt.h"

namespace lineal {
namespace {

class Mlp : public InnerModel {
 public:
  explicit Mlp(bool bias) : bias_(bias) {}

  std::vector<Weight> weights(int64_t K) const override {
    std::vector<Weight> list = {{"W1", {K, 4 * K}, 0.02}};
    if (bias_) list.push_back({"b1", {1, 4 * K}, 0});
    list.push_back({"W2", {4 * K, K}, 0.02});
    if (bias_) list.push_back({"b2", {1, K}, 0});
    return list;
  }

  Tensor forward(const Tensor& x, const Weights& W) const override {
    return layer(at::gelu(layer(x, W, 0), "tanh"), W, 1);
  }

  bool has_dual() const override { return true; }
  const kernels::Operation<kernels::TTTOutput, kernels::TTTInput>* kernel() const override { return &kernels::ttt_mlp; }

  Tensor dual(const InnerBatch& batch, const InnerNorm& norm, const Weights& W, Weights& D) const override {
    const Tensor u_k = layer(batch.k, W, 0);
    const Tensor h = at::gelu(u_k, "tanh");  // [B, H, C, 4K]
    const Tensor G2 = norm.loss_gradient(layer(h, W, 1), batch.target);
    const Tensor G1 = at::gelu_backward(at::matmul(G2, W[second()].transpose(-1, -2)), u_k, "tanh") * batch.eta;
    const Tensor G2_eta = G2 * batch.eta;
    const Tensor u = move(batch, batch.q, bias_ ? batch.qk1 : batch.qk, G1, W, D, 0);
    const Tensor a = at::gelu(u, "tanh");
    const Tensor ah = (at::matmul(a, h.transpose(-1, -2)) + (bias_ ? 1 : 0)).tril();
    const Tensor z = move(batch, a, ah, G2_eta, W, D, 1);
    add(D, 0, batch.k, G1);
    add(D, 1, h, G2_eta);
    return z;
  }

 private:
  size_t second() const { return bias_ ? 2 : 1; }

  /// x W + b of layer 0 or 1.
  Tensor layer(const Tensor& x, const Weights& W, size_t index) const {
    const size_t at = index * second();
    return bias_ ? at::matmul(x, W[at]) + W[at + 1] : at::matmul(x, W[at]);
  }

  /// x_i W_i + b_i with the weights each token has reached; products = tril(x h^T), plus 1 when there are biases.
  Tensor move(const InnerBatch& batch, const Tensor& x, const Tensor& products, const Tensor& G, const Weights& W,
              const Weights& D, size_t index) const {
    Tensor moved = at::matmul(products, G);
    if (D[index * second()].defined()) moved = moved + layer(x, D, index);
    return at::addcmul(layer(x, W, index), batch.scale, moved, -1);
  }

  /// D += sum_j h_j^T G_j, and G_j for the bias.
  void add(Weights& D, size_t index, const Tensor& h, const Tensor& G) const {
    Tensor& W = D[index * second()];
    const Tensor sum = at::matmul(h.transpose(-1, -2), G);
    W = W.defined() ? W + sum : sum;
    if (!bias_) return;
    Tensor& b = D[index * second() + 1];
    b = b.defined() ? b + G.sum(2, true) : G.sum(2, true);
  }

  bool bias_;
};

struct TTTMlpConfig : TTTConfig {
  TTTMlpConfig() { ttt_base_lr = 0.1; }
};

}  // namespace

std::unique_ptr<InnerModel> mlp_inner_model(bool bias) { return std::make_unique<Mlp>(bias); }

extern const MixerSpec ttt_mlp_spec;
const MixerSpec ttt_mlp_spec = {
    .name = "ttt_mlp",
    .help = "TTT layer whose state is a two-layer MLP (Learning to (Learn at Test Time), 2024)",
    .config = make_config<TTTMlpConfig>,
    .make = [](const Config& config, int64_t D) -> std::shared_ptr<Mixer> {
      const auto& options = dynamic_cast<const TTTConfig&>(config);
      return std::make_shared<TTT>("ttt_mlp", options, D, mlp_inner_model(options.bias));
    },
};

}  // namespace lineal
