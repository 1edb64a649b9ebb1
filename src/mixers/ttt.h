// TTT: a layer whose hidden state is the weights of a small model, trained as it reads.
//                                    (Learning to (Learn at Test Time), Sun et al., 2024)
//   state    W, the weights of f                                               per head
//   loss     l(W; x) = 1/2 | g(k; W) - v |^2,   g(x; W) = x + LN(f(x; W))      k, v, q: views of the token
//   update   W_i = W_0 - s_i * sum_{j <= i} eta_j * grad l(W_0; x_j)           inside an inner batch that starts at W_0
//   output   z_i = g(q_i; W_i)
//   eta_j    = base / K * sigmoid(w . x_j + c);   s_i = max(0, 1/(i+1) + a_i),  i the place in the inner batch
//   cost     linear in T; the state is constant
// Only the sums D = sum eta_j grad_j of an unfinished inner batch are kept besides W, so any split of the tokens into
// calls gives the same outputs. LN is per head, with weight gamma and bias beta.
#pragma once

#include <torch/nn/modules/normalization.h>

#include "kernels/kernels.h"
#include "mixers/derived.h"
#include "mixers/linear.h"
#include "mixers/mixer.h"
#include "mixers/short_conv.h"
#include "positions/rope.h"

namespace lineal {

using Weights = std::vector<Tensor>;

/// One inner batch, C tokens of it: what the inner model is trained on and asked.
struct InnerBatch {
  Tensor q, k;    // [B, H, C, K]
  Tensor target;  // [B, H, C, K]  what f with its norm should give for k: v - k with the residual, else v
  Tensor eta;     // [B, H, C, 1]  0 for padding
  Tensor scale;   // [B, 1, C, 1]  s_i
  Tensor qk;      // [B, H, C, C]  tril(q k^T), for `dual` only
  Tensor qk1;     // [B, H, C, C]  tril(q k^T + 1), the same where inputs end with a 1 for the bias
};

/// What an inner model's loss knows: the head's norm, absent when off.
struct InnerNorm {
  bool on = true;
  Tensor gamma, beta;  // [H, 1, K]
  static constexpr double kEps = 1e-6;

  /// LN(z) per head, or z when off.
  Tensor operator()(const Tensor& z) const;
  /// d 1/2 |LN(z) - target|^2 / dz, differentiable once more.
  Tensor loss_gradient(const Tensor& z, const Tensor& target) const;
};

/// The small model f(x; W). Subclass it, give weights and forward, and TTT trains it by automatic differentiation; a
/// closed dual form is an optional speed-up. docs/inner_model.md walks through one.
class InnerModel {
 public:
  struct Weight {
    std::string name;
    std::vector<int64_t> shape;  // per head
    double deviation;            // of the initial normal distribution; 0 for zeros
  };
  virtual ~InnerModel() = default;

  /// The weights of one head for key size K.
  virtual std::vector<Weight> weights(int64_t K) const = 0;

  /// f(x; W): x [N, R, K], every weight [N, shape...] -> [N, R, K]. Each of the N has its own weights.
  virtual Tensor forward(const Tensor& x, const Weights& W) const = 0;

  virtual bool has_dual() const { return false; }
  /// Adds this batch's sums of eta_j grad_j to D and returns f(q_i; W - s_i D_i) [B, H, C, K], forming no gradient per
  /// token. W and D are [B, H, shape...]; an entry of D that is undefined is zero. Called when has_dual() is true.
  virtual Tensor dual(const InnerBatch& batch, const InnerNorm& norm, const Weights& W, Weights& D) const;

  /// The fused form of the whole inner loop, or null.
  virtual const kernels::Operation<kernels::TTTOutput, kernels::TTTInput>* kernel() const { return nullptr; }
};

/// The same by automatic differentiation, one gradient per token: the definition, for every inner model.
Tensor ttt_primal(const InnerModel& f, const InnerBatch& batch, const InnerNorm& norm, const Weights& W, Weights& D);

/// The inner loop over all tokens of a call, in the dual form or, token by token, the primal one. Computes in the type
/// of eta and the state; o has that of q.
kernels::TTTOutput ttt_reference(const InnerModel& f, const kernels::TTTInput& in, bool dual);

/// Field names are those of the public TTT models where they have one.
struct TTTConfig : Config {
  int64_t num_attention_heads = 4;
  int64_t mini_batch_size = 16;
  double ttt_base_lr = 1.0;
  bool share_qk = false;
  bool use_gate = false;
  int64_t conv_kernel = 4;
  double rope_theta = 10000;
  bool norm = true;
  bool residual = true;
  bool bias = true;
  std::string eta = "learned";
  std::string initial_weights = "learned";
  std::string form = "auto";

  std::vector<Field> fields() override;
};

class TTT : public Mixer {
 public:
  TTT(std::string name, const TTTConfig& config, int64_t D, std::unique_ptr<InnerModel> inner);

  /// Parts: each weight [B, H, shape...] at the start of the running inner batch, its sum `NAME_step`, position [B]
  /// (tokens of the document read), and with share_qk the window `conv` [B, conv_kernel - 1, D].
  State initial_state(int64_t B) const override;
  Tensor forward(const Tensor& x, State& state, const Segments& segments) override;
  Tensor step(const Tensor& x, State& pool, const Rows& rows) override;
  void reset_parameters(double deviation) override;

  /// The weights the last token was answered with, W - s_i D: [B, H, shape...] each, in the order of the inner model.
  Weights current_weights(const State& state);

 private:
  struct Views {
    Tensor q, k, v;  // [B, T, H, K]
    Tensor eta;      // [B, T, H]
  };
  Tensor mix(const Tensor& x, State& state, const Segments& segments, const Rows* rows);
  Views views(const Tensor& x, const Tensor& position, State& state, const Segments& segments, const Rows* rows);
  Tensor token_scale();
  const RopeTable& table(at::TensorOptions like);
  /// [B, H, shape...] each, in memory of their own, differentiable.
  Weights initial_weights(int64_t B) const;
  Tensor learn(const Views& views, const Tensor& position, State& state, const Segments& segments, const Rows* rows);

  std::string name_;
  TTTConfig config_;
  int64_t D_, H_, K_;
  std::unique_ptr<InnerModel> inner_;
  std::vector<InnerModel::Weight> shapes_;
  Weights weights_;
  LinearMap q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, o_proj_{nullptr}, g_proj_{nullptr};
  std::shared_ptr<ShortConv> conv_q_, conv_k_;
  torch::nn::LayerNorm post_norm_{nullptr};
  Tensor lr_weight_, lr_bias_, token_idx_, norm_weight_, norm_bias_;
  Derived scale_;
  RopeTable table_;  // of the places in an inner batch
};

/// The two published inner models; `bias` off leaves out b1 and b2.
std::unique_ptr<InnerModel> linear_inner_model(bool bias);
std::unique_ptr<InnerModel> mlp_inner_model(bool bias);

}  // namespace lineal
