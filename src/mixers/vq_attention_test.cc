#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "core/error.h"
#include "testing/plain_layer.h"

namespace lineal {
namespace {

struct Sizes {
  int64_t H, K, V, M, window, block;
  bool aggregate = true;
};

Json options_of(const Sizes& s, const Json& more = Json::object()) {
  Json options = {{"num_attention_heads", s.H}, {"key_size", s.K},       {"value_size", s.V},       {"num_codes", s.M},
                  {"window", s.window},         {"chunk_size", s.block}, {"aggregate", s.aggregate}};
  options.update(more);
  return options;
}

NamedWeights buffers_of(const Mixer& mixer) { return mixer.named_buffers(); }

// ---- goldens -------------------------------------------------------------------------------------------------------

const std::vector<std::pair<const char*, Sizes>>& cases() {
  static const std::vector<std::pair<const char*, Sizes>> list = {
      {"transformer_vq/vq_block8_mem8", {2, 8, 12, 6, 8, 8}},
      {"transformer_vq/vq_block8_mem4_3blocks", {2, 8, 12, 6, 4, 8}},
      {"transformer_vq/vq_noagg_block8_mem8", {2, 8, 12, 6, 8, 8, false}},
  };
  return list;
}

/// The published layer: kernels are [in, out], keys, values and gates one product.
std::shared_ptr<Mixer> published(const Golden& golden, const Sizes& s, const Json& more = Json::object()) {
  at::NoGradGuard no_grad;
  Json options = options_of(s, {{"input_norm", true}, {"sinusoid_theta", 10000}, {"commitment", 1}});
  options.update(more);
  const auto mixer = make_mixer("vq_attention", options, golden["x"].size(2));
  mixer->to(at::kDouble);
  auto weights = mixer->named_parameters();
  const Tensor kvg = golden["param.kvg_proj.kernel"].t();
  const auto parts = kvg.split_with_sizes({s.H * s.K, s.H * s.V, s.H * s.V});
  weights["input_norm.weight"].copy_(golden["param.input_ln.g"]);
  weights["input_norm.bias"].copy_(golden["param.input_ln.b"]);
  weights["q_proj.weight"].copy_(golden["param.q_proj.kernel"].t());
  weights["k_proj.weight"].copy_(parts[0]);
  weights["v_proj.weight"].copy_(parts[1]);
  weights["g_proj.weight"].copy_(parts[2]);
  weights["r_proj.weight"].copy_(golden["param.r_proj.kernel"].t());
  weights["o_proj.weight"].copy_(golden["param.res_proj.kernel"].t());
  weights["content_bias"].copy_(golden["param.u"].view({s.H, s.K}));
  weights["position_bias"].copy_(golden["param.v"].view({s.H, s.K}));
  auto buffers = mixer->named_buffers();
  buffers["code_sum"].copy_(golden["param.quantizer.c_sum"]);
  buffers["code_count"].copy_(golden["param.quantizer.c_count"]);
  return mixer;
}

/// In calls of `length` tokens.
Tensor read(Mixer& mixer, const Tensor& x, State& state, int64_t length) {
  std::vector<Tensor> y;
  for (int64_t from = 0; from < x.size(1); from += length) {
    y.push_back(mixer.forward(x.slice(1, from, from + length), state));
  }
  return at::cat(y, 1);
}

TEST(VqAttention, GoldenOutputsStatesAndGradients) {
  for (const auto& [id, s] : cases()) {
    const Golden golden(id);
    for (const int64_t length : {int64_t{1} << 20, s.block, int64_t{5}}) {
      SCOPED_TRACE(text(id, ", calls of ", length));
      const auto mixer = published(golden, s);
      const Tensor x = golden["x"].to(at::kDouble).requires_grad_();
      State state = mixer->initial_state(x.size(0));
      const Tensor y = read(*mixer, x, state, length);
      EXPECT_CLOSE(y, golden["y"], 1e-10);

      const auto last = [&](const char* name) { return state.at(name).slice(1, -s.window).transpose(1, 2); };
      EXPECT_CLOSE(last("k"), golden["state.xlcache.k_hat"], 1e-12);
      EXPECT_CLOSE(last("v"), golden["state.xlcache.v"], 1e-12);
      EXPECT_EQ(bit_difference(last("code"), golden["state.xlcache.z"].to(at::kLong)), "");
      EXPECT_TRUE(state.at("position").eq(golden["state.pos_offset"].item<int64_t>()).all().item<bool>());
      if (s.aggregate) {
        EXPECT_CLOSE(state.at("count"), golden["state.aggcache.lower"], 0);
        EXPECT_CLOSE(state.at("mean"), golden["state.aggcache.upper_div_lower"], 1e-12);
      }

      (y * golden["probe"]).sum().backward();
      const auto gradient = [&](const char* name) { return mixer->named_parameters()[name].grad(); };
      EXPECT_CLOSE(x.grad(), golden["grad.x"], 1e-10);
      EXPECT_CLOSE(gradient("input_norm.weight"), golden["grad.param.input_ln.g"], 1e-10);
      EXPECT_CLOSE(gradient("input_norm.bias"), golden["grad.param.input_ln.b"], 1e-10);
      EXPECT_CLOSE(gradient("q_proj.weight").t(), golden["grad.param.q_proj.kernel"], 1e-10);
      EXPECT_CLOSE(at::cat({gradient("k_proj.weight"), gradient("v_proj.weight"), gradient("g_proj.weight")}).t(),
                   golden["grad.param.kvg_proj.kernel"], 1e-10);
      EXPECT_CLOSE(gradient("r_proj.weight").t(), golden["grad.param.r_proj.kernel"], 1e-10);
      EXPECT_CLOSE(gradient("o_proj.weight").t(), golden["grad.param.res_proj.kernel"], 1e-10);
      EXPECT_CLOSE(gradient("content_bias").flatten(), golden["grad.param.u"], 1e-10);
      EXPECT_CLOSE(gradient("position_bias").flatten(), golden["grad.param.v"], 1e-10);
    }
  }
}

TEST(VqAttention, GoldenCodesAndCommitment) {
  for (const auto& [id, s] : cases()) {
    SCOPED_TRACE(id);
    const Golden golden(id);
    const auto mixer = published(golden, s);
    const Tensor x = golden["x"].to(at::kDouble);
    State state = mixer->initial_state(x.size(0));
    for (int64_t block = 0; block * s.block < x.size(1); ++block) {
      const int64_t from = block * s.block, to = from + s.block;
      mixer->forward(x.slice(1, from, to), state);
      ASSERT_EQ(mixer->losses.size(), 1);
      EXPECT_EQ(mixer->losses[0].first, "commitment");
      EXPECT_CLOSE(mixer->losses[0].second, golden["l_commit"][block], 1e-10);
      const int64_t kept = std::min(s.block, s.window);
      EXPECT_EQ(bit_difference(state.at("code").slice(1, -kept).transpose(1, 2),
                               golden["z"].slice(2, to - kept, to).to(at::kLong)),
                "");
    }
  }
}

/// The next step's codebook, of a step with as many calls as the published update counts blocks.
TEST(VqAttention, GoldenCodebook) {
  const std::vector<std::pair<double, int64_t>> updates = {{0.99, 1}, {0.9, 2}, {0.99, 1}};
  for (size_t i = 0; i < cases().size(); ++i) {
    const auto& [id, s] = cases()[i];
    SCOPED_TRACE(id);
    const Golden golden(id);
    const auto mixer = published(golden, s, {{"codebook_decay", updates[i].first}, {"restart_below", 0}});
    auto buffers = mixer->named_buffers();
    const auto codebook = [&] { return buffers["code_sum"] / buffers["code_count"].clamp_min(0.01).unsqueeze(2); };
    EXPECT_CLOSE(codebook(), golden["codebook"], 1e-12);
    for (int64_t call = 0; call < updates[i].second; ++call) {
      State state = mixer->initial_state(2);
      mixer->forward(golden["x"].to(at::kDouble).slice(1, -s.block), state);
    }
    EXPECT_CLOSE(codebook(), golden["codebook"], 1e-12);  // until the step is over
    mixer->begin_step(1);
    EXPECT_CLOSE(buffers["code_sum"], golden["ema.c_sum_target"], 1e-10);
    EXPECT_CLOSE(buffers["code_count"], golden["ema.c_count_target"], 1e-10);
    const Tensor after = codebook();
    mixer->begin_step(2);  // nothing was read
    EXPECT_EQ(bit_difference(codebook(), after), "");
  }
}

// ---- quadratic attention -------------------------------------------------------------------------------------------

/// The layer as vq_attention.cc's head has it, every query against every khat or, when not quantised, key.
Tensor plain_layer(const Mixer& mixer, const Tensor& x, const Sizes& s, bool quantised = true) {
  const NamedWeights weights = mixer.named_parameters(), buffers = mixer.named_buffers();
  const double scale = std::pow(static_cast<double>(s.K), -0.25);
  const auto rms = [&](const Tensor& y) { return scale * y / (y.square().mean(-1, true) + 1e-6).sqrt(); };
  const Tensor q = rms(plain_view(weights, "q", x, s.H, false)), k = rms(plain_view(weights, "k", x, s.H, false));
  const Tensor v = plain_silu(plain_view(weights, "v", x, s.H, false));
  const Tensor codebook = buffers["code_sum"] / buffers["code_count"].clamp_min(0.01).unsqueeze(2);  // [H, M, K]
  const int64_t B = x.size(0), T = x.size(1), D = x.size(2);
  Tensor o = at::zeros_like(v), angle = at::zeros({s.window + 1, D / 2}, x.options());
  for (int64_t d = 0; d <= s.window; ++d) {
    for (int64_t i = 0; i < D / 2; ++i) {
      angle[d][i] = static_cast<double>(d) * std::pow(100000.0, -2.0 * static_cast<double>(i) / static_cast<double>(D));
    }
  }
  const Tensor r =
      scale * at::linear(at::cat({angle.sin(), angle.cos()}, 1), weights["r_proj.weight"]).unflatten(1, {s.H, s.K});
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t h = 0; h < s.H; ++h) {
      Tensor khat = k[b].select(1, h).clone();  // [T, K]
      for (int64_t t = 0; quantised && t < T; ++t) {
        khat[t].copy_(codebook[h][(codebook[h] - khat[t]).square().sum(1).argmin().item<int64_t>()]);
      }
      for (int64_t t = 0; t < T; ++t) {
        const Tensor of_content = q[b][t][h] + scale * weights["content_bias"][h];
        const Tensor of_position = q[b][t][h] + scale * weights["position_bias"][h];
        Tensor score = at::mv(khat.slice(0, 0, t + 1), of_content);
        for (int64_t j = std::max<int64_t>(0, t - s.window); j <= t; ++j)
          score[j].add_(at::dot(of_position, r[t - j][h]));
        if (!s.aggregate && t > s.window) score.slice(0, 0, t - s.window).fill_(-INFINITY);
        o[b][t][h].copy_(at::mv(v[b].select(1, h).slice(0, 0, t + 1).t(), score.softmax(0)));
      }
    }
  }
  return at::linear(o.flatten(2) * plain_silu(at::linear(x, weights["g_proj.weight"])), weights["o_proj.weight"]);
}

