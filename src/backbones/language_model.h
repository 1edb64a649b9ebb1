// The language model: token embedding (learned positions, norm), blocks, norm, head.
#pragma once

#include <torch/nn/module.h>

#include <vector>

#include "backbones/block.h"
#include "backbones/position_table.h"

namespace lineal {

/// Fields carry the Hugging Face names. config.json holds them with "model_type": "lineal" and "layers".
struct LanguageModelConfig : Config {
  int64_t vocab_size = 256;
  int64_t hidden_size = 256;
  int64_t intermediate_size = 704;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = true;
  double initializer_range = 0.02;
  bool pre_conv = false;
  int64_t conv_kernel = 4;
  std::string norm = "rms";
  double final_norm_eps = -1;
  int64_t rescale_every = 0;
  std::string ffn = "swiglu";
  std::string activation = "silu";
  bool ffn_bias = false;
  bool parallel_residual = false;
  int64_t max_positions = 0;
  bool embed_norm = false;
  std::string tokenizer = "bytes";
  std::string objective = "causal_lm";
  std::vector<Layer> layers;  // from a plan or a list, see layer_plan.h

  std::vector<Field> fields() override;
  /// What cannot be: no layers, a layer that its mixer refuses, or more parameters than the machine has memory.
  void validate(const std::string& who) override;
  /// Parameters of such a model. Throws what a mixer throws.
  int64_t parameter_count() const;

  Json to_json() const;
  static LanguageModelConfig from_json(const Json& json, const std::string& who);
};

enum class Parameters { random, empty };

class LanguageModel : public torch::nn::Module {
 public:
  /// Parameters are drawn from the global random generator; when empty they hold anything and are to be loaded.
  explicit LanguageModel(const LanguageModelConfig& config, Parameters parameters = Parameters::random);
  void reset_parameters();
  const LanguageModelConfig& config() const { return config_; }

  /// Children layers.0 .. layers.L-1, and with learned positions the part `position` [B].
  State initial_state(int64_t B) const;
  /// tokens int64 [B, T], T >= 1 -> the last norm's output [B, T, D].
  Tensor hidden(const Tensor& tokens, State& state, const Segments& segments = {});
  /// hidden [B, T, D] -> logits [B, T, N].
  Tensor head(const Tensor& hidden);
  /// [N, D].
  const Tensor& head_weight() const { return lm_head_.defined() ? lm_head_ : embed_tokens_; }
  /// logits [B, T, N].
  Tensor forward(const Tensor& tokens, State& state, const Segments& segments = {});

  /// The next token of some sequences of a pool, which is initial_state(P) or whatever came of it: tokens int64 [B] for
  /// B = rows.count() -> logits [B, N]. Those rows change in place, as in Mixer::step; no gradients.
  Tensor step(const Tensor& tokens, State& pool, const Rows& rows);

  /// tokens int64 [B, T], T >= 1 -> what the first block reads, [B, T, D]; an id outside the vocabulary is an Error.
  Tensor embed(const Tensor& tokens, State& state, const Segments& segments = {}, const Rows* rows = nullptr) const;
  const std::vector<std::shared_ptr<Block>>& blocks() const { return blocks_; }
  int64_t parameter_count() const;

  /// Gradient checkpointing: blocks keep only their inputs and run again in the backward pass.
  bool recompute = false;

 private:
  LanguageModelConfig config_;
  Tensor embed_tokens_, lm_head_;
  std::vector<std::shared_ptr<Block>> blocks_;
  std::shared_ptr<PositionTable> positions_;  // null without max_positions
  std::shared_ptr<Norm> embed_norm_, norm_;
};

}  // namespace lineal
