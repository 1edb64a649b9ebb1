#include "bench/decode.h"

#include <ATen/ATen.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <string_view>

#include "kernels/kernels.h"

namespace lineal {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Seconds that this thread has spent inside matrix products and inside kernels, while it exists. One at a time.
class Inside {
 public:
  Inside() {
    current() = this;
    handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(begin, end).scopes({at::RecordScope::FUNCTION}));
  }
  ~Inside() { at::removeCallback(handle_); }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

  double products = 0, kernels = 0;

 private:
  static Inside*& current() {
    thread_local Inside* inside = nullptr;
    return inside;
  }
  /// The sum that the time of a function belongs to, or null.
  static double* sum_of(std::string_view name) {
    if (name.starts_with("lineal::")) return &current()->kernels;
    const bool product = name == "aten::mm" || name == "aten::addmm" || name == "aten::bmm" || name == "aten::baddbmm";
    return product ? &current()->products : nullptr;
  }
  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
    if (sum_of(function.name())) current()->start_ = Clock::now();
    return nullptr;
  }
  static void end(const at::RecordFunction& function, at::ObserverContext*) {
    const double seconds = since(current()->start_);
    if (double* sum = sum_of(function.name())) *sum += seconds;
  }

  at::CallbackHandle handle_;
  Clock::time_point start_;
};

/// Bytes of the parts that differ between both.
int64_t changed_bytes(const State& a, const State& b) {
  const auto x = a.named(), y = b.named();
  int64_t bytes = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (!x[i].second.equal(y[i].second)) bytes += static_cast<int64_t>(y[i].second.nbytes());
  }
  return bytes;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
  return values[values.size() / 2];
}

}  // namespace

Json measure_decoding(const LanguageModelConfig& config, int64_t sessions, int64_t read, double seconds) {
  constexpr int64_t kWarm = 5;
  at::manual_seed(0);
  LanguageModel model(config);
  const at::NoGradGuard no_grad;
  State pool = model.initial_state(sessions);
  if (read > 0) model.hidden(at::randint(config.vocab_size, {sessions, read}, at::kLong), pool);
  std::vector<int64_t> all(static_cast<size_t>(sessions));
  std::iota(all.begin(), all.end(), 0);
  const Rows rows(all, sessions);
  const Tensor tokens = at::randint(config.vocab_size, {sessions}, at::kLong);
  int64_t context = read;
  const auto step = [&] { model.step(tokens, pool, rows), ++context; };
  for (int64_t i = 0; i < kWarm; ++i) step();
  const State before = pool.clone();
  model.step((tokens + 1).remainder(config.vocab_size), pool, rows);  // other tokens: a window of equal ones would stay
  const int64_t traffic = before.bytes() + changed_bytes(before, pool);

  std::vector<double> whole, products, inside;  // in turn, so that what else the machine does meets all
  for (const auto start = Clock::now(); whole.empty() || since(start) < seconds;) {
    const auto plain = Clock::now();
    step();
    whole.push_back(since(plain));
    Inside recorded;
    step();
    products.push_back(recorded.products);
    inside.push_back(recorded.kernels);
  }
  return {{"parameters", model.parameter_count()},
          {"seconds", median(whole)},
          {"products", median(products)},
          {"kernels", median(inside)},
          {"state_bytes", pool.bytes()},
          {"context", context + 1},
          {"state_traffic", traffic},
          {"ran", kernels::summary()}};
}

}  // namespace lineal
