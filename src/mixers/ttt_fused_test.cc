// The fused inner loop of TTT against its reference in float64: outputs, final state, every gradient.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <random>

#include "core/error.h"
#include "mixers/ttt.h"
#include "testing/testing.h"

namespace lineal {
namespace {

using Fused = kernels::Operation<kernels::TTTOutput, kernels::TTTInput>;

/// An inner model with its kernel.
struct Model {
  const char* name;
  const Fused* operation;
  std::unique_ptr<InnerModel> (*make)(bool bias);
};
const Model kModels[] = {{"Linear", &kernels::ttt_linear, linear_inner_model},
                         {"Mlp", &kernels::ttt_mlp, mlp_inner_model}};

struct Case {
  int64_t B = 2, T = 40, H = 3, K = 16, C = 16;
  int64_t position = 0;  // of the first row; the others are further
  bool norm = true, residual = true, bias = true, documents = false, measure = false, bfloat16 = false;
  const Model* model = &kModels[0];
};

std::string name(const Case& c) {
  return text(c.model->name, "_B", c.B, "_T", c.T, "_H", c.H, "_K", c.K, "_C", c.C, "_p", c.position,
              c.norm ? "" : "_plain", c.residual ? "" : "_direct", c.bias ? "" : "_unbiased",
              c.documents ? "_documents" : "", c.measure ? "_measured" : "", c.bfloat16 ? "_bfloat16" : "");
}

struct Leaves {
  kernels::TTTInput in;
  std::vector<std::pair<std::string, Tensor>> named;