TEST(VqAttention, EqualsQuadraticAttentionOverCodewordsWhateverTheBlock) {
  at::NoGradGuard no_grad;
  for (const bool aggregate : {true, false}) {
    Sizes s{3, 5, 3, 7, 4, 1, aggregate};
    Tensor expected;
    for (const int64_t block : {1, 2, 5, 32}) {
      s.block = block;
      at::manual_seed(4);
      const auto mixer = random_mixer("vq_attention", options_of(s), 14);
      const Tensor x = normal({2, 27, 14}, 1, at::kDouble);
      if (!expected.defined()) expected = plain_layer(*mixer, x, s);
      EXPECT_CLOSE(read_all(*mixer, x), expected, 1e-11) << "blocks of " << block << ", aggregate " << aggregate;
    }
  }
}

/// As many codes as there are different keys, each its own codeword: nothing is lost.
TEST(VqAttention, WithACodeForEveryKeyIsExactAttention) {
  at::NoGradGuard no_grad;
  const Sizes s{2, 6, 4, 8, 5, 4};
  const int64_t D = 10, T = 37;
  const auto mixer = random_mixer("vq_attention", options_of(s), D);
  const Tensor different = normal({s.M - 1, D}, 1, at::kDouble);
  const Tensor x = different.index_select(0, normal({T}, 2).mul(1000).to(at::kLong).remainder(s.M - 1)).unsqueeze(0);
  const Tensor k = plain_view(mixer->named_parameters(), "k", different.unsqueeze(0), s.H, false)[0].transpose(0, 1);
  const Tensor unit = std::pow(6.0, -0.25) * k / (k.square().mean(-1, true) + 1e-6).sqrt();  // [H, M - 1, K]
  auto buffers = mixer->named_buffers();
  buffers["code_sum"].slice(1, 1).copy_(3 * unit);
  buffers["code_sum"].select(1, 0).fill_(50);  // one that no key has
  buffers["code_count"].fill_(3);
  EXPECT_CLOSE(read_all(*mixer, x), plain_layer(*mixer, x, s, /*quantised=*/false), 1e-11);
  buffers["code_sum"].select(1, 1).zero_();
  EXPECT_FALSE(at::allclose(read_all(*mixer, x), plain_layer(*mixer, x, s, /*quantised=*/false), 1e-3, 1e-3));
}

