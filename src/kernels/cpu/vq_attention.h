// Raw form of attention over quantised keys: pointers to contiguous tensors, one call for all rows and heads.
#pragma once

#include <cstdint>
#include <vector>

namespace lineal::kernels::cpu {

/// Tokens of one block of one document in one row. Places count the past tokens, then the call's.
struct VqBlock {
  int64_t first, count;  // places [first, first + count)
  int64_t recent;        // from which place on they see tokens one by one, up to their own
  int64_t leave;         // [recent, leave) join the sums after the block
  bool restart;          // it begins its document: nothing is summed before it
};

/// Blocks [first, end) of row b, which one thread walks.
struct VqRun {
  int64_t b, first, end;
  int64_t lowest;   // the first place they see one by one; those before the run's first token overlap with others
  int64_t overlap;  // how many those are
  int64_t before;   // the same of all runs before
  int64_t places;   // all they see one by one, overlap included
};

/// One call; formulas in vq_attention.cc. E places: the past tokens and the call's T.
struct VqCall {
  int64_t B, T, E, H, K, V, M, R;  // R: distances
  bool aggregate;                  // else what is R or more places back is not seen
  std::vector<VqBlock> blocks;     // of all rows, in order
  std::vector<VqRun> runs;         // of all rows, in order
  const float *q, *p;              // [B, T, H, K]
  const float* k;                  // [B, E, H, K]
  const float* v;                  // [B, E, H, V]
  const int64_t* code;             // [B, E, H]
  const float* codebook;           // [H, M, K]
  const float* r;                  // [R, H, K]
  const int64_t* count;            // [B, H, M], before the call; with aggregate, as all that follow
  const float* mean;               // [B, H, M, V]
  int64_t* run_count;              // [runs, H, M], before each run
  float* run_mean;                 // [runs, H, M, V]

  int64_t overlaps() const { return runs.empty() ? 0 : runs.back().before + runs.back().overlap; }
};

struct VqResult {
  float* o;        // [B, T, H, V]
  float* log_sum;  // [B, T, H], logarithm of the sum of all weights' exponentials
  int64_t* count;  // [B, H, M], after the call
  float* mean;     // [B, H, M, V]
};

struct VqGradients {
  const float *o, *d_o;     // [B, T, H, V], the output and its gradient
  const float* log_sum;     // [B, T, H]
  const int64_t* count;     // [B, H, M], after the call
  const float* mean_after;  // [B, H, M, V], the gradient of the means after the call
  float *q, *p;             // [B, T, H, K]
  float* k;                 // [B, E, H, K]
  float* v;                 // [B, E, H, V]
  float* mean;              // [B, H, M, V]
  float* r;                 // [runs, H, R, K], of each run, the largest distance first
  // Work space.
  float *overlap_k, *overlap_v;  // [overlaps, H, K | V]
  float* run_sum;                // [runs, H, M, V]
};

/// code int64 [B T, H] of k [B T, H, K]: the first nearest of codebook [H, M, K].
void nearest_code(int64_t tokens, int64_t H, int64_t K, int64_t M, const float* k, const float* codebook,
                  int64_t* code);
void vq_attention_forward(const VqCall& call, const VqResult& result);
void vq_attention_backward(const VqCall& call, const VqGradients& gradients);

}  // namespace lineal::kernels::cpu