  Leaves(const Case& c, at::ScalarType type) {
    uint64_t seed = 1;
    const auto leaf = [&](const char* name, at::IntArrayRef shape, double scale, double offset = 0) {
      Tensor x = (normal(shape, seed++) * scale + offset).to(type).requires_grad_();
      named.emplace_back(name, x);
      return x;
    };
    for (const auto& [name, x] : {std::pair("q", &in.q), std::pair("k", &in.k), std::pair("v", &in.v)}) {
      Tensor values = normal({c.B, c.T, c.H, c.K}, seed++).to(c.bfloat16 ? at::kBFloat16 : type);
      *x = values.to(c.bfloat16 && type == at::kFloat ? at::kBFloat16 : type).requires_grad_();
      named.emplace_back(name, *x);
    }
    in.eta =
        leaf("eta", {c.B, c.T, c.H}, 0.1 / static_cast<double>(c.K), (c.norm ? 0.5 : 0.05) / static_cast<double>(c.K));
    in.scale = leaf("scale", {c.C}, 0.1, 0.6);
    if (c.norm) in.gamma = leaf("gamma", {c.H, c.K}, 0.2, 1), in.beta = leaf("beta", {c.H, c.K}, 0.2);
    const double deviation = 0.5 / std::sqrt(static_cast<double>(c.K));
    for (auto* list : {&in.initial, &in.W, &in.D}) {
      const std::string suffix = list == &in.initial ? "_0" : list == &in.W ? "" : "_step";
      for (const auto& weight : c.model->make(c.bias)->weights(c.K)) {
        auto shape = weight.shape;
        shape.insert(shape.begin(), c.H);
        if (list != &in.initial) shape.insert(shape.begin(), c.B);
        list->push_back(leaf((weight.name + suffix).c_str(), shape, weight.deviation > 0 ? deviation : 0.1));
      }
    }
    in.position = at::arange(c.B) * 5 + c.position;
    {
      at::NoGradGuard no_grad;  // D is zero where an inner batch starts
      for (Tensor& D : in.D) D.mul_((in.position.remainder(c.C) != 0).to(type).reshape({c.B, 1, 1, 1}) * 0.1);
    }
    if (c.documents) {
      in.starts = at::zeros({c.B, c.T}, at::kBool);
      for (int64_t b = 0; b < c.B; ++b) {
        for (int64_t t = 3 + b; t < c.T; t += 11 + 2 * b) in.starts[b][t] = true;
      }
    }
    in.residual = c.residual;
    in.measure = c.measure;
  }
};

struct Outcome {
  std::vector<std::pair<std::string, Tensor>> values, gradients;
};

Outcome outcome(const Case& c, at::ScalarType type,
                const std::function<kernels::TTTOutput(const kernels::TTTInput&)>& f) {
  const Leaves leaves(c, type);
  const kernels::TTTOutput out = f(leaves.in);
  Outcome result;
  result.values.emplace_back("o", out.o);
  for (size_t i = 0; i < out.W.size(); ++i) {
    result.values.emplace_back(text("W", i, " after"), out.W[i]);
    result.values.emplace_back(text("D", i, " after"), out.D[i]);
  }
  Tensor loss = at::zeros({}, type);
  uint64_t seed = 100;
  for (const auto& [_, x] : result.values) loss = loss + (x * normal(x.sizes(), seed++).to(type)).sum();
  std::vector<Tensor> inputs;
  for (const auto& [_, x] : leaves.named) inputs.push_back(x);
  const auto gradients = torch::autograd::grad({loss}, inputs, {}, {}, false, /*allow_unused=*/true);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const auto& [name, x] = leaves.named[i];
    Tensor g = gradients[i].defined() ? gradients[i] : at::zeros_like(x);
    if (name.ends_with("_step")) {  // where an inner batch starts there are no steps yet to have a gradient
      g = g * (leaves.in.position.remainder(c.C) != 0).to(g.scalar_type()).reshape({c.B, 1, 1, 1});
    }
    result.gradients.emplace_back(name, g);
  }
  if (c.measure) result.values.emplace_back("inner loss", out.inner_loss);
  return result;
}

kernels::TTTOutput fused(const Case& c, const kernels::TTTInput& in) {
  return kernels::use(
      *c.model->operation, [](const auto&) { return kernels::TTTOutput(); }, in);
}

class FusedTTTShapes : public testing::TestWithParam<Case> {};

TEST_P(FusedTTTShapes, IsTheReference) {
  const Case& c = GetParam();
  const auto model = c.model->make(c.bias);
  const Outcome expected =
      outcome(c, at::kDouble, [&](const auto& in) { return ttt_reference(*model, in, /*dual=*/true); });
  kernels::choose(kernels::Choice::fused);
  const Outcome got = outcome(c, at::kFloat, [&](const auto& in) { return fused(c, in); });
  kernels::choose(kernels::Choice::automatic);
  for (size_t i = 0; i < expected.values.size(); ++i) {
    SCOPED_TRACE(expected.values[i].first);
    EXPECT_CLOSE_RMS(got.values[i].second, expected.values[i].second, c.bfloat16 ? 5e-3 : 1e-5);
  }
  for (size_t i = 0; i < expected.gradients.size(); ++i) {
    SCOPED_TRACE("gradient of " + expected.gradients[i].first);
    EXPECT_CLOSE_RMS(got.gradients[i].second, expected.gradients[i].second, c.bfloat16 ? 8e-3 : 1e-4);
  }
}

/// Values and gradients, those of shared inputs aside, of some rows of a case.
Outcome rows(const Case& c, const std::vector<int64_t>& index) {
  const Tensor picked = at::tensor(index, at::kLong);
  Outcome result = outcome(c, at::kFloat, [&](const kernels::TTTInput& in) {
    kernels::TTTInput part = in;
    for (Tensor* x : {&part.q, &part.k, &part.v, &part.eta, &part.position}) *x = x->index_select(0, picked);
    if (part.starts.defined()) part.starts = part.starts.index_select(0, picked);
    for (auto* list : {&part.W, &part.D}) {
      for (Tensor& x : *list) x = x.index_select(0, picked);
    }
    kernels::TTTOutput out = fused(c, part);
    const auto placed = [&](const Tensor& x) {  // where the row stands in the batch
      auto shape = x.sizes().vec();
      shape[0] = c.B;
      return at::zeros(shape, x.options()).index_copy(0, picked, x);
    };
    out.o = placed(out.o);
    for (auto* list : {&out.W, &out.D}) {
      for (Tensor& x : *list) x = placed(x);
    }
    return out;
  });
  for (auto* list : {&result.values, &result.gradients}) {
    std::erase_if(*list, [&](const auto& named) { return named.second.size(0) != c.B; });
    for (auto& [_, x] : *list) x = x.index_select(0, picked);
  }
  return result;
}

class FusedTTT : public testing::TestWithParam<const Model*> {};

TEST_P(FusedTTT, ARowDoesNotDependOnItsBatchNorOnThreads) {
  const Case c{.B = 5, .T = 45, .H = 2, .K = 24, .C = 7, .position = 3, .documents = true, .model = GetParam()};
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Outcome together = rows(c, {0, 1, 2, 3, 4});
  for (const int count : {1, 2, 3}) {
    at::set_num_threads(count);
    for (const std::vector<int64_t>& index : {std::vector<int64_t>{0, 1, 2, 3, 4}, {3}, {1, 4}}) {
      const Outcome some = rows(c, index);
      for (const auto list : {&Outcome::values, &Outcome::gradients}) {
        ASSERT_EQ((some.*list).size(), (together.*list).size());
        for (size_t i = 0; i < (some.*list).size(); ++i) {
          const auto& [name, all] = (together.*list)[i];
          EXPECT_EQ(bit_difference((some.*list)[i].second, all.index_select(0, at::tensor(index, at::kLong))), "")
              << name << ", " << count << " threads, rows " << index.size();
        }
      }
    }
  }
  at::set_num_threads(threads);
}

TEST_P(FusedTTT, TakesTensorsOfAnyStride) {
  const Case c{.B = 2, .T = 20, .K = 12, .model = GetParam()};
  const auto strided = [](const Tensor& x) { return at::stack({x, x + 1}, -1).select(-1, 0); };
  const auto run = [&](bool contiguous) {
    return outcome(c, at::kFloat, [&](kernels::TTTInput in) {
      for (Tensor* x : {&in.q, &in.k, &in.v, &in.eta, &in.scale, &in.gamma, &in.beta, &in.W[0], &in.D[1]}) {
        if (!contiguous) *x = strided(*x);
      }
      return fused(c, in);
    });
  };
  const Outcome got = run(false), expected = run(true);
  for (size_t i = 0; i < got.values.size(); ++i)
    EXPECT_EQ(bit_difference(got.values[i].second, expected.values[i].second), "");
  for (size_t i = 0; i < got.gradients.size(); ++i) {
    EXPECT_EQ(bit_difference(got.gradients[i].second, expected.gradients[i].second), "") << got.gradients[i].first;
  }
}

TEST_P(FusedTTT, NothingFallsBackSilently) {
  const Case c{.model = GetParam()};
  const Fused& operation = *c.model->operation;
  const auto reference = [&](const kernels::TTTInput& in) { return ttt_reference(*c.model->make(true), in, true); };
  const int64_t before = operation.reference;
  kernels::use(operation, reference, Leaves(c, at::kDouble).in);
  EXPECT_EQ(operation.reference, before + 1);
  kernels::choose(kernels::Choice::fused);
  EXPECT_ERROR(kernels::use(operation, reference, Leaves(c, at::kDouble).in), "no fused kernel");
  kernels::choose(kernels::Choice::automatic);
  const auto second_derivative = [&] {
    const Leaves leaves(c, at::kFloat);
    torch::autograd::grad({fused(c, leaves.in).o.sum()}, {leaves.in.q}, {}, true, /*create_graph=*/true);
  };
  EXPECT_ERROR(second_derivative(), "no second derivative");
  Leaves wrong(c, at::kFloat);
  wrong.in.W[0] = wrong.in.W[0].slice(3, 1);
  EXPECT_ERROR(fused(c, wrong.in), "weight 0 is [2, 3, 16, ");
}

std::string model_name(const testing::TestParamInfo<const Model*>& info) { return info.param->name; }
INSTANTIATE_TEST_SUITE_P(Models, FusedTTT, testing::Values(&kModels[0], &kModels[1]), model_name);

std::vector<Case> cases(const Model& model) {
  std::vector<Case> list;
  for (int64_t T : {1, 7, 16, 63, 1000}) list.push_back({.B = 1, .T = T, .K = 16});
  for (int64_t K : {6, 60, 64, 100, 128}) list.push_back({.T = 37, .H = 1, .K = K, .position = 3});
  for (int64_t C : {1, 5, 33}) list.push_back({.T = 70, .C = C, .position = 2});
  for (int64_t T : {1, 4, 13}) list.push_back({.B = 3, .T = T, .position = 3, .measure = true});
  list.push_back({.T = 63, .documents = true});
  list.push_back({.T = 63, .K = 20, .C = 7, .position = 4, .documents = true, .measure = true});
  list.push_back({.norm = false});
  list.push_back({.position = 9, .norm = false, .residual = false, .bias = false, .documents = true});
  list.push_back({.position = 7, .residual = false});
  list.push_back({.position = 7, .bias = false});
  list.push_back({.T = 63, .K = 64, .bfloat16 = true});
  list.push_back({.T = 50, .K = 20, .C = 7, .position = 4, .documents = true, .bfloat16 = true});
  list.push_back({.T = 21, .K = 100, .position = 9, .norm = false, .bias = false, .bfloat16 = true});
  for (Case& c : list) c.model = &model;
  return list;
}

/// Shapes that nobody chose.
std::vector<Case> random_cases(const Model& model) {
  std::mt19937 generator(20);  // its numbers are the same everywhere, those of distributions are not
  const auto below = [&](int64_t n) { return static_cast<int64_t>(generator() % static_cast<uint32_t>(n)); };
  std::vector<Case> list;
  for (int i = 0; i < 16; ++i) {
    Case c{.B = 1 + below(3), .T = 1 + below(90), .H = 1 + below(3), .K = 1 + below(72), .C = 1 + below(20)};
    c.position = below(40);
    c.norm = c.K > 1 && below(4) > 0, c.residual = below(4) > 0, c.bias = below(4) > 0;
    c.documents = below(2) > 0, c.measure = below(4) == 0, c.bfloat16 = below(4) == 0;
    c.model = &model;
    list.push_back(c);
  }
  return list;
}

const auto kCaseName = [](const auto& info) { return name(info.param); };
INSTANTIATE_TEST_SUITE_P(Linear, FusedTTTShapes, testing::ValuesIn(cases(kModels[0])), kCaseName);
INSTANTIATE_TEST_SUITE_P(Mlp, FusedTTTShapes, testing::ValuesIn(cases(kModels[1])), kCaseName);
INSTANTIATE_TEST_SUITE_P(RandomLinear, FusedTTTShapes, testing::ValuesIn(random_cases(kModels[0])), kCaseName);
INSTANTIATE_TEST_SUITE_P(RandomMlp, FusedTTTShapes, testing::ValuesIn(random_cases(kModels[1])), kCaseName);

}  // namespace
}  // namespace lineal
