#include "core/registry.h"

#include "commands/command.h"
#include "data/tokenizer.h"
#include "interop/family.h"
#include "mixers/mixer.h"
#include "objectives/objective.h"
#include "positions/position.h"

namespace lineal {

#define LINEAL_ENTRY(Spec, name) extern const Spec name##_spec;
#include "registry.inc"
#undef LINEAL_ENTRY

namespace {

template <class Wanted, class Found>
void add(std::vector<const Wanted*>& list, const Found& spec) {
  if constexpr (std::is_same_v<Wanted, Found>) list.push_back(&spec);
}

template <class Wanted>
std::vector<const Wanted*> collect() {
  std::vector<const Wanted*> list;
#define LINEAL_ENTRY(Spec, name) add(list, name##_spec);
#include "registry.inc"
#undef LINEAL_ENTRY
  return list;
}

}  // namespace

#define LINEAL_KIND(Spec)                       \
  template <>                                   \
  const std::vector<const Spec*>& all<Spec>() { \
    static const auto list = collect<Spec>();   \
    return list;                                \
  }
LINEAL_KIND(MixerSpec)
LINEAL_KIND(PositionSpec)
LINEAL_KIND(TokenizerSpec)
LINEAL_KIND(FamilySpec)
LINEAL_KIND(ObjectiveSpec)
LINEAL_KIND(CommandSpec)
#undef LINEAL_KIND

}  // namespace lineal
