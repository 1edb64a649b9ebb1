#include "interop/load.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <unistd.h>

#include <filesystem>

#include "backbones/model_files.h"
#include "core/error.h"
#include "core/file.h"
#include "core/registry.h"
#include "core/run_mark.h"
#include "testing/testing.h"
#include "testing/throws_error.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

class ModelDirectory : public testing::Test {
 protected:
  ModelDirectory() : dir(fs::temp_directory_path() / text("lineal_load_", getpid())) {
    fs::remove_all(dir);
    LanguageModelConfig config;
    config.hidden_size = 24;
    config.intermediate_size = 40;
    config.layers = parse_plan("ttt_mlp(mini_batch_size=5, num_attention_heads=3)*2, identity");
    model = std::make_shared<LanguageModel>(config);
    save_model(*model, dir);
  }
  ~ModelDirectory() override { fs::remove_all(dir); }

  fs::path dir;
  std::shared_ptr<LanguageModel> model;
};

TEST_F(ModelDirectory, LoadingDrawsNoRandomNumbers) {
  const Tensor before = at::detail::getDefaultCPUGenerator().get_state();
  load_model(dir);
  EXPECT_TRUE(at::detail::getDefaultCPUGenerator().get_state().equal(before));
}

TEST_F(ModelDirectory, WhatWasSavedIsLoaded) {
  const auto loaded = load_model(dir);
  EXPECT_EQ(loaded.model->config().to_json(), model->config().to_json());
  EXPECT_EQ(fingerprint(*loaded.model), fingerprint(*model));
  EXPECT_EQ(loaded.tokenizer->vocab_size(), 256);
  at::NoGradGuard no_grad;
  model->named_parameters()["model.norm.weight"][3] += 1e-6;
  EXPECT_NE(fingerprint(*loaded.model), fingerprint(*model));
}

TEST_F(ModelDirectory, TheTrainingLengthIsTheRunsContext) {
  EXPECT_FALSE(training_length(dir).has_value());
  const fs::path run = dir / "run", checkpoint = run / "checkpoints/step-3";
  fs::create_directories(checkpoint);
  for (const auto& name : {"config.json", "model.safetensors"}) fs::copy(dir / name, checkpoint / name);
  EXPECT_FALSE(training_length(checkpoint).has_value()) << "a folder that is no run";
  write_atomic(run / "config.json", Json{{"format", kRunFormat}, {"train", {{"context", 77}}}}.dump());
  EXPECT_EQ(training_length(run), 77);
  EXPECT_EQ(training_length(checkpoint), 77);
  EXPECT_EQ(training_length(fs::path(LINEAL_TESTDATA) / "models/ttt_mlp_transformer_untied"), 2048);
}

/// Weights trained with softmax go on with random features, whose rows are drawn when the file has none, and are then
/// part of the model.
TEST_F(ModelDirectory, WeightsOfAttentionAreAPerformers) {
  LanguageModelConfig config = model->config();
  config.layers = parse_plan("attention(num_key_value_heads=2)*2");
  const LanguageModel trained(config);
  save_model(trained, dir);
  Json json = read_model_config(dir);
  for (Json& layer : json["layers"]) layer = {{"mixer", "performer"}, {"num_key_value_heads", 2}};
  write_atomic(dir / "config.json", json.dump());

  auto performer = load_model(dir).model;
  const auto weights = performer->named_parameters();
  for (const auto& item : trained.named_parameters()) EXPECT_TRUE(at::equal(item.value(), weights[item.key()]));
  ASSERT_EQ(performer->buffers().size(), 2);
  for (const Tensor& rows : performer->buffers()) {
    EXPECT_NEAR(rows.square().mean().item<double>(), 1, 0.2);  // 256 rows of 6 normal numbers
  }

  save_model(*performer, dir);
  const auto again = load_model(dir).model;
  EXPECT_EQ(fingerprint(*again), fingerprint(*performer));
  again->buffers()[1].add_(1e-3);
  EXPECT_NE(fingerprint(*again), fingerprint(*performer));
}

