#include "mixers/mamba.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "core/error.h"
#include "mixers/mixer.h"
#include "testing/testing.h"

namespace lineal {
namespace {

/// A golden scan's tensors in our layout: [B, D, L] -> [B, T, D], [B, (G,) N, L] -> [B, T, G, N].
struct ScanCase {
  explicit ScanCase(const std::string& id) : golden(id) {
    for (const char* name : {"u", "delta", "A", "B", "C", "D", "z", "delta_bias"}) {
      if (golden.has(name)) leaves.emplace_back(name, golden[name].clone().requires_grad_());
    }
  }
  Tensor at(const std::string& name) const {
    for (const auto& [leaf, tensor] : leaves) {
      if (leaf == name) return tensor;
    }
    return {};
  }
  Tensor matrix(const std::string& name) const {
    const Tensor B = at(name);
    if (B.dim() == 2) return B.expand({2, 24, 6, 4});  // constant, one per channel
    return B.dim() == 3 ? B.transpose(1, 2).unsqueeze(2) : B.permute({0, 3, 1, 2});
  }
  /// The scan and what the reference adds around it.
  std::pair<Tensor, Tensor> run(int64_t chunk_size) const {
    Tensor delta = at("delta").transpose(1, 2);
    if (at("delta_bias").defined()) delta = at::softplus(delta + at("delta_bias"));
    const Tensor u = at("u").transpose(1, 2);
    const Selective in{u, delta, at("A"), matrix("B"), matrix("C")};
    const Tensor h = at::zeros({2, 6, 4});
    auto [y, last] = chunk_size == 0 ? selective_scan_reference(in, h) : selective_scan(in, h, chunk_size);
    if (at("D").defined()) y = y + at("D") * u;
    if (at("z").defined()) y = y * at::silu(at("z").transpose(1, 2));
    return {y.transpose(1, 2), last};
  }
  Golden golden;
  std::vector<std::pair<std::string, Tensor>> leaves;
};

TEST(Mamba, GoldenScans) {
  for (const char* id : {"mamba/scan_full", "mamba/scan_groups", "mamba/scan_const"}) {
    for (const int64_t C : {0, 7, 24}) {  // 0: the recurrence
      SCOPED_TRACE(text(id, " chunk_size ", C));
      const ScanCase scan(id);
      const auto [y, last] = scan.run(C);
      EXPECT_CLOSE(y, scan.golden["y"], 1e-5);
      EXPECT_CLOSE(last, scan.golden["last_state"], 1e-5);
      std::vector<Tensor> inputs;
      for (const auto& [name, leaf] : scan.leaves) inputs.push_back(leaf);
      const auto gradients = torch::autograd::grad({(y * scan.golden["probe"]).sum()}, inputs);
      for (size_t i = 0; i < inputs.size(); ++i) {
        EXPECT_CLOSE(gradients[i], scan.golden["grad." + scan.leaves[i].first], 1e-4) << scan.leaves[i].first;
      }
    }
  }
}

TEST(Mamba, GoldenMixer) {
  const Golden golden("mamba/mixer1");
  const auto mixer = make_mixer("mamba", {{"state_size", 8}, {"time_step_rank", 3}, {"chunk_size", 7}}, 16);
  std::vector<Tensor> inputs;
  auto parameters = mixer->named_parameters();
  {
    at::NoGradGuard no_grad;
    for (const auto& name : golden.names("param.")) {
      parameters[name].copy_(golden["param." + name]);
      inputs.push_back(parameters[name]);
    }
  }
  ASSERT_EQ(inputs.size(), parameters.size());
  inputs.push_back(golden["h"].clone().requires_grad_());
  State state = mixer->initial_state(2);
  const Tensor y = mixer->forward(inputs.back(), state);
  EXPECT_CLOSE(y, golden["y"], 1e-5);
  EXPECT_CLOSE(state.at("ssm"), golden["state.ssm"], 1e-5);
  EXPECT_CLOSE(state.at("conv").transpose(1, 2), golden["state.conv"].slice(2, 1), 1e-5);
  const auto gradients = torch::autograd::grad({(y * golden["probe"]).sum()}, inputs);
  EXPECT_CLOSE(gradients.back(), golden["grad.h"], 1e-4);
  const auto names = golden.names("param.");
  for (size_t i = 0; i < names.size(); ++i) {
    EXPECT_CLOSE(gradients[i], golden["grad.param." + names[i]], 1e-4) << names[i];
  }
}

TEST(Mamba, LinearScanIsTheRecurrence) {
  const int64_t B = 2, T = 29, M = 3;
  const Tensor a = normal({B, T, M, 1}, 1, at::kDouble).sigmoid();
  a.select(1, 11).zero_();  // a document starts
  const std::vector<Tensor> inputs = {a, normal({B, T, M, 1}, 2, at::kDouble), normal({B, M, 1}, 3, at::kDouble)};
  for (const int64_t C : {1, 4, 29, 64}) {
    const Tensor all = linear_scan(inputs[0], inputs[1], inputs[2], C);
    Tensor h = inputs[2];
    for (int64_t t = 0; t < T; ++t) {
      h = a.select(1, t) * h + inputs[1].select(1, t);
      EXPECT_CLOSE(all.select(1, t), h, 1e-13) << "token " << t << ", chunk_size " << C;
    }
    EXPECT_EQ(gradient_difference(
                  [&](const std::vector<Tensor>& in) {
                    return std::vector<Tensor>{linear_scan(in[0], in[1], in[2], C).sin()};
                  },
                  inputs, {"a", "x", "h"}),
              "");
  }
}

TEST(Mamba, ScanIsTheRecurrenceAcrossDocuments) {
  const int64_t B = 3, T = 29, D = 6, G = 2, N = 5;
  const auto d = at::kDouble;
  const Selective in{normal({B, T, D}, 1, d), normal({B, T, D}, 2, d).abs(), -normal({D, N}, 3, d).abs(),
                     normal({B, T, G, N}, 4, d), normal({B, T, G, N}, 5, d)};
  const Tensor h = normal({B, D, N}, 6, d);
  Segments segments{at::zeros({B, T}, at::kBool)};
  segments.starts[0][0] = true;
  segments.starts[1][9] = true;
  segments.starts[1][11] = true;
  segments.starts[2][28] = true;
  const std::vector<Tensor> inputs = {in.u, in.delta, in.A, in.B, in.C, h};
  for (const auto& documents : {Segments{}, segments}) {
    const auto run = [&](int64_t chunk_size) {  // 0: the recurrence
      std::vector<Tensor> x;
      for (const Tensor& input : inputs) x.push_back(input.clone().requires_grad_());
      const Selective selective{x[0], x[1], x[2], x[3], x[4]};
      const auto [y, last] = chunk_size == 0 ? selective_scan_reference(selective, x[5], documents)
                                             : selective_scan(selective, x[5], chunk_size, documents);
      auto result = torch::autograd::grad({y.square().sum() + last.pow(3).sum()}, x);
      result.insert(result.end(), {y, last});
      return result;
    };
    const auto expected = run(0);
    for (const int64_t C : {1, 4, 29}) {
      const auto actual = run(C);
      for (size_t i = 0; i < expected.size(); ++i) EXPECT_CLOSE(actual[i], expected[i], 1e-11) << i << ", chunk " << C;
    }
  }
}

/// The gradient goes through the state from call to call as through one call, documents included.
TEST(Mamba, GradientsCrossCalls) {
  const int64_t T = 17, D = 12;
  const auto mixer = make_mixer("mamba", {{"state_size", 5}, {"chunk_size", 4}}, D);
  mixer->to(at::kDouble);
  Segments segments{at::zeros({2, T}, at::kBool)};
  segments.starts[0][7] = true;
  segments.starts[1][12] = true;
  const Tensor x = normal({2, T, D}, 1, at::kDouble).requires_grad_(), weight = normal({2, T, D}, 2, at::kDouble);
  for (const auto& documents : {Segments{}, segments}) {
    const auto run = [&](int64_t length) {
      State state = mixer->initial_state(2);
      std::vector<Tensor> y;
      for (int64_t from = 0; from < T; from += length) {
        const int64_t to = std::min(from + length, T);
        y.push_back(mixer->forward(x.slice(1, from, to), state, documents.slice(from, to)));
      }
      auto inputs = mixer->parameters();
      inputs.push_back(x);
      return torch::autograd::grad({(at::cat(y, 1) * weight).sum() + state.at("ssm").sum()}, inputs);
    };
    const auto expected = run(T);
    for (const int64_t length : {1, 5}) {
      const auto actual = run(length);
      for (size_t i = 0; i < expected.size(); ++i) EXPECT_CLOSE(actual[i], expected[i], 1e-10) << i;
    }
  }
}

/// Decays whose products vanish or hardly move: nothing overflows, nothing is divided away.
TEST(Mamba, ExtremeStepsStayFinite) {
  const int64_t T = 300;
  for (const double step : {1e-8, 1e3}) {
    const Tensor u = normal({1, T, 2}, 1).requires_grad_();
    const Selective in{u, at::full({1, T, 2}, step), at::full({2, 3}, -16.0), normal({1, T, 1, 3}, 2),
                       normal({1, T, 1, 3}, 3)};
    const Tensor h = normal({1, 2, 3}, 4).requires_grad_();
    const auto [y, last] = selective_scan(in, h, 64);
    EXPECT_CLOSE(y, selective_scan_reference(in, h).first, 1e-5);
    const auto gradients = torch::autograd::grad({y.sum() + last.sum()}, {u, h});
    for (const Tensor& gradient : gradients) EXPECT_TRUE(gradient.isfinite().all().item<bool>());
  }
}

TEST(Mamba, InitialStepsAreThoseOfThePaper) {
  const auto mixer = make_mixer("mamba", Json::object(), 512);
  const Tensor step = at::softplus(mixer->named_parameters()["dt_proj.bias"]);
  EXPECT_GE(step.min().item<double>(), 0.999e-3);
  EXPECT_LE(step.max().item<double>(), 1.001e-1);
  EXPECT_NEAR(step.log().mean().item<double>(), std::log(1e-2), 0.2);  // log-uniform
  EXPECT_EQ(mixer->named_parameters()["dt_proj.weight"].size(1), 32);
  const Tensor A = mixer->named_parameters()["A_log"].exp();
  EXPECT_CLOSE(A[17], at::arange(1, 17, at::kFloat), 1e-6);
}

TEST(Mamba, ErrorsNameTheTensor) {
  const Selective in{at::ones({1, 3, 6}), at::ones({1, 3, 6}), at::ones({6, 5}), at::ones({1, 3, 4, 5}),
                     at::ones({1, 3, 4, 5})};
  EXPECT_ERROR(selective_scan(in, at::ones({1, 6, 5}), 4), "B has 4 groups, expected a divisor of the 6 channels");
  EXPECT_ERROR(selective_scan(in, at::ones({1, 6, 4}), 4), "selective_scan: h is [1, 6, 4], expected [B=1, D=6, N=5]");
}

}  // namespace
}  // namespace lineal