TEST(VqAttention, NearestOfEqualCodesIsTheFirst) {
  at::NoGradGuard no_grad;
  const Sizes s{1, 4, 4, 40, 3, 2};
  const auto mixer = random_mixer("vq_attention", options_of(s), 4);
  auto buffers = mixer->named_buffers();
  buffers["code_count"].fill_(1);
  buffers["code_sum"].fill_(10);
  for (const int64_t m : {5, 6, 21, 37}) buffers["code_sum"].select(1, m).zero_();
  for (const at::ScalarType type : {at::kDouble, at::kFloat}) {  // by the reference, and by a kernel
    mixer->to(type);
    State state = mixer->initial_state(1);
    mixer->forward(normal({1, 50, 4}, 1, type), state);
    EXPECT_EQ(state.at("count")[0][0][5].item<int64_t>(), 47);
  }
}

// ---- gradients in training -----------------------------------------------------------------------------------------

/// Straight through: a key's gradient is that of its codeword, which only tokens that have it among their recent ones
/// send; no later token's output sends any.
TEST(VqAttention, StraightThroughReachesRecentKeysOnly) {
  const Sizes s{1, 4, 4, 5, 2, 3};
  const int64_t D = 6, T = 14;
  const auto mixer = random_mixer("vq_attention", options_of(s), D);
  const Tensor x = normal({1, T, D}, 1, at::kDouble).requires_grad_();
  const auto gradients = [&](bool training) {  // of every token's output
    mixer->train(training);
    State state = mixer->initial_state(1);
    const Tensor y = mixer->forward(x, state);
    std::vector<Tensor> of;
    for (int64_t t = 0; t < T; ++t) of.push_back(torch::autograd::grad({y[0][t].sum()}, {x}, {}, true)[0][0]);
    return at::stack(of);  // [T, T, D]
  };
  const Tensor added = (gradients(true) - gradients(false)).abs().amax({2});
  for (int64_t t = 0; t < T; ++t) {
    const int64_t first = std::max<int64_t>(0, t / s.block * s.block - s.window);
    for (int64_t j = 0; j < T; ++j) {
      EXPECT_EQ(added[t][j].item<double>() > 1e-12, t > 0 && j >= first && j <= t) << t << " " << j;
    }
  }
}

