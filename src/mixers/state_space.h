// What linear state space layers share: a scalar input u and output y per channel, N real numbers of state (N/2 complex
// ones of conjugate pairs), the same A, B, C at every token.
//   initial  x_0 = 0                                               [N/2] complex, per channel
//   update   x_t = dA x_{t-1} + dB u_t
//   output   y_t = 2 Re(C . x_t)
// Tokens are computed in pieces of up to L, with the kernel K_l = 2 Re(C . dA^l dB) and x the state before the piece:
//   y_t = sum_{j <= t} K_{t-j} u_j + 2 Re(C . dA^{t+1} x),  t = 0 .. L-1
//   x   = dA^L x + sum_j dA^{L-1-j} dB u_j
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <utility>
#include <vector>

#include "core/segments.h"

namespace lineal {

using at::Tensor;

/// D such systems. States are [D, M, N], each complex number as its real and imaginary part, for M states a channel.
class StateSpace {
 public:
  virtual ~StateSpace() = default;
  /// One token: u [B, D], x complex128 [B, D, N/2] -> y float64 [B, D] and the next x. In float64 whatever the state's
  /// type: a rounded dA would turn every state a little further at every token.
  virtual std::pair<Tensor, Tensor> step(const Tensor& u, const Tensor& x) const = 0;

  /// Pieces of up to L tokens in one type.
  class Pieces {
   public:
    virtual ~Pieces() = default;
    /// K_0 .. K_{L-1}, [D, L].
    virtual Tensor kernel() const = 0;
    /// x [D, M, N] -> 2 Re(C . dA^{t+1} x) for t = 0 .. L-1, [D, M, L].
    virtual Tensor respond(const Tensor& x) const = 0;
    /// u [D, M, L] -> sum_j dA^j dB u_j, [D, M, N].
    virtual Tensor absorb(const Tensor& u) const = 0;
    /// dA^n x for x [D, M, N]; n int64 [M], 0 .. L.
    virtual Tensor advance(const Tensor& x, const Tensor& n) const = 0;
    /// dA^L x.
    virtual Tensor advance(const Tensor& x) const = 0;
  };
  /// With gradients off the last ones are kept: a text that is read in calls of one length makes them once. Not for
  /// several threads at once.
  std::shared_ptr<const Pieces> pieces(int64_t L, at::ScalarType type) const;
  /// Tokens of a call up to which steps take less than making pieces.
  virtual int64_t few_tokens() const = 0;

 protected:
  virtual std::shared_ptr<const Pieces> make_pieces(int64_t L, at::ScalarType type) const = 0;

 private:
  struct Kept {
    int64_t L = 0;
    at::ScalarType type = at::kFloat;
    std::shared_ptr<const Pieces> pieces;
  };
  mutable Kept kept_;
};

/// u [B, T, D], x [B, D, N/2, 2] -> y [B, T, D]; x becomes the state after the last token. Short calls step, others
/// convolve pieces of up to chunk_size tokens.
Tensor state_space(const StateSpace& system, const Tensor& u, Tensor& x, int64_t chunk_size, const Segments& segments);

/// The two ways of the above.
Tensor state_space_steps(const StateSpace& system, const Tensor& u, Tensor& x, const Segments& segments);
Tensor state_space_pieces(const StateSpace& system, const Tensor& u, Tensor& x, int64_t chunk_size,
                          const Segments& segments);

/// sum_{j <= t} K_{t-j} u_j of u [D, M, L] and K [D, L], for every t. In blocks, of blocks twice as large, and so on:
/// what the first half of a block adds to its second half is a product of Fourier transforms, within the smallest it is
/// one of matrices. A transform over both halves would mix rounding errors of later tokens into earlier ones.
Tensor causal_convolution(const Tensor& K, const Tensor& u);

/// dA^l for l = 0 .. L-1 of diagonal dA = exp(log_dA), complex128 [D, N/2] -> complex of `type` [D, L, N/2]: rounded
/// twice whatever l is.
Tensor diagonal_powers(const Tensor& log_dA, int64_t L, at::ScalarType type);

/// x [..., N/2] complex <-> [..., N] real.
Tensor real_view(const Tensor& x);
Tensor complex_view(const Tensor& x);

}  // namespace lineal
