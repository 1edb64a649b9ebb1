// Linear attention: the sum of all keys times values is the state.        (Transformers are RNNs, 2020, eq. 18-20)
//   initial  S_0 = 0                                                      [K, V]
//   update   S_t = S_{t-1} + phi(k_t) v_t^T
//   output   o_t = K^{-1/2} S_t^T phi(q_t);   normalize: S_t^T phi(q_t) / (z_t . phi(q_t) + 1e-6), z_t = sum_j phi(k_j)
//   cost     O(T K (V + C)) time, K V state per head
// phi is the identity or elu + 1. z is the column of S that belongs to a value of ones.
#include <ATen/ATen.h>

#include <cmath>

#include "core/error.h"
#include "mixers/linear.h"
#include "mixers/linear_recurrence.h"
#include "mixers/mixer.h"
#include "mixers/probe.h"
#include "mixers/rms_norm.h"

namespace lineal {
namespace {

constexpr double kNormalizerEps = 1e-6;
constexpr double kHeadNormEps = 1e-5;

Tensor elu1(const Tensor& x) { return at::elu(x) + 1; }

struct LinearAttentionConfig : Config {
  int64_t num_attention_heads = 4;
  std::string feature_map = "identity";
  bool normalize = false;
  std::string output_norm = "auto";
  int64_t chunk_size = 64;

  std::vector<Field> fields() override {
    return {
        {"num_attention_heads", &num_attention_heads, size_range(), "heads, each with a state of its own"},
        {"feature_map", &feature_map, one_of({"identity", "elu1"}), "phi of queries and keys"},
        {"normalize", &normalize, {}, "divide by the sum of the weights; needs feature_map elu1"},
        {"output_norm", &output_norm, one_of({"auto", "on", "off"}), "RMS norm of each head; auto: unless normalize"},
        {"chunk_size", &chunk_size, size_range(), "tokens computed at once; changes no result"},
    };
  }
  void validate(const std::string& who) override {
    if (normalize && feature_map == "identity") {
      fail(who, ": normalize is true with feature_map identity, whose weights may sum to 0, expected feature_map elu1");
    }
  }
};

class LinearAttention : public Mixer {
 public:
  LinearAttention(const LinearAttentionConfig& config, int64_t D)
      : config_(config),
        D_(D),
        H_(config.num_attention_heads),
        K_(head_size("linear_attention", D, config.num_attention_heads)) {
    q_proj_ = register_module("q_proj", linear(D, D));
    k_proj_ = register_module("k_proj", linear(D, D));
    v_proj_ = register_module("v_proj", linear(D, D));
    if (config.output_norm == "on" || (config.output_norm == "auto" && !config.normalize)) {
      o_norm_ = register_module("o_norm", std::make_shared<RmsNorm>(K_, kHeadNormEps));
    }
    o_proj_ = register_module("o_proj", linear(D, D));
  }

  /// Parts: S [B, H, K, V], with normalize z [B, H, K], and position [B], the tokens of the document read.
  State initial_state(int64_t B) const override {
    State state;
    state["S"] = at::zeros({B, H_, K_, K_}, state_options());
    if (config_.normalize) state["z"] = at::zeros({B, H_, K_}, state_options());
    state["position"] = at::zeros({B}, state_options().dtype(at::kLong));
    return state;
  }

  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    return mix(x, state, segments, nullptr);
  }
  Tensor step(const Tensor& x, State& pool, const Rows& rows) override { return mix(x, pool, {}, &rows); }

  void reset_parameters(double deviation) override {
    for (auto* map : {&q_proj_, &k_proj_, &v_proj_, &o_proj_}) reset_linear(*map, deviation);
    if (o_norm_) o_norm_->reset_parameters();
  }

 private:
  Tensor mix(const Tensor& x, State& state, const Segments& segments, const Rows* rows) {
    const Dims dims = check_input("linear_attention", x, state, D_, rows);
    const auto type = state_options().dtype().toScalarType();
    const auto heads = [&](const Tensor& y) { return y.unflatten(2, {H_, K_}); };
    Tensor q = heads(q_proj_(x)), k = heads(k_proj_(x)), v = probed(probe, heads(v_proj_(x)));  // [B, T, H, K]
    count(state, dims['T'], segments, rows);
    Tensor o;
    {
      const FullPrecision guard(x);
      if (config_.feature_map == "elu1") q = elu1(q.to(type)), k = elu1(k.to(type)), v = v.to(type);
      o = config_.normalize ? normalized(q, k, v, state, segments, rows) : plain(q, k, v, state, segments, rows);
      if (probe) probe->outputs = o;
      if (o_norm_) o = o_norm_->forward(o);
    }
    return o_proj_(o.flatten(2));
  }

  /// o, and S becomes the final one.
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, Tensor& S, const Segments& segments,
                const Rows* rows) const {
    const auto out = linear_recurrence({.q = q, .k = k, .v = v, .S = S, .starts = segments.starts, .rows = rows},
                                       config_.chunk_size);
    S = out.S;
    return out.o;
  }

  Tensor plain(const Tensor& q, const Tensor& k, const Tensor& v, State& state, const Segments& segments,
               const Rows* rows) const {
    const Tensor o = attend(q, k, v, state["S"], segments, rows);
    return o.to(state["S"].scalar_type()) / std::sqrt(static_cast<double>(K_));
  }

  Tensor normalized(const Tensor& q, const Tensor& k, const Tensor& v, State& state, const Segments& segments,
                    const Rows* rows) const {
    const Tensor ones = at::ones({v.size(0), v.size(1), H_, 1}, v.options());
    if (rows) {  // the parts are in place and cannot be joined
      Tensor z = state["z"].unsqueeze(3);
      const Tensor o = attend(q, k, v, state["S"], segments, rows);
      return o / (attend(q, k, ones, z, segments, rows) + kNormalizerEps);
    }
    Tensor S = at::cat({state["S"], state["z"].unsqueeze(3)}, 3);  // [B, H, K, V + 1]
    const Tensor o = attend(q, k, at::cat({v, ones}, 3), S, segments, nullptr);
    state["S"] = own_storage(S.slice(3, 0, K_));
    state["z"] = own_storage(S.select(3, K_));
    return o.slice(3, 0, K_) / (o.slice(3, K_) + kNormalizerEps);
  }

  LinearAttentionConfig config_;
  int64_t D_, H_, K_;
  LinearMap q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, o_proj_{nullptr};
  std::shared_ptr<RmsNorm> o_norm_;
};

}  // namespace

extern const MixerSpec linear_attention_spec;
const MixerSpec linear_attention_spec = {
    .name = "linear_attention",
    .help = "the sum of keys times values as state (Transformers are RNNs, 2020)",
    .config = make_config<LinearAttentionConfig>,
    .make = make_mixer<LinearAttention, LinearAttentionConfig>,
};

}  // namespace lineal
