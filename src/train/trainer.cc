#include "train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

#include "backbones/model_files.h"
#include "core/error.h"
#include "core/registry.h"
#include "train/not_finite.h"
#include "train/schedule.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

constexpr const char* kRandom = "random_state";

/// Of a batch of one document a row, whose filling is a document of its own: those of the documents.
int64_t tokens_of_documents(const Batch& batch) {
  const Tensor document = batch.segments.documents(batch.size(), batch.length(), at::kCPU);
  return (document == document.slice(1, 0, 1)).sum().item<int64_t>();
}

}  // namespace

Trainer::Trainer(std::shared_ptr<LanguageModel> model, const TrainConfig& config, TrainData data,
                 std::shared_ptr<LanguageModel> teacher)
    : model_(std::move(model)), config_(config), data_(std::move(data)) {
  config_.validate("train");
  const auto& objective = find<ObjectiveSpec>(config_.objective, "train");
  for (const Layer& layer : model_->config().layers) {
    if (objective.causal && !find<MixerSpec>(layer.mixer).causal) {
      fail("train: objective ", objective.name, " predicts what comes next, mixer ", layer.mixer, " looks ahead");
    }
  }
  players_ =
      teacher ? distillation_player(model_, {std::move(teacher), config_.match_steps}) : objective.players(model_);
  for (const Player& player : players_) {
    optimizers_.emplace_back(player.parameters, config_, player.paces);
    batches_per_step_ += player.repeats * config_.accumulate;
  }
  model_->recompute = config_.recompute;
}

SegmentRun Trainer::segment_run(const std::string& loss) const {
  SegmentRun run;
  run.length = config_.segment_length();
  run.differentiable = config_.carry == "differentiable";
  run.bfloat16 = config_.precision == "bfloat16";
  run.not_finite = [this, loss](const Batch& segment, const State& start, int64_t from) {
    const Autocast autocast(config_.precision == "bfloat16");
    const std::string found = find_not_finite(*model_, segment, start, from);
    fail("train: ", loss, " is not finite: ",
         found.empty() ? "the logits still are, for tokens " + text(from, " to ", from + segment.length() - 1) : found);
  };
  return run;
}

void Trainer::collect_measured() {
  for (size_t i = 0; i < model_->blocks().size(); ++i) {
    for (const auto& [what, value] : model_->blocks()[i]->mixer().measured) {
      const std::string name = text("layers.", i, ".", what);
      const auto same = [&](const auto& entry) { return entry.first == name; };
      auto entry = std::find_if(measured_.begin(), measured_.end(), same);
      if (entry == measured_.end()) entry = measured_.insert(measured_.end(), {name, {0.0, 0}});
      entry->second.first += value.item<double>();
      ++entry->second.second;
    }
  }
}

StepResult Trainer::step(bool measure) {
  StepResult result;
  result.lr = learning_rate(config_, steps_done_);
  measured_.clear();
  model_->train();
  for (const auto& block : model_->blocks()) {
    block->mixer().measure = measure;
    block->mixer().begin_step(steps_done_);
  }
  SegmentRun run = segment_run(text("step ", steps_done_ + 1, ": the loss"));
  if (measure) run.observe = [this] { collect_measured(); };
  int64_t number = steps_done_ * batches_per_step_;
  for (size_t p = 0; p < players_.size(); ++p) {
    const Player& player = players_[p];
    AdamW& optimizer = optimizers_[p];
    if (player.begin_step) result.minimised = player.begin_step(steps_done_);
    for (int64_t repeat = 0; repeat < player.repeats; ++repeat) {
      std::vector<Batch> batches;
      double count = 0, sum = 0;
      for (int64_t i = 0; i < config_.accumulate; ++i) {
        batches.push_back(data_.batch(number++));
        count += batches.back().mask.sum(at::kDouble).item<double>();
        if (p > 0) continue;
        result.tokens += config_.pack == "none" ? tokens_of_documents(batches.back()) : batches.back().inputs.numel();
      }
      count = std::max(count, 1.0);
      optimizer.zero_grad();
      for (const Batch& batch : batches) sum += add_gradient(player, *model_, batch, count, run);
      const double norm = optimizer.clip(config_.clip);
      if (!std::isfinite(norm)) {
        const std::string parameter = optimizer.first_bad_gradient();
        optimizer.zero_grad();
        fail("train: step ", steps_done_ + 1, ": the loss ", sum / count, " is finite, its gradient with respect to ",
             parameter.empty() ? "all parameters together" : parameter,
             " is not; a lower --lr or --clip may keep it finite");
      }
      optimizer.step(result.lr);
      optimizer.zero_grad();
      if (p == 0) result.loss = sum / count;
      result.grad_norm = std::max(result.grad_norm, norm);
    }
  }
  for (const auto& block : model_->blocks()) block->mixer().measure = false;
  for (const auto& [name, sum] : measured_) {
    result.measured.emplace_back(name, sum.first / static_cast<double>(sum.second));
  }
  ++steps_done_;
  return result;
}

double Trainer::validation_loss() {
  int64_t batches = data_.validation_batches;
  if (config_.eval_batches > 0) batches = std::min(batches, config_.eval_batches);
  if (batches == 0) fail("train: there is no validation part to measure the loss of");
  model_->eval();
  Player measured = players_.front();
  if (measured.validation) measured.loss = measured.validation;
  double sum = 0, count = 0;
  State state;
  for (int64_t i = 0; i < batches; ++i) {
    const Batch batch = data_.validation(i);
    if (i == 0) state = model_->initial_state(batch.size()).detach();
    const SegmentRun run = segment_run(text("step ", steps_done_, ": the validation loss of batch ", i));
    sum += sum_loss(measured, batch, state, run);
    count += batch.mask.sum(at::kDouble).item<double>();
  }
  return sum / std::max(count, 1.0);
}

void Trainer::save(const fs::path& dir) const {
  save_model(*model_, dir);
  if (data_.save) data_.save(dir);
  NamedTensors tensors;
  for (size_t p = 0; p < players_.size(); ++p) {
    for (const auto& [name, tensor] : optimizers_[p].state())
      tensors.emplace_back(players_[p].name + "." + name, tensor);
  }
  tensors.emplace_back(kRandom, at::detail::getDefaultCPUGenerator().get_state());
  save_safetensors(dir / "optimizer.safetensors", tensors);
}

void Trainer::load(const fs::path& dir, int64_t steps_done) {
  const fs::path model = dir / "model.safetensors", optimizer = dir / "optimizer.safetensors";
  const SafeTensors parameters = load_safetensors(model), state = load_safetensors(optimizer);
  set_parameters(*model_, parameters.tensors, model.string());
  size_t expected = 1;
  for (size_t p = 0; p < players_.size(); ++p) {
    optimizers_[p].load_state(state, players_[p].name + ".", optimizer.string());
    expected += optimizers_[p].state().size();
  }
  if (state.tensors.size() != expected) {
    fail(optimizer.string(), ": ", state.tensors.size(), " tensors, expected ", expected);
  }
  auto generator = at::detail::getDefaultCPUGenerator();
  const Tensor& random = state.at(kRandom, optimizer.string());
  const Tensor mine = generator.get_state();
  if (random.scalar_type() != at::kByte || random.sizes() != mine.sizes()) {
    fail(optimizer.string(), ": tensor ", kRandom, " is ", random.dtype().name(), " ", random.sizes(), ", expected ",
         mine.dtype().name(), " ", mine.sizes());
  }
  generator.set_state(random.clone());
  steps_done_ = steps_done;
}

}  // namespace lineal
