#include <ATen/ATen.h>
#include <sys/resource.h>

#include <cmath>

#include "core/error.h"
#include "mixers/mixer.h"
#include "positions/rope.h"
#include "testing/testing.h"

namespace lineal {
namespace {

struct Options {
  int64_t heads = 6, key_heads = 2, window = 0;
  double theta = 100;
  int64_t head_dim = 0, rotary_dims = 0;
  bool biases = false;
  double scale = 0;
};

/// Softmax attention written out: one query at a time over the keys it may see.
Tensor naive(const torch::OrderedDict<std::string, Tensor>& weights, const Options& options, const Tensor& x,
             const Segments& segments) {
  const int64_t B = x.size(0), T = x.size(1), H = options.heads, G = H / options.key_heads;
  const int64_t K = options.head_dim > 0 ? options.head_dim : x.size(2) / H;
  const double scale = options.scale > 0 ? options.scale : 1 / std::sqrt(static_cast<double>(K));
  const auto map = [&](const Tensor& y, const std::string& name) {
    return at::linear(y, weights[name + ".weight"], options.biases ? weights[name + ".bias"] : Tensor());
  };
  const Tensor position = segments.positions(at::zeros({B}, at::kLong), T);
  const Tensor document = segments.documents(B, T, at::kCPU);
  const auto heads = [&](const char* name) { return map(x, name).unflatten(2, {-1, K}); };
  Tensor q = heads("q_proj"), k = heads("k_proj");
  const Tensor v = heads("v_proj");
  const int64_t R = options.rotary_dims > 0 ? options.rotary_dims : K;
  const auto turned = [&](const Tensor& y) {
    return at::cat({rope(y.slice(3, 0, R), position, options.theta, RopePairs::halves), y.slice(3, R)}, 3);
  };
  if (options.theta > 0) {
    q = turned(q);
    k = turned(k);
  }
  Tensor o = at::zeros({B, T, H, K}, x.options());
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t h = 0; h < H; ++h) {
        std::vector<double> weight;
        std::vector<int64_t> seen;
        for (int64_t j = 0; j <= t; ++j) {
          if (document[b][j].item<int64_t>() != document[b][t].item<int64_t>()) continue;
          if (options.window > 0 && t - j >= options.window) continue;
          seen.push_back(j);
          weight.push_back((q[b][t][h] * k[b][j][h / G]).sum().item<double>() * scale);
        }
        const Tensor probability = at::tensor(weight, at::kDouble).softmax(0);
        o[b][t][h] = at::matmul(probability, v[b].index_select(0, at::tensor(seen, at::kLong)).select(1, h / G));
      }
    }
  }
  return map(o.flatten(2), "o_proj");
}

std::shared_ptr<Mixer> make(const Options& options, int64_t D) {
  auto mixer = make_mixer("attention",
                          {{"num_attention_heads", options.heads},
                           {"num_key_value_heads", options.key_heads},
                           {"rope_theta", options.theta},
                           {"sliding_window", options.window},
                           {"head_dim", options.head_dim},
                           {"rotary_dims", options.rotary_dims},
                           {"qkv_bias", options.biases},
                           {"out_bias", options.biases},
                           {"scale", options.scale}},
                          D);
  mixer->reset_parameters(1 / std::sqrt(static_cast<double>(D)));
  at::NoGradGuard no_grad;
  for (const auto& item : mixer->named_parameters()) {
    if (item.key().ends_with("bias")) item.value().normal_();
  }
  mixer->to(at::kDouble);
  return mixer;
}

TEST(Attention, IsSoftmaxAttention) {
  at::NoGradGuard no_grad;
  const int64_t B = 3, T = 37, D = 24;
  const Tensor x = normal({B, T, D}, 1, at::kDouble);
  Segments segments{at::zeros({B, T}, at::kBool)};
  segments.starts[0][0] = true;
  segments.starts[1][4] = true;
  segments.starts[1][5] = true;
  segments.starts[2][12] = true;
  for (const Options& options :
       {Options{}, Options{.key_heads = 6, .theta = 0}, Options{.key_heads = 1}, Options{.window = 1},
        Options{.window = 5}, Options{.window = 13}, Options{.window = 40}, Options{.head_dim = 10, .rotary_dims = 4},
        Options{.window = 5, .biases = true, .scale = 0.9}}) {
    const auto mixer = make(options, D);
    for (const auto& documents : {Segments{}, segments}) {
      SCOPED_TRACE(text("key heads ", options.key_heads, ", head_dim ", options.head_dim, ", window ", options.window,
                        ", theta ", options.theta, documents.none() ? "" : ", documents"));
      const Tensor expected = naive(mixer->named_parameters(), options, x, documents);
      State state = mixer->initial_state(B);
      EXPECT_CLOSE(mixer->forward(x, state, documents), expected, 1e-12);
      for (const int64_t cut : {1, 6, 36}) {
        State split = mixer->initial_state(B);
        const Tensor first = mixer->forward(x.slice(1, 0, cut), split, documents.slice(0, cut));
        const Tensor second = mixer->forward(x.slice(1, cut), split, documents.slice(cut, T));
        EXPECT_CLOSE(at::cat({first, second}, 1), expected, 1e-12) << "cut " << cut;
        EXPECT_CLOSE(split.at("k"), state.at("k"), 1e-12);
        EXPECT_CLOSE(split.at("v"), state.at("v"), 1e-12);
      }
    }
  }
}

