#include "train/gradient.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

namespace lineal {
namespace {

/// Up to this many segments every start state is kept; beyond, one in sqrt(n), and the rest are found again.
constexpr int64_t kStates = 64;

Tensor random_state() { return at::detail::getDefaultCPUGenerator().get_state(); }

void set_random_state(const Tensor& state) {
  auto generator = at::detail::getDefaultCPUGenerator();
  generator.set_state(state);
}

/// What a segment starts from, the random generator included, so that running it again repeats it.
struct Start {
  State state;
  Tensor random;
};

class Walk {
 public:
  Walk(const Player& player, const LanguageModel& model, const Batch& batch, double count, const SegmentRun& run)
      : player_(player), model_(model), batch_(batch), count_(count), run_(run) {
    for (const auto& [name, parameter] : player.parameters) parameters_.push_back(parameter);
    segments_ = (batch.length() + run.length - 1) / run.length;
  }

  double detached() {
    State state = model_.initial_state(batch_.size());
    for (int64_t i = 0; i < segments_; ++i) {
      const Tensor loss = forward(i, state);
      backward({loss}, {Tensor()}, {});
      state = state.detach();
    }
    return sum_;
  }

  double differentiable() {
    const auto root = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(segments_))));
    const int64_t stride = segments_ <= kStates ? segments_ : root;
    std::vector<Start> groups;  // every stride-th segment's
    Start at = {model_.initial_state(batch_.size()).detach(), random_state()};
    for (int64_t i = 0;; ++i) {
      if (i % stride == 0) groups.push_back(at);
      if (i + stride >= segments_ && i % stride == 0) break;
      at = skip(i, at);
    }
    Tensor last_random;
    for (auto group = static_cast<int64_t>(groups.size()); group-- > 0;) {
      std::vector<Start> starts = {groups.back()};
      groups.pop_back();
      const int64_t first = group * stride, end = std::min(first + stride, segments_);
      for (int64_t i = first; i + 1 < end; ++i) starts.push_back(skip(i, starts.back()));
      for (int64_t i = end; i-- > first; starts.pop_back()) {
        set_random_state(starts.back().random);
        step_back(i, starts.back().state);
        if (!last_random.defined()) last_random = random_state();
      }
    }
    set_random_state(last_random);
    return sum_;
  }

 private:
  Tensor loss_of(int64_t i, State& state, double* count) const {
    const int64_t from = i * run_.length, to = std::min(from + run_.length, batch_.length());
    const Batch part = batch_.slice(from, to);
    *count = part.mask.sum(at::kDouble).item<double>();
    const State start = state;
    Tensor loss;
    {
      const Autocast autocast(run_.bfloat16);
      loss = player_.loss(part, state);
    }
    if (!std::isfinite(loss.item<double>()) && run_.not_finite) run_.not_finite(part, start, from);
    return loss;
  }

  /// Runs segment i without a graph: where the next one starts.
  Start skip(int64_t i, const Start& start) const {
    at::NoGradGuard no_grad;
    set_random_state(start.random);
    State state = start.state;
    double count = 0;
    loss_of(i, state, &count);
    return {state, random_state()};
  }

  /// The segment's share of the loss and of what is minimised beside it, with its graph.
  Tensor forward(int64_t i, State& state) {
    double count = 0;
    Tensor loss = loss_of(i, state, &count);
    if (run_.observe) run_.observe();
    sum_ += loss.item<double>() * count;
    if (player_.extra) {
      for (const auto& [name, extra] : player_.extra()) loss = loss + extra;
    }
    return loss * (count / count_);
  }

  void backward(std::vector<Tensor> roots, std::vector<Tensor> weights, const std::vector<Tensor>& leaves) const {
    auto inputs = parameters_;
    inputs.insert(inputs.end(), leaves.begin(), leaves.end());
    torch::autograd::backward(roots, weights, /*retain_graph=*/false, /*create_graph=*/false, inputs);
  }

  /// Segment i again, from its start state: gradients of the parameters, and in end_ those of the start state.
  void step_back(int64_t i, const State& start) {
    std::vector<Tensor> leaves;
    const auto leaf = [&](const Tensor& part) -> Tensor {
      if (!part.is_floating_point()) return part;
      return leaves.emplace_back(part.detach().requires_grad_());
    };
    State state = i == 0 ? model_.initial_state(batch_.size()) : start.map(leaf);
    const auto before = state.named();
    std::vector<Tensor> roots = {forward(i, state)}, weights = {Tensor()};
    for (const auto& [name, part] : state.named()) {
      const auto gradient = end_.find(name);
      if (!part.requires_grad() || gradient == end_.end()) continue;
      roots.push_back(part);
      weights.push_back(gradient->second);
    }
    backward(roots, weights, leaves);
    end_.clear();
    if (i == 0) return;
    for (const auto& [name, part] : before) {
      if (part.grad().defined()) end_[name] = part.grad();
    }
  }

  const Player& player_;
  const LanguageModel& model_;
  const Batch& batch_;
  double count_;
  const SegmentRun& run_;
  std::vector<Tensor> parameters_;
  int64_t segments_;
  double sum_ = 0;
  std::map<std::string, Tensor> end_;  // gradients of the state after the segment to come
};

}  // namespace

Autocast::Autocast(bool on)
    : was_enabled_(at::autocast::is_autocast_enabled(at::kCPU)),
      was_cached_(at::autocast::is_autocast_cache_enabled()),
      type_(at::autocast::get_autocast_dtype(at::kCPU)) {
  at::autocast::set_autocast_enabled(at::kCPU, on);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  // A cached copy would outlive the update of its parameter, and lack a graph when it was made without one.
  at::autocast::set_autocast_cache_enabled(false);
}

Autocast::~Autocast() {
  at::autocast::set_autocast_enabled(at::kCPU, was_enabled_);
  at::autocast::set_autocast_dtype(at::kCPU, type_);
  at::autocast::set_autocast_cache_enabled(was_cached_);
}

double add_gradient(const Player& player, const LanguageModel& model, const Batch& batch, double count,
                    const SegmentRun& run) {
  Walk walk(player, model, batch, count, run);
  return run.differentiable && batch.length() > run.length ? walk.differentiable() : walk.detached();
}

double sum_loss(const Player& player, const Batch& batch, State& state, const SegmentRun& run) {
  at::NoGradGuard no_grad;
  double sum = 0;
  for (int64_t from = 0; from < batch.length(); from += run.length) {
    const Batch part = batch.slice(from, std::min(from + run.length, batch.length()));
    const State start = state;
    const double loss = [&] {
      const Autocast autocast(run.bfloat16);
      return player.loss(part, state).item<double>();
    }();
    if (!std::isfinite(loss) && run.not_finite) run.not_finite(part, start, from);
    sum += loss * part.mask.sum(at::kDouble).item<double>();
  }
  return sum;
}

}  // namespace lineal
