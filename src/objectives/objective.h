// What a model is trained for: a list of players, each with its parameters and its loss.
#pragma once

#include <functional>
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
};

/// A line of the table.
struct ObjectiveSpec {
  static constexpr const char* kKind = "objective";
  std::string name;
  std::string help;
  /// Refuses mixers that look ahead.
  bool causal = true;
  std::vector<Player> (*players)(const std::shared_ptr<LanguageModel>& model);
};

}  // namespace lineal
