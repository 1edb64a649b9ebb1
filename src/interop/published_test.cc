// Whole published models: logits, gradients and greedy continuations of the public implementation, and the same model
// written back. The directories of testdata/models and of $LINEAL_PUBLISHED, see bench/published_test.py.
#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "backbones/model_files.h"
#include "interop/load.h"
#include "interop/save.h"
#include "testing/temporary_folder.h"
#include "testing/testing.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> directories() {
  std::vector<fs::path> result;
  const char* more = std::getenv("LINEAL_PUBLISHED");
  for (const fs::path& parent : {fs::path(LINEAL_TESTDATA) / "models", fs::path(more ? more : "")}) {
    if (parent.empty()) continue;
    for (const auto& entry : fs::directory_iterator(parent)) result.push_back(entry.path());
  }
  std::sort(result.begin(), result.end());
  return result;
}

class Published : public testing::TestWithParam<fs::path> {
 protected:
  bool has(const std::string& file) const { return fs::exists(GetParam() / (file + ".safetensors")); }
  /// The goldens' own, or for what was made with a public library of today, whose sums have another order.
  bool is_golden() const { return GetParam().parent_path() == fs::path(LINEAL_TESTDATA) / "models"; }
  double tolerance() const { return is_golden() ? 1e-5 : 1e-4; }
  Tensor tensor(const std::string& file, const std::string& name) const {
    return load_safetensors(GetParam() / (file + ".safetensors")).at(name, file);
  }
};

TEST_P(Published, Logits) {
  if (!has("logits")) GTEST_SKIP() << "no logits.safetensors";
  const auto model = load_model(GetParam()).model;
  at::NoGradGuard no_grad;
  const Tensor ids = tensor("tokens", "input_ids"), expected = tensor("logits", "logits");
  State state = model->initial_state(ids.size(0));
  EXPECT_CLOSE(model->forward(ids, state), expected, tolerance());
  State split = model->initial_state(ids.size(0));
  const int64_t half = (ids.size(1) + 6) / 2;
  const Tensor first = model->forward(ids.slice(1, 0, half), split), second = model->forward(ids.slice(1, half), split);
  EXPECT_CLOSE(at::cat({first, second}, 1), expected, tolerance());
}

TEST_P(Published, Gradients) {
  if (!has("grads")) GTEST_SKIP() << "no grads.safetensors";
  const auto model = load_model(GetParam()).model;
  const Tensor ids = tensor("tokens", "input_ids");
  State state = model->initial_state(ids.size(0));
  const Tensor logits = model->forward(ids, state).slice(1, 0, -1);
  const Tensor loss = at::cross_entropy_loss(logits.flatten(0, 1), ids.slice(1, 1).flatten());
  EXPECT_CLOSE(loss, tensor("logits", "loss")[0], tolerance());
  loss.backward();
  NamedTensors gradients;
  for (const auto& item : model->named_parameters()) gradients.emplace_back(item.key(), item.value().grad());
  const auto published = published_tensors(gradients, model->config().layers.size(), family_of(GetParam()).rules,
                                           heads_of(model->config()), "test");
  for (const auto& [name, gradient] : published) {
    SCOPED_TRACE(name);
    EXPECT_CLOSE(gradient, tensor("grads", "grad." + name), 10 * tolerance());
  }
}

TEST_P(Published, GreedyContinuation) {
  if (!has("generation")) GTEST_SKIP() << "no generation.safetensors";
  const auto model = load_model(GetParam()).model;
  at::NoGradGuard no_grad;
  const Tensor prompt = tensor("generation", "prompt"), generated = tensor("generation", "generated");
  const Tensor step_logits = tensor("generation", "step_logits");
  State state = model->initial_state(prompt.size(0));
  Tensor logits = model->forward(prompt, state).select(1, -1);
  for (int64_t i = 0; i < generated.size(1); ++i) {
    SCOPED_TRACE(i);
    EXPECT_CLOSE(logits, step_logits.select(1, i), 2 * tolerance());
    const Tensor next = logits.argmax(-1);
    ASSERT_TRUE(next.equal(generated.select(1, i)));
    logits = model->forward(next.unsqueeze(1), state).select(1, 0);
  }
}

/// What is written is what was read: the same configuration, the same numbers under the same names.
TEST_P(Published, WrittenBack) {
  const TemporaryFolder folder;
  const LoadedModel loaded = load_model(GetParam());
  const FamilySpec& family = family_of(GetParam());
  save_as(*loaded.model, family.name, "float32", folder / "out", GetParam());
  const LoadedModel again = load_model(folder / "out");
  EXPECT_EQ(again.model->config().to_json(), loaded.model->config().to_json());
  EXPECT_EQ(fingerprint(*again.model), fingerprint(*loaded.model));
  const SafeTensors written = load_safetensors(folder / "out" / "model.safetensors");
  const std::vector<FileTensor> read = read_tensors(GetParam());
  EXPECT_EQ(written.tensors.size(), read.size());
  for (const FileTensor& item : read) {
    EXPECT_EQ(bit_difference(written.at(item.name, "written"), item.tensor.to(at::kFloat)), "") << item.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Directories, Published, testing::ValuesIn(directories()),
                         [](const auto& info) { return info.param.filename().string(); });

}  // namespace
}  // namespace lineal
