#include "commands/eval_task.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <map>

#include "commands/output.h"
#include "commands/position_flags.h"
#include "commands/progress.h"
#include "core/error.h"
#include "core/file.h"
#include "core/registry.h"
#include "interop/load.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

constexpr double kDepths[] = {0, 0.25, 0.5, 0.75, 1};
constexpr const char* kFlags[] = {"--shots", "--length", "--samples", "--max-answer", "--write"};

bool is_made(const std::string& task) { return task == "needle" || task == "recall"; }

/// Tokens of the files' text, as many as the longest question holds.
std::vector<int64_t> hay_of(const std::vector<std::string>& files, const Tokenizer& tokenizer, int64_t most) {
  std::vector<int64_t> hay;
  TextReader reader(find_sources(files, tokenizer.format()));
  for (TextPiece piece; std::ssize(hay) < most && reader.next(piece);) {
    const auto ids = tokenizer.encode(piece.bytes);
    hay.insert(hay.end(), ids.begin(), ids.end());
  }
  return hay;
}

std::vector<Question> made(const std::string& task, const TaskFlags& flags, const std::vector<std::string>& files,
                           const Tokenizer& tokenizer) {
  const bool needle = task == "needle";
  if (needle == files.empty()) {
    fail("eval: --task ", task, needle ? " needs text to hide keys in: files or folders" : " reads no files");
  }
  std::vector<int64_t> hay;
  if (needle) hay = hay_of(files, tokenizer, *std::max_element(flags.lengths.begin(), flags.lengths.end()));
  std::vector<Question> questions;
  for (const int64_t length : flags.lengths) {
    for (const double depth : kDepths) {
      for (int64_t i = 0; i < flags.samples; ++i) {
        const uint64_t seed = (flags.seed << 20) + static_cast<uint64_t>(i);
        questions.push_back(needle ? needle_question(tokenizer, hay, length, depth, seed)
                                   : recall_question(tokenizer, length, depth, seed));
        questions.back().group = task + " " + std::to_string(length) + formatted(" at %.2f", depth);
      }
    }
  }
  return questions;
}

std::vector<Question> questions_of(const TaskFlags& flags, const std::vector<std::string>& files,
                                   const Tokenizer& tokenizer) {
  std::vector<Question> all;
  std::map<fs::path, int> files_of_name;
  for (const fs::path task : flags.tasks) ++files_of_name[task.filename()];
  for (const std::string& task : flags.tasks) {
    auto some = is_made(task) ? made(task, flags, files, tokenizer) : read_questions(task);
    if (!is_made(task) && files_of_name[fs::path(task).filename()] > 1) {
      for (Question& question : some) question.group = task;
    }
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

std::string percent(const Share& share) {
  if (share.of == 0) return "-";
  const auto error = share.error();
  return formatted("%.2f", 100 * share.value()) + (error ? formatted(" +- %.2f", 100 * *error) : "");
}

Json share_json(const Share& share) {
  const auto error = share.error();
  return {{"value", share.value()}, {"error", error ? Json(*error) : Json()}, {"questions", share.of}};
}

Json to_json(const TaskScores& scores) {
  Json json = {{"group", scores.group}};
  if (scores.accuracy.of > 0) {
    json["accuracy"] = share_json(scores.accuracy);
    json["accuracy_per_character"] = share_json(scores.accuracy_per_character);
    json["accuracy_per_byte"] = share_json(scores.accuracy_per_byte);
  }
  if (scores.exact_match.of > 0) {
    json["exact_match"] = share_json(scores.exact_match);
    json["greedy"] = share_json(scores.greedy);
  }
  json["perplexity"] = scores.perplexity();
  return json;
}

void print(const std::vector<TaskScores>& list) {
  size_t width = 8;
  for (const auto& scores : list) width = std::max(width, scores.group.size());
  const auto cell = [](std::string value, size_t size) {
    value.resize(std::max(value.size(), size), ' ');
    return value + "  ";
  };
  const auto any = [&](auto share) {
    return std::any_of(list.begin(), list.end(), [&](const TaskScores& scores) { return (scores.*share).of > 0; });
  };
  const std::pair<const char*, Share TaskScores::*> columns[] = {
      {"accuracy %", &TaskScores::accuracy},
      {"per character %", &TaskScores::accuracy_per_character},
      {"per byte %", &TaskScores::accuracy_per_byte},
      {"exact match %", &TaskScores::exact_match},
      {"greedy %", &TaskScores::greedy}};
  std::cout << cell("task", width) << "questions  ";
  for (const auto& [name, share] : columns) {
    if (any(share)) std::cout << cell(name, 15);
  }
  std::cout << "perplexity\n";
  for (const auto& scores : list) {
    std::cout << cell(scores.group, width) << cell(std::to_string(scores.accuracy.of + scores.exact_match.of), 9);
    for (const auto& [name, share] : columns) {
      if (any(share)) std::cout << cell(percent(scores.*share), 15);
    }
    std::cout << formatted("%.4g", scores.perplexity()) << "\n";
  }
}

}  // namespace

void add_task(CLI::App& app, TaskFlags& flags) {
  const auto positive = CLI::Range(int64_t{1}, int64_t{1} << 24);
  app.add_option("--task", flags.tasks,
                 "questions in JSON lines: a context, and choices of which one is right, or the target to be written; "
                 "or needle (a key hidden in the files' text) or recall (a pair among pairs), made to --length")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--shots", flags.options.shots, "task: its first questions, read with their answers before the others")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--length", flags.lengths, "task: tokens of a question, several with commas")
      ->delimiter(',')
      ->check(positive);
  app.add_option("--samples", flags.samples, "task: questions for each length and depth")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--max-answer", flags.options.max_tokens, "task: tokens of a written answer")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--write", flags.write, "task: JSON lines to write the questions to, whole ones as text to train on");
}

