// What a model is trained for: a list of players, each with its parameters and its loss.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backbones/language_model.h"
#include "data/batch.h"

namespace lineal {

/// One optimiser's worth of training: causal language modelling has one player, WGAN-GP a critic and a generator.
struct Player {
  std::string name;
  std::vector<std::pair<std::string, Tensor>> parameters;
  /// The mean loss over batch.mask; `state` becomes the one after the batch.
  std::function<Tensor(const Batch& batch, State& state)> loss;
  /// Steps of this player per training step.
  int64_t repeats = 1;
  /// What the last call of `loss` left to minimise beside it in training mode (Mixer::losses): its gradient is added,
  /// its value is not, so that losses stay comparable. May be empty.
  std::function<std::vector<std::pair<std::string, Tensor>>()> extra;
  /// Told the number of each step before it; returns what is minimised in it, for the log. May be empty.
  std::function<std::string(int64_t step)> begin_step;
  /// What validation measures where that is not `loss`. May be empty.
  std::function<Tensor(const Batch& batch, State& state)> validation;
  /// Those of the parameters that a mixer wants trained unlike the others.
  std::map<std::string, Mixer::Pace> paces;
};

/// What the model's mixers left to minimise in its last forward in training mode: "layers.0.commitment" and the like.
std::vector<std::pair<std::string, Tensor>> mixer_losses(const LanguageModel& model);

/// Every parameter of the model under its name, and its mixers' paces: the part of a player that trains all of it.
Player whole_model(const std::string& name, LanguageModel& model);

/// A line of the table.
struct ObjectiveSpec {
  static constexpr const char* kKind = "objective";
  std::string name;
  std::string help;
  /// Refuses mixers that look ahead.
  bool causal = true;
  /// Batches come with hidden tokens (data/masking.h), which the tokenizer must have a mask for.
  bool masks = false;
  std::vector<Player> (*players)(const std::shared_ptr<LanguageModel>& model);
};

}  // namespace lineal
