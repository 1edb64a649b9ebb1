// How many questions a model answers rightly.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backbones/language_model.h"
#include "data/tokenizer.h"
#include "eval/perplexity.h"
#include "eval/questions.h"

namespace lineal {

struct TaskOptions {
  int64_t chunk = 2048;     // tokens of one forward call
  int64_t shots = 0;        // the first questions, which are read with their answers before each of the others
  int64_t max_tokens = 64;  // of a written answer
  std::vector<std::string> stops = {"\n"};  // a written answer ends before the first of them
  std::function<void(size_t done, size_t of)> progress;
};

/// How a model answered one question.
struct Answer {
  std::vector<double> nats;                // of each choice after the context: minus its log-likelihood
  std::vector<int64_t> characters, bytes;  // of each choice
  int64_t tokens = 0;                      // of the right choice
  bool greedy = false;                     // each of those is the likeliest after the ones before it
  std::string written;  // of a question with one choice: what the model writes, likeliest token by token

  size_t likeliest() const;                                       // index of the choice of least nats
  size_t likeliest_per(const std::vector<int64_t>& sizes) const;  // of least nats for its size
};

/// A share of questions; its standard error needs two.
struct Share {
  int64_t right = 0, of = 0;
  void add(bool is_right) { right += is_right, ++of; }
  double value() const { return of > 0 ? static_cast<double>(right) / static_cast<double>(of) : 0; }
  std::optional<double> error() const;
};

struct TaskScores {
  std::string group;
  Share accuracy, accuracy_per_character, accuracy_per_byte;  // of questions with choices; acc, acc_norm and acc_bytes
                                                              // of lm-evaluation-harness
  Share exact_match, greedy;  // of questions with a target: what is written is it but for blanks at its ends; as Answer
  LossSum loss;               // of the right choices

  void add(const Question& question, const Answer& answer);
  double perplexity() const;  // per token of the right choices
};

/// Reads contexts with the state carried on, and every choice from a copy of the state: a text that two readings begin
/// with is read once.
class Examiner {
 public:
  /// Throws Error for options out of range.
  Examiner(std::shared_ptr<LanguageModel> model, const Tokenizer& tokenizer, const TaskOptions& options);

  /// Text that is read before each question from now on.
  void set_introduction(const std::string& text);
  Answer answer(const Question& question);

 private:
  struct Reading {
    std::vector<int64_t> ids;
    State state;
    Tensor logits;  // float32 [N], of the next token
  };
  struct Tokens {
    std::vector<int64_t> before, choice;
  };

  std::vector<int64_t> encode(const std::string& text, bool after_begin = false) const;
  /// The tokens of both together, cut where those of the context end.
  Tokens cut(const std::string& context, const std::string& choice) const;
  Reading read(const std::vector<int64_t>& ids, const Reading& from) const;
  /// Nats of each token of the choices, read together in groups.
  std::vector<Tensor> nats_of(const std::vector<std::vector<int64_t>>& choices, const Reading& from,
                              std::vector<bool>* greedy) const;
  std::string write(Reading from) const;

  std::shared_ptr<LanguageModel> model_;
  const Tokenizer& tokenizer_;
  TaskOptions options_;
  std::string introduction_;
  Reading nothing_, introduced_;
};

/// Scores of each group in the order of its first question, and of all together when there are several. The first
/// `shots` of a group are its examples. Throws Error for a group without others.
std::vector<TaskScores> examine(std::shared_ptr<LanguageModel> model, const Tokenizer& tokenizer,
                                const std::vector<Question>& questions, const TaskOptions& options);

}  // namespace lineal