TEST_F(ModelDirectory, BadDirectoriesAreNamed) {
  EXPECT_ERROR(load_model(dir / "nowhere"), "does not exist");
  EXPECT_ERROR(load_model(dir / "config.json"), "is a file, expected a model directory");
  const Json good = read_model_config(dir);
  const auto with = [&](const std::function<void(Json&)>& change) {
    Json json = good;
    change(json);
    write_atomic(dir / "config.json", json.dump());
  };
  with([](Json& j) { j["hiden_size"] = 3; });
  EXPECT_ERROR(load_model(dir), "unknown field 'hiden_size'; did you mean 'hidden_size'?");
  with([](Json& j) { j["hidden_size"] = 30; });
  EXPECT_ERROR(load_model(dir), "config.json asks for [");
  with([](Json& j) { j["hidden_size"] = -1; });
  EXPECT_ERROR(load_model(dir), "hidden_size is -1, expected an integer from 1 to");
  with([](Json& j) { j["hidden_size"] = 18446744073709551615u; });
  EXPECT_ERROR(load_model(dir), "hidden_size is 18446744073709551615");
  with([](Json& j) { j["hidden_size"] = 1048572; });
  EXPECT_ERROR(load_model(dir), "GiB");
  with([](Json& j) { j["model_type"] = "tt"; });
  EXPECT_ERROR(load_model(dir), "unknown model_type 'tt'; did you mean 'ttt'?");
  const std::string file = (dir / "config.json").string();
  const auto load = [&] { load_model(dir); };
  with([](Json& j) { j["layers"][0]["mixer"] = "ttt_liner"; });
  EXPECT_TRUE(throws_error(load, {file + ": layers: ", "did you mean 'ttt_linear'?"}));
  with([](Json& j) { j["layers"][1]["mini_batch_siz"] = 3; });
  EXPECT_TRUE(throws_error(load, {file + ": ttt_mlp: ", "did you mean 'mini_batch_size'?"}));
  with([](Json& j) { j["layers"][1]["num_attention_heads"] = 5; });
  EXPECT_TRUE(throws_error(load, {file + ": ttt_mlp: num_attention_heads is 5", "divisor of hidden_size 24"}));
  with([](Json& j) { j["layers"] = 7; });
  EXPECT_TRUE(throws_error(load, {file + ": layers: ", "got 7"}));
  EXPECT_TRUE(throws_error([&] { load_model(dir / std::string(300, 'x')); }, {"cannot read", "File name too long"}));
  fs::create_directory_symlink("loop", dir / "loop");
  EXPECT_TRUE(throws_error([&] { load_model(dir / "loop"); }, {"cannot read", "symbolic links"}));
  with([](Json& j) { j["tokenizer"] = "byte"; });
  EXPECT_ERROR(load_model(dir), "did you mean 'bytes'?");
  write_atomic(dir / "config.json", good.dump().substr(0, 100));
  EXPECT_ERROR(load_model(dir), "no valid JSON");
  write_atomic(dir / "config.json", good.dump());
  fs::resize_file(dir / "model.safetensors", fs::file_size(dir / "model.safetensors") - 5);
  EXPECT_ERROR(load_model(dir), "model.safetensors");
  fs::remove(dir / "model.safetensors");
  EXPECT_ERROR(load_model(dir), "model.safetensors");
}

TEST_F(ModelDirectory, TheTokenizerIsAskedFor) {
  LoadedModel loaded = load_model(dir);
  EXPECT_EQ(&tokenizer_of(loaded, "train"), loaded.tokenizer.get());
  loaded.tokenizer.reset();
  EXPECT_TRUE(
      throws_error([&] { tokenizer_of(loaded, "train"); }, {"train: this model has 256 tokens", "expected one"}));
  EXPECT_TRUE(throws_error([&] { tokenizer_of(loaded, "eval", "give ids"); }, {"eval: ", "no tokenizer; give ids"}));
}

TEST_F(ModelDirectory, ARunStandsForItsNewestCheckpoint) {
  const fs::path run = dir / "run";
  EXPECT_ERROR((fs::create_directories(run / "checkpoints"), load_model(run)), "a run without a checkpoint yet");
  for (const char* name : {"step-9", "step-10", "step-11x", "step-", ".step-12.writing"}) {
    fs::create_directory(run / "checkpoints" / name);
  }
  fs::copy(dir / "config.json", run / "checkpoints/step-10");
  fs::copy(dir / "model.safetensors", run / "checkpoints/step-10");
  EXPECT_EQ(fingerprint(*load_model(run).model), fingerprint(*model));
}