TEST(VqAttention, GradientsThroughTheCarriedCacheAreThoseOfOneCall) {
  const Sizes s{2, 4, 3, 5, 4, 3};
  const int64_t D = 8, T = 25;
  const auto mixer = random_mixer("vq_attention", options_of(s), D);
  const Tensor x = normal({2, T, D}, 1, at::kDouble).requires_grad_(), probe = normal({2, T, D}, 2, at::kDouble);
  const auto gradient = [&](const std::vector<int64_t>& cuts, bool truncated) {
    State state = mixer->initial_state(2);
    Tensor sum = at::zeros({}, x.options());
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      const Tensor y = mixer->forward(x.slice(1, cuts[i], cuts[i + 1]), state);
      sum = sum + (y * probe.slice(1, cuts[i], cuts[i + 1])).sum();
      if (truncated) state = state.detach();
    }
    return torch::autograd::grad({sum}, {x})[0];
  };
  const Tensor whole = gradient({0, T}, false);
  EXPECT_CLOSE(gradient({0, 1, 7, 8, 13, T}, false), whole, 1e-11);
  const Tensor cut = gradient({0, 13, T}, true);
  EXPECT_CLOSE(cut.slice(1, 13), whole.slice(1, 13), 1e-11);
  EXPECT_GT((cut - whole).slice(1, 0, 13).abs().max().item<double>(), 1e-3);
}

