#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "core/error.h"
#include "mixers/linear_recurrence.h"
#include "mixers/mamba.h"
#include "mixers/mixer.h"
#include "testing/testing.h"

namespace lineal {
namespace {

/// The state space as linear_recurrence's operation: x, dt, A, B and C of the golden in its place.
TEST(Mamba2, GoldenStateSpace) {
  const Golden golden("mamba/ssd_minimal");
  for (const int64_t C : {0, 7, 32}) {  // 0: the recurrence
    std::vector<Tensor> leaves;
    for (const char* name : {"x", "dt", "Ah", "Bm", "Cm"}) leaves.push_back(golden[name].clone().requires_grad_());
    const auto from = [&](const Tensor& S) {
      const kernels::RecurrenceInput in{
          .q = leaves[4], .k = leaves[3], .v = leaves[0] * leaves[1].unsqueeze(3), .g = leaves[1] * leaves[2], .S = S};
      return C == 0 ? linear_recurrence_reference(in) : linear_recurrence_chunked(in, C);
    };
    const auto out = from(at::zeros({2, 3, 4, 5}));
    EXPECT_CLOSE(out.o, golden["y"], 1e-5);
    EXPECT_CLOSE(out.S.transpose(2, 3), golden["final_state"], 1e-5);
    const auto gradients = torch::autograd::grad({(out.o * golden["probe"]).sum()}, leaves);
    size_t i = 0;
    for (const char* name : {"x", "dt", "Ah", "Bm", "Cm"}) {
      EXPECT_CLOSE(gradients[i++], golden[std::string("grad.") + name], 1e-4) << name;
    }
    const auto started = from(golden["init_state"].transpose(2, 3));
    EXPECT_CLOSE(started.o, golden["y_init"], 1e-5);
    EXPECT_CLOSE(started.S.transpose(2, 3), golden["final_state_init"], 1e-5);
  }
}

void expect_golden_mixer(const char* id, const Json& options) {
  SCOPED_TRACE(id);
  const Golden golden(id);
  const auto mixer = make_mixer("mamba2", options, 16);
  std::vector<Tensor> inputs;
  auto parameters = mixer->named_parameters();
  const auto names = golden.names("param.");
  {
    at::NoGradGuard no_grad;
    for (const auto& name : names) {
      parameters[name].copy_(golden["param." + name]);
      inputs.push_back(parameters[name]);
    }
  }
  ASSERT_EQ(inputs.size(), parameters.size());
  inputs.push_back(golden["h"].clone().requires_grad_());
  State state = mixer->initial_state(golden["h"].size(0));
  const Tensor y = mixer->forward(inputs.back(), state);
  EXPECT_CLOSE(y, golden["y"], 1e-5);
  if (golden.has("state.ssm")) {
    EXPECT_CLOSE(state.at("ssm").transpose(2, 3), golden["state.ssm"], 1e-5);
    EXPECT_CLOSE(state.at("conv").transpose(1, 2), golden["state.conv"].slice(2, 1), 1e-5);
  }
  const auto gradients = torch::autograd::grad({(y * golden["probe"]).sum()}, inputs);
  EXPECT_CLOSE(gradients.back(), golden["grad.h"], 1e-4);
  for (size_t i = 0; i < names.size(); ++i) {
    EXPECT_CLOSE(gradients[i], golden["grad.param." + names[i]], 1e-4) << names[i];
  }
}

TEST(Mamba2, GoldenMixers) {
  expect_golden_mixer("mamba/mixer2", {{"state_size", 8}, {"num_heads", 4}, {"chunk_size", 7}});
  expect_golden_mixer("mamba/mixer2_groups", {{"state_size", 6}, {"num_heads", 8}, {"n_groups", 2}, {"chunk_size", 7}});
}

/// A head is Mamba's selective scan with one decay for all its channels.
TEST(Mamba2, IsASelectiveScanWithOneDecayPerHead) {
  const int64_t B = 2, T = 19, H = 3, P = 5, N = 4;
  const auto d = at::kDouble;
  const Tensor x = normal({B, T, H, P}, 1, d), dt = normal({B, T, H}, 2, d).abs(), A = -normal({H}, 3, d).abs();
  const Tensor k = normal({B, T, H, N}, 4, d), q = normal({B, T, H, N}, 5, d), S = normal({B, H, N, P}, 6, d);
  const auto out = linear_recurrence_chunked({.q = q, .k = k, .v = x * dt.unsqueeze(3), .g = A * dt, .S = S}, 8);
  const Selective scan{x.flatten(2), dt.repeat_interleave(P, 2), A.repeat_interleave(P).unsqueeze(1).expand({H * P, N}),
                       k, q};
  const auto [y, h] = selective_scan_reference(scan, S.transpose(2, 3).reshape({B, H * P, N}));
  EXPECT_CLOSE(out.o.flatten(2), y, 1e-12);
  EXPECT_CLOSE(out.S.transpose(2, 3).reshape({B, H * P, N}), h, 1e-12);
}

/// With one step for all tokens nothing depends on what made the steps; and a bias of zeros is none.
TEST(Mamba2, StepsHaveLimits) {
  at::NoGradGuard no_grad;
  const Tensor x = normal({2, 19, 16}, 1).to(at::kFloat);
  const auto output = [&](const Json& options, double step_bias) {
    Json all = {{"num_heads", 4}, {"use_bias", true}};
    all.update(options);
    at::manual_seed(3);
    const auto mixer = make_mixer("mamba2", all, 16);
    auto parameters = mixer->named_parameters();
    parameters["in_proj.weight"].slice(0, -4).zero_();
    parameters["dt_bias"].fill_(step_bias);
    State state = mixer->initial_state(2);
    return mixer->forward(x, state);
  };
  const double step = 0.3, made = std::log(std::expm1(step));
  const Tensor expected = output(Json::object(), made);
  EXPECT_CLOSE(output({{"time_step_least", step}, {"time_step_most", 0.7}}, -20), expected, 1e-5);
  EXPECT_CLOSE(output({{"time_step_most", step}}, 5), expected, 1e-5);
  EXPECT_FALSE(output({{"time_step_most", 2 * step}}, 5).allclose(expected, 1e-2));
  EXPECT_TRUE(output({{"use_bias", false}}, made).equal(expected));
  EXPECT_ERROR(output({{"time_step_least", 0.5}, {"time_step_most", 0.4}}, 0),
               "expected 0 or at least time_step_least");
}

TEST(Mamba2, RefusesWhatCannotBe) {
  EXPECT_ERROR(make_mixer("mamba2", {{"num_heads", 5}}, 16),
               "num_heads is 5, expected a divisor of expand * hidden_size 32");
  EXPECT_ERROR(make_mixer("mamba2", {{"n_groups", 3}}, 16), "n_groups is 3, expected a divisor of num_heads 8");
}

}  // namespace
}  // namespace lineal
