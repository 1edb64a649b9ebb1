#include <ATen/ATen.h>

#include <cmath>
#include <iomanip>
#include <iostream>

#include "bench/approximation.h"
#include "commands/bench.h"
#include "commands/same_tokenizer.h"
#include "core/error.h"
#include "data/read_tokens.h"

namespace lineal {
namespace {

/// Mean, and deviation when there are two values.
Json summary(const std::string& name, const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double value : values) sum += value;
  for (const double value : values) squares += (value - sum / n) * (value - sum / n);
  Json result = {{name, sum / n}};
  if (n > 1) result[name + "_deviation"] = std::sqrt(squares / (n - 1));
  return result;
}

Json row(const Approximation& found) {
  Json result = {{"feature_map", found.feature_map}, {"projection", found.projection}, {"num_features", found.M}};
  std::vector<double> roots;
  for (const double error : found.squared_errors) roots.push_back(std::sqrt(error));
  result["not_finite"] = std::count_if(roots.begin(), roots.end(), [](double root) { return !std::isfinite(root); });
  result.update(summary("relative_error", roots));
  result.update(summary("squared_error", found.squared_errors));
  return result;
}

void print_approximation(const Json& row) {
  const auto number = [&](const char* key) {
    std::cout << std::setw(14);
    if (row.contains(key) && std::isfinite(row[key].get<double>())) {
      std::cout << row[key].get<double>();
    } else {
      std::cout << "-";
    }
  };
  std::cout << std::left << std::setw(12) << row["feature_map"].get<std::string>() << std::setw(7)
            << row["projection"].get<std::string>() << std::right << std::setw(6) << row["num_features"].get<int64_t>()
            << std::setprecision(4);
  for (const char* key : {"relative_error", "relative_error_deviation", "squared_error", "squared_error_deviation"}) {
    number(key);
  }
  if (row["not_finite"] > 0) std::cout << "  samples not finite: " << row["not_finite"];
  std::cout << "\n";
}

struct FirstTokens {
  Tensor tokens;  // int64 [1, T]
  Segments segments;
};

/// The first `count` tokens of the text, as eval reads it.
FirstTokens first_tokens(const std::vector<std::string>& files, const Tokenizer& tokenizer, int64_t count) {
  TextReader reader(find_sources(files, tokenizer.format()));
  std::vector<int64_t> tokens;
  const Tensor starts = at::zeros({1, count}, at::kBool);
  read_tokens(reader, tokenizer, [&](const std::vector<int64_t>& more, bool starts_document, std::string_view) {
    if (starts_document) starts[0][std::ssize(tokens)] = true;
    tokens.insert(tokens.end(), more.begin(), more.end());
    return std::ssize(tokens) < count;
  });
  if (std::ssize(tokens) < count) {
    fail("bench propagation: the text has ", tokens.size(), " tokens, expected at least --context ", count);
  }
  return {at::tensor(tokens).slice(0, 0, count).unsqueeze(0), {starts}};
}

int run_bench_approximation(const std::vector<std::string>& args) {
  CLI::App app(
      "how far random features are from softmax attention: the error of the output over random queries, keys and "
      "values, |o - softmax| / |softmax| and its square, mean and deviation over samples",
      "bench approximation");
  ApproximationSizes sizes;
  std::vector<int64_t> M = {16, 32, 64, 128, 256};
  std::vector<std::string> maps = FeatureMap::softmax_kinds(), projections = {"iid", "r-orf", "h-orf", "g-orf"};
  bool json = false;
  const auto size = [&](const char* flag, int64_t& to, const char* help) {
    app.add_option(flag, to, help)->check(CLI::Range(1, 1 << 20))->capture_default_str();
  };
  size("--length", sizes.T, "tokens, each of which attends to all");
  size("--head-size", sizes.K, "size of queries, keys and values");
  size("--samples", sizes.samples, "of queries, keys and values");
  size("--draws", sizes.draws, "of the projection for each sample");
  app.add_option("--num-features", M, "rows of the projection")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--feature-map", maps, "of the softmax kernel")->delimiter(',')->capture_default_str();
  app.add_option("--projection", projections, "how its rows are drawn")->delimiter(',')->capture_default_str();
  app.add_option("--deviation", sizes.deviation, "of the entries of queries and keys; scores are divided by K^(1/2)")
      ->check(within(0, 1000))
      ->capture_default_str();
  app.add_option("--offset", sizes.offset,
                 "moves queries and keys apart: divides the kernel's values by about exp(offset^2)")
      ->check(within(0, 1000))
      ->capture_default_str();
  app.add_option("-s,--seed", sizes.seed, "of all that is random")->capture_default_str();
  app.add_flag("--json", json, "for scripts");
  add_compute(app);
  if (!parse(app, args)) return 0;

  Json rows = Json::array();
  for (const Approximation& found : measure_approximation(sizes, M, maps, projections)) rows.push_back(row(found));
  if (json) {
    std::cout << rows.dump() << "\n";
    return 0;
  }
  std::cout << sizes.T << " tokens, head size " << sizes.K << ", " << sizes.samples << " samples\n"
            << "map         rows        M         error     deviation       squared     deviation\n";
  for (const Json& each : rows) print_approximation(each);
  return 0;
}

int run_bench_propagation(const std::vector<std::string>& args) {
  CLI::App app(
      "how the error of a converted model (lineal convert) grows from block to block: |b - a| / |a| of what each block "
      "returns, alone: when it is given what enters the first model's",
      "bench propagation");
  std::string first, second;
  std::vector<std::string> files;
  int64_t context = 1024;
  bool json = false;
  app.add_option("files", files, "text that both read")->required();
  app.add_option("-m,--model", first, "model directory or run")->required();
  app.add_option("--other", second, "the model that is compared with it")->required();
  app.add_option("-c,--context", context, "tokens of the text")->check(CLI::Range(1, 1 << 24))->capture_default_str();
  app.add_flag("--json", json, "for scripts");
  add_compute(app);
  if (!parse(app, args)) return 0;

  const LoadedModel a = load_model(first), b = load_model(second);
  check_same_tokenizer("bench propagation", first, a, second, b);
  const auto [tokens, segments] = first_tokens(files, *a.tokenizer, context);
  const auto errors = propagate_error(*a.model, *b.model, tokens, segments);
  Json rows = Json::array();
  for (const BlockError& error : errors) {
    rows.push_back({{"block", rows.size() + 1}, {"alone", error.alone}, {"propagated", error.propagated}});
  }
  if (json) {
    std::cout << rows.dump() << "\n";
    return 0;
  }
  std::cout << "block       alone  propagated\n" << std::setprecision(4);
  for (size_t i = 0; i < errors.size(); ++i) {
    std::cout << std::setw(5) << i + 1 << std::setw(12) << errors[i].alone << std::setw(12) << errors[i].propagated
              << "\n";
  }
  return 0;
}

}  // namespace

const CommandSpec bench_approximation_spec = {
    .name = "bench approximation",
    .help = "the error of random features",
    .run = run_bench_approximation,
    .less_memory = "a shorter --length, fewer --num-features",
};
const CommandSpec bench_propagation_spec = {
    .name = "bench propagation",
    .help = "the error of a converted model's blocks",
    .run = run_bench_propagation,
    .less_memory = "a shorter --context",
};

}  // namespace lineal
