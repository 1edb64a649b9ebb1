// RWKV-4's recurrence as a function of tensors; formulas in rwkv4.cc.
#pragma once

#include "kernels/wkv.h"

namespace lineal {

/// `kernels::wkv`, or its reference.
kernels::WkvOutput wkv(const kernels::WkvInput& in);

}  // namespace lineal
