// How well a model predicts a text: nats per token, perplexity, bits per byte, loss by position in the document.
//
//   nats = -mean_t log p(x_t | x_{<t} of its document), over all tokens but the first of each document
//
//   masked   the mean over tokens that are hidden from the inputs, of -log p(x_t | inputs)      (data/masking.h)
//
//   error = sd(m_b) / sqrt(n), m_b the mean over block b of 1024 predictions in a row; an unfinished block is left out
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "backbones/language_model.h"
#include "data/masking.h"
#include "data/sources.h"
#include "data/split.h"
#include "data/tokenizer.h"

namespace lineal {

struct EvalOptions {
  int64_t chunk = 2048;        // tokens of one forward call; changes the result by rounding alone
  int64_t first_bucket = 256;  // positions [0, first), [first, 2 first), [2 first, 4 first), ...
  int64_t max_context = 0;     // the state restarts after this many tokens of a document; 0: never
  int64_t limit = 0;           // read at most this many tokens; 0: all
  const Masking* masking =
      nullptr;        // hides tokens and measures those; null: every token is predicted from those before
  uint64_t seed = 0;  // of the hidden tokens
  /// Called after each chunk: tokens read, and how far the files are read, in bytes.
  std::function<void(int64_t tokens, int64_t bytes)> progress;
};

/// The sum over some predictions.
struct LossSum {
  double nats = 0;
  int64_t tokens = 0;
  double mean() const { return tokens > 0 ? nats / static_cast<double>(tokens) : 0; }
};

struct Bucket {
  int64_t begin, end;  // positions of the predicted token since the state began: how many tokens it is predicted from
  LossSum loss;
};

struct Evaluation {
  LossSum loss;                          // over the predicted tokens
  std::optional<double> standard_error;  // of loss.mean(); none with fewer than two whole blocks
  std::vector<Bucket> buckets;           // without empty ones
  int64_t tokens = 0;                    // read, first tokens included
  int64_t documents = 0;
  int64_t predicted_bytes = 0;   // of the predicted tokens' text; masked: of all
  int64_t words = 0;             // of the text read, by the white space between them
  int64_t pieces = 0;            // of the tokens read, those that stand for text
  int64_t correct = 0;           // predicted tokens that the model finds the most likely
  std::vector<int64_t> targets;  // predicted tokens, counted by id

  double accuracy() const;
  /// loss.mean() in bits: of images, whose dimensions are tokens.
  double bits_per_dimension() const;
  double pieces_per_word() const;
  /// exp(pieces_per_word() loss.mean()).                                                  (Performer, 2021)
  double word_perplexity() const;

  double perplexity() const;
  double bits_per_byte() const;
  /// Errors of those two to first order, the bytes per token taken as known.
  std::optional<double> perplexity_error() const;
  std::optional<double> bits_per_byte_error() const;
};

/// Predicts a stream of documents of any length in constant memory: the state is carried from chunk to chunk and
/// restarts where a document begins. With masking a restart begins a chunk too; mixers that look ahead see the rest of
/// theirs.
class Evaluator {
 public:
  static constexpr int64_t kBlock = 1024;

  /// Throws Error for chunk or first_bucket < 1, or a negative max_context.
  Evaluator(std::shared_ptr<LanguageModel> model, const EvalOptions& options);

  /// The next tokens; `starts_document` says whether the first of them begins one. `bytes`: of the text of those that
  /// are predicted, all but a document's first.
  void read(const std::vector<int64_t>& tokens, bool starts_document, int64_t bytes);
  int64_t tokens() const { return result_.tokens; }
  /// What remains is predicted. Throws Error when nothing was: no document of two tokens.
  Evaluation finish();

 private:
  int64_t ahead() const { return options_.masking ? 0 : 1; }
  void predict(int64_t T);
  bool restarts(int64_t position) const;
  int64_t since_restart(int64_t position) const;
  void count(double nats, int64_t position);

  std::shared_ptr<LanguageModel> model_;
  EvalOptions options_;
  State state_;
  std::vector<int64_t> tokens_, positions_;  // waiting; positions in their documents
  int64_t position_ = 0;
  Evaluation result_;
  LossSum block_;
  int64_t blocks_ = 0, windows_ = 0;
  double mean_ = 0, squares_ = 0;  // of the blocks' means: Welford's running mean and sum of squared deviations
};

/// Everything `reader` has, or its first options.limit tokens.
Evaluation evaluate(std::shared_ptr<LanguageModel> model, const Tokenizer& tokenizer, TextReader& reader,
                    const EvalOptions& options);

/// The documents of a part, or its first options.limit tokens.
Evaluation evaluate(std::shared_ptr<LanguageModel> model, const Tokenizer& tokenizer, const Part& part,
                    const EvalOptions& options);

}  // namespace lineal
