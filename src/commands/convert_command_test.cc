// lineal convert as a user runs it: what is kept, what is drawn, every kind of bad input.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "backbones/model_files.h"
#include "core/error.h"
#include "core/safetensors.h"
#include "testing/program.h"
#include "testing/testing.h"

namespace lineal {
namespace {

using Names = std::vector<std::string>;

constexpr int64_t kVocabulary = 256;

class ConvertCommand : public testing::Test {
 protected:
  void SetUp() override {
    write_model("model", "attention(num_attention_heads=2,num_key_value_heads=1,rope_theta=500)*3");
  }
  void write_model(const std::string& name, const std::string& plan) const {
    at::manual_seed(3);
    LanguageModelConfig config;
    config.hidden_size = 12;
    config.intermediate_size = 20;
    config.initializer_range = 0.15;
    config.layers = parse_plan(plan);
    const LanguageModel model(config);
    const at::NoGradGuard no_grad;
    for (const Tensor& parameter : model.parameters()) parameter.add_(0.01);  // no norm is what a new one is
    save_model(model, folder / name);
  }
  std::string path(const std::string& name) const { return (folder / name).string(); }
  ProgramResult convert(const std::string& plan, const std::string& out, Names more = {},
                        const std::string& model = "model") const {
    Names args = {"convert", "-m", path(model), "--layers", plan, "-o", path(out)};
    args.insert(args.end(), more.begin(), more.end());
    return run_program(args, folder.path());
  }
  ProgramResult with_mixer(const std::string& mixer, const std::string& out, const std::string& model = "model") const {
    return run_program({"convert", "-m", path(model), "--mixer", mixer, "-o", path(out), "--json"}, folder.path());
  }
  SafeTensors weights(const std::string& model) const { return load_safetensors(folder / model / "model.safetensors"); }
  Tensor logits(const std::string& model, const Tensor& ids) const {
    const at::NoGradGuard no_grad;
    const auto loaded = load_native_model(folder / model);
    State state = loaded->initial_state(ids.size(0));
    return loaded->forward(ids, state);
  }
  TemporaryFolder folder;
};

TEST_F(ConvertCommand, AttentionBecomesPerformerBitForBit) {
  const std::string plan = "performer(num_features=7), attention, performer(num_features=9,projection=iid)";
  const ProgramResult run = convert(plan, "new");
  ASSERT_EQ(run.code, 0) << run.err;
  const std::string drawn = "model.layers.0.seq_modeling_block.projection_matrix";
  EXPECT_NE(run.out.find("drawn   " + drawn + "\n"), std::string::npos) << run.out;
  EXPECT_NE(run.out.find("29 of 31 tensors taken from " + path("model")), std::string::npos) << run.out;
  EXPECT_EQ(run.out.find("unused"), std::string::npos) << run.out;

  const SafeTensors before = weights("model"), after = weights("new");
  ASSERT_EQ(before.tensors.size(), 29u);
  for (const auto& [name, tensor] : before.tensors) EXPECT_TRUE(after.at(name, "test").equal(tensor)) << name;
  EXPECT_EQ(after.at(drawn, "test").sizes(), at::IntArrayRef({7, 6}));

  // What the plan leaves open is the old layer's.
  const auto layers = load_native_model(folder / "new")->config().layers;
  EXPECT_EQ(layers, parse_plan("performer(num_features=7), attention, performer(num_features=9,projection=iid)",
                               {{"num_attention_heads", 2}, {"num_key_value_heads", 1}, {"rope_theta", 500}}));
}

TEST_F(ConvertCommand, TheSeedDecidesWhatIsDrawn) {
  const char* const kNames[] = {"one", "same", "other"};
  for (const std::string name : kNames) {
    ASSERT_EQ(convert("performer(num_features=7)*3", name, {"-s", name == "other" ? "5" : "4"}).code, 0);
  }
  const std::string drawn = "model.layers.2.seq_modeling_block.projection_matrix";
  EXPECT_TRUE(weights("one").at(drawn, "test").equal(weights("same").at(drawn, "test")));
  EXPECT_FALSE(weights("one").at(drawn, "test").equal(weights("other").at(drawn, "test")));
}

TEST_F(ConvertCommand, LogitsApproachThoseOfAttention) {
  const Tensor ids = at::randint(kVocabulary, {2, 23}, at::kLong);
  const Tensor exact = logits("model", ids);
  double before = 1;
  for (const std::string features : {"64", "1024", "16384"}) {
    double error = 0;
    for (const std::string seed : {"0", "1"}) {
      const std::string name = features + "-" + seed;
      ASSERT_EQ(convert("performer(num_features=" + features + ")*3", name, {"-s", seed}).code, 0);
      error += ((logits(name, ids) - exact).norm() / exact.norm()).item<double>() / 2;
    }
    EXPECT_LT(error, before / 2.5) << features;  // 16 times the features: a quarter, were it the kernel's error alone
    before = error;
  }
}

TEST_F(ConvertCommand, WhatNothingTakesIsNamed) {
  write_model("wide", "attention(num_attention_heads=2)*3");
  const ProgramResult run = convert("identity*3", "new", {}, "wide");
  ASSERT_EQ(run.code, 0) << run.err;
  for (const char* part : {"q_proj", "k_proj"}) {
    EXPECT_NE(run.out.find(text("unused  model.layers.1.seq_modeling_block.", part, ".weight\n")), std::string::npos)
        << run.out;
  }
  EXPECT_EQ(run.out.find("drawn"), std::string::npos) << run.out;
  const Json json = Json::parse(convert("identity*2, lstm", "another", {"--json"}, "wide").out);
  EXPECT_EQ(json["unused"].size(), 2 * 2 + 4u);
  EXPECT_FALSE(json["drawn"].empty());
}

/// Every head of keys and values as often as queries read it: the function of attention, were it attention's.
TEST_F(ConvertCommand, OneMixerTakesThePlaceOfAttention) {
  write_model("mixed", "attention(num_attention_heads=4,num_key_value_heads=2,position=none), identity");
  const ProgramResult run = with_mixer("linear_attention(chunk_size=7)", "new", "mixed");
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(Json::parse(run.out)["lost"], Json::array());
  const auto layers = load_native_model(folder / "new")->config().layers;
  EXPECT_EQ(layers[0].mixer, "linear_attention");
  EXPECT_EQ(layers[0].options["num_attention_heads"], 4);
  EXPECT_EQ(layers[0].options["chunk_size"], 7);
  EXPECT_EQ(layers[1].mixer, "identity");
  const std::string name = "model.layers.0.seq_modeling_block.";
  const SafeTensors before = weights("mixed"), after = weights("new");
  for (const char* part : {"k_proj.weight", "v_proj.weight"}) {
    const Tensor rows = before.at(name + part, "test"), found = after.at(name + part, "test");
    const Tensor expected = at::cat({rows.slice(0, 0, 3), rows.slice(0, 0, 3), rows.slice(0, 3), rows.slice(0, 3)});
    EXPECT_TRUE(found.equal(expected)) << part;
  }
  EXPECT_TRUE(after.at(name + "o_proj.weight", "test").equal(before.at(name + "o_proj.weight", "test")));

  EXPECT_EQ(with_mixer("performer", "rotated", "mixed").code, 0);
  EXPECT_EQ(load_native_model(folder / "rotated")->config().layers[0].options["rope_theta"], 0);
  EXPECT_EQ(with_mixer("retention", "narrow", "mixed").code, 0);  // whose values are twice as wide by default
}

TEST_F(ConvertCommand, OptionsThatNothingTakesAreNamed) {
  write_model("windows", "attention(num_attention_heads=2,sliding_window=5,position=alibi)");
  const ProgramResult run = with_mixer("performer", "new", "windows");
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(Json::parse(run.out)["lost"], Json({"layers.0 sliding_window=5", "layers.0 position=alibi"}));
  EXPECT_EQ(Json::parse(with_mixer("gla", "turned").out)["lost"].size(), 3u + 3u);  // rope_theta=500 and the rotation
}

TEST_F(ConvertCommand, BiasesGoOn) {
  write_model("biased", "attention(num_attention_heads=2,qkv_bias=true,out_bias=true,head_dim=4)");
  const ProgramResult run = with_mixer("performer(num_features=7)", "new", "biased");
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(Json::parse(run.out)["unused"], Json::array()) << run.out;
  EXPECT_EQ(Json::parse(run.out)["lost"], Json::array()) << run.out;
}

TEST_F(ConvertCommand, TrainingGoesOn) {
  ASSERT_EQ(convert("performer(num_features=7,redraw_interval=2)*3", "new").code, 0);
  std::string some;
  for (int i = 0; i < 300; ++i) some += static_cast<char>('a' + i * i % 23);
  write_atomic(folder / "text", some);
  const ProgramResult run = run_program({"train", path("text"), "-o", path("run"), "--init", path("new"), "-c", "16",
                                         "--batch-size", "2", "--steps", "3", "--validation", "0", "-t", "1"},
                                        folder.path());
  EXPECT_EQ(run.code, 0) << run.err;
}

TEST_F(ConvertCommand, MistakesEndInOneLine) {
  EXPECT_TRUE(refused(convert("performer*2", "new"), {"convert: the plan has 2 layers, expected as many", ", 3"}));
  EXPECT_TRUE(refused(
      convert("performer(num_attention_heads=3)*3", "new"),
      {"convert: tensor model.layers.0.seq_modeling_block.k_proj.weight is [6, 12] in the model", "ask for [4, 12]"}));
  EXPECT_TRUE(refused(with_mixer("performer*2", "new"), {"--mixer is 'performer*2', expected one mixer"}));
  write_model("without", "identity*2");
  EXPECT_TRUE(refused(with_mixer("performer", "new", "without"), {"this model has no attention to replace"}));
  EXPECT_TRUE(refused(convert("perfomer*3", "new"), {"unknown mixer 'perfomer'", "did you mean 'performer'"}));
  EXPECT_TRUE(refused(convert("performer(num_feature=3)*3", "new"), {"performer", "did you mean 'num_features'"}));
  EXPECT_TRUE(refused(convert("performer*3", "model"), {"convert: --out " + path("model"), "exists"}));
  write_atomic(folder / "file", "");
  EXPECT_TRUE(refused(convert("performer*3", "file"), {"convert: --out " + path("file"), "exists"}));
  EXPECT_TRUE(refused(convert("performer*3", "file/new"), {path("file")}));
  EXPECT_TRUE(
      refused(run_program({"convert", "-m", path("none"), "--layers", "performer", "-o", path("new")}, folder.path()),
              {path("none"), "does not exist"}));
  EXPECT_EQ(folder.names(), Names({"file", "model", "without"}));
}

}  // namespace
}  // namespace lineal
