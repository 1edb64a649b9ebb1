// What a layer mixes when it is probed, see Mixer::probe.
#pragma once

#include "core/error.h"
#include "mixers/mixer.h"

namespace lineal {

/// The probe's values, or v [B, T, H, V] itself when there is no probe or it has none. Throws Error for another shape.
inline Tensor probed(const Mixer::Probe* probe, const Tensor& v) {
  if (probe == nullptr || !probe->values.defined()) return v;
  if (probe->values.sizes() != v.sizes()) {
    fail("probe: values are ", probe->values.sizes(), ", the layer mixes [B, T, H, V] = ", v.sizes());
  }
  return probe->values.to(v.options());
}

}  // namespace lineal
