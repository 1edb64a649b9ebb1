// lineal eval: how well a model predicts text, or its logits for given token ids.
#include <chrono>
#include <cstdio>
#include <iostream>

#include "commands/command.h"
#include "commands/output.h"
#include "commands/progress.h"
#include "core/error.h"
#include "eval/logits.h"
#include "eval/perplexity.h"
#include "interop/load.h"

namespace lineal {
namespace {

Json optional(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

Json to_json(const Evaluation& result, double seconds) {
  Json buckets = Json::array();
  for (const Bucket& bucket : result.buckets) {
    buckets.push_back({{"begin", bucket.begin},
                       {"end", bucket.end},
                       {"tokens", bucket.loss.tokens},
                       {"nats_per_token", bucket.loss.mean()}});
  }
  return {{"nats_per_token", result.loss.mean()},
          {"nats_per_token_error", optional(result.standard_error)},
          {"perplexity", result.perplexity()},
          {"perplexity_error", optional(result.perplexity_error())},
          {"bits_per_byte", result.bits_per_byte()},
          {"bits_per_byte_error", optional(result.bits_per_byte_error())},
          {"tokens", result.tokens},
          {"predicted_tokens", result.loss.tokens},
          {"predicted_bytes", result.predicted_bytes},
          {"documents", result.documents},
          {"tokens_per_second", static_cast<double>(result.tokens) / seconds},
          {"positions", buckets}};
}

std::string formatted(const char* format, double value) {
  char line[64];
  std::snprintf(line, sizeof line, format, value);
  return line;
}

std::string with_error(double value, const std::optional<double>& error) {
  return formatted("%.4f", value) + (error ? formatted(" +- %.2g", *error) : "");
}

void print(const Evaluation& result, double seconds, bool restarts) {
  std::cout << "nats per token  " << with_error(result.loss.mean(), result.standard_error) << "\n"
            << "perplexity      " << with_error(result.perplexity(), result.perplexity_error()) << "\n"
            << "bits per byte   " << with_error(result.bits_per_byte(), result.bits_per_byte_error()) << "\n"
            << "tokens          " << result.tokens << ", " << result.loss.tokens << " of them predicted\n"
            << "documents       " << result.documents << "\n"
            << "tokens/s        " << formatted("%.0f", static_cast<double>(result.tokens) / seconds) << "\n"
            << (restarts ? "position since restart" : "position in document  ") << "  nats per token      tokens\n";
  for (const Bucket& bucket : result.buckets) {
    std::string range = text("  ", bucket.begin, "-", bucket.end - 1);
    range.resize(std::max<size_t>(range.size() + 1, 24), ' ');
    std::cout << range << formatted("%14.4f", bucket.loss.mean())
              << formatted("%12.0f", static_cast<double>(bucket.loss.tokens)) << "\n";
  }
  if (!result.standard_error) std::cout << "no standard error: that takes 2048 predictions\n";
}

/// Flags that say how to measure text say nothing about logits.
void refuse_beside_tokens(const CLI::App& app) {
  std::string found;
  for (const char* flag : {"--json", "--limit", "--max-context", "--buckets", "--text-field"}) {
    if (app.get_option(flag)->count() > 0) found += (found.empty() ? "" : ", ") + std::string(flag);
  }
  if (!found.empty()) fail("eval: --tokens does not go with ", found, "; expected --logits, --chunk and -t beside it");
}

int run(const std::vector<std::string>& args) {
  CLI::App app(
      "how well a model predicts text: nats per token, perplexity and bits per byte, each with its standard error over "
      "blocks of 1024 predictions, and the loss by position in the document. Files, folders, .jsonl, .gz, - for "
      "standard input; any length in constant memory. The first token of each document is not predicted. With --tokens "
      "and --logits: the logits of given token ids",
      "eval");
  std::string model, tokens, logits;
  std::vector<std::string> files;
  EvalOptions options;
  TextOptions text_options;
  bool json = false;
  const auto positive = CLI::Range(int64_t{1}, int64_t{1} << 24);
  const auto count = CLI::Range(int64_t{0}, int64_t{1} << 60);
  app.add_option("files", files, "text to predict");
  app.add_option("-m,--model", model, "model directory or run")->required();
  app.add_option("--chunk", options.chunk, "tokens of one forward call; the result does not depend on it")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--buckets", options.first_bucket, "positions of the first bucket; the next are as wide, then double")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--limit", options.limit, "read at most this many tokens; 0 for all")
      ->check(count)
      ->capture_default_str();
  app.add_option("--max-context", options.max_context, "restart the state after this many tokens; 0 for never")
      ->check(count)
      ->capture_default_str();
  app.add_option("--text-field", text_options.text_field, "the field of a JSON line that holds its text");
  auto* in = app.add_option("--tokens", tokens, "safetensors file with input_ids int64 [B, T]");
  auto* out = app.add_option("--logits", logits, "safetensors file to write: logits float32 [B, T, N]");
  in->needs(out);
  out->needs(in);
  app.add_flag("--json", json, "for scripts");
  add_compute(app);
  if (!parse(app, args)) return 0;
  if (!tokens.empty()) {
    if (!files.empty()) fail("eval: give either files or --tokens, not both");
    refuse_beside_tokens(app);
    check_output("eval", "--logits", logits, {tokens}, model);
    write_logits(*load_model(model).model, tokens, logits, options.chunk);
    return 0;
  }
  if (files.empty()) fail("eval: no text, expected files, folders or - for standard input (or --tokens and --logits)");
  const auto sources = find_sources(files);
  TextReader reader(sources, text_options);
  const LoadedModel loaded = load_model(model);
  const Tokenizer& tokenizer = tokenizer_of(loaded, "eval", "give token ids with --tokens and --logits");
  ReadingBar bar(sources, options.limit);
  options.progress = [&](int64_t tokens_read, int64_t bytes) { bar.draw(tokens_read, bytes); };
  const auto begin = std::chrono::steady_clock::now();
  const Evaluation result = evaluate(loaded.model, tokenizer, reader, options);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  bar.clear();
  if (json) {
    std::cout << to_json(result, seconds).dump() << "\n";
  } else {
    print(result, seconds, options.max_context > 0);
  }
  return 0;
}

}  // namespace

extern const CommandSpec eval_spec;
const CommandSpec eval_spec = {.name = "eval",
                               .help = "perplexity, bits per byte and loss by position, in constant memory",
                               .run = run,
                               .less_memory = "a smaller --chunk or model"};

}  // namespace lineal
