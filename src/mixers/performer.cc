// Performer: attention through random features, whose sums over the past are the state.
//                                                (Rethinking Attention with Performers, 2021, eq. 5 and section 3)
//   initial  S_0 = 0                                                              [M, V + 1] per head
//   update   p_t = max(p_{t-1}, peak(k_t)), p_1 = peak(k_1)
//            S_t = exp(p_{t-1} - p_t) S_{t-1} + phi(k_t; p_t) [v_t, 1]^T
//   output   [a, d] = S_t^T phi(q_t; peak(q_t)),  o_t = a / d
//   cost     O(T M (V + C)) time, M V state per head
// phi of random_features.cc, q and k times K^{-1/4}; p_t, the largest exponent among the document's keys so far, keeps
// features within float32 and cancels but for their epsilon. No key moves an earlier output, as a maximum over all keys
// would. Without p for generalised kernels, without d when not renormalized. Signed features, and those without an
// epsilon, have a d that may vanish: d + 2 s where |d| <= s.
//   bidirectional   S over all tokens of t's document in the call, and those the state has read
// Parameters carry attention's names and meaning: weights trained with softmax go on with phi.
#include <ATen/ATen.h>

#include <cmath>

#include "core/error.h"
#include "mixers/feature_attention.h"
#include "mixers/linear.h"
#include "mixers/mixer.h"
#include "mixers/probe.h"
#include "mixers/random_features.h"
#include "positions/rope.h"

namespace lineal {
namespace {

std::vector<std::string> feature_maps() {
  auto kinds = FeatureMap::softmax_kinds();
  for (const auto& kind : FeatureMap::generalised_kinds()) kinds.push_back(kind);
  return kinds;
}

constexpr double kLeastDenominator = 1e-30;

struct PerformerConfig : Config {
  int64_t num_attention_heads = 4;
  int64_t num_key_value_heads = 0;
  double rope_theta = 10000;
  std::string feature_map = "positive";
  int64_t num_features = 256;
  std::string projection = "r-orf";
  std::string row_norms = "chi";
  int64_t redraw_interval = 0;
  bool renormalize = true;
  double stabilizer = 1e-6;
  double kernel_epsilon = 1e-3;
  int64_t chunk_size = 64;
  int64_t head_dim = 0;
  bool qkv_bias = false;
  bool out_bias = false;

  std::vector<Field> fields() override {
    return {
        {"num_attention_heads", &num_attention_heads, size_range(), "query heads"},
        {"num_key_value_heads", &num_key_value_heads, between(0, 1 << 20), "key and value heads; 0: as many"},
        {"rope_theta", &rope_theta, at_least(0), "rotary base; 0 for none"},
        {"feature_map", &feature_map, one_of(feature_maps()),
         "features of the softmax kernel (the first three), or f of a generalised kernel"},
        {"num_features", &num_features, size_range(),
         "rows of the projection; trig and hyperbolic have two features each"},
        {"projection", &projection, one_of({"r-orf", "h-orf", "g-orf", "iid", "none"}),
         "how its rows are drawn: orthogonal by Gram-Schmidt, Hadamard or Givens matrices, independent; none: f of x"},
        {"row_norms", &row_norms, one_of({"chi", "sqrt"}), "those of Gaussian rows, or the root of the head size"},
        {"redraw_interval", &redraw_interval, between(0, 1LL << 40), "training steps between new rows; 0: never"},
        {"renormalize", &renormalize, {}, "divide by the sum of the weights; needed by the softmax kernel"},
        {"stabilizer", &stabilizer, between(0, 1), "added to softmax features; least denominator of signed ones"},
        {"kernel_epsilon", &kernel_epsilon, between(0, 1), "added to generalised features"},
        {"chunk_size", &chunk_size, size_range(), "tokens computed at once; changes no result"},
        {"head_dim", &head_dim, between(0, 1 << 20), "size of a head; 0: hidden_size / num_attention_heads", 0},
        {"qkv_bias", &qkv_bias, {}, "what makes queries, keys and values has a bias", false},
        {"out_bias", &out_bias, {}, "what makes the output has a bias", false},
    };
  }
  void validate(const std::string& who) override {
    if (num_key_value_heads > 0 && num_attention_heads % num_key_value_heads != 0) {
      fail(who, ": num_key_value_heads is ", num_key_value_heads, ", expected a divisor of num_attention_heads ",
           num_attention_heads);
    }
    check_rotary_base(who, rope_theta);
    if (!FeatureMap(feature_map, 0).is_softmax()) return;
    if (projection == "none") fail(who, ": feature_map ", feature_map, " needs a projection, expected one but none");
    if (!renormalize) fail(who, ": feature_map ", feature_map, " needs renormalize, expected true");
  }
};

class Performer : public Mixer {
 public:
  Performer(std::string who, const PerformerConfig& config, int64_t D, bool causal)
      : who_(std::move(who)),
        config_(config),
        causal_(causal),
        D_(D),
        H_(config.num_attention_heads),
        H_kv_(config.num_key_value_heads > 0 ? config.num_key_value_heads : H_),
        K_(config.head_dim > 0 ? config.head_dim : head_size(who_, D, H_)),
        M_(config.projection == "none" ? K_ : config.num_features),
        phi_(config.feature_map,
             FeatureMap(config.feature_map, 0).is_softmax() ? config.stabilizer : config.kernel_epsilon) {
    if (config.rope_theta > 0 && K_ % 2 != 0) {
      fail(who_, ": head size is ", K_, ", rotary embedding needs an even one");
    }
    q_proj_ = register_module("q_proj", linear(D, H_ * K_, config.qkv_bias));
    k_proj_ = register_module("k_proj", linear(D, H_kv_ * K_, config.qkv_bias));
    v_proj_ = register_module("v_proj", linear(D, H_kv_ * K_, config.qkv_bias));
    o_proj_ = register_module("o_proj", linear(H_ * K_, D, config.out_bias));
    if (config.projection != "none") projection_ = register_buffer("projection_matrix", at::empty({M_, K_}));
  }

