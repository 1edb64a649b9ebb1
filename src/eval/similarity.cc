#include "eval/similarity.h"

#include <ATen/ATen.h>

#include "core/error.h"
#include "core/registry.h"
#include "eval/attention_matrix.h"
#include "mixers/mixer.h"

namespace lineal {
namespace {

constexpr int64_t kLetters = kSimilarityLetters.size();

// clang-format off
constexpr int kBlosum62[kLetters][kLetters] = {  // columns as kSimilarityLetters
    { 4, -1, -2, -2,  0, -1, -1,  0, -2, -1, -1, -1, -1, -2, -1,  1,  0, -3, -2,  0},  // A
    {-1,  5,  0, -2, -3,  1,  0, -2,  0, -3, -2,  2, -1, -3, -2, -1, -1, -3, -2, -3},  // R
    {-2,  0,  6,  1, -3,  0,  0,  0,  1, -3, -3,  0, -2, -3, -2,  1,  0, -4, -2, -3},  // N
    {-2, -2,  1,  6, -3,  0,  2, -1, -1, -3, -4, -1, -3, -3, -1,  0, -1, -4, -3, -3},  // D
    { 0, -3, -3, -3,  9, -3, -4, -3, -3, -1, -1, -3, -1, -2, -3, -1, -1, -2, -2, -1},  // C
    {-1,  1,  0,  0, -3,  5,  2, -2,  0, -3, -2,  1,  0, -3, -1,  0, -1, -2, -1, -2},  // Q
    {-1,  0,  0,  2, -4,  2,  5, -2,  0, -3, -3,  1, -2, -3, -1,  0, -1, -3, -2, -2},  // E
    { 0, -2,  0, -1, -3, -2, -2,  6, -2, -4, -4, -2, -3, -3, -2,  0, -2, -2, -3, -3},  // G
    {-2,  0,  1, -1, -3,  0,  0, -2,  8, -3, -3, -1, -2, -1, -2, -1, -2, -2,  2, -3},  // H
    {-1, -3, -3, -3, -1, -3, -3, -4, -3,  4,  2, -3,  1,  0, -3, -2, -1, -3, -1,  3},  // I
    {-1, -2, -3, -4, -1, -2, -3, -4, -3,  2,  4, -2,  2,  0, -3, -2, -1, -2, -1,  1},  // L
    {-1,  2,  0, -1, -3,  1,  1, -2, -1, -3, -2,  5, -1, -3, -1,  0, -1, -3, -2, -2},  // K
    {-1, -1, -2, -3, -1,  0, -2, -3, -2,  1,  2, -1,  5,  0, -2, -1, -1, -1, -1,  1},  // M
    {-2, -3, -3, -3, -2, -3, -3, -3, -1,  0,  0, -3,  0,  6, -4, -2, -2,  1,  3, -1},  // F
    {-1, -2, -2, -1, -3, -1, -1, -2, -2, -3, -3, -1, -2, -4,  7, -1, -1, -4, -3, -2},  // P
    { 1, -1,  1,  0, -1,  0,  0,  0, -1, -2, -2,  0, -1, -2, -1,  4,  1, -3, -2, -2},  // S
    { 0, -1,  0, -1, -1, -1, -1, -2, -2, -1, -1, -1, -1, -2, -1,  1,  5, -2, -2,  0},  // T
    {-3, -3, -4, -4, -2, -2, -3, -2, -2, -3, -2, -3, -1,  1, -4, -3, -2, 11,  2, -3},  // W
    {-2, -2, -2, -3, -2, -1, -2, -3,  2, -1, -1, -2, -1,  3, -3, -2, -2,  2,  7, -1},  // Y
    { 0, -3, -3, -3, -1, -2, -2, -3, -3,  3,  1, -2,  1, -1, -2, -2,  0, -3, -1,  4},  // V
};
// clang-format on

}  // namespace

Tensor blosum62() {
  return at::from_blob(const_cast<int*>(&kBlosum62[0][0]), {kLetters, kLetters}, at::kInt).to(at::kDouble);
}

double correlation(const Tensor& a, const Tensor& b) {
  const auto below = [](const Tensor& x) {
    const Tensor values = x.masked_select(at::ones_like(x, at::kBool).tril(-1));
    return values - values.mean();
  };
  const Tensor x = below(a), y = below(b);
  return ((x * y).sum() / (x.norm() * y.norm())).item<double>();
}

AttentionSimilarity::AttentionSimilarity(std::shared_ptr<LanguageModel> model, const Tokenizer& tokenizer)
    : model_(std::move(model)),
      letters_(at::zeros({model_->config().vocab_size, kLetters}, at::kDouble)),
      weights_(at::zeros({kLetters, kLetters}, at::kDouble)),
      pairs_(at::zeros_like(weights_)) {
  for (int64_t i = 0; i < kLetters; ++i) {
    const auto ids = tokenizer.encode(kSimilarityLetters.substr(static_cast<size_t>(i), 1));
    if (ids.size() != 1) {
      fail("similarity: ", kSimilarityLetters[static_cast<size_t>(i)], " is ", ids.size(),
           " tokens, expected one; is this a model of proteins?");
    }
    letters_[ids.front()][i].fill_(1);
  }
}

void AttentionSimilarity::add(const std::vector<int64_t>& tokens) {
  const Tensor ids = at::tensor(tokens, at::kLong);
  const int64_t T = ids.size(0);
  const Tensor is = letters_.index_select(0, ids);  // [T, 20]
  attention_matrices(*model_, ids.unsqueeze(0), [&](size_t layer, const Tensor& matrix) {
    const bool causal = find<MixerSpec>(model_->config().layers[layer].mixer).causal;
    Tensor seen = at::ones({T, T}, at::kDouble);
    if (causal) seen = seen.tril();
    const Tensor A = matrix[0].to(at::kDouble);                                 // [H, T, T]
    const Tensor others = seen - at::eye(T, at::kDouble);                       // j != i
    const Tensor relative = A.sum(0) * seen.sum(1, /*keepdim=*/true) * others;  // [T, T], of H heads
    weights_ += is.t().matmul(relative).matmul(is);
    pairs_ += static_cast<double>(A.size(0)) * is.t().matmul(others).matmul(is);
  });
  ++sequences_;
}

Tensor AttentionSimilarity::matrix() const {
  const Tensor mean = weights_ / pairs_;
  return (mean + mean.t()) / 2;
}

}  // namespace lineal
