// Modules as shapes: to count parameters, or to see whether a model can be made, before memory is spent on it.
#pragma once

#include <c10/core/impl/LocalDispatchKeySet.h>

namespace lineal {

/// Tensors made in its scope lie on the meta device, whatever their options say: they have shapes and no values, and
/// the random generator stays as it is. (Factories choose their device in BackendSelect, which is passed over.)
class ShapesOnly {
 private:
  c10::impl::ExcludeDispatchKeyGuard no_choice_{c10::DispatchKey::BackendSelect};
  c10::impl::IncludeDispatchKeyGuard meta_{c10::DispatchKey::Meta};
};

}  // namespace lineal
