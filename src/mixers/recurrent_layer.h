// What layers around a linear recurrence have in common: projections, short convolutions, heads, norm and gate.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "mixers/linear.h"
#include "mixers/mixer.h"
#include "mixers/rms_norm.h"
#include "mixers/short_conv.h"

namespace lineal {

/// Layers give their own defaults and append their own fields.
struct RecurrentConfig : Config {
  int64_t num_attention_heads = 4;
  double expand_k = 1;
  double expand_v = 1;
  bool short_conv = false;
  int64_t conv_kernel = 4;
  bool use_gate = false;
  int64_t chunk_size = 64;

  std::vector<Field> fields() override;
};

/// y_t = W_o (w o_t / rms(o_t) [. silu(W_g x_t)]), the norm per head; q, k, v = W x, with short_conv through a
/// convolution and silu. What differs is the recurrence that makes o of them.
class RecurrentLayer : public Mixer {
 public:
  /// `silu`: after the projections of q, k and v, also when there is no convolution.
  RecurrentLayer(std::string who, const RecurrentConfig& config, int64_t D, bool silu = false);

  /// Parts: S [B, H, K, V], position [B] (tokens of the document read), and with short_conv the windows conv_q, conv_k
  /// [B, conv_kernel - 1, H K] and conv_v [B, conv_kernel - 1, H V].
  State initial_state(int64_t B) const override;
  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    return mix(x, state, segments, nullptr);
  }
  Tensor step(const Tensor& x, State& pool, const Rows& rows) override { return mix(x, pool, {}, &rows); }
  void reset_parameters(double deviation) override;

 protected:
  /// What a call brings to the recurrence.
  struct Views {
    Tensor x;             // [B, T, D]
    Tensor q, k;          // [B, T, H, K], as the projections gave them
    Tensor v;             // [B, T, H, V]
    Tensor position;      // int64 [B, T], places in the document
    at::ScalarType type;  // of the state
    const Segments& segments;
    const Rows* rows;
  };
  /// o [B, T, H, V], and in the state what the recurrence keeps.
  virtual Tensor recur(const Views& in, State& state) = 0;
  /// The linear recurrence of q, k, v, beta and g, from and to S of the state: K^{-1/2} o, in the state's type.
  Tensor linear_recur(kernels::RecurrenceInput recurrence, const Views& in, State& state) const;

  const int64_t H_, K_, V_;

 private:
  Tensor mix(const Tensor& x, State& state, const Segments& segments, const Rows* rows);

  std::string who_;
  int64_t D_, chunk_size_;
  bool silu_;
  LinearMap q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, g_proj_{nullptr}, o_proj_{nullptr};
  std::shared_ptr<ShortConv> conv_q_, conv_k_, conv_v_;
  std::shared_ptr<RmsNorm> o_norm_;
};

/// x / sqrt(|x|^2 + 1e-6) over the last dimension, a key of length 1; computed in `type` and bfloat16 if x is.
Tensor unit(const Tensor& x, at::ScalarType type);

}  // namespace lineal
