// Raw form of the selective scan: pointers to tensors, one call for all rows and channels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/numbers.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/state_part.h"

namespace lineal::kernels::cpu {

/// Tokens handled at once, and from one state saved for the backward pass to the next: with N = 16 those states take
/// half the memory of u.
constexpr int64_t kScanChunk = 32;
/// Chunks of the backward pass between two sums over blocks: what they sum stays in cache.
constexpr int64_t kScanSegment = 16;

/// One call; formulas and letters in selective_scan.cc. Numbers of u, delta, z, B, C and of y, and of their gradients,
/// are all float or all BFloat16.
struct ScanCall {
  int64_t B, T, D, G, N;
  bool bfloat16, softplus;
  TokenRows u, delta, z;     // [B, T, D]
  TokenRows B_t, C_t;        // [B, T, G, N]
  const float* A;            // [D, N]
  const float *skip, *bias;  // [D], or null; skip is D_d of the formulas
  const float* h;            // [B, D, N], before the call
  const bool* starts;        // [B, T], or null
  float* states = nullptr;   // [states_size()]: h at the start of each chunk, for the backward pass, or null

  // Channels are cut into blocks within their group, each a task: sixteen of them at least, so that a single row keeps
  // that many cores busy. The cut depends on no thread count: gradients of B and C are summed block after block.
  int64_t channels() const { return D / G; }
  int64_t block() const { return std::min(padded(channels()), std::clamp<int64_t>(padded(D / 16), kAlign, 128)); }
  int64_t blocks_per_group() const { return (channels() + block() - 1) / block(); }
  int64_t blocks() const { return G * blocks_per_group(); }
  int64_t chunks() const { return (T + kScanChunk - 1) / kScanChunk; }
  int64_t tokens() const { return std::min(kScanChunk, T); }  // in the longest chunk

  int64_t states_size() const { return B * blocks() * chunks() * block() * N; }
  int64_t segment() const { return std::min(kScanSegment, chunks()); }
  /// Partial sums of the gradients of B and C over a segment, for each block.
  int64_t partials_size() const { return B * blocks() * partial_size() * segment(); }
  int64_t partial_size() const { return 2 * N * kScanChunk; }  // of a chunk
};

struct ScanResult {
  void* y;   // [B, T, D]
  float* h;  // [B, D, N], after the call
};

/// Gradients of the results, and of the inputs; null where the call has none.
struct ScanGradients {
  TokenRows y;
  const float* h_after;
  void *u, *delta, *z;                 // [B, T, D]
  void *B_t, *C_t;                     // [B, T, G, N]
  float *A, *skip, *bias, *h;          // as the inputs
  float *A_row, *skip_row, *bias_row;  // [B, ...], work space
  float* partials;                     // [partials_size()], work space
};

void selective_scan_forward(const ScanCall& call, const ScanResult& result);
/// Forward of one token a row: h [P, D, N] advances by it, y [B, 1, D].
void selective_scan_step(const ScanCall& call, const StatePart& h, void* y);
void selective_scan_backward(const ScanCall& call, const ScanGradients& gradients);

}  // namespace lineal::kernels::cpu