TEST(VqAttention, CommitmentDrawsKeysToTheirCodewords) {
  const Sizes s{2, 4, 3, 5, 4, 3};
  const auto mixer = random_mixer("vq_attention", options_of(s, {{"commitment", 0.3}}), 8);
  const Tensor x = normal({2, 11, 8}, 1, at::kDouble), W = mixer->named_parameters()["k_proj.weight"];
  State state = mixer->initial_state(2);
  mixer->forward(x, state);
  const Tensor found = torch::autograd::grad({mixer->losses.at(0).second}, {W})[0];
  const Tensor raw = at::linear(x, W).unflatten(2, {2, 4});
  const Tensor k = raw / (raw.square().mean(-1, true) + 1e-6).sqrt() * std::pow(4.0, -0.25);
  const NamedWeights buffers = buffers_of(*mixer);
  const Tensor c = buffers["code_sum"] / buffers["code_count"].clamp_min(0.01).unsqueeze(2);
  const Tensor apart = (k.unsqueeze(3) - c).square().sum(4);  // [B, T, H, M]
  const Tensor loss = 0.3 * apart.amin({3}).sum() / 22;
  EXPECT_CLOSE(mixer->losses.at(0).second, loss, 1e-12);
  EXPECT_CLOSE(found, torch::autograd::grad({loss}, {W})[0], 1e-11);
  mixer->eval();
  mixer->forward(x, state);
  EXPECT_TRUE(mixer->losses.empty());
}

// ---- the codebook --------------------------------------------------------------------------------------------------

TEST(VqAttention, OnlyDifferentiatedCallsInTrainingTeachTheCodebook) {
  const Sizes s{2, 4, 3, 5, 4, 3};
  const auto mixer = random_mixer("vq_attention", options_of(s), 8);
  const Tensor x = normal({2, 11, 8}, 1, at::kDouble);
  const auto seen = [&] { return buffers_of(*mixer)["step_count"].sum(1); };
  const auto call = [&] {
    State state = mixer->initial_state(2);
    mixer->forward(x, state);
  };
  {
    at::NoGradGuard no_grad;
    call();
  }
  mixer->eval();
  call();
  EXPECT_TRUE(seen().eq(0).all().item<bool>());
  mixer->train();
  call();
  call();
  EXPECT_TRUE(seen().eq(44).all().item<bool>());
}

TEST(VqAttention, PaddingTeachesNothing) {
  const Sizes s{2, 4, 3, 5, 4, 3};
  const auto mixer = random_mixer("vq_attention", options_of(s, {{"commitment", 1.0}}), 8);
  const Tensor x = normal({2, 11, 8}, 1, at::kDouble);
  x[1].slice(0, 4).copy_(x[1][10].clone());  // as an embedding of one id is
  double commitment = 0;
  const auto call = [&](const Tensor& input, const Segments& segments) {
    State state = mixer->initial_state(input.size(0));
    mixer->forward(input, state, segments);
    commitment += mixer->losses.at(0).second.item<double>() * static_cast<double>(input.size(0) * input.size(1));
    NamedWeights found;
    for (const char* name : {"step_sum", "step_count", "step_keys"}) {
      found.insert(name, buffers_of(*mixer)[name].clone());
    }
    return found;
  };
  call(x.slice(0, 0, 1), {});
  const NamedWeights expected = call(x.slice(0, 1).slice(1, 0, 4), {});
  const double of_text = std::exchange(commitment, 0);
  for (const char* name : {"step_sum", "step_count", "step_keys"}) buffers_of(*mixer)[name].zero_();

  Segments segments{at::zeros({2, 11}, at::kBool), at::zeros({2, 11}, at::kBool)};
  segments.starts[1][4].fill_(true), segments.padding[1].slice(0, 4).fill_(true);
  const NamedWeights found = call(x, segments);
  EXPECT_CLOSE(found["step_sum"], expected["step_sum"], 1e-12);
  EXPECT_CLOSE(found["step_count"], expected["step_count"], 0);
  EXPECT_NEAR(commitment, of_text, 1e-12);
  mixer->measure = true;
  call(x, segments);
  EXPECT_NEAR(mixer->measured.at(0).second.item<double>() * 22, of_text, 1e-12);
}