TEST(PublishedConfig, EveryFieldIsTaken) {
  const Json json = {{"vocab_size", 31},        {"hidden_size", 24},        {"intermediate_size", 40},
                     {"num_hidden_layers", 2},  {"num_attention_heads", 3}, {"rms_norm_eps", 3e-5},
                     {"rope_theta", 5000},      {"initializer_range", 0.3}, {"tie_word_embeddings", false},
                     {"use_gate", true},        {"share_qk", true},         {"pre_conv", true},
                     {"conv_kernel", 3},        {"mini_batch_size", 7},     {"ttt_base_lr", 0.5},
                     {"ttt_layer_type", "mlp"}, {"hidden_act", "silu"},     {"torch_dtype", "float32"}};
  const Json read = find<FamilySpec>("ttt").read(json, "file").to_json();
  for (const char* name : {"vocab_size", "hidden_size", "intermediate_size", "rms_norm_eps", "initializer_range",
                           "tie_word_embeddings", "pre_conv", "conv_kernel"}) {
    EXPECT_EQ(read[name], json[name]) << name;
  }
  ASSERT_EQ(read["layers"].size(), 2u);
  for (const Json& layer : read["layers"]) {
    EXPECT_EQ(layer["mixer"], "ttt_mlp");
    for (const char* name : {"num_attention_heads", "rope_theta", "use_gate", "share_qk", "conv_kernel",
                             "mini_batch_size", "ttt_base_lr"}) {
      EXPECT_EQ(layer[name], json[name]) << name;
    }
  }
}

TEST_F(ModelDirectory, ParametersMustFit) {
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const auto& item : model->named_parameters()) tensors.emplace_back(item.key(), item.value().detach());
  auto missing = tensors;
  missing.erase(missing.begin() + 3);
  EXPECT_ERROR(set_parameters(*model, missing, "file"), tensors[3].first + " ");
  auto unexpected = tensors;
  unexpected.emplace_back("model.norm.wight", at::ones({24}));
  EXPECT_ERROR(set_parameters(*model, unexpected, "file"), "unknown tensor 'model.norm.wight'; did you mean");
  auto wrong = tensors;
  wrong.back().second = at::ones({3, 5});
  EXPECT_ERROR(set_parameters(*model, wrong, "file"), "is [3, 5], config.json asks for [");
}

TEST(LayerPlan, ReadsRepeatsOptionsAndDefaults) {
  const auto layers = parse_plan(" ttt_linear( mini_batch_size = 8 )*3, identity ", {{"num_attention_heads", 2}});
  ASSERT_EQ(layers.size(), 4u);
  EXPECT_EQ(layers[2].mixer, "ttt_linear");
  EXPECT_EQ(layers[2].options["mini_batch_size"], 8);
  EXPECT_EQ(layers[0].options["num_attention_heads"], 2);
  EXPECT_EQ(layers[3].mixer, "identity");
  for (const char* bad : {"", "ttt_linear*0", "ttt_linear*", "ttt_linear*99999999", "ttt_linear(", "ttt_linear(x)",
                          "ttt_linear, , identity", "ttt_linear*2*2"}) {
    EXPECT_ERROR(parse_plan(bad), "layers: ");
  }
  EXPECT_ERROR(parse_plan("ttt_linaer"), "did you mean 'ttt_linear'?");
  EXPECT_ERROR(parse_plan("ttt_linear(form=tripel)"), "expected one of auto dual primal");
}

TEST(LanguageModelConfig, CountsTheParametersOfTheModel) {
  for (const char* plan : {"ttt_linear(share_qk=true,use_gate=true)*2, mamba", "attention(num_attention_heads=2)",
                           "identity*3, delta_net(num_attention_heads=4)*2, ttt_mlp(num_attention_heads=2)"}) {
    for (const bool tied : {true, false}) {
      LanguageModelConfig config;
      config.vocab_size = 37;
      config.hidden_size = 24;
      config.intermediate_size = tied ? 41 : 0;
      config.pre_conv = tied;
      config.tie_word_embeddings = tied;
      config.norm = tied ? "rms" : "layer";
      config.max_positions = tied ? 0 : 19;
      config.embed_norm = !tied;
      config.layers = parse_plan(plan);
      EXPECT_EQ(config.parameter_count(), LanguageModel(config).parameter_count()) << plan;
    }
  }
}

TEST(LanguageModelConfig, RefusesWhatTheMachineCannotHold) {
  LanguageModelConfig config;
  config.hidden_size = 1 << 20;
  config.intermediate_size = 0;
  config.layers = parse_plan("identity");
  EXPECT_TRUE(throws_error([&] { config.validate("file"); }, {"file: hidden_size 1048576", "GiB, this machine has"}));
}

TEST(LanguageModel, TokenIdsOutOfRangeAreNamed) {
  LanguageModelConfig config;
  config.vocab_size = 11;
  config.hidden_size = 8;
  config.layers = parse_plan("identity");
  LanguageModel model(config);
  State state = model.initial_state(1);
  EXPECT_ERROR(model.forward(at::full({1, 3}, 11, at::kLong), state), "token id 11 at [0, 0] is out of range");
  EXPECT_ERROR(model.forward(at::full({1, 3}, -1, at::kLong), state), "token id -1");
  EXPECT_ERROR(model.forward(at::zeros({1, 0}, at::kLong), state), "expected at least one");
}

}  // namespace
}  // namespace lineal