/// A window's cost grows with T times the window: 2^14 tokens would need gibibytes of scores otherwise.
TEST(Attention, AWindowNeedsMemoryForItselfAlone) {
  at::NoGradGuard no_grad;
  const int64_t T = 1 << 14, W = 33;
  auto mixer = make({.window = W}, 24);
  mixer->to(at::kFloat);
  const Tensor x = normal({1, T, 24}, 1);
  Segments segments{at::zeros({1, T}, at::kBool)};
  segments.starts[0][9000] = true;
  for (const auto& documents : {Segments{}, segments}) {
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    State state = mixer->initial_state(1);
    const Tensor y = mixer->forward(x, state, documents);
    getrusage(RUSAGE_SELF, &after);
    EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 64 << 10) << "KiB";
    State last = mixer->initial_state(1);  // the last tokens see nothing but one another
    last["position"] = at::full({1}, T - 2 * W, at::kLong);
    last["k"] = at::zeros({1, W - 1, 2, 4});
    last["v"] = at::zeros({1, W - 1, 2, 4});
    if (!documents.none()) last["position"].sub_(9000);
    EXPECT_CLOSE(mixer->forward(x.slice(1, T - 2 * W), last).slice(1, W), y.slice(1, T - W), 1e-5);
  }
}

TEST(Attention, StateHoldsWhatCanStillBeSeen) {
  at::NoGradGuard no_grad;
  const int64_t T = 9;
  const Tensor x = normal({2, T, 24}, 1, at::kDouble);
  Segments segments{at::zeros({2, T}, at::kBool)};
  segments.starts[0][3] = true;
  segments.starts[1][7] = true;
  const auto length = [&](const Options& options, const Segments& documents) {
    const auto mixer = make(options, 24);
    State state = mixer->initial_state(2);
    mixer->forward(x, state, documents);
    return state.at("k").size(1);
  };
  EXPECT_EQ(length({}, {}), 9);
  EXPECT_EQ(length({}, segments), 6);  // the longer of the running documents
  EXPECT_EQ(length({.window = 5}, {}), 4);
  EXPECT_EQ(length({.window = 5}, segments), 4);
  EXPECT_EQ(length({.window = 8}, segments), 6);
  const auto mixer = make({}, 24);
  State state = mixer->initial_state(2);
  mixer->forward(x, state, segments);
  EXPECT_TRUE(state.at("k")[1].slice(0, 0, 4).eq(0).all().item<bool>());  // row 1's own are the last two
  EXPECT_TRUE(state.at("k")[1].slice(0, 4).ne(0).all().item<bool>());
}

/// Rows that have read documents of different lengths go on in one batch as they would alone.
TEST(Attention, RowsOfDifferentLengthsShareABatch) {
  at::NoGradGuard no_grad;
  for (const int64_t window : {0, 4}) {
    const auto mixer = make({.window = window}, 24);
    const Tensor x = normal({1, 11, 24}, 1, at::kDouble), y = normal({1, 3, 24}, 2, at::kDouble),
                 next = normal({2, 5, 24}, 3, at::kDouble);
    State first = mixer->initial_state(1), second = mixer->initial_state(1);
    mixer->forward(x, first);
    mixer->forward(y, second);
    State both = State::cat({first, second});
    const Tensor together = mixer->forward(next, both);
    EXPECT_CLOSE(together.slice(0, 0, 1), mixer->forward(next.slice(0, 0, 1), first), 1e-12);
    EXPECT_CLOSE(together.slice(0, 1, 2), mixer->forward(next.slice(0, 1, 2), second), 1e-12);
  }
}

TEST(Attention, RefusesWhatCannotBe) {
  const auto with = [](const Json& options, int64_t D) { return make_mixer("attention", options, D); };
  EXPECT_ERROR(with({{"num_attention_heads", 6}, {"num_key_value_heads", 4}}, 24),
               "num_key_value_heads is 4, expected a divisor of num_attention_heads 6");
  EXPECT_ERROR(with({{"num_attention_heads", 8}}, 24), "head size is 3");
  EXPECT_ERROR(with({{"num_attention_heads", 5}}, 24), "expected a divisor of hidden_size 24");
  const auto mixer = make({}, 24);
  State state = mixer->initial_state(2);
  EXPECT_ERROR(mixer->forward(at::zeros({3, 5, 24}, at::kDouble), state), "the state holds 2 sequences, x has 3");
}

}  // namespace
}  // namespace lineal