void refuse_without_task(const CLI::App& app) {
  for (const char* flag : kFlags) {
    if (app.get_option(flag)->count() > 0) fail("eval: ", flag, " goes with --task");
  }
}

void ask(const TaskFlags& flags, const std::vector<std::string>& models, const Extrapolation& how,
         const std::vector<std::string>& files, bool json) {
  const bool all_read = std::none_of(flags.tasks.begin(), flags.tasks.end(), is_made);
  if (all_read && !files.empty()) fail("eval: --task with questions of its own reads no other files");
  if (!flags.write.empty()) {
    check_output("eval", "--write", flags.write, files, models.empty() ? "" : models.front());
    std::shared_ptr<Tokenizer> tokenizer = find<TokenizerSpec>("bytes", "eval").make();
    if (!models.empty()) {
      const LoadedModel loaded = load_model(models.front());
      tokenizer_of(loaded, "eval");
      tokenizer = loaded.tokenizer;
    }
    const auto questions = questions_of(flags, files, *tokenizer);
    std::string lines;
    for (const Question& question : questions) lines += line_of(to_record(question)) + "\n";
    write_atomic(flags.write, lines);
    if (!json) std::cout << "wrote " << questions.size() << " questions to " << flags.write << "\n";
    return;
  }
  Json results = Json::array();
  for (const std::string& path : models) {
    const LoadedModel loaded = load_model(path, how);
    const Tokenizer& tokenizer = tokenizer_of(loaded, "eval");
    if (loaded.model->config().objective != "causal_lm") {
      fail("eval: ", path, " was trained for ", loaded.model->config().objective, ", --task needs causal_lm");
    }
    ProgressBar bar(!json);
    TaskOptions options = flags.options;
    options.progress = [&](size_t done, size_t of) {
      bar.draw(static_cast<double>(done), static_cast<double>(of), "questions");
    };
    const auto scores = examine(loaded.model, tokenizer, questions_of(flags, files, tokenizer), options);
    bar.clear();
    if (json) {
      Json list = Json::array();
      for (const auto& one : scores) list.push_back(to_json(one));
      results.push_back({{"model", path}, {"tasks", list}});
      continue;
    }
    if (models.size() > 1) std::cout << (path == models.front() ? "" : "\n") << path << "\n";
    print(scores);
  }
  if (json) std::cout << results.dump() << "\n";
}

}  // namespace lineal
