#include "eval/logits.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/safetensors.h"
#include "testing/temporary_folder.h"
#include "testing/testing.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

std::shared_ptr<LanguageModel> make_model(int64_t vocab_size) {
  LanguageModelConfig config;
  config.vocab_size = vocab_size;
  config.hidden_size = 18;
  config.intermediate_size = 23;
  config.initializer_range = 0.3;
  config.layers = parse_plan("ttt_linear(num_attention_heads=3,mini_batch_size=7)");
  return std::make_shared<LanguageModel>(config);
}

TEST(Logits, AreTheModels) {
  const TemporaryFolder folder;
  for (const int64_t N : {37, 70'001}) {  // the second head is applied to 19 tokens at a time
    const auto model = make_model(N);
    const Tensor ids = at::randint(N, {3, 29}, at::kLong);
    save_safetensors(folder / "in", {{"input_ids", ids}});
    at::NoGradGuard no_grad;
    State state = model->initial_state(3);
    const Tensor expected = model->forward(ids, state);
    for (const int64_t chunk : {1, 11, 2048}) {
      write_logits(*model, folder / "in", folder / "out", chunk);
      const SafeTensors out = load_safetensors(folder / "out");
      EXPECT_CLOSE(out.at("logits", "test"), expected, 1e-5) << "chunk " << chunk;
    }
  }
  EXPECT_EQ(folder.names(), std::vector<std::string>({"in", "out"}));
}

TEST(Logits, RefusesBadInput) {
  const TemporaryFolder folder;
  const auto model = make_model(37);
  const auto refuses = [&](const std::string& name, const Tensor& ids, const std::vector<std::string>& parts) {
    save_safetensors(folder / "in", {{name, ids}});
    return throws_error([&] { write_logits(*model, folder / "in", folder / "out", 5); }, parts);
  };
  Tensor ids = at::zeros({2, 9}, at::kLong);
  EXPECT_TRUE(refuses("input_id", ids, {"no tensor 'input_ids'", "'input_id'"}));
  EXPECT_TRUE(refuses("input_ids", ids.to(at::kInt), {"input_ids is Int", "I64"}));
  EXPECT_TRUE(refuses("input_ids", ids.flatten(), {"[18]", "expected [B, T]"}));
  EXPECT_TRUE(refuses("input_ids", ids.slice(1, 0, 0), {"[2, 0]", "one token at least"}));
  ids[1][7] = 37;
  EXPECT_TRUE(refuses("input_ids", ids, {"holds 37 at [1, 7]", "0 to 36"}));
  ids[0][3] = -2;
  EXPECT_TRUE(refuses("input_ids", ids, {"holds -2 at [0, 3]"}));
  EXPECT_TRUE(throws_error([&] { write_logits(*model, folder / "missing", folder / "out", 5); }, {"missing"}));
  EXPECT_EQ(folder.names(), std::vector<std::string>({"in"}));
}

}  // namespace
}  // namespace lineal
