#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "testing/plain_layer.h"

namespace lineal {
namespace {

/// LibTorch's own, from the same state: outputs, state and gradients.
TEST(LSTM, IsLibTorchs) {
  const int64_t B = 2, T = 13, D = 7;
  const auto mixer = random_mixer("lstm", Json::object(), D);
  const Tensor x = normal({B, T, D}, 1, at::kDouble).requires_grad_();
  State state = mixer->initial_state(B);
  mixer->forward(normal({B, 3, D}, 9, at::kDouble), state);
  const Tensor h = state.at("h").detach(), c = state.at("c").detach();
  state = state.detach();
  const Tensor y = mixer->forward(x, state);
  const auto parameters = mixer->parameters();
  const auto [expected, h_last, c_last] =
      at::lstm(x, {h.unsqueeze(0), c.unsqueeze(0)}, parameters, /*has_biases=*/true, /*num_layers=*/1, /*dropout=*/0,
               /*train=*/true, /*bidirectional=*/false, /*batch_first=*/true);
  EXPECT_CLOSE(y, expected, 1e-12);
  EXPECT_CLOSE(state.at("h"), h_last[0], 1e-12);
  EXPECT_CLOSE(state.at("c"), c_last[0], 1e-12);
  auto inputs = parameters;
  inputs.push_back(x);
  const Tensor probe = normal({B, T, D}, 2, at::kDouble);
  const auto gradients = torch::autograd::grad({(y * probe).sum()}, inputs);
  const auto wanted = torch::autograd::grad({(expected * probe).sum()}, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) EXPECT_CLOSE(gradients[i], wanted[i], 1e-12) << i;
}

TEST(LSTM, ForgetGatesStartOpen) {
  const auto mixer = make_mixer("lstm", Json::object(), 6);
  const auto weights = mixer->named_parameters();
  EXPECT_CLOSE(weights["bias_ih_l0"].view({4, 6}).mean(1), at::tensor({0.0, 1.0, 0.0, 0.0}), 1e-6);
  EXPECT_LE(weights["weight_hh_l0"].abs().max().item<double>(), 0.4083);
}

}  // namespace
}  // namespace lineal
