// Configurations of published families: every field that decides the function, both ways, and what is refused.
#include "interop/family.h"

#include <ATen/ATen.h>

#include <filesystem>

#include "backbones/model_files.h"
#include "core/file.h"
#include "core/registry.h"
#include "interop/load.h"
#include "interop/published.h"
#include "interop/save.h"
#include "testing/temporary_folder.h"
#include "testing/testing.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

LanguageModelConfig read(const std::string& family, const Json& json) {
  LanguageModelConfig config = find<FamilySpec>(family).read(json, "config.json");
  config.validate("config.json");
  return config;
}

/// A small configuration of the family, with `changes`.
Json small(const std::string& family, const Json& changes = Json::object()) {
  Json json = {{"vocab_size", 31}, {"hidden_size", 24}, {"num_hidden_layers", 2}, {"intermediate_size", 40}};
  if (family == "gpt2") json = {{"vocab_size", 31}, {"n_embd", 24}, {"n_layer", 2}, {"n_head", 3}};
  if (family == "ttt" || family == "gpt_neox" || family == "llama" || family == "qwen2")
    json["num_attention_heads"] = 3;
  if (family == "qwen2") json["num_key_value_heads"] = 1;
  if (family == "mamba") json.erase("intermediate_size");
  if (family == "mamba2") json.update({{"num_heads", 6}, {"head_dim", 8}, {"n_groups", 2}, {"state_size", 5}});
  json.update(changes);
  return json;
}

const std::vector<std::string> kPublished = {"ttt", "gpt2", "gpt_neox", "llama", "qwen2", "mamba", "mamba2", "rwkv"};

Json layer(const std::string& family, const Json& changes, size_t i = 0) {
  return all_options(read(family, small(family, changes)).layers[i]);
}

TEST(Family, WhatIsWrittenIsReadAsTheSame) {
  for (const auto& family : kPublished) {
    const LanguageModelConfig config = read(family, small(family));
    EXPECT_EQ(read(family, find<FamilySpec>(family).write(config)).to_json(), config.to_json()) << family;
  }
}

TEST(Family, DefaultsAreThePublicLibrarys) {
  const auto gpt2 = find<FamilySpec>("gpt2").read(Json::object(), "x");
  EXPECT_EQ(gpt2.hidden_size, 768);
  EXPECT_EQ(gpt2.intermediate_size, 3072);
  EXPECT_EQ(gpt2.max_positions, 1024);
  EXPECT_EQ(gpt2.vocab_size, 50257);
  EXPECT_EQ(gpt2.activation, "gelu_tanh");
  EXPECT_TRUE(gpt2.tie_word_embeddings);
  EXPECT_EQ(find<FamilySpec>("mamba2").read({{"hidden_size", 4096}}, "x").layers.size(), 64);
  EXPECT_FALSE(read("llama", small("llama")).tie_word_embeddings);
  EXPECT_EQ(layer("gpt_neox", Json::object())["rotary_dims"], 2);  // a quarter of 8
  EXPECT_EQ(layer("mamba", {{"time_step_rank", "auto"}})["time_step_rank"], 0);
}

