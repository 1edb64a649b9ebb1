// Raw form of the rotary embedding kernel.
#pragma once

#include <cstdint>

namespace lineal::kernels::cpu {

/// y = x c + sign * partner(x) s for every head of a token, c and s being the token's rows of the tables. The partner
/// of component j is its neighbour in the pair (2i, 2i+1), or the component K/2 from it.
struct RopeCall {
  int64_t tokens, H, K;
  bool bfloat16, interleaved;
  float sign;            // 1, or -1 to turn back
  const void* x;         // [tokens, H, K], float32 or bfloat16
  const float *c, *s;    // [P, K]
  const int64_t* place;  // [tokens], rows of the tables
  void* y;               // of the type of x
};

void rope(const RopeCall& call);

}  // namespace lineal::kernels::cpu
