#include "eval/attention_matrix.h"

#include <ATen/ATen.h>

#include "core/error.h"

namespace lineal {
namespace {

/// Sets a mixer's probe for a scope.
class Probing {
 public:
  explicit Probing(Mixer& mixer) : mixer_(mixer) { mixer_.probe = &probe; }
  ~Probing() { mixer_.probe = nullptr; }
  Probing(const Probing&) = delete;
  Probing& operator=(const Probing&) = delete;
  Mixer::Probe probe;

 private:
  Mixer& mixer_;
};

/// x [B, T, D], what the layer reads -> its matrix, [B, H, T, T].
Tensor matrix_of(LanguageModel& model, const Tensor& x, size_t layer) {
  Block& block = *model.blocks()[layer];
  Probing probing(block.mixer());
  Mixer::Probe& probe = probing.probe;
  const auto read = [&] {
    State state = block.initial_state(x.size(0));
    block.forward(x, state, {});
  };
  read();  // its own values, for their shape
  if (!probe.outputs.defined()) {
    fail("attention matrix: layer ", layer, " is ", model.config().layers[layer].mixer,
         ", which does not mix values linearly, or takes no probe; expected attention, performer or a linear "
         "recurrence");
  }
  const Tensor own = probe.outputs;  // [B, T, H, V]
  const int64_t T = own.size(1), V = own.size(3);
  std::vector<Tensor> columns;
  for (int64_t from = 0; from < T; from += V) {
    const Tensor values = at::zeros_like(own);
    const int64_t count = std::min(V, T - from);
    // values[b, from + c, h, c] = 1
    values.slice(1, from, from + count).slice(3, 0, count).diagonal(0, 1, 3).fill_(1);
    probe.values = values;
    read();
    columns.push_back(probe.outputs.slice(3, 0, count).permute({0, 2, 1, 3}));  // [B, H, T, count]
  }
  return at::cat(columns, 3);
}

}  // namespace

Tensor attention_matrix(LanguageModel& model, const Tensor& tokens, int64_t layer) {
  const auto L = static_cast<int64_t>(model.blocks().size());
  if (layer < 0 || layer >= L) fail("attention matrix: layer ", layer, ", expected 0 to ", L - 1);
  const at::NoGradGuard no_grad;
  State state = model.initial_state(tokens.size(0));
  Tensor x = model.embed(tokens, state);
  for (int64_t i = 0; i < layer; ++i) {
    x = model.blocks()[static_cast<size_t>(i)]->forward(x, state.child("layers").child(std::to_string(i)), {});
  }
  return matrix_of(model, x, static_cast<size_t>(layer));
}

void attention_matrices(LanguageModel& model, const Tensor& tokens,
                        const std::function<void(size_t layer, const Tensor& matrix)>& use) {
  const at::NoGradGuard no_grad;
  State state = model.initial_state(tokens.size(0));
  Tensor x = model.embed(tokens, state);
  for (size_t i = 0; i < model.blocks().size(); ++i) {
    use(i, matrix_of(model, x, i));
    x = model.blocks()[i]->forward(x, state.child("layers").child(std::to_string(i)), {});
  }
}

}  // namespace lineal
