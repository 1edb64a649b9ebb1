// The kernels of attention over quantised keys against the reference in float64.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/error.h"
#include "mixers/vq_attention.h"
#include "testing/plain_layer.h"

namespace lineal {
namespace {

struct Choose {
  explicit Choose(kernels::Choice choice) { kernels::choose(choice); }
  ~Choose() { kernels::choose(kernels::Choice::automatic); }
};

struct Case {
  std::string name;
  Json options;
  int64_t D, B, before, T;
  bool documents = false;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> list = {
      {"odd",
       {{"num_attention_heads", 3},
        {"key_size", 5},
        {"value_size", 7},
        {"num_codes", 11},
        {"window", 6},
        {"chunk_size", 4}},
       14,
       2,
       9,
       37},
      {"documents",
       {{"num_attention_heads", 2},
        {"key_size", 9},
        {"value_size", 17},
        {"num_codes", 19},
        {"window", 13},
        {"chunk_size", 8}},
       10,
       3,
       29,
       75,
       true},
      {"single",
       {{"num_attention_heads", 1},
        {"key_size", 3},
        {"value_size", 2},
        {"num_codes", 2},
        {"window", 1},
        {"chunk_size", 1}},
       6,
       1,
       5,
       150},  // three runs of blocks
      {"sliding",
       {{"num_attention_heads", 2},
        {"key_size", 16},
        {"value_size", 16},
        {"num_codes", 8},
        {"window", 33},
        {"chunk_size", 20},
        {"aggregate", false}},
       8,
       2,
       50,
       90,
       true},
      {"runs",
       {{"num_attention_heads", 1},
        {"key_size", 8},
        {"value_size", 4},
        {"num_codes", 9},
        {"window", 40},
        {"chunk_size", 3}},
       8,
       2,
       31,
       420,
       true},  // windows that reach across runs
      {"long",
       {{"num_attention_heads", 1},
        {"key_size", 4},
        {"value_size", 4},
        {"num_codes", 5},
        {"window", 70},
        {"chunk_size", 64}},
       4,
       1,
       100,
       2300},
  };
  return list;
}

Segments segments_of(const Case& c) {
  if (!c.documents) return {};
  Tensor starts = at::zeros({c.B, c.T}, at::kBool);
  starts[0][3] = starts[0][4] = starts[c.B - 1][c.T / 2] = true;
  starts[c.B - 1][c.T - 5] = c.B > 2;
  return {starts};
}

struct Outcome {
  std::vector<std::string> names;
  std::vector<Tensor> values, gradients;
};

/// Outputs and state after `before` tokens and T more, and gradients of all of them, carried state included.
Outcome outcome(const Case& c, at::ScalarType type, kernels::Choice choice, bool training) {
  at::manual_seed(5);
  const auto mixer = random_mixer("vq_attention", c.options, c.D);
  for (const auto& item : mixer->named_buffers()) item.value().copy_(item.value().to(at::kFloat));
  for (Tensor& parameter : mixer->parameters()) parameter.detach().copy_(parameter.to(at::kFloat));
  mixer->train(training);
  State state = mixer->initial_state(c.B);
  {
    at::NoGradGuard no_grad;  // in float64, so that both begin alike
    mixer->forward(normal({c.B, c.before, c.D}, 1, at::kDouble), state);
  }
  mixer->to(type);
  Outcome result;
  std::vector<Tensor> leaves;
  const auto leaf = [&](const std::string& name, const Tensor& x) {
    result.names.push_back(name);
    return leaves.emplace_back(x);
  };
  const Tensor x = leaf("x", normal({c.B, c.T, c.D}, 2, at::kDouble).to(at::kFloat).to(type).requires_grad_());
  for (const auto& item : mixer->named_parameters()) leaf(item.key(), item.value());
  std::vector<std::pair<std::string, Tensor>> start;
  for (const auto& [name, part] : state.named()) {
    const bool counts = !part.is_floating_point();
    start.emplace_back(name, counts ? part : leaf("initial " + name, part.to(at::kFloat).to(type).requires_grad_()));
  }
  state = State::from_named(start);
  {
    const Choose chosen(choice);
    result.values = {mixer->forward(x, state, segments_of(c))};
  }
  for (const auto& [name, part] : state.named()) result.values.push_back(part);
  Tensor loss = at::zeros({}, x.options());
  for (size_t i = 0; i < result.values.size(); ++i) {
    const Tensor& value = result.values[i];
    if (value.is_floating_point()) loss = loss + (value * normal(value.sizes(), 70 + i, type)).sum();
  }
  if (training) loss = loss + mixer->losses.at(0).second;
  result.gradients = torch::autograd::grad({loss}, leaves, {}, {}, false, /*allow_unused=*/true);
  for (size_t i = 0; i < leaves.size(); ++i) {
    if (!result.gradients[i].defined()) result.gradients[i] = at::zeros_like(leaves[i]);
  }
  return result;
}

TEST(VqAttentionFused, EqualsTheReferenceInFloat64) {
  for (const Case& c : cases()) {
    for (const bool training : {false, true}) {
      SCOPED_TRACE(text(c.name, training ? ", training" : ""));
      const Outcome found = outcome(c, at::kFloat, kernels::Choice::fused, training);
      const Outcome expected = outcome(c, at::kDouble, kernels::Choice::reference, training);
      for (size_t i = 0; i < found.values.size(); ++i) {
        if (found.values[i].is_floating_point()) {
          EXPECT_CLOSE_RMS(found.values[i], expected.values[i], 1e-5) << "value " << i;
        } else {
          EXPECT_EQ(bit_difference(found.values[i], expected.values[i]), "") << "value " << i;
        }
      }
      for (size_t i = 0; i < found.names.size(); ++i) {
        EXPECT_CLOSE_RMS(found.gradients[i], expected.gradients[i], 1e-4) << "gradient of " << found.names[i];
      }
    }
  }
}

struct Operation {
  kernels::VqInput in;
  std::vector<Tensor> leaves, weights;

