#include "generate/sampler.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "core/error.h"

namespace lineal {
namespace {

/// Uniform in [0, 1): the standard library leaves its distributions to each implementation.
double uniform(std::mt19937_64& generator) { return static_cast<double>(generator() >> 11) * 0x1p-53; }

void normalise(std::vector<Candidate>& list) {
  double total = 0;
  for (const auto& candidate : list) total += candidate.probability;
  for (auto& candidate : list) candidate.probability /= total;
}

}  // namespace

std::vector<Field> SamplerConfig::fields() {
  return {
      {"temp", &temp, between(0, 100), "temperature; 0 takes the most probable token"},
      {"top_k", &top_k, between(0, 1 << 24), "sample among the k most probable tokens; 0 for all"},
      {"top_p", &top_p, between(0, 1), "sample among the fewest tokens whose probabilities reach this sum"},
      {"min_p", &min_p, between(0, 1), "least probability, relative to the most probable token's"},
      {"repeat_penalty", &repeat_penalty, between(0.01, 100), "divides the logits of recent tokens; 1 for none"},
      {"repeat_window", &repeat_window, between(0, 1024), "how many tokens count as recent"},
  };
}

std::vector<Candidate> candidates(const Tensor& logits, const SamplerConfig& config,
                                  const std::deque<int64_t>& recent) {
  if (logits.dim() != 1 || logits.numel() == 0) fail("sampler: logits is ", logits.sizes(), ", expected [N]");
  const int64_t N = logits.numel();
  const Tensor plain = logits.to(at::kCPU, at::kDouble).contiguous();
  std::vector<double> l(plain.const_data_ptr<double>(), plain.const_data_ptr<double>() + N);
  for (const int64_t token : std::set<int64_t>(recent.begin(), recent.end())) {
    if (token < 0 || token >= N) continue;
    double& value = l[static_cast<size_t>(token)];
    value = value > 0 ? value / config.repeat_penalty : value * config.repeat_penalty;
  }
  std::vector<Candidate> list;
  for (int64_t token = 0; token < N; ++token) {
    const double value = l[static_cast<size_t>(token)];
    if (std::isnan(value) || value == std::numeric_limits<double>::infinity()) {
      fail("sampler: the logit of token ", token, " is ", value, ", expected a finite number; is the model sound?");
    }
    if (std::isfinite(value)) list.push_back({token, value});
  }
  if (list.empty()) fail("sampler: all logits are -inf, expected one token at least that may come next");

  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.probability != b.probability ? a.probability > b.probability : a.token < b.token;
  };
  size_t keep = config.top_k > 0 ? std::min(static_cast<size_t>(config.top_k), list.size()) : list.size();
  if (config.temp == 0) keep = 1;
  std::partial_sort(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(keep), list.end(), before);
  list.resize(keep);
  if (config.temp == 0) return {{list.front().token, 1}};
  const double most = list.front().probability;
  for (auto& candidate : list) candidate.probability = std::exp((candidate.probability - most) / config.temp);
  normalise(list);

  if (config.top_p < 1) {
    double sum = 0;
    const auto reached = [&](const Candidate& candidate) { return (sum += candidate.probability) >= config.top_p; };
    const auto last = std::find_if(list.begin(), list.end(), reached);
    if (last != list.end()) list.erase(last + 1, list.end());
    normalise(list);
  }
  const double least = config.min_p * list.front().probability;
  while (list.back().probability < least) list.pop_back();
  normalise(list);
  return list;
}

Sampler::Sampler(SamplerConfig config, uint64_t seed) : config_(std::move(config)), generator_(seed) {
  config_.validate("sampler");
}

void Sampler::observe(int64_t token) {
  recent_.push_back(token);
  while (static_cast<int64_t>(recent_.size()) > config_.repeat_window) recent_.pop_front();
}

int64_t Sampler::next(const Tensor& logits) {
  const auto list = candidates(logits, config_, recent_);
  double left = uniform(generator_);
  size_t chosen = 0;
  while (chosen + 1 < list.size() && left >= list[chosen].probability) left -= list[chosen++].probability;
  observe(list[chosen].token);
  return list[chosen].token;
}

}  // namespace lineal