/// Codes too far away to be used become keys of the step, of the average code's weight; the others move as ever.
TEST(VqAttention, DeadCodesStartAgainAsKeys) {
  const Sizes s{2, 4, 3, 6, 4, 3};
  const auto make = [&] {
    at::manual_seed(7);
    const auto mixer =
        random_mixer("vq_attention", options_of(s, {{"restart_below", 0.2}, {"codebook_decay", 0.5}}), 8);
    at::NoGradGuard no_grad;
    for (int64_t m = 3; m < 6; ++m) mixer->named_buffers()["code_sum"].select(1, m).fill_(100);
    mixer->named_buffers()["code_count"].slice(1, 3).fill_(0.3);
    State state = mixer->initial_state(2);
    at::AutoGradMode enable(true);
    mixer->forward(normal({2, 11, 8}, 1, at::kDouble), state);
    return mixer;
  };
  const auto mixer = make();
  const NamedWeights buffers = buffers_of(*mixer);
  const Tensor moved = 0.5 * (buffers["code_sum"] + buffers["step_sum"]);
  const Tensor count = 0.5 * (buffers["code_count"] + buffers["step_count"]), average = count.mean(1);
  mixer->begin_step(1);
  for (int64_t h = 0; h < s.H; ++h) {
    for (int64_t m = 0; m < s.M; ++m) {
      if (count[h][m].item<double>() >= 0.2 * average[h].item<double>()) {
        EXPECT_CLOSE(buffers["code_sum"][h][m], moved[h][m], 1e-12);
        continue;
      }
      EXPECT_GE(m, 3) << "a code near the keys has started again";
      EXPECT_NEAR(buffers["code_count"][h][m].item<double>(), average[h].item<double>(), 1e-12);
      const Tensor key = buffers["code_sum"][h][m] / average[h];
      EXPECT_NEAR(key.square().mean().item<double>(), 0.5, 1e-4);  // RMS K^{-1/4} as keys have it
    }
    EXPECT_LT(count[h][5].item<double>(), 0.2 * average[h].item<double>());
  }
  const auto again = make();
  again->begin_step(1);
  EXPECT_EQ(bit_difference(buffers_of(*again)["code_sum"], buffers["code_sum"]), "");
}

/// A sample of a step's tokens without repetition, each as likely as another.
TEST(VqAttention, ACodebookCanStartAsKeysOfTheFirstStep) {
  const Sizes s{1, 4, 3, 6, 4, 3};
  at::manual_seed(11);
  const auto mixer = random_mixer("vq_attention", options_of(s, {{"codebook_start", "keys"}}), 8);
  const Tensor x = normal({2, 12, 8}, 1, at::kDouble);
  const Tensor W = mixer->named_parameters()["k_proj.weight"].detach().clone();
  const Tensor raw = at::linear(x, W).flatten(0, 1);
  const Tensor k = raw / (raw.square().mean(-1, true) + 1e-6).sqrt() * std::pow(4.0, -0.25);  // [24, K]
  std::vector<int64_t> chosen(24, 0);
  for (int draw = 0; draw < 100; ++draw) {
    at::NoGradGuard no_grad;
    mixer->reset_parameters(0.5);
    mixer->named_parameters()["k_proj.weight"].copy_(W);
    {
      at::AutoGradMode enable(true);
      State state = mixer->initial_state(2);
      mixer->forward(x.slice(1, 0, 5), state);
      mixer->forward(x.slice(1, 5), state);
    }
    mixer->begin_step(1);
    const NamedWeights buffers = buffers_of(*mixer);
    const Tensor c = (buffers["code_sum"] / buffers["code_count"].unsqueeze(2))[0];  // [M, K]
    const Tensor apart = (k.unsqueeze(0) - c.unsqueeze(1)).abs().amax({2});          // [M, 24]
    const Tensor which = apart.argmin(1);
    EXPECT_LT(apart.amin({1}).max().item<double>(), 1e-9);
    EXPECT_EQ(std::get<0>(at::_unique(which)).size(0), s.M);
    for (int64_t m = 0; m < s.M; ++m) ++chosen[static_cast<size_t>(which[m].item<int64_t>())];
  }
  for (const int64_t times : chosen) EXPECT_NEAR(times, 25, 16);
}

