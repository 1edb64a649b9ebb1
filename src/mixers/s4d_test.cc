#include "mixers/s4d.h"

#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "core/error.h"
#include "testing/state_space_checks.h"

namespace lineal {
namespace {

struct Leaves {
  Tensor inv_dt, A_real, A_imag, B_re, B_im, C_re, C_im;

  explicit Leaves(const Golden& golden)
      : inv_dt(leaf_of(golden, "inv_dt")),
        A_real(leaf_of(golden, "A_real")),
        A_imag(leaf_of(golden, "A_imag")),
        B_re(leaf_of(golden, "B_re")),
        B_im(leaf_of(golden, "B_im")),
        C_re(leaf_of(golden, "C_re")),
        C_im(leaf_of(golden, "C_im")) {}
  DiagonalSystem discrete(Discretization method) const {
    return discretize(DiagonalSystem{at::complex(-A_real.exp(), -A_imag), at::complex(B_re, B_im)}, inv_dt.exp(),
                      method);
  }
  Tensor C() const { return at::complex(C_re, C_im); }
  std::vector<Tensor> all() const { return {inv_dt, A_real, A_imag, B_re, B_im, C_re, C_im}; }
};

class S4DGolden : public testing::TestWithParam<std::string> {};

TEST_P(S4DGolden, KernelAndGradients) {
  const Golden golden("s4/s4d_" + GetParam());
  const Leaves leaves(golden);
  const int64_t L = golden["u"].size(2);
  const auto kernel = [&](Discretization method) {
    return DiagonalStateSpace(leaves.discrete(method), leaves.C()[0]).pieces(L, at::kDouble)->kernel().unsqueeze(0);
  };
  const Tensor K = kernel(Discretization::zoh);
  EXPECT_CLOSE(K.detach(), golden["K_zoh"], 1e-5);
  EXPECT_CLOSE(kernel(Discretization::bilinear).detach(), golden["K_bilinear"], 1e-5);
  const auto gradients = torch::autograd::grad({(K * golden["probe"]).sum()}, leaves.all());
  size_t i = 0;
  for (const char* name : {"inv_dt", "A_real", "A_imag", "B_re", "B_im", "C_re", "C_im"}) {
    EXPECT_CLOSE(gradients[i++], golden[std::string("grad.") + name], 1e-4) << name;
  }
}

TEST_P(S4DGolden, Recurrence) {
  at::NoGradGuard no_grad;
  const Golden golden("s4/s4d_" + GetParam());
  const Leaves leaves(golden);
  const DiagonalStateSpace system(leaves.discrete(Discretization::zoh), leaves.C()[0]);
  expect_reads(system, golden["u"], golden["y_step"].select(1, 0), complex_in(golden, "state"));
}

TEST_P(S4DGolden, Start) {
  const Golden golden("s4/s4d_" + GetParam());
  const auto mixer = make_mixer("s4d", {{"init", GetParam()}, {"state_size", 16}}, 3);
  const auto weights = mixer->named_parameters();
  EXPECT_CLOSE(weights["kernel.A_real"].detach(), golden["A_real"], 1e-6);
  EXPECT_CLOSE(weights["kernel.A_imag"].detach(), golden["A_imag"], 1e-6);
  if (GetParam() != "legs") {
    EXPECT_CLOSE(weights["kernel.B"].detach(), at::view_as_real(complex_in(golden, "B")), 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(Inits, S4DGolden, testing::Values("lin", "inv", "legs"),
                         [](const auto& info) { return info.param; });

/// V^* B of LegS up to a phase of each eigenvector, its imaginary part within [-2, 2].
TEST(S4D, LegsStartsFromClippedB) {
  const Golden golden("s4/hippo_legs_N16");
  const Tensor B = complex_in(golden, "Bv");
  EXPECT_CLOSE(at::imag(clipped(B)), golden["Bclip_im"], 1e-12);
  EXPECT_CLOSE(at::real(clipped(B)), golden["Bv_re"], 1e-12);
  const Tensor ours = s4d_initial("legs", 16).B;
  EXPECT_LE(at::imag(ours).abs().max().item<double>(), 2);
  EXPECT_GT(B.abs().max().item<double>(), 3);
}

std::shared_ptr<Mixer> random_s4d(const std::string& name, const Json& options, int64_t D) {
  at::NoGradGuard no_grad;
  at::manual_seed(3);
  const auto mixer = make_mixer(name, options, D);
  mixer->reset_parameters(0.5);
  mixer->named_parameters()["output_linear.bias"].normal_();
  mixer->to(at::kDouble);
  return mixer;
}

TEST(S4D, TheModuleIsItsFormulas) {
  at::NoGradGuard no_grad;
  const int64_t B = 2, T = 23, D = 5;
  const Tensor x = normal({B, T, D}, 1, at::kDouble), none = at::zeros({B, T}, at::kBool), some = none.clone();
  some[0][9] = true, some[0][10] = true, some[1][0] = true, some[1][20] = true;
  for (const char* name : {"s4d", "s4d_bidirectional"}) {
    for (const char* method : {"zoh", "bilinear"}) {
      const Json options = {{"state_size", 6}, {"init", "inv"}, {"discretization", method}, {"chunk_size", 4}};
      const auto mixer = random_s4d(name, options, D);
      const auto weights = mixer->named_parameters();
      const Tensor A = at::complex(-weights["kernel.A_real"].exp(), -weights["kernel.A_imag"]);
      const Tensor Bc = at::view_as_complex(weights["kernel.B"]), dt = weights["kernel.inv_dt"].exp();
      const Tensor dA = std::string(method) == "zoh" ? (dt * A).exp() : (1 + dt * A / 2) / (1 - dt * A / 2);
      const Tensor dB = std::string(method) == "zoh" ? Bc * (dA - 1) / A : Bc * dt / (1 - dt * A / 2);
      Tensor power = dB;
      std::vector<Tensor> K;
      for (int64_t l = 0; l < T; ++l) {
        K.push_back(2 * at::real(at::view_as_complex(weights["kernel.C"]) * power).sum(2));  // [directions, D]
        power = power * dA;
      }
      for (const Tensor& starts : {none, some}) {
        State state = mixer->initial_state(B);
        const Tensor y = mixer->forward(x, state, {starts});
        EXPECT_CLOSE(y, plain_state_space_layer(*mixer, at::stack(K, 2), x, starts), 1e-10) << name << " " << method;
      }
    }
  }
}

TEST(S4D, PiecesAreStepsWhateverDocumentsThereAre) {
  const int64_t D = 3, N = 6;
  const DiagonalSystem start = s4d_initial("lin", N);
  const Tensor dt = at::tensor({0.01, 0.1, 0.7}, at::kDouble).unsqueeze(1), C = normal({D, N / 2, 2}, 9, at::kDouble);
  const DiagonalSystem system = discretize(start, dt, Discretization::bilinear);
  expect_documents(DiagonalStateSpace(system, at::view_as_complex(C)), D, N);
}

TEST(S4D, ConvolutionIsRecurrenceOver16384StepsInFloat32) { expect_long_agreement("s4d"); }

TEST(S4D, TheConvolutionIsItsSumAndSeesNoLaterToken) {
  const int64_t D = 3, M = 2;
  for (const int64_t T : {1, 5, 64, 65, 300, 512}) {
    const Tensor K = normal({D, T}, 1, at::kDouble), u = normal({D, M, T}, 2, at::kDouble);
    Tensor expected = at::zeros_like(u);
    for (int64_t j = 0; j < T; ++j) {
      expected.slice(2, j) += K.slice(1, 0, T - j).unsqueeze(1) * u.slice(2, j, j + 1);
    }
    const Tensor y = causal_convolution(K, u), later = u.clone();
    EXPECT_CLOSE(y, expected, 1e-13) << T;
    const int64_t cut = 2 * T / 3;
    later.slice(2, cut).mul_(1e9);
    EXPECT_EQ(bit_difference(causal_convolution(K, later).slice(2, 0, cut), y.slice(2, 0, cut)), "") << T;
  }
}

TEST(S4D, PowersAreRoundedTwiceWhateverTheExponent) {
  const Tensor log_dA =
      at::complex(at::full({1, 3}, -1e-6, at::kDouble), at::tensor({0.1, 1.0, 3.0}, at::kDouble).unsqueeze(0));
  const Tensor l = at::arange(30011, at::kDouble).view({1, -1, 1});
  const Tensor exact = (l * log_dA.unsqueeze(1)).exp(), powers = diagonal_powers(log_dA, 30011, at::kFloat);
  EXPECT_LT((powers.to(at::kComplexDouble) - exact).abs().max().item<double>(), 4e-7);
}

/// What is kept of the parameters with gradients off is made anew when they change.
TEST(S4D, FollowsItsParameters) {
  const auto mixer = random_s4d("s4d", {{"state_size", 4}}, 3);
  const Tensor x = normal({1, 3, 3}, 1, at::kDouble);
  const auto read = [&] {
    State state = mixer->initial_state(1);
    return mixer->forward(x, state).detach();
  };
  for (const char* name : {"kernel.inv_dt", "kernel.A_imag", "kernel.C"}) {
    at::NoGradGuard no_grad;
    const Tensor before = read();
    mixer->named_parameters()[name].add_(0.3);
    const Tensor after = read();
    at::AutoGradMode with_gradients(true);
    EXPECT_FALSE(at::equal(after, before)) << name;
    EXPECT_CLOSE(after, read(), 1e-14) << name;
  }
}

TEST(S4D, StepsStartLogUniform) {
  at::manual_seed(3);
  const auto mixer = make_mixer("s4d", {{"dt_min", 0.01}, {"dt_max", 1}, {"state_size", 2}}, 4000);
  const Tensor steps = mixer->named_parameters()["kernel.inv_dt"].detach();
  EXPECT_GE(steps.min().item<double>(), std::log(0.01) - 1e-6);
  EXPECT_LE(steps.max().item<double>(), 1e-6);
  EXPECT_NEAR(steps.mean().item<double>(), std::log(0.1), 0.07);
}

TEST(S4D, RefusesWhatCannotBe) {
  const auto made = [](const Json& options) { make_mixer("s4d", options, 24); };
  EXPECT_ERROR(made({{"state_size", 7}}), "s4d: state_size is 7, expected an even number");
  EXPECT_ERROR(made({{"dt_min", 0.2}}), "s4d: dt_min is 0.2, expected at most dt_max 0.1");
  EXPECT_ERROR(made({{"discretization", "forward_euler"}}), "discretization");
  const Tensor one = at::ones({1, 1}, at::kComplexDouble);
  EXPECT_ERROR(discretize(DiagonalSystem{-one, one}, at::ones({1, 1}), Discretization::forward_euler),
               "s4d: discretization is forward_euler, expected zoh or bilinear");
}

}  // namespace
}  // namespace lineal
