#include "train/adamw.h"

#include <ATen/ATen.h>
#include <fnmatch.h>

#include <cmath>
#include <map>

#include "core/error.h"
#include "core/parse.h"

namespace lineal {
namespace {

/// W1, b1, W2, ...: the weights a TTT layer's inner model starts from.
bool is_inner_weight(const std::string& leaf) {
  return leaf.size() >= 2 && (leaf[0] == 'W' || leaf[0] == 'b') &&
         leaf.find_first_not_of("0123456789", 1) == std::string::npos;
}

}  // namespace

bool decays(const std::string& name, const Tensor& parameter) {
  const std::string leaf = name.substr(name.rfind('.') + 1);
  const bool named = leaf.find("norm") != leaf.npos || leaf.find("bias") != leaf.npos || leaf == "A_log" ||
                     leaf == "D" || leaf == "learnable_token_idx" || leaf.starts_with("learnable_ttt_lr");
  return parameter.dim() >= 2 && !named && !is_inner_weight(leaf);
}

std::vector<double> lr_factors(const std::string& rules, const std::vector<std::string>& names) {
  std::vector<double> factors(names.size(), 1);
  std::istringstream list(rules);
  for (std::string rule; std::getline(list, rule, ',');) {
    rule = trim(rule);
    if (rule.empty()) continue;
    const auto equals = rule.rfind('=');
    const std::string pattern = trim(rule.substr(0, equals));
    const auto factor = equals == rule.npos ? std::nullopt : parse_double(trim(rule.substr(equals + 1)));
    if (pattern.empty() || !factor || *factor < 0) {
      fail("lr_scale: '", rule, "' is not pattern=factor with a factor of at least 0, such as '*.W1=0.1'");
    }
    bool used = false;
    for (size_t i = 0; i < names.size(); ++i) {
      if (::fnmatch(pattern.c_str(), names[i].c_str(), 0) != 0) continue;
      factors[i] = *factor;
      used = true;
    }
    if (!used) {
      const std::string near = nearest(pattern, names);
      fail("lr_scale: '", pattern, "' fits none of ", names.size(), " parameters",
           near.empty() ? ", the first is '" + names.front() + "'" : "; did you mean '" + near + "'?");
    }
  }
  return factors;
}

AdamW::AdamW(NamedTensors parameters, const TrainConfig& config, const std::map<std::string, Mixer::Pace>& paces)
    : parameters_(std::move(parameters)), beta1_(config.beta1), beta2_(config.beta2), eps_(config.eps) {
  std::vector<std::string> names;
  for (const auto& [name, parameter] : parameters_) {
    names.push_back(name);
    exp_avg_.push_back(at::zeros_like(parameter));
    exp_avg_sq_.push_back(at::zeros_like(parameter));
    steps_.push_back(at::zeros({}, at::kFloat));
    const auto pace = paces.find(name);
    highest_.push_back(pace == paces.end() ? INFINITY : pace->second.highest_lr);
    decay_.push_back((pace == paces.end() ? decays(name, parameter) : pace->second.decays) ? config.weight_decay : 0);
  }
  factors_ = lr_factors(config.lr_scale, names);
}

void AdamW::zero_grad() {
  for (auto& [name, parameter] : parameters_) parameter.mutable_grad() = Tensor();
}

double AdamW::clip(double most) {
  std::vector<Tensor> gradients;
  for (const auto& [name, parameter] : parameters_) {
    if (parameter.grad().defined()) gradients.push_back(parameter.grad());
  }
  if (gradients.empty()) return 0;
  const double norm = at::stack(at::_foreach_norm(gradients)).norm().item<double>();
  if (most > 0 && norm > most) at::_foreach_mul_(gradients, most / norm);
  return norm;
}

void AdamW::step(double lr) {
  at::NoGradGuard no_grad;
  struct Group {
    std::vector<Tensor> parameters, gradients, exp_avg, exp_avg_sq, steps;
  };
  std::map<std::pair<double, double>, Group> groups;  // by learning rate and weight decay
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Tensor& parameter = parameters_[i].second;
    if (!parameter.grad().defined()) continue;
    Group& group = groups[{std::min(lr * factors_[i], highest_[i]), decay_[i]}];
    group.parameters.push_back(parameter);
    group.gradients.push_back(parameter.grad());
    group.exp_avg.push_back(exp_avg_[i]);
    group.exp_avg_sq.push_back(exp_avg_sq_[i]);
    group.steps.push_back(steps_[i]);
  }
  for (auto& [key, group] : groups) {
    at::_foreach_add_(group.steps, 1);
    at::_fused_adamw_(group.parameters, group.gradients, group.exp_avg, group.exp_avg_sq, {}, group.steps, key.first,
                      beta1_, beta2_, key.second, eps_, /*amsgrad=*/false, /*maximize=*/false);
    for (const Tensor& parameter : group.parameters) {  // which the fused step does not count as changed
      parameter.unsafeGetTensorImpl()->bump_version();
    }
  }
}

std::string AdamW::first_bad_gradient() const {
  for (const auto& [name, parameter] : parameters_) {
    if (parameter.grad().defined() && !parameter.grad().isfinite().all().item<bool>()) return name;
  }
  return "";
}

NamedTensors AdamW::state() const {
  NamedTensors result;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const std::string& name = parameters_[i].first;
    result.emplace_back("exp_avg." + name, exp_avg_[i]);
    result.emplace_back("exp_avg_sq." + name, exp_avg_sq_[i]);
    result.emplace_back("step." + name, steps_[i]);
  }
  return result;
}

void AdamW::load_state(const SafeTensors& file, const std::string& prefix, const std::string& who) {
  for (auto& [name, mine] : state()) {
    const Tensor& stored = file.at(prefix + name, who);
    if (stored.sizes() != mine.sizes() || stored.scalar_type() != mine.scalar_type()) {
      fail(who, ": tensor ", prefix, name, " is ", stored.dtype().name(), " ", stored.sizes(), ", expected ",
           mine.dtype().name(), " ", mine.sizes());
    }
    mine.copy_(stored);
  }
}

}  // namespace lineal
