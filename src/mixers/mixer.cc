#include "mixers/mixer.h"

#include <ATen/autocast_mode.h>

#include "core/registry.h"

namespace lineal {

at::TensorOptions state_options(const torch::nn::Module& module) {
  const auto all = module.parameters();
  if (all.empty()) return at::TensorOptions().dtype(at::kFloat);
  return all.front().options().dtype(all.front().scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

Dims Mixer::check_input(const char* who, const Tensor& x, const State& state, int64_t D) const {
  Dims dims(who, {{'D', D}});
  dims.check(x, "BTD", "x");
  if (dims['T'] < 1) fail(who, ": x is ", x.sizes(), ", expected at least one token, [B, T >= 1, D]");
  if (const auto parts = state.named(); !parts.empty() && parts.front().second.size(0) != dims['B']) {
    fail(who, ": the state holds ", parts.front().second.size(0), " sequences, x has ", dims['B']);
  }
  return dims;
}

FullPrecision::FullPrecision(const Tensor& x)
    : device_(x.device().type()), was_enabled_(at::autocast::is_autocast_enabled(device_)) {
  at::autocast::set_autocast_enabled(device_, false);
}

FullPrecision::~FullPrecision() { at::autocast::set_autocast_enabled(device_, was_enabled_); }

std::shared_ptr<Mixer> empty_mixer(const std::string& name, const Json& options, int64_t D) {
  const MixerSpec& spec = find<MixerSpec>(name);
  auto config = spec.config();
  config->read(options, name);
  return spec.make(*config, D);
}

std::shared_ptr<Mixer> make_mixer(const std::string& name, const Json& options, int64_t D) {
  auto mixer = empty_mixer(name, options, D);
  mixer->reset_parameters(0.02);
  return mixer;
}

int64_t head_size(const std::string& who, int64_t D, int64_t heads) {
  if (D % heads != 0) {
    fail(who, ": num_attention_heads is ", heads, ", expected a divisor of hidden_size ", D);
  }
  return D / heads;
}

}  // namespace lineal
