#include "mixers/s4.h"

#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "core/error.h"
#include "testing/state_space_checks.h"

namespace lineal {
namespace {

struct Leaves {
  std::vector<Tensor> all;

  explicit Leaves(const Golden& golden) {
    for (const char* name : kNames) all.push_back(leaf_of(golden, name));
  }
  LowRankSystem system() const {
    return {at::complex(-all[1].exp(), -all[2]), at::complex(all[3], all[4]), at::complex(all[5], all[6]),
            all[0].exp()};
  }
  Tensor C_tilde() const { return at::complex(all[7], all[8]); }

  static constexpr const char* kNames[] = {"inv_dt", "A_real", "A_imag", "B_re", "B_im",
                                           "Pp_re",  "Pp_im",  "Ct_re",  "Ct_im"};
};

class S4Golden : public testing::TestWithParam<std::string> {};

TEST_P(S4Golden, KernelAndGradients) {
  const Golden golden("s4/s4_" + GetParam());
  const Leaves leaves(golden);
  const Tensor K = s4_kernel(leaves.system(), leaves.C_tilde(), golden["u"].size(2));
  EXPECT_CLOSE(K.detach(), golden["K"], 1e-5);
  const auto gradients = torch::autograd::grad({(K * golden["probe"]).sum()}, leaves.all);
  for (size_t i = 0; i < gradients.size(); ++i) {
    EXPECT_CLOSE(gradients[i], golden[std::string("grad.") + Leaves::kNames[i]], 1e-4) << Leaves::kNames[i];
  }
}

TEST_P(S4Golden, TruncatedC) {
  at::NoGradGuard no_grad;
  const Golden golden("s4/s4_" + GetParam());
  const Tensor C = s4_truncate(Leaves(golden).system(), complex_in(golden, "C"), golden["u"].size(2));
  EXPECT_CLOSE(at::view_as_real(C.resolve_conj()), at::view_as_real(complex_in(golden, "Ct")), 1e-8);
}

TEST_P(S4Golden, Step) {
  at::NoGradGuard no_grad;
  const Golden golden("s4/s4_" + GetParam());
  const LowRankStep step(Leaves(golden).system());
  const Tensor dA = complex_in(golden, "dA"), dB = complex_in(golden, "dB");  // [D, N, N], [D, N]
  const int64_t D = dA.size(0), half = dA.size(1) / 2;
  const Tensor x = at::view_as_complex(normal({1, D, half, 2}, 1, at::kDouble)), u = normal({1, D}, 2, at::kDouble);
  const Tensor both = at::cat({x[0], x[0].conj()}, 1).unsqueeze(2);
  const Tensor expected = at::matmul(dA, both).squeeze(2) + dB * u[0].unsqueeze(1);
  EXPECT_CLOSE(at::view_as_real(step(u, x)[0]), at::view_as_real(expected.slice(1, 0, half).contiguous()), 1e-10);
  const Tensor dense = at::matmul(step.matrix(), real_view(x[0]).unsqueeze(2)).squeeze(2);
  EXPECT_CLOSE(dense + step.input() * u[0].unsqueeze(1), real_view(step(u, x)[0]), 1e-12);
}

TEST_P(S4Golden, Recurrence) {
  at::NoGradGuard no_grad;
  const Golden golden("s4/s4_" + GetParam());
  const LowRankStateSpace system(Leaves(golden).system(), complex_in(golden, "C")[0]);
  const Tensor state = complex_in(golden, "state");
  expect_reads(system, golden["u"], golden["y_step"].select(1, 0), state.slice(2, 0, state.size(2) / 2).contiguous());
}

TEST_P(S4Golden, Start) {
  const Golden golden("s4/s4_" + GetParam());
  const int64_t rank = golden["Pp_re"].size(0);
  const auto mixer =
      make_mixer("s4", {{"init", GetParam().substr(0, GetParam().find('_'))}, {"state_size", 16}, {"rank", rank}}, 2);
  const auto weights = mixer->named_parameters();
  EXPECT_CLOSE(weights["kernel.A_real"].detach(), golden["A_real"].slice(0, 0, 2), 1e-5);
  EXPECT_CLOSE(weights["kernel.A_imag"].detach(), golden["A_imag"].slice(0, 0, 2), 1e-5);
  const Tensor P = at::view_as_complex(weights["kernel.P"].detach().to(at::kDouble));
  EXPECT_CLOSE(P.abs(), complex_in(golden, "Pp").slice(1, 0, 2).abs(), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Inits, S4Golden, testing::Values("legs", "fourier", "legt_rank2"),
                         [](const auto& info) { return info.param; });

LowRankSystem random_system(int64_t D, int64_t N, int64_t rank) {
  const auto complex = [](at::IntArrayRef shape, uint64_t seed) {
    return at::complex(normal(shape, seed, at::kDouble), normal(shape, seed + 100, at::kDouble));
  };
  const Tensor dt = at::logspace(-2, 0, D, 10, at::kDouble).unsqueeze(1);
  const Tensor A = at::complex(-normal({D, N / 2}, 1, at::kDouble).exp(), 5 * normal({D, N / 2}, 2, at::kDouble));
  return {A, complex({D, N / 2}, 3), complex({rank, D, N / 2}, 4), dt};
}

/// Every parity of L, whose even ones have a node at -1, against one step after another.
TEST(S4, TheGeneratingFunctionGivesTheKernel) {
  const int64_t D = 3, N = 6, channels = 2;
  for (const int64_t rank : {1, 2, 3}) {
    const LowRankSystem system = random_system(D, N, rank);
    const Tensor C =
        at::complex(normal({channels, D, N / 2}, 7, at::kDouble), normal({channels, D, N / 2}, 8, at::kDouble));
    for (const int64_t L : {1, 2, 3, 8, 15, 64, 100}) {
      const LowRankStep step(system);
      Tensor x = step(at::ones({1, D}, at::kDouble), at::zeros({1, D, N / 2}, at::kComplexDouble));
      std::vector<Tensor> K;
      for (int64_t l = 0; l < L; ++l) {
        K.push_back(2 * at::real(C * x).sum(2));
        x = step(at::zeros({1, D}, at::kDouble), x);
      }
      EXPECT_CLOSE(s4_kernel(system, s4_truncate(system, C, L), L), at::stack(K, 2), 1e-10) << rank << ", " << L;
    }
  }
}

TEST(S4, TheModuleIsItsFormulas) {
  at::NoGradGuard no_grad;
  const int64_t B = 2, T = 23, D = 5, N = 6;
  const Tensor x = normal({B, T, D}, 1, at::kDouble), none = at::zeros({B, T}, at::kBool), some = none.clone();
  some[0][9] = true, some[0][10] = true, some[1][0] = true, some[1][20] = true;
  for (const char* name : {"s4", "s4_bidirectional"}) {
    at::manual_seed(3);
    const auto mixer = make_mixer(name, {{"state_size", N}, {"init", "legt"}, {"rank", 2}, {"chunk_size", 4}}, D);
    mixer->reset_parameters(0.5);
    mixer->named_parameters()["output_linear.bias"].normal_();
    mixer->to(at::kDouble);
    const auto weights = mixer->named_parameters();
    const auto complex = [&](const char* leaf) { return at::view_as_complex(weights[std::string("kernel.") + leaf]); };
    const Tensor A = at::complex(-weights["kernel.A_real"].exp(), -weights["kernel.A_imag"]);
    const auto both = [](const Tensor& v) { return at::cat({v, v.conj()}, -1); };
    const Tensor P = both(complex("P")), dt = weights["kernel.inv_dt"].exp().unsqueeze(2), I = at::eye(N, at::kDouble);
    const Tensor full = at::diag_embed(both(A)) - at::einsum("rdn,rdm->dnm", {P, P.conj()});
    const Tensor dA = at::linalg_solve(2 / dt * I - full, 2 / dt * I + full);
    Tensor power = at::linalg_solve(2 / dt * I - full, 2 * both(complex("B")).unsqueeze(2)).squeeze(2);
    std::vector<Tensor> K;
    for (int64_t l = 0; l < T; ++l) {
      K.push_back(at::real(both(complex("C")) * power).sum(2));
      power = at::matmul(dA, power.unsqueeze(2)).squeeze(2);
    }
    for (const Tensor& starts : {none, some}) {
      State state = mixer->initial_state(B);
      const Tensor y = mixer->forward(x, state, {starts});
      EXPECT_CLOSE(y, plain_state_space_layer(*mixer, at::stack(K, 2), x, starts), 1e-10) << name;
    }
  }
}

TEST(S4, PiecesAreStepsWhateverDocumentsThereAre) {
  const Tensor C = normal({3, 3, 2}, 9, at::kDouble);
  expect_documents(LowRankStateSpace(random_system(3, 6, 2), at::view_as_complex(C)), 3, 6);
}

TEST(S4, ConvolutionIsRecurrenceOver16384StepsInFloat32) { expect_long_agreement("s4"); }

TEST(S4, RefusesWhatCannotBe) {
  EXPECT_ERROR(make_mixer("s4", {{"init", "legt"}}, 8), "s4: rank is 1, init legt needs at least 2");
  EXPECT_ERROR(make_mixer("s4", {{"state_size", 9}}, 8), "s4: state_size is 9, expected an even number");
}

}  // namespace
}  // namespace lineal
