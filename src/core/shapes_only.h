// Modules as shapes: to count parameters, or to see whether a model can be made, before memory is spent on it.
#pragma once

#include <c10/core/impl/LocalDispatchKeySet.h>

namespace lineal {

/// Tensors made in its scope lie on the meta device, whatever their options say: they have shapes and no values, and
/// the random generator stays as it is. (Factories choose their device in BackendSelect, which is passed over.)
class ShapesOnly {
 private:
  // PyTorch 2.11's guards for one key forget to take the device back.
  c10::impl::LocalDispatchKeySet before_ = c10::impl::tls_local_dispatch_key_set();
  c10::impl::ForceDispatchKeyGuard guard_{before_.included_ | c10::DispatchKeySet(c10::DispatchKey::Meta),
                                          before_.excluded_ | c10::DispatchKeySet(c10::DispatchKey::BackendSelect)};
};

}  // namespace lineal
