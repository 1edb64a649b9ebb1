#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/error.h"
#include "mixers/mixer.h"
#include "testing/plain_layer.h"
#include "testing/testing.h"

namespace lineal {
namespace {

const std::vector<std::pair<std::string, std::string>> kNames = {{"proj_k", "proj_k"},
                                                                 {"proj_v", "proj_v"},
                                                                 {"q_proj.weight", "to_q.weight"},
                                                                 {"k_proj.weight", "to_k.weight"},
                                                                 {"v_proj.weight", "to_v.weight"},
                                                                 {"o_proj.weight", "to_out.weight"},
                                                                 {"o_proj.bias", "to_out.bias"}};

struct Published {
  const char* id;
  Json options;
};

const Published kPublished[] = {
    {"linformer/linformer", {{"num_attention_heads", 2}, {"sequence_length", 24}, {"num_mixtures", 6}}},
    {"linformer/linformer_share_onehead_short",
     {{"num_attention_heads", 4},
      {"head_dim", 4},
      {"sequence_length", 32},
      {"num_mixtures", 8},
      {"share_kv", true},
      {"one_kv_head", true}}},
};

std::shared_ptr<Mixer> published(const Golden& golden, const Json& options) {
  at::NoGradGuard no_grad;
  const auto mixer = make_mixer("linformer", options, golden["x"].size(2));
  mixer->to(at::kDouble);
  auto parameters = mixer->named_parameters();
  for (const auto& [name, theirs] : kNames) {
    EXPECT_EQ(parameters.contains(name), golden.has("param." + theirs)) << name;
    if (parameters.contains(name)) parameters[name].copy_(golden["param." + theirs]);
  }
  return mixer;
}

TEST(Linformer, IsThePublishedOne) {
  for (const auto& [id, options] : kPublished) {
    SCOPED_TRACE(id);
    const Golden golden(id);
    const auto mixer = published(golden, options);
    const Tensor x = golden["x"].to(at::kDouble).requires_grad_();
    const Tensor y = read_all(*mixer, x);
    EXPECT_CLOSE(y, golden["y"], 1e-12);
    auto parameters = mixer->named_parameters();
    std::vector<Tensor> leaves = {x};
    std::vector<std::string> names = {"x"};
    for (const auto& [name, theirs] : kNames) {
      if (!parameters.contains(name)) continue;
      leaves.push_back(parameters[name]);
      names.push_back("param." + theirs);
    }
    const auto gradients = torch::autograd::grad({(y * golden["probe"]).sum()}, leaves);
    for (size_t i = 0; i < leaves.size(); ++i) EXPECT_CLOSE(gradients[i], golden["grad." + names[i]], 1e-11);
    at::NoGradGuard no_grad;
    mixer->to(at::kFloat);
    EXPECT_CLOSE(read_all(*mixer, golden["x"]), golden["y"], 1e-5);
  }
}

/// The mixtures are sums, so that a text read in two calls ends with the state of one.
TEST(Linformer, TheStateOfTwoCallsIsThatOfOne) {
  at::NoGradGuard no_grad;
  for (const auto& [id, options] : kPublished) {
    const Golden golden(id);
    const auto mixer = published(golden, options);
    const Tensor x = golden["x"].to(at::kDouble);
    State once = mixer->initial_state(x.size(0)), twice = once;
    mixer->forward(x, once);
    mixer->forward(x.slice(1, 0, 7), twice);
    const Tensor last = mixer->forward(x.slice(1, 7), twice);
    EXPECT_CLOSE(last, golden["y"].slice(1, 7), 1e-12);
    for (const auto& [name, part] : once.named()) EXPECT_CLOSE(twice.at(name), part, 1e-12) << name;
  }
}

TEST(Linformer, RefusesWhatCannotBe) {
  EXPECT_ERROR(make_mixer("linformer", {{"num_attention_heads", 5}}, 16), "expected a divisor of hidden_size 16");
  const auto mixer = make_mixer("linformer", {{"sequence_length", 9}}, 16);
  State state = mixer->initial_state(2);
  mixer->forward(at::zeros({2, 6, 16}), state);
  EXPECT_ERROR(mixer->forward(at::zeros({2, 4, 16}), state), "a text of 10 tokens, expected at most sequence_length 9");
  Segments segments{at::zeros({2, 4}, at::kBool)};
  segments.starts.select(1, 1).fill_(true);
  mixer->forward(at::zeros({2, 4, 16}), state, segments);
}

}  // namespace
}  // namespace lineal