  /// The output, what is left of the state, and gradients.
  std::vector<Tensor> run(const kernels::VqInput& input) const {
    const Choose chosen(kernels::Choice::fused);
    const auto out = vq_attention(input);
    const std::vector<Tensor> floats = {out.o, out.mean};
    auto all = torch::autograd::grad(floats, {input.q, input.p, input.k, input.v, input.r, input.mean}, weights);
    all.insert(all.end(), {out.o, out.mean, out.count, out.past_k, out.past_v, out.past_code});
    return all;
  }
};

/// Three rows with documents, in several runs of blocks.
Operation operation() {
  const int64_t B = 3, T = 300, H = 2, K = 7, V = 5, M = 13, window = 21, block = 4, W = window + block - 1;
  Operation result;
  kernels::VqInput& in = result.in;
  uint64_t seed = 1;
  const auto leaf = [&](at::IntArrayRef sizes) { return normal(sizes, seed++).requires_grad_(); };
  in.q = leaf({B, T, H, K}), in.p = leaf({B, T, H, K}), in.v = leaf({B, T, H, V}), in.r = leaf({window + 1, H, K});
  in.codebook = normal({H, M, K}, 20);
  in.code = nearest_code(normal({B, T, H, K}, 21), in.codebook);
  in.k = codewords(in.codebook, in.code).requires_grad_();
  in.past_code = nearest_code(normal({B, W, H, K}, 22), in.codebook);
  in.past_k = codewords(in.codebook, in.past_code), in.past_v = normal({B, W, H, V}, 23);
  in.count = normal({B, H, M}, 24).abs().mul(3).to(at::kLong);
  in.mean = (normal({B, H, M, V}, 25) * in.count.gt(0).unsqueeze(3)).requires_grad_();
  in.position = at::tensor({1000, 1001, 1003}, at::kLong);
  in.block = block;
  in.starts = at::zeros({B, T}, at::kBool);
  in.starts[1][110] = in.starts[1][280] = in.starts[2][3] = true;
  result.weights = {normal({B, T, H, V}, 30), normal({B, H, M, V}, 31)};
  return result;
}

TEST(VqAttentionFused, SameBitsForAnyNumberOfThreads) {
  const Operation of = operation();
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Tensor code = nearest_code(normal({3, 2000, 2, 7}, 21), of.in.codebook);
  const auto one = of.run(of.in);
  for (const int many : {2, 3}) {
    at::set_num_threads(many);
    const auto found = of.run(of.in);
    for (size_t i = 0; i < one.size(); ++i) EXPECT_EQ(bit_difference(found[i], one[i]), "") << many << " " << i;
    EXPECT_EQ(bit_difference(nearest_code(normal({3, 2000, 2, 7}, 21), of.in.codebook), code), "");
  }
  at::set_num_threads(threads);
}

TEST(VqAttentionFused, SameBitsInABatchAndAlone) {
  const Operation of = operation();
  const auto together = of.run(of.in);
  for (int64_t b = 0; b < 3; ++b) {
    Operation alone = of;
    const auto row = [&](const Tensor& x) { return x.detach().slice(0, b, b + 1).requires_grad_(x.requires_grad()); };
    kernels::VqInput& in = alone.in;
    for (Tensor* x : {&in.q, &in.p, &in.k, &in.v, &in.code, &in.position, &in.starts, &in.past_k, &in.past_v,
                      &in.past_code, &in.count, &in.mean, &alone.weights[0], &alone.weights[1]}) {
      *x = row(*x);
    }
    const auto found = alone.run(in);
    for (size_t i = 0; i < found.size(); ++i) {
      if (i == 4) continue;  // r is all rows'
      EXPECT_EQ(bit_difference(found[i], row(together[i])), "") << b << " " << i;
    }
  }
}

TEST(VqAttentionFused, ExtremeScoresStayFinite) {
  const auto mixer =
      make_mixer("vq_attention",
                 {{"num_attention_heads", 2}, {"num_codes", 9}, {"window", 5}, {"chunk_size", 4}, {"tau", 1e-6}}, 16);
  const Choose chosen(kernels::Choice::fused);
  const Tensor x = (100 * normal({2, 60, 16}, 1)).requires_grad_();
  State state = mixer->initial_state(2);
  const Tensor y = mixer->forward(x, state);
  const Tensor gradient = torch::autograd::grad({y.sum()}, {x})[0];
  EXPECT_TRUE(y.isfinite().all().item<bool>());
  EXPECT_TRUE(gradient.isfinite().all().item<bool>());
}

TEST(VqAttentionFused, RefusesAStateOfOtherSizes) {
  const auto mixer = make_mixer("vq_attention", {{"window", 5}, {"chunk_size", 4}}, 16);
  State state = make_mixer("vq_attention", {{"window", 3}, {"chunk_size", 2}}, 16)->initial_state(1);
  state["position"].fill_(11);
  EXPECT_ERROR(mixer->forward(normal({1, 2, 16}, 1), state), "vq_attention: the state holds 4 past tokens, expected 8");
}

}  // namespace
}  // namespace lineal
