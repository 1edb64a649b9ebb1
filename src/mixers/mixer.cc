#include "mixers/mixer.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

#include "core/registry.h"

namespace lineal {
namespace {

void check_rows(const char* who, const Tensor& x, const State& pool, const Rows& rows) {
  if (at::GradMode::is_enabled()) fail(who, ": a step changes the pool in place, expected gradients to be off");
  if (x.dim() != 3 || x.size(0) != rows.count() || x.size(1) != 1) {
    fail(who, ": x is ", x.sizes(), ", expected [B=", rows.count(), ", 1, D] for as many rows");
  }
  if (const Tensor* part = pool.first_part(); part && part->size(0) != rows.capacity()) {
    fail(who, ": the pool holds ", part->size(0), " sequences, its rows were chosen of ", rows.capacity());
  }
}

}  // namespace

at::TensorOptions state_options(const torch::nn::Module& module) {
  const auto all = module.parameters();
  if (all.empty()) return at::TensorOptions().dtype(at::kFloat);
  return all.front().options().dtype(all.front().scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

Tensor Mixer::step(const Tensor& x, State& pool, const Rows& rows) {
  check_rows("step", x, pool, rows);
  State state = pool.rows(rows.index());
  const Tensor y = forward(x, state);
  pool.set_rows(rows.index(), state);
  return y;
}

Dims Mixer::check_input(const char* who, const Tensor& x, const State& state, int64_t D, const Rows* rows) const {
  Dims dims(who, {{'D', D}});
  dims.check(x, "BTD", "x");
  if (dims['T'] < 1) fail(who, ": x is ", x.sizes(), ", expected at least one token, [B, T >= 1, D]");
  if (rows) {
    check_rows(who, x, state, *rows);
  } else if (const Tensor* part = state.first_part(); part && part->size(0) != dims['B']) {
    fail(who, ": the state holds ", part->size(0), " sequences, x has ", dims['B']);
  }
  return dims;
}

Tensor Mixer::count(State& state, int64_t T, const Segments& segments, const Rows* rows) {
  Tensor& position = state["position"];
  if (!rows) {
    const Tensor places = segments.positions(position, T);
    position = places.select(1, -1) + 1;
    return places;
  }
  const Tensor places = at::empty({rows->count(), 1}, at::kLong);
  Tensor counted = position.cpu();  // itself, if it is there
  int64_t* of_row = counted.mutable_data_ptr<int64_t>();
  for (int64_t b = 0; b < rows->count(); ++b) {
    places.mutable_data_ptr<int64_t>()[b] = of_row[rows->data()[b] * counted.stride(0)]++;
  }
  if (!position.is_cpu()) position.copy_(counted);
  return places.to(position.device());
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