  /// Parts: S [B, H, features, V + 1] (V without renormalize), for the softmax kernel peak [B, H], and position [B].
  State initial_state(int64_t B) const override {
    State state;
    state["S"] = at::zeros({B, H_, phi_.count(M_), K_ + (config_.renormalize ? 1 : 0)}, state_options());
    if (phi_.is_softmax()) state["peak"] = at::zeros({B, H_}, state_options());
    state["position"] = at::zeros({B}, state_options().dtype(at::kLong));
    return state;
  }

  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    return mix(x, state, segments, nullptr);
  }
  Tensor step(const Tensor& x, State& pool, const Rows& rows) override {
    return causal_ ? mix(x, pool, {}, &rows) : Mixer::step(x, pool, rows);
  }

  void begin_step(int64_t step) override {
    if (config_.redraw_interval > 0 && step > 0 && step % config_.redraw_interval == 0) redraw();
  }

  void reset_parameters(double deviation) override {
    for (auto* map : {&q_proj_, &k_proj_, &v_proj_, &o_proj_}) reset_linear(*map, deviation);
    redraw();
  }

 private:
  Tensor mix(const Tensor& x, State& state, const Segments& segments, const Rows* rows) {
    const Dims dims = check_input(who_.c_str(), x, state, D_, rows);
    const auto type = state_options().dtype().toScalarType();
    const Tensor position = count(state, dims['T'], segments, rows);  // [B, T]
    Tensor q = q_proj_(x).to(type).unflatten(2, {H_, K_});            // [B, T, H, K]
    Tensor k = k_proj_(x).to(type).unflatten(2, {H_kv_, K_});
    Tensor v = v_proj_(x).to(type).unflatten(2, {H_kv_, K_}).repeat_interleave(H_ / H_kv_, 2);
    v = probed(probe, v);
    if (config_.rope_theta > 0) {
      q = rope(q, position, config_.rope_theta, RopePairs::halves);
      k = rope(k, position, config_.rope_theta, RopePairs::halves);
    }
    k = k.repeat_interleave(H_ / H_kv_, 2);
    Tensor o;
    {
      const FullPrecision guard(x);
      if (config_.renormalize) v = at::cat({v, at::ones({v.size(0), v.size(1), H_, 1}, v.options())}, 3);
      kernels::FeatureAttentionInput in{.q = q,
                                        .k = k,
                                        .v = v,
                                        .projection = projection_.defined() ? projection_ : at::eye(K_, q.options()),
                                        .map = config_.feature_map,
                                        .scale = std::pow(static_cast<double>(K_), -0.25),
                                        .epsilon = phi_.epsilon(),
                                        .S = state["S"],
                                        .fresh = position.select(1, 0) == 0,
                                        .starts = segments.starts,
                                        .rows = rows};
      if (phi_.is_softmax()) in.peak = state["peak"];
      const auto out = causal_ ? feature_attention(in, config_.chunk_size) : feature_attention_in_documents(in);
      o = out.o;
      state["S"] = out.S;
      if (phi_.is_softmax()) state["peak"] = out.peak;
      if (config_.renormalize) o = o.slice(3, 0, K_) / denominator(o.slice(3, K_));
      if (config_.feature_map == "exp" && !o.isfinite().all().item<bool>()) {
        fail(who_, ": feature_map exp overflows for keys and queries this long, expected feature_map positive");
      }
      if (probe) probe->outputs = o;
    }
    return o_proj_(o.flatten(2));
  }

  void redraw() {
    if (!projection_.defined()) return;
    const auto norms = config_.row_norms == "chi" ? RowNorms::chi : RowNorms::sqrt;
    projection_.copy_(draw_projection(M_, K_, drawing(config_.projection), norms, projection_.options()));
  }

  Tensor denominator(const Tensor& d) const {
    if (!phi_.is_signed() && phi_.epsilon() > 0) return d;
    const double s = std::max(config_.stabilizer, kLeastDenominator);
    return d + 2 * s * (d.abs() <= s);
  }

  std::string who_;
  PerformerConfig config_;
  bool causal_;
  int64_t D_, H_, H_kv_, K_, M_;
  FeatureMap phi_;
  LinearMap q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, o_proj_{nullptr};
  Tensor projection_;
};

}  // namespace

extern const MixerSpec performer_spec;
const MixerSpec performer_spec = {
    .name = "performer",
    .help = "attention through random features (Rethinking Attention with Performers, 2021)",
    .config = make_config<PerformerConfig>,
    .make = [](const Config& config, int64_t D) -> std::shared_ptr<Mixer> {
      return std::make_shared<Performer>("performer", dynamic_cast<const PerformerConfig&>(config), D, /*causal=*/true);
    },
};

extern const MixerSpec performer_bidirectional_spec;
const MixerSpec performer_bidirectional_spec = {
    .name = "performer_bidirectional",
    .help = "the same over all tokens of a call's documents (Rethinking Attention with Performers, 2021)",
    .causal = false,
    .config = make_config<PerformerConfig>,
    .make = [](const Config& config, int64_t D) -> std::shared_ptr<Mixer> {
      return std::make_shared<Performer>("performer_bidirectional", dynamic_cast<const PerformerConfig&>(config), D,
                                         /*causal=*/false);
    },
};

}  // namespace lineal
