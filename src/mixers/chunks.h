// The tokens of a call in n chunks of C, whose work a linear recurrence does at once; only states pass between chunks.
//   inside   token i sees j <= i of its own document
//   before   it sees the state at the chunk's start when its document began earlier
//   after    it changes the state at the chunk's end when no document starts later in the chunk
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "core/segments.h"

namespace lineal {

class Chunks {
 public:
  /// like: its device and floating type, sizes [B, T, ...]; C is chunk_size, or T when that is less.
  Chunks(const Tensor& like, int64_t chunk_size, const Segments& segments);

  int64_t count() const { return n_; }
  /// x [B, T, H, K] -> [B, H, n, C, K], zeros for padding at the end.
  Tensor split(const Tensor& x) const;
  /// y [B, H, n, C, V] -> [B, T, H, V], without the padding.
  Tensor join(const Tensor& y) const;

  /// scores [B, H, n, C, C], row i column j: zeros where i does not see j; j == i counts unless strict.
  Tensor inside(const Tensor& scores, bool strict = false) const;
  /// x [B, H, n, C, K]: zeros for tokens that do not see the state at their chunk's start.
  Tensor before(const Tensor& x) const;
  /// x [B, H, n, C, K]: zeros for tokens that do not change the state at their chunk's end.
  Tensor after(const Tensor& x) const;
  /// S [B, H, ...] as chunk i passes it on: zeros in rows where a document starts in the chunk.
  Tensor pass(const Tensor& S, int64_t i) const;

 private:
  int64_t T_, C_, n_;
  // 1 and 0; the last three undefined when no document starts.
  Tensor inside_, strict_;          // [B or 1, 1, n or 1, C, C]
  Tensor before_, after_, passes_;  // [B, 1, n, C, 1], [B, 1, n, C, 1], [B, n]
};

/// Products of decays exp(g_j) within chunks, by sums of the g between two tokens: strong decays cost no accuracy.
struct Decays {
  Tensor between;  // exp(g_{j+1} + ... + g_i), [B, H, n, C, C, 1 or K]
  Tensor before;   // exp(g_1 + ... + g_i), [B, H, n, C, 1 or K]

  /// None at all: tensors stay undefined, which `decayed` takes for 1.
  Decays() = default;
  /// g [B, H, n, C, 1 or K], the logarithms.
  explicit Decays(const Tensor& g);
  /// From each token to the chunk's end, [B, H, n, C, 1 or K].
  Tensor after() const;
  /// Through each whole chunk, n times [B, H, 1 or K, 1].
  std::vector<Tensor> through(int64_t count) const;
};

/// x * decay, or x when there is none.
Tensor decayed(const Tensor& x, const Tensor& decay);

/// sum_c x_ic between_ijc k_jc, [B, H, n, C, C], from X and K [B, H, n, C, K]; not yet masked.
Tensor scores(const Tensor& X, const Tensor& K, const Tensor& between);

/// S [B, ...], zeros in the rows where a document starts at token t: what a recurrence of single tokens does.
Tensor restart(const Tensor& S, const Segments& segments, int64_t t);

}  // namespace lineal
