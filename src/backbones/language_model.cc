#include "backbones/language_model.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "backbones/recompute.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/shapes_only.h"

namespace lineal {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;

/// One block through recompute: the state's parts travel as inputs and outputs, its mixer's losses as outputs.
Tensor recompute_block(Block& block, const Tensor& x, State& state, const Segments& segments) {
  const auto parts = state.named();
  std::vector<Tensor> inputs = {x};
  for (const auto& [name, part] : parts) inputs.push_back(part);
  const auto names = std::make_shared<std::vector<std::string>>();  // of the losses
  const auto run = [&block, parts, segments, names](const std::vector<Tensor>& in) {
    auto named = parts;
    for (size_t i = 0; i < named.size(); ++i) named[i].second = in[i + 1];
    State inner = State::from_named(named);
    std::vector<Tensor> out = {block.forward(in[0], inner, segments)};
    for (const auto& [name, part] : inner.named()) out.push_back(part);
    names->clear();
    for (const auto& [name, loss] : std::exchange(block.mixer().losses, {})) {
      names->push_back(name);
      out.push_back(loss);
    }
    return out;
  };
  const auto out = recompute(run, inputs, block.parameters());
  auto named = parts;
  for (size_t i = 0; i < named.size(); ++i) named[i].second = out[i + 1];
  state = State::from_named(named);
  auto& losses = block.mixer().losses;
  for (size_t i = 0; i < names->size(); ++i) losses.emplace_back((*names)[i], out[1 + named.size() + i]);
  return out[0];
}

BlockConfig block_config(const LanguageModelConfig& config) {
  return {config.hidden_size, config.intermediate_size, config.norm, config.rms_norm_eps,
          config.pre_conv,    config.conv_kernel,       config.ffn,  config.activation,
          config.ffn_bias,    config.parallel_residual};
}

int64_t count_parameters(const torch::nn::Module& module) {
  int64_t count = 0;
  for (const auto& parameter : module.parameters()) count += parameter.numel();
  return count;
}

}  // namespace

std::vector<Field> LanguageModelConfig::fields() {
  return {
      {"vocab_size", &vocab_size, between(1, 1 << 24), "token ids run below this"},
      {"hidden_size", &hidden_size, size_range(), "width D"},
      {"intermediate_size", &intermediate_size, between(0, 1 << 22), "width of the feed-forward part; 0 for none"},
      {"rms_norm_eps", &rms_norm_eps, between(0, 1), "added to the mean square inside the norms"},
      {"tie_word_embeddings", &tie_word_embeddings, {}, "the head is the embedding transposed"},
      {"initializer_range", &initializer_range, between(0, 10), "deviation of the initial weights"},
      {"pre_conv", &pre_conv, {}, "a short convolution before each mixer"},
      {"conv_kernel", &conv_kernel, between(1, 64), "width of that convolution"},
      {"norm", &norm, one_of(norm_names()), "RMS norm, or layer norm with weight and bias", "rms"},
      {"final_norm_eps", &final_norm_eps, between(-1, 1), "of the norm before the head; below 0: rms_norm_eps", -1.0},
      {"rescale_every", &rescale_every, between(0, 4096),
       "after so many layers the norms see half of what they read: 4 times their eps; 0: never", 0},
      {"ffn", &ffn, one_of(feed_forward_names()), "the feed-forward part: gated, plain, or RWKV's", "swiglu"},
      {"activation", &activation, one_of(activation_names()), "of the feed-forward part", "silu"},
      {"ffn_bias", &ffn_bias, {}, "its maps have biases", false},
      {"parallel_residual", &parallel_residual, {}, "mixer and feed-forward part read the same input", false},
      {"max_positions", &max_positions, between(0, 1 << 24), "learned positions: a document's tokens at most; 0: none",
       0},
      {"embed_norm", &embed_norm, {}, "a norm after the embedding", false},
      {"tokenizer", &tokenizer, {}, "how text becomes tokens"},
      {"objective", &objective, {}, "what it was trained for (lineal list)"},
  };
}

void LanguageModelConfig::validate(const std::string& who) {
  if (parallel_residual && intermediate_size == 0) {
    fail(who, ": parallel_residual is true, expected false without a feed-forward part (intermediate_size 0)");
  }
  if (layers.empty()) fail(who, ": no layers, expected a plan such as 'ttt_linear*4'");
  double count = 0;
  try {
    count = static_cast<double>(parameter_count());
  } catch (const Error& error) {
    fail(who, ": ", error.what());
  }
  const double bytes = count * sizeof(float), memory = static_cast<double>(machine_memory());
  if (bytes > memory) {
    fail(who, ": hidden_size ", hidden_size, ", ", layers.size(), " layer", layers.size() > 1 ? "s" : "", ": ", count,
         " parameters alone take ", bytes / kGiB, " GiB, this machine has ", memory / kGiB);
  }
}

int64_t LanguageModelConfig::parameter_count() const {
  const ShapesOnly shapes;
  const int64_t rows = vocab_size * (tie_word_embeddings ? 1 : 2) + max_positions;
  int64_t count = rows * hidden_size, of_layer = 0;
  count += (embed_norm ? 2 : 1) * count_parameters(*make_norm(norm, hidden_size, rms_norm_eps));
  for (size_t i = 0; i < layers.size(); ++i) {
    const bool again = i > 0 && layers[i] == layers[i - 1];
    if (!again) of_layer = count_parameters(Block(block_config(*this), layers[i]));
    count += of_layer;
  }
  return count;
}

Json LanguageModelConfig::to_json() const {
  Json json = {{"model_type", "lineal"}};
  json.update(write());
  json["layers"] = write_layers(layers);
  return json;
}

