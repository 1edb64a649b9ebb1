// lineal eval: how well a model predicts text, or its logits for given token ids.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>

#include "commands/command.h"
#include "commands/eval_table.h"
#include "commands/eval_task.h"
#include "commands/output.h"
#include "commands/position_flags.h"
#include "commands/progress.h"
#include "commands/run_text.h"
#include "core/error.h"
#include "core/file.h"
#include "core/registry.h"
#include "eval/frequency.h"
#include "eval/logits.h"
#include "eval/perplexity.h"
#include "eval/similarity.h"
#include "interop/load.h"
#include "objectives/objective.h"

namespace lineal {
namespace {

Json optional(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

Json to_json(const Evaluation& result, double seconds, bool masked, Metric metric,
             const std::optional<FrequencyBaseline>& baseline) {
  Json buckets = Json::array();
  for (const Bucket& bucket : result.buckets) {
    buckets.push_back({{"begin", bucket.begin},
                       {"end", bucket.end},
                       {"tokens", bucket.loss.tokens},
                       {"nats_per_token", bucket.loss.mean()}});
  }
  Json json = {{"nats_per_token", result.loss.mean()},
               {"nats_per_token_error", optional(result.standard_error)},
               {"perplexity", result.perplexity()},
               {"perplexity_error", optional(result.perplexity_error())},
               {"accuracy", result.accuracy()},
               {"bits_per_byte", result.bits_per_byte()},
               {"bits_per_byte_error", optional(result.bits_per_byte_error())},
               {"tokens", result.tokens},
               {"predicted_tokens", result.loss.tokens},
               {"predicted_bytes", result.predicted_bytes},
               {"documents", result.documents},
               {"tokens_per_second", static_cast<double>(result.tokens) / seconds},
               {"positions", buckets}};
  if (masked) json.erase("bits_per_byte"), json.erase("bits_per_byte_error"), json.erase("predicted_bytes");
  if (metric == Metric::bits_per_dimension) json["bits_per_dimension"] = result.bits_per_dimension();
  if (metric == Metric::word_perplexity) {
    json["pieces_per_word"] = result.pieces_per_word();
    json["word_perplexity"] = result.word_perplexity();
  }
  if (baseline) {
    json["frequency_baseline"] = {
        {"nats_per_token", baseline->nats}, {"perplexity", std::exp(baseline->nats)}, {"accuracy", baseline->accuracy}};
  }
  return json;
}

std::string with_error(double value, const std::optional<double>& error) {
  return formatted("%.4f", value) + (error ? formatted(" +- %.2g", *error) : "");
}

/// `masked`: the predicted tokens are those that were hidden.
void print(const Evaluation& result, double seconds, bool restarts, bool masked, Metric metric,
           const std::optional<FrequencyBaseline>& baseline) {
  std::cout << (masked ? "nats per masked token  " : "nats per token  ")
            << with_error(result.loss.mean(), result.standard_error) << "\n"
            << "perplexity      " << with_error(result.perplexity(), result.perplexity_error()) << "\n"
            << "accuracy        " << formatted("%.2f", 100 * result.accuracy()) << " %\n";
  if (baseline) {
    std::cout << "by frequency    perplexity " << formatted("%.4f", std::exp(baseline->nats)) << ", accuracy "
              << formatted("%.2f", 100 * baseline->accuracy) << " %\n";
  }
  if (metric == Metric::bits_per_dimension) {
    std::cout << "bits/dimension  " << formatted("%.4f", result.bits_per_dimension()) << "\n";
  } else if (metric == Metric::word_perplexity) {
    std::cout << "word perplexity " << formatted("%.4f", result.word_perplexity()) << ", "
              << formatted("%.4f", result.pieces_per_word()) << " pieces per word\n";
  }
  if (!masked) {
    std::cout << "bits per byte   " << with_error(result.bits_per_byte(), result.bits_per_byte_error()) << "\n";
  }
  std::cout << "tokens          " << result.tokens << ", " << result.loss.tokens
            << (masked ? " of them masked\n" : " of them predicted\n") << "documents       " << result.documents << "\n"
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

/// Those of the flags that were given, "" without any.
std::string given(const CLI::App& app, const std::vector<std::string>& flags) {
  std::string found;
  for (const auto& flag : flags) {
    if (app.get_option(flag)->count() > 0) found += (found.empty() ? "" : ", ") + flag;
  }
  return found;
}

/// Flags that say how to measure text say nothing about logits.
void refuse_beside_tokens(const CLI::App& app) {
  const auto found = given(app, {"--json", "--limit", "--max-context", "--buckets", "--text-field", "--part",
                                 "--baseline", "--similarity", "--seed", "--csv"});
  if (!found.empty()) fail("eval: --tokens does not go with ", found, "; expected --logits, --chunk and -t beside it");
}

/// Nor about attention.
void refuse_beside_similarity(const CLI::App& app) {
  const auto found = given(app, {"--max-context", "--buckets", "--part", "--baseline", "--seed"});
  if (!found.empty()) {
    fail("eval: --similarity does not go with ", found, "; expected --chunk, --limit, --text-field, --json and -t");
  }
}

/// Nor about questions.
void refuse_beside_task(const CLI::App& app) {
  const auto found = given(app, {"--tokens", "--limit", "--max-context", "--buckets", "--text-field", "--part",
                                 "--baseline", "--similarity", "--csv"});
  if (!found.empty()) fail("eval: --task does not go with ", found);
}

Json rows_of(const Tensor& matrix) {
  Json rows = Json::array();
  for (int64_t i = 0; i < matrix.size(0); ++i) {
    const Tensor row = matrix[i].contiguous();
    const double* values = row.const_data_ptr<double>();
    rows.push_back(std::vector<double>(values, values + row.numel()));
  }
  return rows;
}

/// Attention between amino acids in these sequences, each cut to `chunk` tokens, against BLOSUM62: into the file `out`.
void compare_letters(const LoadedModel& loaded, const std::vector<std::string>& files, const EvalOptions& options,
                     const TextOptions& text_options, const std::string& out, bool json) {
  const Tokenizer& tokenizer = tokenizer_of(loaded, "eval");
  AttentionSimilarity similarity(loaded.model, tokenizer);
  const auto sources = find_sources(files, tokenizer.format());
  TextReader reader(sources, text_options);
  ReadingBar bar(sources, options.limit);
  const SpecialTokens special = tokenizer.special();
  int64_t read = 0;
  for (TextPiece piece; (options.limit == 0 || read < options.limit) && reader.next(piece);) {
    if (!piece.starts_document) continue;  // of a longer one, the first piece alone
    std::vector<int64_t> tokens = tokenizer.encode(piece.bytes);
    if (special.begin) tokens.insert(tokens.begin(), *special.begin);
    if (special.end) tokens.push_back(*special.end);
    tokens.resize(std::min(tokens.size(), static_cast<size_t>(options.chunk)));
    similarity.add(tokens);
    read += static_cast<int64_t>(tokens.size());
    bar.draw(read, reader.bytes_read());
  }
  bar.clear();
  const Tensor attention = similarity.matrix(), blosum = blosum62();
  const double pearson = correlation(attention, blosum);
  if (!std::isfinite(pearson)) {
    fail("eval: ", similarity.sequences(), " sequences lack pairs of amino acids, expected more of them");
  }
  const Json summary = {{"correlation", pearson}, {"sequences", similarity.sequences()}, {"tokens", read}};
  Json written = {{"letters", kSimilarityLetters}, {"attention", rows_of(attention)}, {"blosum62", rows_of(blosum)}};
  written.update(summary);
  write_atomic(out, written.dump() + "\n");
  if (json) {
    std::cout << summary.dump() << "\n";
    return;
  }
  std::cout << "attention between amino acids against BLOSUM62: correlation " << formatted("%.4f", pearson) << " over "
            << similarity.sequences() << " sequences\n";
}

int run_eval(const std::vector<std::string>& args) {
  CLI::App app(
      "how well a model predicts text: nats per token, perplexity and bits per byte, each with its standard error over "
      "blocks of 1024 predictions, and the loss by position in the document. Files, folders, .jsonl, .gz, - for "
      "standard input; any length in constant memory. The first token of each document is not predicted. Of a model "
      "trained with masked_lm: perplexity and accuracy on 15 % of the tokens, hidden as in training. With "
      "--part: what a run kept for validation or test. With --tokens and --logits: the logits of given token ids. "
      "Several models, or several of --position (or all): a table of the loss by position, to --factor times the "
      "original length. With --task: how many questions it answers rightly",
      "eval");
  std::string tokens, logits, part, baseline, similarity, csv;
  std::vector<std::string> files, models;
  Extrapolation how;
  EvalOptions options;
  TextOptions text_options;
  TaskFlags task;
  bool json = false;
  const auto positive = CLI::Range(int64_t{1}, int64_t{1} << 24);
  const auto count = CLI::Range(int64_t{0}, int64_t{1} << 60);
  app.add_option("files", files, "text to predict");
  app.add_option("-m,--model", models, "model directory or run; several for a table")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--chunk", options.chunk,
                 "tokens of one forward call; the result depends on it only where mixers look ahead "
                 "or tokens are masked")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--buckets", options.first_bucket, "positions of the first bucket; the next are as wide, then double")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--limit", options.limit, "read at most this many tokens; 0 for all")
      ->check(count)
      ->capture_default_str();
  app.add_option("--max-context", options.max_context,
                 "restart the state after this many tokens, the most that some mixers read (linformer); 0 for never")
      ->check(count)
      ->capture_default_str();
  app.add_option("--text-field", text_options.text_field, "the field of a JSON line that holds its text");
  app.add_option("--part", part, "measure on this part of the run's own text")
      ->check(CLI::IsMember({"train", "validation", "test"}));
  app.add_option("--baseline", baseline, "also what the frequencies of the run's training text predict")
      ->check(CLI::IsMember({"frequency"}));
  app.add_option("--similarity", similarity,
                 "JSON to write: attention between amino acids, which runs/amino_acids.py draws beside BLOSUM62");
  app.add_option("-s,--seed", options.seed, "masked_lm: of the hidden tokens")
      ->check(CLI::Range(uint64_t{0}, uint64_t{1} << 53))
      ->capture_default_str();
  auto* in = app.add_option("--tokens", tokens, "safetensors file with input_ids int64 [B, T]");
  auto* out = app.add_option("--logits", logits, "safetensors file to write: logits float32 [B, T, N]");
  in->needs(out);
  out->needs(in);
  add_position(app, how);
  add_task(app, task);
  app.add_option("--csv", csv, "file to write a table to");
  app.add_flag("--json", json, "for scripts");
  add_compute(app);
  if (!parse(app, args)) return 0;
  if (models.empty() && task.write.empty()) fail("eval: --model is required");
  if (!task.tasks.empty()) {
    refuse_beside_task(app);
    task.seed = options.seed, task.options.chunk = options.chunk;
    ask(task, models, how, files, json);
    return 0;
  }
  refuse_without_task(app);
  const std::string& model = models.front();
  const auto methods = position_list(how.method);
  const bool table = models.size() > 1 || methods.size() > 1 || !csv.empty();
  if (!tokens.empty()) {
    if (!files.empty()) fail("eval: give either files or --tokens, not both");
    refuse_beside_tokens(app);
    check_output("eval", "--logits", logits, {tokens}, model);
    if (table) fail("eval: --tokens has one model and one --position, got several");
    write_logits(*load_model(model, how).model, tokens, logits, options.chunk);
    return 0;
  }
  if (files.empty() && part.empty()) {
    fail("eval: no text, expected files, folders or - for standard input (or --part, or --tokens and --logits)");
  }
  if (table) {
    if (!part.empty() || !baseline.empty() || !similarity.empty()) {
      fail("eval: a table of several models or positions does not go with --part, --baseline or --similarity");
    }
    if (!csv.empty()) check_output("eval", "--csv", csv, files, model);
    if (app.get_option("--buckets")->count() == 0) options.first_bucket = 0;
    print_table({models, methods, how, options, files, text_options, csv, json});
    return 0;
  }
  if (!similarity.empty()) {
    refuse_beside_similarity(app);
    check_output("eval", "--similarity", similarity, files, model);
    compare_letters(load_model(model, how), files, options, text_options, similarity, json);
    return 0;
  }
  std::optional<RunText> of_run;
  if (!part.empty() || !baseline.empty()) of_run = read_run_text(model, "eval");
  const LoadedModel loaded = load_model(model, how);
  const Tokenizer& tokenizer = tokenizer_of(loaded, "eval", "give token ids with --tokens and --logits");
  const std::string& tokenizer_name = loaded.model->config().tokenizer;
  std::optional<Masking> masking;
  if (find<ObjectiveSpec>(loaded.model->config().objective, "eval").masks) {
    masking.emplace("eval", tokenizer_name, tokenizer, MaskingShares{});
    options.masking = &*masking;
  }
  std::optional<Split> parts;
  if (of_run) parts = divide(open_tokens(of_run->data, of_run->text_field, loaded, "eval", !json), of_run->train);

  const auto begin = std::chrono::steady_clock::now();
  Evaluation result;
  if (!part.empty()) {
    if (!files.empty()) fail("eval: give either files or --part, not both; --part is of the run's own text");
    const Part& measured = part == "train" ? parts->train : part == "test" ? parts->test : parts->validation;
    if (measured.documents.empty()) fail("eval: the run keeps no ", part, " part (--", part, " of lineal train)");
    ProgressBar bar(!json);
    options.progress = [&](int64_t tokens_read, int64_t) {
      bar.draw(static_cast<double>(tokens_read), static_cast<double>(measured.tokens()), "tokens");
    };
    result = evaluate(loaded.model, tokenizer, measured, options);
    bar.clear();
  } else {
    const auto sources = find_sources(files, tokenizer.format());
    TextReader reader(sources, text_options);
    ReadingBar bar(sources, options.limit);
    options.progress = [&](int64_t tokens_read, int64_t bytes) { bar.draw(tokens_read, bytes); };
    result = evaluate(loaded.model, tokenizer, reader, options);
    bar.clear();
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();

  std::optional<FrequencyBaseline> by_frequency;
  if (!baseline.empty()) {
    const SpecialTokens special = tokenizer.special();
    std::vector<int64_t> never;
    for (const auto& id : {special.begin, special.mask, special.pad, masking ? special.end : std::nullopt}) {
      if (id) never.push_back(*id);
    }
    const auto counts = count_tokens(parts->train, loaded.model->config().vocab_size);
    by_frequency = frequency_baseline(counts, result.targets, never);
  }
  if (json) {
    std::cout << to_json(result, seconds, masking.has_value(), tokenizer.metric(), by_frequency).dump() << "\n";
  } else {
    print(result, seconds, options.max_context > 0, masking.has_value(), tokenizer.metric(), by_frequency);
  }
  return 0;
}

}  // namespace

extern const CommandSpec eval_spec;
const CommandSpec eval_spec = {.name = "eval",
                               .help = "perplexity, bits per byte and loss by position, in constant memory",
                               .run = run_eval,
                               .less_memory = "a smaller --chunk or model"};

}  // namespace lineal
