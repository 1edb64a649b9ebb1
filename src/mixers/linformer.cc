// Linformer: attention over M mixtures of all keys and values, for texts of at most N tokens; not causal.
//                                                          (Linformer: Self-Attention with Linear Complexity, 2020)
//   initial  k' = v' = 0                                                          [M, K] per key head
//   update   k' += sum_t E_{p_t} k_t^T,  v' += sum_t F_{p_t} v_t^T                p_t the place of t in its document
//   output   o_t = softmax(K^{-1/2} q_t k'^T) v',  k' and v' of t's whole document in the call and all before it
//   cost     O(T M K) time for each document of a call, 2 M K state per key head
// E, F [N, M] are learned and shared by all heads: row p is what place p gives to each mixture, so a shorter text uses
// the first rows. share_kv: v = k and F = E. A token takes part in mixtures that earlier tokens read: no causal mixer.
#include <ATen/ATen.h>

#include <cmath>

#include "core/error.h"
#include "mixers/linear.h"
#include "mixers/mixer.h"

namespace lineal {
namespace {

struct LinformerConfig : Config {
  int64_t num_attention_heads = 4;
  int64_t head_dim = 0;
  int64_t sequence_length = 1024;
  int64_t num_mixtures = 64;
  bool share_kv = false;
  bool one_kv_head = false;

  std::vector<Field> fields() override {
    return {
        {"num_attention_heads", &num_attention_heads, size_range(), "query heads"},
        {"head_dim", &head_dim, between(0, 1 << 20), "size of a head; 0: hidden_size / num_attention_heads"},
        {"sequence_length", &sequence_length, size_range(), "most tokens of a text; each has its row in E and F"},
        {"num_mixtures", &num_mixtures, size_range(), "mixtures of keys and values that a query sees"},
        {"share_kv", &share_kv, {}, "values are the keys, mixed alike"},
        {"one_kv_head", &one_kv_head, {}, "one key and value head for all queries"},
    };
  }
};

class Linformer : public Mixer {
 public:
  Linformer(const LinformerConfig& config, int64_t D)
      : D_(D),
        H_(config.num_attention_heads),
        H_kv_(config.one_kv_head ? 1 : H_),
        K_(config.head_dim > 0 ? config.head_dim : head_size("linformer", D, H_)),
        N_(config.sequence_length),
        M_(config.num_mixtures),
        shared_(config.share_kv) {
    q_proj_ = register_module("q_proj", linear(D, H_ * K_));
    k_proj_ = register_module("k_proj", linear(D, H_kv_ * K_));
    if (!shared_) v_proj_ = register_module("v_proj", linear(D, H_kv_ * K_));
    o_proj_ = register_module("o_proj", linear(H_ * K_, D, /*bias=*/true));
    E_ = register_parameter("proj_k", at::empty({N_, M_}));
    if (!shared_) F_ = register_parameter("proj_v", at::empty({N_, M_}));
  }

  /// Parts: k and, unless shared, v [B, H_kv, M, K], the mixtures; position [B].
  State initial_state(int64_t B) const override {
    State state;
    state["k"] = at::zeros({B, H_kv_, M_, K_}, state_options());
    if (!shared_) state["v"] = at::zeros({B, H_kv_, M_, K_}, state_options());
    state["position"] = at::zeros({B}, state_options().dtype(at::kLong));
    return state;
  }

  Tensor forward(const Tensor& x, State& state, const Segments& segments) override {
    const Dims dims = check_input("linformer", x, state, D_);
    const int64_t B = dims['B'], T = dims['T'];
    const Tensor place = segments.positions(state["position"], T);  // [B, T]
    if (const int64_t longest = place.max().item<int64_t>() + 1; longest > N_) {
      fail("linformer: a text of ", longest, " tokens, expected at most sequence_length ", N_);
    }
    const auto type = state_options().dtype().toScalarType();
    const Tensor q = q_proj_(x).to(type).unflatten(2, {H_, K_});  // [B, T, H, K]
    const Tensor k = k_proj_(x).to(type).unflatten(2, {H_kv_, K_});
    const Tensor v = shared_ ? k : v_proj_(x).to(type).unflatten(2, {H_kv_, K_});
    state["position"] = place.select(1, -1) + 1;
    Tensor o;
    {
      const FullPrecision guard(x);
      const Tensor document = segments.documents(B, T, x.device());  // [B, T]; 0 is the one the state belongs to
      const int64_t count = document.max().item<int64_t>() + 1;
      const Tensor running = document.select(1, -1).view({B, 1, 1, 1});
      const Tensor E = E_.index_select(0, place.flatten()).view({B, T, M_});
      const Tensor F = shared_ ? E : F_.index_select(0, place.flatten()).view({B, T, M_});
      Tensor k_last = state["k"], v_last = shared_ ? k_last : state["v"];
      for (int64_t d = 0; d < count; ++d) {
        const Tensor member = document == d;
        const auto mixtures = [&](const Tensor& rows, const Tensor& y, const Tensor& before) {
          const Tensor own = at::where(member.unsqueeze(2), rows, 0);
          const Tensor sum = at::einsum("btm,bthk->bhmk", {own, y});
          return d == 0 ? before + sum : sum;
        };
        const Tensor keys = mixtures(E, k, state["k"]), values = shared_ ? keys : mixtures(F, v, state["v"]);
        const Tensor answers = attend(q, keys, values);
        o = d == 0 ? answers : at::where(member.unsqueeze(2).unsqueeze(3), answers, o);
        k_last = d == 0 ? keys : at::where(running == d, keys, k_last);
        v_last = d == 0 ? values : at::where(running == d, values, v_last);
      }
      state["k"] = k_last;
      if (!shared_) state["v"] = v_last;
    }
    return o_proj_(o.flatten(2));
  }

  void reset_parameters(double deviation) override {
    at::NoGradGuard no_grad;
    for (auto* map : {&q_proj_, &k_proj_, &o_proj_}) reset_linear(*map, deviation);
    o_proj_->bias.zero_();
    E_.normal_(0, 1 / std::sqrt(static_cast<double>(M_)));
    if (shared_) return;
    reset_linear(v_proj_, deviation);
    F_.normal_(0, 1 / std::sqrt(static_cast<double>(M_)));
  }

 private:
  /// q [B, T, H, K] over mixtures k, v [B, H_kv, M, K] -> [B, T, H, K].
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v) const {
    const Tensor scores = at::matmul(q.transpose(1, 2), k.transpose(2, 3)) / std::sqrt(static_cast<double>(K_));
    return at::matmul(scores.softmax(-1), v).transpose(1, 2);
  }

  int64_t D_, H_, H_kv_, K_, N_, M_;
  bool shared_;
  LinearMap q_proj_{nullptr}, k_proj_{nullptr}, v_proj_{nullptr}, o_proj_{nullptr};
  Tensor E_, F_;
};

}  // namespace

extern const MixerSpec linformer_spec;
const MixerSpec linformer_spec = {
    .name = "linformer",
    .help = "attention over mixtures of all keys, for texts of a fixed length (Linformer, 2020)",
    .causal = false,
    .config = make_config<LinformerConfig>,
    .make = make_mixer<Linformer, LinformerConfig>,
};

}  // namespace lineal
