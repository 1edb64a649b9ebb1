#include "bench/mixers.h"

#include <ATen/ATen.h>

#include "bench/cell.h"
#include "core/registry.h"
#include "kernels/kernels.h"
#include "mixers/mixer.h"

namespace lineal {

Json measure(const MixerCell& cell) {
  const int64_t before = resident_bytes();
  std::vector<std::shared_ptr<Mixer>> mixers;
  bool causal = true;
  for (const Layer& layer : cell.layers) {
    Json options = layer.options;
    if (options.contains("sequence_length")) {  // made for texts of a fixed length
      options["sequence_length"] = std::max(options["sequence_length"].get<int64_t>(), cell.T);
    }
    mixers.push_back(make_mixer(layer.mixer, options, cell.D));
    causal = causal && find<MixerSpec>(layer.mixer).causal;
  }
  const auto initial = [&] {
    std::vector<State> states;
    for (const auto& mixer : mixers) states.push_back(mixer->initial_state(cell.B));
    return states;
  };
  const auto forward = [&](Tensor x, std::vector<State>& states) {
    for (size_t i = 0; i < mixers.size(); ++i) x = x + mixers[i]->forward(x, states[i]);
    return x;
  };
  const Tensor x = at::randn({cell.B, cell.T, cell.D});

  Json result = Json::object();
  if (cell.prefill) {
    const at::NoGradGuard no_grad;
    std::vector<State> read;
    const auto prefill = [&] {
      auto states = initial();
      forward(x, states);
      read = std::move(states);
    };
    result["prefill"] = median_seconds(prefill, cell.budget);
    result["prefill_bytes"] = peak_bytes() - before;
    int64_t bytes = 0;
    for (const State& state : read) bytes += state.bytes();
    result["state_bytes"] = bytes;
    const Tensor next = x.slice(1, 0, 1);
    if (causal) result["decode"] = median_seconds([&] { forward(next, read); }, cell.budget, /*most=*/65);
  }
  if (cell.train) {
    const auto train = [&] {
      for (const auto& mixer : mixers) mixer->zero_grad(/*set_to_none=*/true);
      auto states = initial();
      const Tensor loss = forward(x, states).square().mean();
      if (loss.requires_grad()) loss.backward();
    };
    result["train"] = median_seconds(train, cell.budget);
    result["train_bytes"] = peak_bytes() - before;
  }
  result["kernels"] = kernels::summary();
  return result;
}

}  // namespace lineal