TEST(Family, RopeIsReadInEverySpelling) {
  const Json old = {{"rope_theta", 500.0}, {"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}};
  const Json newer = {{"rope_theta", 500.0}, {"rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}}}};
  const Json newest = {{"rope_parameters", {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 500.0}}}};
  for (const Json& spelling : {old, newer, newest}) {
    const Json options = layer("llama", spelling);
    EXPECT_EQ(options["position"], "linear");
    EXPECT_EQ(options["factor"], 2.0);
    EXPECT_EQ(options["rope_theta"], 500.0);
  }
  const Json yarn = layer("llama", {{"max_position_embeddings", 64},
                                    {"rope_scaling",
                                     {{"rope_type", "yarn"},
                                      {"factor", nullptr},
                                      {"original_max_position_embeddings", 16},
                                      {"beta_fast", 20},
                                      {"truncate", false}}}});
  EXPECT_EQ(yarn["factor"], 4.0);
  EXPECT_EQ(yarn["original_length"], 16);
  EXPECT_EQ(yarn["beta_fast"], 20.0);
  EXPECT_EQ(yarn["truncate"], false);
  const Json dynamic =
      layer("llama", {{"max_position_embeddings", 64}, {"rope_scaling", {{"rope_type", "dynamic"}, {"factor", 3.0}}}});
  EXPECT_EQ(dynamic["position"], "dynamic_ntk");
  EXPECT_EQ(dynamic["ntk_constant"], 3.0);
  EXPECT_EQ(dynamic["original_length"], 64);
  EXPECT_EQ(layer("gpt_neox", {{"rotary_pct", 0.5}, {"rotary_emb_base", 300}})["rope_theta"], 300.0);
  EXPECT_EQ(
      layer("gpt_neox", {{"rope_parameters", {{"partial_rotary_factor", 0.5}, {"rope_theta", 300}}}})["rotary_dims"],
      4);
}

/// What transformers does, compared by bench/published_test.py.
TEST(Family, RopeIsReadAsTransformersReadsIt) {
  for (const char* family : {"llama", "qwen2"}) {
    EXPECT_EQ(layer(family, {{"partial_rotary_factor", 0.5}})["rotary_dims"], 0) << family;
    EXPECT_EQ(layer(family, {{"rope_parameters", {{"partial_rotary_factor", 0.5}}}})["rotary_dims"], 0) << family;
  }
  const Json beside =
      layer("llama",
            {{"original_max_position_embeddings", 20},
             {"rope_scaling", {{"rope_type", "llama3"}, {"factor", 4.0}, {"original_max_position_embeddings", 40}}}});
  EXPECT_EQ(beside["original_length"], 20);
  const Json odd = layer("gpt_neox", {{"rotary_pct", 0.4}, {"rotary_emb_base", 100.0}});  // 3 of 8
  EXPECT_EQ(odd["rotary_dims"], 4);
  EXPECT_NEAR(odd["rope_theta"].get<double>(), std::pow(100.0, 4.0 / 3), 1e-9);
}

TEST(Family, GPT2sFieldsUnderOtherNames) {
  const Json json = {{"hidden_size", 20},        {"num_hidden_layers", 3},
                     {"num_attention_heads", 5}, {"max_position_embeddings", 9},
                     {"vocab_size", 7},          {"n_embd", nullptr}};
  const LanguageModelConfig config = read("gpt2", json);
  EXPECT_EQ(config.hidden_size, 20);
  EXPECT_EQ(config.layers.size(), 3u);
  EXPECT_EQ(all_options(config.layers[0])["num_attention_heads"], 5);
  EXPECT_EQ(config.max_positions, 9);
}

TEST(Family, RescalingMattersWhereThereAreEnoughLayers) {
  EXPECT_EQ(read("rwkv", small("rwkv", {{"num_hidden_layers", 6}})).rescale_every, 6);
  EXPECT_EQ(read("rwkv", small("rwkv", {{"num_hidden_layers", 5}})).rescale_every, 0);
  EXPECT_EQ(read("rwkv", small("rwkv", {{"rescale_every", -1}})).rescale_every, 0);
  EXPECT_EQ(read("rwkv", small("rwkv", {{"rescale_every", 1}})).rescale_every, 1);
}

TEST(Family, LayersThatDiffer) {
  const Json windows = {{"use_sliding_window", true}, {"sliding_window", 5}, {"max_window_layers", 1}};
  EXPECT_EQ(layer("qwen2", windows, 0)["sliding_window"], 0);
  EXPECT_EQ(layer("qwen2", windows, 1)["sliding_window"], 5);
  EXPECT_EQ(layer("qwen2", {{"sliding_window", 5}, {"max_window_layers", 0}}, 1)["sliding_window"], 0);
  const Json listed = {
      {"use_sliding_window", true}, {"sliding_window", 5}, {"layer_types", {"sliding_attention", "full_attention"}}};
  EXPECT_EQ(layer("qwen2", listed, 0)["sliding_window"], 5);
  EXPECT_EQ(layer("qwen2", listed, 1)["sliding_window"], 0);
  const Json by_layer = {{"scale_attn_by_inverse_layer_idx", true}};
  EXPECT_EQ(layer("gpt2", by_layer, 0)["scale"], 0.0);
  EXPECT_NEAR(layer("gpt2", by_layer, 1)["scale"].get<double>(), 0.5 / std::sqrt(8.0), 1e-12);
}

/// A published config.json is a stranger's: whatever it holds is one line, never a crash.
TEST(Family, HostileValuesAreErrors) {
  struct Bad {
    const char* family;
    Json changes;
    const char* part;
  };
  const std::vector<Bad> list = {
      {"gpt2", {{"n_head", 0}}, "n_head is 0, expected an integer from 1"},
      {"gpt2", {{"n_head", 5}}, "n_head is 5, expected a divisor of n_embd 24"},
      {"gpt2", {{"n_layer", 1LL << 40}}, "n_layer is"},
      {"gpt2", {{"n_embd", "24"}}, "n_embd is \"24\", expected an integer"},
      {"gpt2", {{"activation_function", "mish"}}, "activation_function is \"mish\", expected one of silu"},
      {"gpt2", {{"add_cross_attention", true}}, "add_cross_attention is true"},
      {"gpt2", {{"n_positions", 1 << 24}, {"n_embd", 1 << 20}, {"n_head", 1}}, "GiB, this machine has"},
      {"gpt_neox", {{"rotary_pct", 0.0}}, "rotary_pct of heads of size 8 turns 0 numbers"},
      {"gpt_neox",
       {{"rotary_pct", 0.4}, {"rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}}}},
       "head size is 3, rotary embedding needs an even one"},
      {"gpt_neox", {{"rotary_pct", 1.0}, {"hidden_size", 21}, {"num_attention_heads", 3}}, "turns 7 numbers"},
      {"gpt2", {{"num_attention_heads", 4}}, "n_head is 3 and num_attention_heads 4, expected the same"},
      {"llama",
       {{"partial_rotary_factor", 0.5}, {"rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}}}},
       "partial_rotary_factor is 0.5, expected 1 with rope_type linear"},
      {"rwkv", {{"rescale_every", "6"}}, "rescale_every is \"6\", expected an integer"},
      {"gpt_neox", {{"num_attention_heads", 7}}, "num_attention_heads is 7, expected a divisor"},
      {"llama", {{"num_key_value_heads", 2}}, "num_key_value_heads is 2, expected a divisor"},
      {"llama", {{"num_key_value_heads", -1}}, "num_key_value_heads is -1"},
      {"llama", {{"head_dim", 1LL << 33}}, "head_dim is"},
      {"llama", {{"head_dim", "x"}}, "head_dim is \"x\""},
      {"llama", {{"rope_scaling", {{"rope_type", "longrope"}}}}, "rope_type is \"longrope\", expected one of default"},
      {"llama", {{"rope_scaling", {{"rope_type", "linear"}}}}, "rope_type linear has no factor"},
      {"llama", {{"rope_scaling", {{"rope_type", "linear"}, {"factor", 0.5}}}}, "factor is 0.5"},
      {"llama", {{"rope_scaling", 7}}, "rope_scaling is 7, expected an object"},
      {"llama",
       {{"rope_parameters", {{"full_attention", Json::object()}}}},
       "rope_parameters for \"full_attention\" alone"},
      {"llama", {{"rope_theta", -1}}, "rope_theta is -1"},
      {"llama", {{"rope_theta", 0}}, "rope_theta is 0, expected a number above 0"},
      {"llama",
       {{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 4}, {"high_freq_factor", 1}}}},
       "low_freq_factor is 4"},
      {"qwen2", {{"layer_types", {"full_attention"}}}, "layer_types is [\"full_attention\"], expected a list of"},
      {"qwen2", {{"layer_types", {"full_attention", 3}}}, "layer_types has 3"},
      {"mamba", {{"intermediate_size", 47}}, "intermediate_size is 47, expected expand * hidden_size 48"},
      {"mamba", {{"hidden_act", "gelu"}}, "hidden_act is \"gelu\""},
      {"mamba", {{"time_step_rank", "many"}}, "time_step_rank is \"many\""},
      {"mamba2", {{"num_heads", 5}}, "num_heads 5 times head_dim 8, expected expand * hidden_size 48"},
      {"mamba2", {{"n_groups", 4}}, "n_groups is 4, expected a divisor of num_heads 6"},
      {"mamba2", {{"n_groups", 5}}, "n_groups is 5, expected a divisor"},
      {"mamba2", {{"time_step_limit", {0.5, 0.1}}}, "time_step_limit is 0.5 to 0.1"},
      {"mamba2", {{"time_step_limit", {0.5}}}, "time_step_limit is [0.5], expected two numbers"},
      {"mamba2", {{"time_step_limit", {-1, 2}}}, "time_step_limit has -1"},
      {"mamba2", {{"time_step_limit", {0, {{"__float__", "NaN"}}}}}, "time_step_limit has"},
      {"rwkv", {{"attention_hidden_size", 0}}, "attention_hidden_size is 0"},
      {"rwkv", {{"intermediate_size", 1LL << 30}}, "intermediate_size is"},
      {"ttt", {{"num_attention_heads", 7}}, "num_attention_heads is 7, expected a divisor of hidden_size 24"},
  };
  for (const Bad& bad : list) {
    SCOPED_TRACE(text(bad.family, " ", bad.changes.dump()));
    EXPECT_ERROR(read(bad.family, small(bad.family, bad.changes)), bad.part);
  }
}

class Directory : public testing::Test {
 protected:
  /// A directory of the family with random parameters.
  LanguageModel& write(const std::string& family, const Json& changes = Json::object()) {
    const LanguageModelConfig config = read(family, small(family, changes));
    model = std::make_shared<LanguageModel>(config);
    at::NoGradGuard no_grad;
    for (Tensor& parameter : model->parameters()) parameter.add_(at::randn_like(parameter) * 0.1);
    write_atomic(folder / "config.json", find<FamilySpec>(family).write(config).dump());
    save_shards(tensors(), folder.path());
    return *model;
  }
  NamedTensors tensors() const {
    const FamilySpec& family = family_of(folder.path());
    return published_tensors(named_tensors(*model), model->config().layers.size(), family.rules,
                             heads_of(model->config()), "test");
  }

  TemporaryFolder folder;
  std::shared_ptr<LanguageModel> model;
};

TEST_F(Directory, OfEveryFamilyIsTheModel) {
  for (const auto& family : kPublished) {
    SCOPED_TRACE(family);
    write(family, {{"tie_word_embeddings", family.size() % 2 == 0}});
    const LoadedModel loaded = load_model(folder.path());
    const auto own = named_tensors(*model), found = named_tensors(*loaded.model);
    ASSERT_EQ(own.size(), found.size());
    for (size_t i = 0; i < own.size(); ++i) {
      EXPECT_EQ(bit_difference(found[i].second, own[i].second), "") << own[i].first;
    }
  }
}

/// Files of a model without its head leave the first word of each name out; masks, frequencies and the copy of a tied
/// head say nothing.
TEST_F(Directory, NamesMayLackTheirPrefixAndTensorsSayNothing) {
  write("gpt2");
  NamedTensors shorter;
  for (const auto& [name, tensor] : tensors()) shorter.emplace_back(name.substr(name.find('.') + 1), tensor);
  shorter.emplace_back("h.1.attn.bias", at::ones({1, 1, 3, 3}, at::kBool));
  shorter.emplace_back("lm_head.weight", at::zeros({31, 24}));
  save_shards(shorter, folder.path());
  const LoadedModel loaded = load_model(folder.path());
  const auto found = loaded.model->named_parameters();
  for (const auto& item : model->named_parameters()) EXPECT_TRUE(found[item.key()].equal(item.value())) << item.key();
}

TEST_F(Directory, TensorsMustFit) {
  write("gpt_neox");
  const std::string file = (folder / "model.safetensors").string();
  const NamedTensors good = tensors();
  const auto expect = [&](const NamedTensors& list, const std::vector<std::string>& parts) {
    save_shards(list, folder.path());
    EXPECT_TRUE(throws_error([&] { load_model(folder.path()); }, parts));
  };
  NamedTensors list = good;
  list.pop_back();
  expect(list, {file + ": tensor embed_out.weight [31, 24] is missing"});
  list.emplace_back("embed_out.wieght", good.back().second);
  expect(list, {file + ": unknown tensor 'embed_out.wieght'; did you mean 'embed_out.weight'?"});
  list = good;
  list.back().second = at::ones({24, 31});
  expect(list, {file + ": tensor embed_out.weight is [24, 31], config.json asks for [31, 24]"});
  list.back().second = at::ones({31, 24}, at::kLong);
  expect(list, {file + ": tensor embed_out.weight is", "expected floats"});
  list = good;
  list.emplace_back("embed_in.weight", good[0].second);
  expect(list, {file + ": tensor gpt_neox.embed_in.weight is there twice"});
  expect({}, {"is missing"});
}

TEST_F(Directory, NumbersOfHalfTheSizeAreWidened) {
  for (const auto type : {at::kBFloat16, at::kHalf}) {
    write("llama", {{"num_key_value_heads", 1}});
    NamedTensors half;
    for (const auto& [name, tensor] : tensors()) half.emplace_back(name, tensor.to(type));
    save_shards(half, folder.path());
    const LoadedModel loaded = load_model(folder.path());
    const auto found = loaded.model->named_parameters();
    for (const auto& item : model->named_parameters()) {
      EXPECT_TRUE(found[item.key()].equal(item.value().to(type).to(at::kFloat))) << item.key();
    }
  }
}

TEST_F(Directory, ShardsAreReadByTheirIndex) {
  write("rwkv");
  fs::remove(folder / "model.safetensors");
  save_shards(tensors(), folder.path(), 9000);
  const std::string index = read_file(folder / "model.safetensors.index.json");
  EXPECT_GT(Json::parse(index)["metadata"]["total_size"], 9000);
  EXPECT_TRUE(fs::exists(folder / "model-00002-of-00006.safetensors")) << testing::PrintToString(folder.names());
  const Json files = Json::parse(index)["weight_map"];
  for (const auto& [name, file] : files.items()) {
    EXPECT_LE(fs::file_size(folder / file.get<std::string>()), 9000 + 4000) << name;
  }
  const LoadedModel loaded = load_model(folder.path());
  const auto found = loaded.model->named_parameters();
  for (const auto& item : model->named_parameters()) EXPECT_TRUE(found[item.key()].equal(item.value())) << item.key();

  const auto with = [&](const std::function<void(Json&)>& change) {
    Json json = Json::parse(index);
    change(json);
    write_atomic(folder / "model.safetensors.index.json", json.dump());
  };
  with([](Json& j) { j["weight_map"]["head.weight"] = "../model-00001-of-00006.safetensors"; });
  EXPECT_ERROR(load_model(folder.path()), "expected a file beside it");
  with([](Json& j) { j["weight_map"]["more"] = "model-00001-of-00006.safetensors"; });
  EXPECT_ERROR(load_model(folder.path()), "tensor \"more\" is missing");
  with([](Json& j) { j["weight_map"].erase("head.weight"); });
  EXPECT_ERROR(load_model(folder.path()), "tensor \"head.weight\" is not in");
  with([](Json& j) { j.erase("weight_map"); });
  EXPECT_ERROR(load_model(folder.path()), "expected a JSON object with \"weight_map\"");
  fs::remove(folder / "model.safetensors.index.json");
  EXPECT_ERROR(load_model(folder.path()), "model.safetensors");
  write_atomic(folder / "pytorch_model.bin", "x");
  EXPECT_ERROR(load_model(folder.path()), "has pytorch_model.bin, which only Python reads");
}

TEST_F(Directory, DeepConfigurationsAreErrors) {
  write("llama");
  const std::string deep(100'000, '[');
  write_atomic(folder / "config.json", "{\"vocab_size\": " + deep + std::string(deep.size(), ']') + "}");
  EXPECT_ERROR(load_model(folder.path()), "nests deeper than");
  write_atomic(folder / "config.json", "{\"vocab_size\": " + deep);
  EXPECT_ERROR(load_model(folder.path()), "nests deeper than");
}

/// Training changes the model, not the file that its parameters lie on.
TEST_F(Directory, ParametersOnTheFileAreTheModelsOwn) {
  write("llama");
  const std::string before = read_file(folder / "model.safetensors");
  const LoadedModel loaded = load_model(folder.path());
  at::NoGradGuard no_grad;
  for (Tensor& parameter : loaded.model->parameters()) parameter.add_(1);
  EXPECT_EQ(read_file(folder / "model.safetensors"), before);
  const auto found = loaded.model->named_parameters();
  for (const auto& item : model->named_parameters()) EXPECT_TRUE(found[item.key()].equal(item.value() + 1));
}

TEST_F(Directory, InfinityIsRead) {
  write("mamba2");
  std::string config = read_file(folder / "config.json");
  const std::string tagged = "{\"__float__\":\"Infinity\"}";
  const auto at = config.find(tagged);
  ASSERT_NE(at, config.npos);
  write_atomic(folder / "config.json", config.replace(at, tagged.size(), "Infinity"));
  EXPECT_EQ(load_model(folder.path()).model->config().layers, model->config().layers);
  write_atomic(folder / "config.json", "{\"model_type\": \"\\\"Infinity\", \"a\": -Infinity, \"b\": NaN}");
  const Json json = read_model_config(folder.path());
  EXPECT_EQ(json["model_type"], "\"Infinity");
  EXPECT_EQ(json["a"]["__float__"], "-Infinity");
  EXPECT_EQ(json["b"]["__float__"], "NaN");
}

TEST_F(Directory, WhatAFamilyCannotExpressIsNamed) {
  const auto refused = [&](
                           const std::string& plan, const std::string& family, const std::string& part,
                           const std::function<void(LanguageModelConfig&)>& change = [](LanguageModelConfig&) {}) {
    LanguageModelConfig config;
    config.hidden_size = 24;
    config.intermediate_size = 40;
    config.layers = parse_plan(plan);
    change(config);
    const LanguageModel own(config);
    save_model(own, folder.path());
    const fs::path out = folder / "out";
    EXPECT_ERROR(save_as(own, family, "float32", out, folder.path()), part);
    EXPECT_FALSE(fs::exists(out));
  };
  refused("ttt_linear*2", "llama",
          "convert: llama has no such model: layer 0: mixer is \"ttt_linear\", it has \"attention\"");
  refused("attention*2, attention(key_norm=true)", "llama", "layer 2: key_norm is true, it has false");
  refused("attention(position=alibi)", "llama", "layer 0: position is \"alibi\", it has \"rope\"");
  refused("attention", "llama", "pre_conv is true, it has false", [](auto& config) { config.pre_conv = true; });
  refused("attention", "llama", "norm is \"layer\", it has \"rms\"", [](auto& config) { config.norm = "layer"; });
  refused("attention", "gpt2", "layer 0: qkv_bias is false, it has true");
  refused("mamba", "mamba", "intermediate_size is 40, it has 0");
  refused("attention", "llma", "unknown model_type 'llma'; did you mean 'llama'?");
  refused("attention", "llama", "objective is \"masked_lm\"", [](auto& config) { config.objective = "masked_lm"; });
}

TEST(Tokenizer, OfADirectoryIsKnownByItsFiles) {
  const TemporaryFolder folder;
  EXPECT_EQ(tokenizer_in(folder.path(), 256), "bytes");
  EXPECT_EQ(tokenizer_in(folder.path(), 257), "");
  write_atomic(folder / "tokenizer.model", "x");
  EXPECT_EQ(tokenizer_in(folder.path(), 256), "sentencepiece");
  write_atomic(folder / "tokenizer.json", "x");
  EXPECT_EQ(tokenizer_in(folder.path(), 256), "bpe");
}

}  // namespace
}  // namespace lineal