TEST(VqAttention, MeasuresItsCodebook) {
  at::NoGradGuard no_grad;
  const Sizes s{1, 4, 3, 6, 4, 3};
  const auto mixer = random_mixer("vq_attention", options_of(s), 8);
  auto buffers = mixer->named_buffers();
  buffers["code_sum"].fill_(100);
  buffers["code_count"].fill_(1);
  const Tensor two = normal({2, 8}, 1, at::kDouble), x = at::stack({two[0], two[0], two[0], two[1]}).unsqueeze(0);
  const Tensor raw = plain_view(mixer->named_parameters(), "k", two.unsqueeze(0), 1, false)[0].select(1, 0);  // [2, K]
  const Tensor k = raw / (raw.square().mean(-1, true) + 1e-6).sqrt() * std::pow(4.0, -0.25);
  buffers["code_sum"].select(0, 0).slice(0, 1, 3).copy_(k);
  mixer->measure = true;
  read_all(*mixer, x);
  ASSERT_EQ(mixer->measured.size(), 3);
  EXPECT_NEAR(mixer->measured[0].second.item<double>(), 0, 1e-12);
  EXPECT_EQ(mixer->measured[1].second.item<double>(), 2);
  EXPECT_NEAR(mixer->measured[2].second.item<double>(), std::exp(-0.75 * std::log(0.75) - 0.25 * std::log(0.25)),
              1e-12);
}

// ---- the edges -----------------------------------------------------------------------------------------------------

TEST(VqAttention, StaysFiniteOnDeadCodebooksAndEmptyRows) {
  const Sizes s{2, 4, 3, 6, 4, 3};
  for (const double scale : {0.0, 1.0, 1e4}) {
    for (const bool dead : {true, false}) {
      const auto mixer = make_mixer("vq_attention", options_of(s), 8);
      if (dead) {
        mixer->named_buffers()["code_sum"].zero_();
        mixer->named_buffers()["code_count"].zero_();
      }
      const Tensor x = (scale * normal({2, 30, 8}, 1)).requires_grad_();
      State state = mixer->initial_state(2);
      const Tensor y = mixer->forward(x, state);
      const Tensor gradient = torch::autograd::grad({y.sum() + mixer->losses.at(0).second}, {x})[0];
      EXPECT_TRUE(y.isfinite().all().item<bool>()) << scale << " " << dead;
      EXPECT_TRUE(gradient.isfinite().all().item<bool>()) << scale << " " << dead;
      for (int64_t step = 1; step < 3; ++step) mixer->begin_step(step);
      for (const auto& buffer : mixer->named_buffers()) {
        EXPECT_TRUE(buffer.value().isfinite().all().item<bool>()) << buffer.key();
      }
    }
  }
}

TEST(VqAttention, RefusesWhatCannotBe) {
  const auto made = [](const Json& options, int64_t D) { make_mixer("vq_attention", options, D); };
  EXPECT_ERROR(made({{"num_attention_heads", 1}}, 7), "hidden_size is 7, sines and cosines of distances need an even");
  EXPECT_ERROR(made({{"num_attention_heads", 5}}, 24),
               "num_attention_heads is 5, expected a divisor of hidden_size 24");
  EXPECT_ERROR(made({{"window", 0}}, 24), "window");
  made({{"num_attention_heads", 5}, {"key_size", 3}, {"value_size", 2}}, 24);
}

}  // namespace
}  // namespace lineal
