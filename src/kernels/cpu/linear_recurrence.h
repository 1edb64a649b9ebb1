// Raw form of the linear recurrences: pointers to contiguous float32 tensors, one call for all rows and heads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/cpu/state_part.h"

namespace lineal::kernels::cpu {

/// The most tokens handled at once: the cost of a token grows with them, and that of a chunk is spread over them.
constexpr int64_t kChunk = 16;

/// A contiguous tensor of float32 or bfloat16, or null.
struct Source {
  const void* data = nullptr;
  bool bfloat16 = false;
};
struct Target {
  void* data = nullptr;
  bool bfloat16 = false;
};

/// What the state is multiplied by before a token is added.
enum class Decay { none, token, channel };

/// Tokens [first, first + count) of one row, all of one document.
struct RecurrenceChunk {
  int64_t first, count;
  bool restart;  // they begin their document: the state is zero before them
};

/// q and k as random features of theirs; formulas in features-inl.h.
struct FeatureCall {
  enum Map { positive, hyperbolic, trig, relu, sigmoid, exp, abs, cos, tanh, identity };
  Map map = positive;
  int64_t K = 0, M = 0;            // of q and k; rows of the projection
  float epsilon = 0, scale = 1;    // added to a feature; what softmax features are times
  float half = 0.5f;               // |x|^2 / 2 is this times |x|^2 of an x before it is scaled
  const float* columns = nullptr;  // [K, M rounded up]: the projection times the scale of x, transposed
  const float* rows = nullptr;     // [M, K rounded up]: the same, not transposed; for the backward pass
  const bool* fresh = nullptr;     // [B]: the row's first token is its document's
  const float* before = nullptr;   // [B, H]: the largest exponent of the document's keys before the call
  float* after = nullptr;          // [B, H]
  float* peaks = nullptr;          // for the backward pass, or null: [B, T, H], after each token; without `causal` as S

  /// Only these have a largest exponent.
  bool is_softmax() const { return map <= trig; }
};

/// One call; formulas and letters in linear_recurrence-inl.h.
struct RecurrenceCall {
  int64_t B, T, H, K, V;
  std::vector<RecurrenceChunk> chunks;  // of all rows, in order
  std::vector<int64_t> row_end;         // [B]: where the chunks of each row end
  int64_t keep = 8;                     // chunks to one state saved for the backward pass
  Decay decay = Decay::none;
  bool causal = true;                   // else, of features alone, S is the sum over a token's whole document
  std::vector<int64_t> first_document;  // [B + 1], counted through all rows; when not causal
  std::optional<FeatureCall> features;  // K counts features then, of q and k [B, T, H, features->K]
  Source q, k;                          // [B, T, H, K]
  Source v;                             // [B, T, H, V]
  const float* beta = nullptr;          // [B, T, H], or null: adds v instead of correcting towards it
  const float* g = nullptr;             // [B, T, H], with a decay per channel [B, T, H, K], or null
  const float* S = nullptr;             // [B, H, K, V], before the call
  // What the backward pass needs, or null.
  float* errors = nullptr;  // [B, T, H, V]: Y, with beta
  float* states = nullptr;  // [states_saved(), K, V]: S at every keep-th chunk of each row and head, or of each
                            // document and head

  /// Where row b's n-th is among those of all rows.
  int64_t document(int64_t b, int64_t n) const { return first_document[static_cast<size_t>(b)] + n; }
  /// Numbers in a row of q or k.
  int64_t row_size() const { return features ? features->K : K; }
  int64_t row_begin(int64_t b) const { return b == 0 ? 0 : row_end[static_cast<size_t>(b) - 1]; }
  int64_t row_chunks(int64_t b) const { return row_end[static_cast<size_t>(b)] - row_begin(b); }
  /// Of `keep` chunks, the last of fewer: each begins at a saved state.
  int64_t row_groups(int64_t b) const { return (row_chunks(b) + keep - 1) / keep; }
  /// Rounded up in every row: the states of row b and head h begin at saved_before(b, h).
  int64_t states_saved() const { return causal ? saved_before(B, 0) : first_document.back() * H; }
  int64_t saved_before(int64_t b, int64_t h) const {
    const int64_t rows = row_begin(b) / keep + b;  // at most this many a head in the rows before
    const int64_t own = b < B ? row_chunks(b) / keep + 1 : 0;
    return rows * H + h * own;
  }
};

struct RecurrenceResult {
  Target o;            // [B, T, H, V]
  float* S = nullptr;  // [B, H, K, V], after the call
};

/// Gradients of the results, and of the inputs; beta and g are null where the call has none.
struct RecurrenceGradients {
  Source o;
  const float* S_after;
  Target q, k, v;
  float *beta, *g, *S;
  const float* peak_after = nullptr;  // [B, H], of the features'
  float* peak = nullptr;
};

void linear_recurrence_forward(const RecurrenceCall& call, const RecurrenceResult& result);
void linear_recurrence_backward(const RecurrenceCall& call, const RecurrenceGradients& gradients);

/// Without `causal`, gradients as those.
void feature_documents_forward(const RecurrenceCall& call, const RecurrenceResult& result);
void feature_documents_backward(const RecurrenceCall& call, const RecurrenceGradients& gradients);

/// Forward of one token a row without what the backward pass needs: no chunks, S [P, H, K, V] passes once through the
/// registers. starts [B], or null: where the state is zero before the token. o [B, 1, H, V].
void linear_recurrence_step(const RecurrenceCall& call, const bool* starts, const StatePart& S, const Target& o);

/// The features of one token a row, [B, 1, H, K], and with features of the softmax kernel g [B, 1, H].
void features_step(const RecurrenceCall& call, const bool* starts, float* q, float* k, float* g);

}  // namespace lineal::kernels::cpu
