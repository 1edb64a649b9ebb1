#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "core/error.h"
#include "mixers/feature_attention.h"
#include "mixers/linear_recurrence.h"
#include "mixers/random_features.h"
#include "testing/plain_layer.h"

namespace lineal {
namespace {

struct Attention {
  Tensor phi_q, phi_k, v;  // [B, T, H, ...]

  /// Sums over all keys, or over the past; epsilon is added to every sum of key features.
  Tensor operator()(bool causal, double epsilon) const {
    const Tensor ones = at::ones({v.size(0), v.size(1), v.size(2), 1}, v.options()), values = at::cat({v, ones}, 3);
    Tensor o;
    if (causal) {
      const Tensor S = at::zeros({v.size(0), v.size(2), phi_k.size(3), values.size(3)}, v.options());
      o = linear_recurrence_chunked({.q = phi_q, .k = phi_k, .v = values, .S = S}, 7).o;
    } else {
      o = at::einsum("bthm,bshm,bshv->bthv", {phi_q, phi_k, values});
    }
    return o.slice(3, 0, -1) / (o.slice(3, -1) + epsilon * phi_q.sum(3, true));
  }
};

/// The features of the public implementation, whose stabiliser of the keys is a maximum over all of them.
Attention public_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& projection,
                           double epsilon) {
  const double scale = std::pow(static_cast<double>(q.size(3)), -0.25);
  const FeatureMap phi("positive", epsilon);
  const auto queries = FeatureMap::project(q * scale, projection), keys = FeatureMap::project(k * scale, projection);
  return {phi(queries, queries.u.amax({-1}, true).detach()), phi(keys, keys.u.amax({1, 3}, true).detach()), v};
}

TEST(Performer, GoldenAttention) {
  for (const char* id : {"performer/favor_L64_d16_m32", "performer/favor_L64_d16_m40_small"}) {
    const Golden golden(id);
    for (const bool causal : {false, true}) {
      SCOPED_TRACE(text(id, ", causal ", causal));
      std::vector<Tensor> leaves;
      for (const char* name : {"q", "k", "v"}) leaves.push_back(golden[name].transpose(1, 2).clone().requires_grad_());
      const auto attention = public_attention(leaves[0], leaves[1], leaves[2], golden["proj"], 1e-4);
      const Tensor o = attention(causal, causal ? 1e-6 : 0).transpose(1, 2);
      EXPECT_CLOSE(o, golden[causal ? "out_causal" : "out"], 1e-5);
      if (!golden.has("grad.q")) continue;
      const auto gradients = torch::autograd::grad({(o * golden["probe"]).sum()}, leaves);
      size_t i = 0;
      for (const char* name : {"q", "k", "v"}) {
        EXPECT_CLOSE(gradients[i++].transpose(1, 2), golden[std::string(causal ? "grad_causal." : "grad.") + name],
                     1e-4)
            << name;
      }
    }
  }
}

TEST(Performer, GoldenGeneralisedAttention) {
  const Golden golden("performer/favor_L64_d16_m32");
  const Attention attention{golden["gen_relu_q"].transpose(1, 2), golden["gen_relu_k"].transpose(1, 2),
                            golden["v"].to(at::kDouble).transpose(1, 2)};
  EXPECT_CLOSE(attention(false, 0).transpose(1, 2), golden["gen_relu_out"], 1e-5);
  EXPECT_CLOSE(attention(true, 1e-6).transpose(1, 2), golden["gen_relu_out_causal"], 1e-5);
}

/// The layer's own operations, whose ReLU features have no shift that the golden's could differ from.
TEST(Performer, GoldenGeneralisedAttentionOfTheOperation) {
  const Golden golden("performer/favor_L64_d16_m32");
  const auto heads = [&](const char* name) { return golden[name].to(at::kFloat).transpose(1, 2).contiguous(); };
  const Tensor v = heads("v");
  kernels::FeatureAttentionInput in{
      .q = heads("q"), .k = heads("k"), .v = at::cat({v, at::ones_like(v).slice(3, 0, 1)}, 3)};
  const int64_t B = v.size(0), H = v.size(2), K = in.q.size(3), M = golden["proj"].size(0);
  in.projection = golden["proj"].to(at::kFloat), in.map = "relu", in.epsilon = 1e-3;
  in.scale = std::pow(static_cast<double>(K), -0.25);
  in.S = at::zeros({B, H, M, v.size(3) + 1}), in.fresh = at::ones({B}, at::kBool);
  for (const bool causal : {false, true}) {
    const Tensor o = (causal ? feature_attention(in, 16) : feature_attention_in_documents(in)).o;
    const Tensor sums = o.slice(3, -1) + (causal ? 1e-6 : 0);
    EXPECT_CLOSE((o.slice(3, 0, -1) / sums).transpose(1, 2), golden[causal ? "gen_relu_out_causal" : "gen_relu_out"],
                 1e-5)
        << causal;
  }
}

TEST(Performer, FeaturesThatAllVanishGiveNothing) {
  at::NoGradGuard no_grad;
  for (const bool causal : {true, false}) {
    const auto mixer = make_mixer(causal ? "performer" : "performer_bidirectional",
                                  {{"feature_map", "relu"}, {"kernel_epsilon", 0}, {"num_features", 4}}, 16);
    State state = mixer->initial_state(2);
    EXPECT_TRUE(mixer->forward(normal({2, 9, 16}, 1) * 0, state, {}).eq(0).all().item<bool>());
  }
  EXPECT_ERROR(make_mixer("performer", {{"rope_theta", 1e-300}}, 16), "expected a base above 1, or 0 for none");
}

/// phi(x) as random_features.cc's head has it, with the shift written out.
Tensor plain_phi(const std::string& kind, const Tensor& x, const Tensor& w, const Tensor& shift, double epsilon) {
  const Tensor u = at::matmul(x, w.t()), h = x.square().sum(-1, true) / 2;
  const double M = static_cast<double>(w.size(0));
  if (kind == "positive") return ((u - h - shift).exp() + epsilon) / std::sqrt(M);
  if (kind == "hyperbolic") {
    return (at::cat({(u - h - shift).exp(), (-u - h - shift).exp()}, -1) + epsilon) / std::sqrt(2 * M);
  }
  if (kind == "trig") return (h - shift).exp() * at::cat({u.sin(), u.cos()}, -1) / std::sqrt(M);
  return u.clamp_min(0) + epsilon;
}

Tensor plain_peak(const std::string& kind, const Tensor& x, const Tensor& w) {
  const Tensor u = at::matmul(x, w.t()), h = x.square().sum(-1, true) / 2;
  if (kind == "trig") return h;
  return std::get<0>((kind == "positive" ? u : at::cat({u, -u}, -1)).max(-1, true)) - h;
}

/// The layer as performer.cc's head has it, without rotation: every query against every key it sees.
Tensor plain_layer(Mixer& mixer, const std::string& kind, const Tensor& x, int64_t H, int64_t H_kv, bool causal,
                   bool renormalize) {
  const NamedWeights weights = mixer.named_parameters();
  const int64_t T = x.size(1), K = x.size(2) / H;
  const double scale = std::pow(static_cast<double>(K), -0.25), epsilon = kind == "relu" ? 1e-3 : 1e-6;
  Tensor w = at::eye(K, at::kDouble);
  for (const auto& buffer : mixer.named_buffers()) w = buffer.value();
  const Tensor q = scale * plain_view(weights, "q", x, H, false);
  const Tensor k = scale * plain_view(weights, "k", x, H_kv, false).repeat_interleave(H / H_kv, 2);
  const Tensor v = plain_view(weights, "v", x, H_kv, false).repeat_interleave(H / H_kv, 2);
  Tensor o = at::zeros_like(q);
  for (int64_t t = 0; t < T; ++t) {
    Tensor sum = at::zeros_like(q.select(1, t)), total = at::zeros_like(sum.slice(2, 0, 1));
    const int64_t end = causal ? t + 1 : T;
    const Tensor last = plain_peak(kind, k.slice(1, 0, end), w).amax({1});  // [B, H, 1]
    for (int64_t j = 0; j < end; ++j) {
      const Tensor then = causal ? plain_peak(kind, k.slice(1, 0, j + 1), w).amax({1}) : last;
      const Tensor phi_q = plain_phi(kind, q.select(1, t), w, plain_peak(kind, q.select(1, t), w), epsilon);
      Tensor weight = (phi_q * plain_phi(kind, k.select(1, j), w, then, epsilon)).sum(-1, true);
      if (kind != "relu") weight = weight * (then - last).exp();
      sum = sum + weight * v.select(1, j);
      total = total + weight;
    }
    o.select(1, t).copy_(renormalize ? sum / total : sum);
  }
  return at::linear(o.flatten(2), weights["o_proj.weight"]);
}

TEST(Performer, TheModuleIsItsFormulas) {
  at::NoGradGuard no_grad;
  at::manual_seed(3);
  const int64_t H = 4, H_kv = 2, D = 12;
  const Tensor x = normal({2, 11, D}, 1, at::kDouble);
  for (const bool causal : {true, false}) {
    for (const auto& [kind, projection, renormalize] :
         std::vector<std::tuple<std::string, std::string, bool>>{{"positive", "r-orf", true},
                                                                 {"hyperbolic", "iid", true},
                                                                 {"trig", "g-orf", true},
                                                                 {"relu", "h-orf", true},
                                                                 {"relu", "none", false}}) {
      SCOPED_TRACE(text(kind, ", causal ", causal));
      const Json options = {{"num_attention_heads", H},
                            {"num_key_value_heads", H_kv},
                            {"rope_theta", 0},
                            {"feature_map", kind},
                            {"num_features", 32},
                            {"projection", projection},
                            {"renormalize", renormalize},
                            {"chunk_size", 4}};
      const auto mixer = random_mixer(causal ? "performer" : "performer_bidirectional", options, D);
      EXPECT_CLOSE(read_all(*mixer, x), plain_layer(*mixer, kind, x, H, H_kv, causal, renormalize), 1e-10);
    }
  }
}

/// With identity maps, and the epsilon of the public implementation.
std::shared_ptr<Mixer> bare_performer(int64_t D, double epsilon) {
  at::NoGradGuard no_grad;
  const auto mixer = make_mixer(
      "performer", {{"num_attention_heads", 1}, {"rope_theta", 0}, {"num_features", 32}, {"stabilizer", epsilon}}, D);
  mixer->to(at::kDouble);
  for (Tensor& map : mixer->parameters()) map.copy_(at::eye(D));
  return mixer;
}

/// The public stabiliser is a maximum over all keys, and a large last key reaches every earlier output through the
/// epsilon beside it. Ours is the maximum of the past: nothing reaches back, and the two differ by what epsilon weighs.
TEST(Performer, DiffersFromThePublicCausalFormByItsLeak) {
  at::NoGradGuard no_grad;
  at::manual_seed(3);
  const int64_t T = 40, D = 16;
  const Tensor x = normal({1, T, D}, 1, at::kDouble), view = x.unsqueeze(2);
  const Tensor larger = x.clone();
  larger.select(1, T - 1).mul_(6);
  const auto ours = [&](const Tensor& tokens, double epsilon) {
    const auto mixer = bare_performer(D, epsilon);
    at::manual_seed(3);
    mixer->named_buffers()["projection_matrix"].copy_(
        draw_projection(32, D, Drawing::r_orf, RowNorms::chi, x.options()));
    return read_all(*mixer, tokens);
  };
  const auto published = [&](const Tensor& tokens, double epsilon) {
    at::manual_seed(3);
    const Tensor w = draw_projection(32, D, Drawing::r_orf, RowNorms::chi, x.options()), k = tokens.unsqueeze(2);
    return public_attention(k, k, k, w, epsilon)(/*causal=*/true, 0).squeeze(2);
  };
  const auto moved = [&](const auto& attention) {
    return (attention(larger, 1e-4) - attention(x, 1e-4)).slice(1, 0, T - 1).abs().max().template item<double>();
  };
  EXPECT_EQ(moved(ours), 0);
  EXPECT_GT(moved(published), 0.1);
  const auto apart = [&](double epsilon) {
    return (ours(x, epsilon) - published(x, epsilon)).abs().max().item<double>();
  };
  const double at_4 = apart(1e-4), at_6 = apart(1e-6), at_8 = apart(1e-8);
  EXPECT_LT(at_4, 0.5);
  EXPECT_LT(at_6, 0.02 * at_4 + 1e-9);
  EXPECT_LT(at_8, 0.02 * at_6 + 1e-9);
}

/// Attention's weights, unchanged, with rotation and grouped heads: the error falls as 1 / num_features.
TEST(Performer, ConvergesToAttention) {
  at::NoGradGuard no_grad;
  at::manual_seed(3);
  const int64_t D = 32, T = 60;
  const auto attention = make_mixer("attention", {{"num_attention_heads", 4}, {"num_key_value_heads", 2}}, D);
  attention->reset_parameters(0.07);
  const auto weights = attention->named_parameters();
  const Tensor x = normal({2, T, D}, 1), expected = read_all(*attention, x);
  const auto error = [&](int64_t M) {
    double sum = 0;
    for (int draw = 0; draw < 30; ++draw) {
      const auto mixer = make_mixer(
          "performer", {{"num_attention_heads", 4}, {"num_key_value_heads", 2}, {"num_features", M}, {"stabilizer", 0}},
          D);
      for (auto& item : mixer->named_parameters()) item.value().copy_(weights[item.key()]);
      sum += (read_all(*mixer, x) - expected).square().mean().item<double>();
    }
    return sum / 30 / expected.square().mean().item<double>();
  };
  const double few = error(64), many = error(1024);
  EXPECT_LT(many, 0.01);
  EXPECT_NEAR(few / many, 16, 3);
}

TEST(Performer, RedrawsItsRowsByTheClock) {
  const auto mixer = make_mixer("performer", {{"redraw_interval", 3}}, 16);
  const auto rows = [&] { return mixer->named_buffers()["projection_matrix"].clone(); };
  std::vector<int64_t> redrawn;
  for (int64_t step = 0; step < 8; ++step) {
    const Tensor before = rows();
    mixer->begin_step(step);
    if (!at::equal(before, rows())) redrawn.push_back(step);
  }
  EXPECT_EQ(redrawn, (std::vector<int64_t>{3, 6}));
  const auto fixed = make_mixer("performer", Json::object(), 16);
  const Tensor before = fixed->named_buffers()["projection_matrix"].clone();
  for (int64_t step = 0; step < 8; ++step) fixed->begin_step(step);
  EXPECT_TRUE(at::equal(before, fixed->named_buffers()["projection_matrix"]));
}

/// Long queries and keys, whose sums of trig features vanish and whose exponentials overflow.
TEST(Performer, StaysFiniteAtScale) {
  const int64_t T = 70, D = 32;
  for (const char* kind : {"positive", "hyperbolic", "trig", "relu", "cos", "identity"}) {
    for (const double scale : {1.0, 30.0, 1000.0}) {
      const auto mixer = make_mixer("performer", {{"feature_map", kind}, {"num_features", 16}}, D);
      mixer->reset_parameters(0.2);
      const Tensor x = (scale * normal({1, T, D}, 1)).requires_grad_();
      State state = mixer->initial_state(1);
      const Tensor y = mixer->forward(x, state);
      EXPECT_TRUE(y.isfinite().all().item<bool>()) << kind << " at " << scale;
      const Tensor gradient = torch::autograd::grad({y.sum()}, {x})[0];
      EXPECT_TRUE(gradient.isfinite().all().item<bool>()) << "gradient of " << kind << " at " << scale;
    }
  }
  const auto mixer = make_mixer("performer", {{"feature_map", "exp"}}, D);
  mixer->reset_parameters(0.2);
  EXPECT_ERROR(read_all(*mixer, 1000 * normal({1, T, D}, 1)), "performer: feature_map exp overflows");
}

TEST(Performer, RefusesWhatCannotBe) {
  const auto made = [](const Json& options) { make_mixer("performer", options, 24); };
  EXPECT_ERROR(made({{"projection", "none"}}), "feature_map positive needs a projection");
  EXPECT_ERROR(made({{"feature_map", "trig"}, {"renormalize", false}}), "feature_map trig needs renormalize");
  EXPECT_ERROR(made({{"num_key_value_heads", 3}}), "num_key_value_heads is 3, expected a divisor");
  EXPECT_ERROR(made({{"num_attention_heads", 8}}), "head size is 3, rotary embedding needs an even one");
}

}  // namespace
}  // namespace lineal
