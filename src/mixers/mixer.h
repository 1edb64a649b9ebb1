// The interface every sequence layer obeys: an initial state, and a forward that carries it.
#pragma once

#include <torch/nn/module.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/config.h"
#include "core/dims.h"
#include "core/rows.h"
#include "core/segments.h"
#include "core/state.h"

namespace lineal {

/// What state parts are made of: float32, or float64 when the module's parameters are float64, on their device.
at::TensorOptions state_options(const torch::nn::Module& module);

/// A sequence layer of width D. The laws in docs/laws.md hold for every one.
class Mixer : public torch::nn::Module {
 public:
  /// The state before the first token, for B sequences; learned initial states are part of the graph.
  virtual State initial_state(int64_t B) const = 0;

  /// x [B, T, D], T >= 1 -> y [B, T, D]; `state` becomes the one after the last token. Training is T = a segment,
  /// prefill T = the prompt, decoding T = 1. `segments` says where documents start: the state restarts there.
  virtual Tensor forward(const Tensor& x, State& state, const Segments& segments = {}) = 0;

  /// One token for each of some sequences of a pool, a state of capacity() rows: x [B, 1, D] -> y [B, 1, D] for
  /// B = rows.count(). Row rows[b] of the pool becomes the state after token b, in place; the others stay as they are.
  /// The same numbers as forward on those rows; gradients must be off. This one computes exactly that; mixers with
  /// kernels for it neither gather nor write back.
  virtual Tensor step(const Tensor& x, State& pool, const Rows& rows);

  /// Fills every parameter and buffer with its initial value; weights of linear maps are N(0, deviation^2).
  virtual void reset_parameters(double deviation) = 0;

  /// Training is about to make its step `step`, from 0: what changes by the clock and not by the gradient changes here.
  virtual void begin_step(int64_t /*step*/) {}

  /// How `parameter` trains where it is not like the others: the highest its learning rate may be, and whether weight
  /// decay applies.
  struct Pace {
    double highest_lr;
    bool decays;
  };
  virtual std::optional<Pace> pace(const std::string& /*parameter*/) const { return {}; }

  /// What else there is to minimise: in training mode forward leaves scalars here, which objectives add to their loss
  /// (vq_attention: its commitment). Weighted already; means over the call's tokens.
  std::vector<std::pair<std::string, Tensor>> losses;

  /// While set, forward mixes these values instead of its own, and leaves what it mixed of them before any gate, norm
  /// or projection: with one-hot values those are rows of the attention matrix.
  struct Probe {
    Tensor values;   // [B, T, H, V]
    Tensor outputs;  // [B, T, H, V]
  };
  Probe* probe = nullptr;

  /// While true, forward leaves scalars worth logging in `measured` (TTT: the mean inner loss of the call's tokens
  /// before and after the steps of their inner batch).
  bool measure = false;
  std::vector<std::pair<std::string, Tensor>> measured;

 protected:
  /// What state parts are made of.
  at::TensorOptions state_options() const { return lineal::state_options(*this); }
  /// Throws unless x is [B, T, D] with T >= 1 and the state has B rows, or with rows, T = 1 and B of them, their
  /// capacity; `who` is the mixer.
  Dims check_input(const char* who, const Tensor& x, const State& state, int64_t D, const Rows* rows = nullptr) const;
  /// Counts the call's T tokens in the part `position`; each token's place in its document, [B, T].
  static Tensor count(State& state, int64_t T, const Segments& segments, const Rows* rows);
};

/// Recurrences run in the state's type even under bfloat16 autocast: switches autocast off for a scope.
class FullPrecision {
 public:
  explicit FullPrecision(const Tensor& x);
  ~FullPrecision();
  FullPrecision(const FullPrecision&) = delete;
  FullPrecision& operator=(const FullPrecision&) = delete;

 private:
  at::DeviceType device_;
  bool was_enabled_;
};

/// A line of the table: how a mixer is called, configured and made.
struct MixerSpec {
  static constexpr const char* kKind = "mixer";
  std::string name;
  /// One line for `lineal list`, with the paper.
  std::string help;
  bool causal = true;
  /// The state's bytes do not depend on the tokens read.
  bool constant_state = true;
  /// Outputs depend on other tokens than their own.
  bool mixes = true;
  std::unique_ptr<Config> (*config)();
  /// `config` is of the type that config() makes, read and validated; D is the model's width. Parameters need no
  /// values.
  std::shared_ptr<Mixer> (*make)(const Config& config, int64_t D);
};

/// The two functions of a spec, for a mixer M with constructor M(const C&, int64_t D).
template <class C>
std::unique_ptr<Config> make_config() {
  return std::make_unique<C>();
}
template <class M, class C>
std::shared_ptr<Mixer> make_mixer(const Config& config, int64_t D) {
  return std::make_shared<M>(dynamic_cast<const C&>(config), D);
}

/// A mixer from its name and options: reads, validates, makes. Parameters hold anything until they are loaded or reset.
std::shared_ptr<Mixer> empty_mixer(const std::string& name, const Json& options, int64_t D);

/// The same, parameters initialised.
std::shared_ptr<Mixer> make_mixer(const std::string& name, const Json& options, int64_t D);

/// Throws unless `heads` divides D.
int64_t head_size(const std::string& who, int64_t D, int64_t heads);

}  // namespace lineal
