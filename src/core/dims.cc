#include "core/dims.h"

#include "core/error.h"

namespace lineal {

void Dims::check(const Tensor& tensor, std::string_view letters, std::string_view name) {
  bool fits = tensor.defined() && tensor.dim() == static_cast<int64_t>(letters.size());
  for (size_t i = 0; fits && i < letters.size(); ++i) {
    const auto known = known_.find(letters[i]);
    fits = known == known_.end() || known->second == tensor.size(static_cast<int64_t>(i));
  }
  if (!fits) {
    std::string expected;
    for (char letter : letters) {
      const auto known = known_.find(letter);
      if (!expected.empty()) expected += ", ";
      expected += letter;
      if (known != known_.end()) expected += "=" + std::to_string(known->second);
    }
    fail(who_, ": ", name, " is ", tensor.defined() ? text(tensor.sizes()) : "undefined", ", expected [", expected,
         "]");
  }
  for (size_t i = 0; i < letters.size(); ++i) known_.emplace(letters[i], tensor.size(static_cast<int64_t>(i)));
}

}  // namespace lineal
