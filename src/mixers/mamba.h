// Mamba's selective scan as functions of tensors; formulas in mamba.cc.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <utility>

#include "core/segments.h"
#include "kernels/kernels.h"

namespace lineal {

using at::Tensor;

/// What the scan reads. Channel d uses group floor(d G / D) of B and C.
struct Selective {
  Tensor u;      // [B, T, D]
  Tensor delta;  // [B, T, D]  the step, positive
  Tensor A;      // [D, N]     negative: the state decays
  Tensor B, C;   // [B, T, G, N], G divides D
};

/// h [B, D, N] -> y [B, T, D] and the final h. The definition: one token after another.
std::pair<Tensor, Tensor> selective_scan_reference(const Selective& in, Tensor h, const Segments& segments = {});

/// The same numbers, by `linear_scan` over [B, T, D, N].
std::pair<Tensor, Tensor> selective_scan(const Selective& in, const Tensor& h, int64_t chunk_size,
                                         const Segments& segments = {});

/// What stands around a scan, with the scan of your choice: the step, D u and the gate. Computed in the type of A, and
/// y returned in that of u.
using Scan = std::function<std::pair<Tensor, Tensor>(const Selective&, const Tensor& h, const Segments&)>;
kernels::ScanOutput around_scan(const kernels::ScanInput& in, const Scan& scan);

/// h_t = a_t h_{t-1} + x_t with a, x [B, T, ...] and h_0 [B, ...] -> every h [B, T, ...]. Chunks of chunk_size advance
/// together one token at a time, then one after another; nothing is divided by a product of decays, so a may be 0.
/// Keeps only a and h for the backward pass, which is the same scan reversed; differentiable once.
Tensor linear_scan(const Tensor& a, const Tensor& x, const Tensor& h, int64_t chunk_size);

/// Gives the bias under a softplus values whose steps are log-uniform in [1e-3, 1e-1].   (Mamba, section 3.6)
void reset_step(Tensor& bias);

}  // namespace lineal
