// How alike a model holds amino acids, from its attention; against BLOSUM62.
//                                                        (Rethinking Attention with Performers, 2021, appendix C.4)
//   S_ab = mean of n_i A_ij over layers, heads, sequences and places i != j with letters a and b, j seen from i;
//          n_i tokens are seen from i, so that 1 is attention that does not tell letters apart; then (S + S^T) / 2
#pragma once

#include <string_view>

#include "backbones/language_model.h"
#include "data/tokenizer.h"

namespace lineal {

/// The letters of both matrices' rows and columns.
constexpr std::string_view kSimilarityLetters = "ARNDCQEGHILKMFPSTWYV";

/// Log odds in half bits of finding one letter for the other in related proteins, float64 [20, 20].
///                                                                             (Henikoff and Henikoff, 1992)
Tensor blosum62();

/// Pearson's correlation of the entries below the diagonals of two [n, n].
double correlation(const Tensor& a, const Tensor& b);

/// Adds up the attention between letters, sequence after sequence.
class AttentionSimilarity {
 public:
  /// Throws Error when the tokenizer does not read each of the letters as one token.
  AttentionSimilarity(std::shared_ptr<LanguageModel> model, const Tokenizer& tokenizer);

  /// The tokens of a sequence. Throws Error for a layer without attention matrices.
  void add(const std::vector<int64_t>& tokens);
  int64_t sequences() const { return sequences_; }
  /// float64 [20, 20]; NaN for letters that no sequence has both.
  Tensor matrix() const;

 private:
  std::shared_ptr<LanguageModel> model_;
  Tensor letters_;          // float64 [N, 20], 1 where a token is a letter
  Tensor weights_, pairs_;  // [20, 20]
  int64_t sequences_ = 0;
};

}  // namespace lineal
