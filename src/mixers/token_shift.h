// What a layer of the RWKV family sees of the token before.
#pragma once

#include <ATen/core/Tensor.h>

#include "core/rows.h"
#include "core/segments.h"

namespace lineal {

using at::Tensor;

/// x_{t-1} of every token of x [B, T, D], zeros before a document's first. `last` [B, D], the token before the call,
/// becomes the call's last. With rows `last` is a pool's, whose rows change in place, and T is 1.
Tensor token_shift(const Tensor& x, Tensor& last, const Segments& segments, const Rows* rows = nullptr);

}  // namespace lineal