LanguageModelConfig LanguageModelConfig::from_json(const Json& json, const std::string& who) {
  LanguageModelConfig config;
  if (!json.is_object()) fail(who, ": expected an object, got ", json.type_name());
  if (!json.contains("layers")) fail(who, ": no field 'layers'");
  try {
    config.layers = read_layers(json["layers"]);
  } catch (const Error& error) {
    fail(who, ": ", error.what());
  }
  Json fields = json;
  fields.erase("layers");
  fields.erase("model_type");
  config.read(fields, who);
  return config;
}

LanguageModel::LanguageModel(const LanguageModelConfig& config, Parameters parameters) : config_(config) {
  config_.validate("language_model");
  auto model = register_module("model", std::make_shared<torch::nn::Module>("model"));
  auto embed = model->register_module("embed_tokens", std::make_shared<torch::nn::Module>("embed_tokens"));
  embed_tokens_ = embed->register_parameter("weight", at::empty({config.vocab_size, config.hidden_size}));
  if (config.max_positions > 0) {
    positions_ = model->register_module("embed_positions",
                                        std::make_shared<PositionTable>(config.max_positions, config.hidden_size));
  }
  const auto norm = [&](double eps) { return make_norm(config.norm, config.hidden_size, eps); };
  if (config.embed_norm) embed_norm_ = model->register_module("embed_norm", norm(config.rms_norm_eps));
  auto layers = model->register_module("layers", std::make_shared<torch::nn::Module>("layers"));
  BlockConfig block = block_config(config);
  const auto eps_after = [&](size_t layers, double eps) {
    const auto every = static_cast<size_t>(config.rescale_every);
    return every > 0 ? eps * std::pow(4, static_cast<double>(layers / every)) : eps;
  };
  for (const auto& layer : config.layers) {
    block.eps = eps_after(blocks_.size(), config.rms_norm_eps);
    blocks_.push_back(layers->register_module(std::to_string(blocks_.size()), std::make_shared<Block>(block, layer)));
  }
  const double last = config.final_norm_eps < 0 ? config.rms_norm_eps : config.final_norm_eps;
  norm_ = model->register_module("norm", norm(eps_after(blocks_.size(), last)));
  if (!config.tie_word_embeddings) {
    auto head = register_module("lm_head", std::make_shared<torch::nn::Module>("lm_head"));
    lm_head_ = head->register_parameter("weight", at::empty({config.vocab_size, config.hidden_size}));
  }
  if (parameters == Parameters::random) reset_parameters();
}

void LanguageModel::reset_parameters() {
  at::NoGradGuard no_grad;
  const double deviation = config_.initializer_range;
  embed_tokens_.normal_(0, deviation);
  if (positions_) positions_->reset_parameters(deviation);
  if (embed_norm_) embed_norm_->reset_parameters();
  for (auto& block : blocks_) block->reset_parameters(deviation);
  norm_->reset_parameters();
  if (lm_head_.defined()) lm_head_.normal_(0, deviation);
}

State LanguageModel::initial_state(int64_t B) const {
  State state = positions_ ? positions_->initial_state(B) : State();
  State& layers = state.child("layers");
  for (size_t i = 0; i < blocks_.size(); ++i) layers.child(std::to_string(i)) = blocks_[i]->initial_state(B);
  return state;
}

Tensor LanguageModel::embed(const Tensor& tokens, State& state, const Segments& segments, const Rows* rows) const {
  Dims("language_model").check(tokens, "BT", "tokens");
  if (tokens.size(1) < 1) fail("language_model: no tokens, expected at least one");
  const Tensor ids = tokens.to(at::kCPU, at::kLong).contiguous();
  const int64_t *first = ids.const_data_ptr<int64_t>(), *end = first + ids.numel();
  const auto bad = std::find_if(first, end, [&](int64_t id) { return id < 0 || id >= config_.vocab_size; });
  if (bad != end) {
    fail("language_model: token id ", *bad, " at [", (bad - first) / ids.size(1), ", ", (bad - first) % ids.size(1),
         "] is out of range, expected 0 to ", config_.vocab_size - 1);
  }
  const Tensor x = at::embedding(embed_tokens_, tokens);
  const Tensor y = positions_ ? positions_->forward(x, state, segments, rows) : x;
  return embed_norm_ ? embed_norm_->forward(y) : y;
}

Tensor LanguageModel::hidden(const Tensor& tokens, State& state, const Segments& segments) {
  Tensor x = embed(tokens, state, segments);
  State& layers = state.child("layers");
  const bool again = recompute && at::GradMode::is_enabled();
  for (size_t i = 0; i < blocks_.size(); ++i) {
    State& layer = layers.child(std::to_string(i));
    x = again ? recompute_block(*blocks_[i], x, layer, segments) : blocks_[i]->forward(x, layer, segments);
  }
  return norm_->forward(x);
}

Tensor LanguageModel::head(const Tensor& hidden) { return at::linear(hidden, head_weight()); }

Tensor LanguageModel::forward(const Tensor& tokens, State& state, const Segments& segments) {
  return head(hidden(tokens, state, segments));
}

Tensor LanguageModel::step(const Tensor& tokens, State& pool, const Rows& rows) {
  const at::NoGradGuard no_grad;
  const at::AutoDispatchBelowADInplaceOrView below;  // nothing here is recorded
  Dims("language_model", {{'B', rows.count()}}).check(tokens, "B", "tokens");
  Tensor x = embed(tokens.unsqueeze(1), pool, {}, &rows);
  State& layers = pool.child("layers");
  for (size_t i = 0; i < blocks_.size(); ++i) x = blocks_[i]->step(x, layers.child(std::to_string(i)), rows);
  return head(norm_->forward(x)).squeeze(1);
}

int64_t LanguageModel::parameter_count() const { return count_parameters(*this); }

}  // namespace lineal
