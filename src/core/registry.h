// Lookup in THE table, src/registry.inc, for the layers below it.
#pragma once

#include <string>
#include <vector>

#include "core/error.h"

namespace lineal {

/// Every registered Spec in the table's order. Spec is MixerSpec, PositionSpec, TokenizerSpec, ObjectiveSpec or
/// CommandSpec; defined in registry.cc.
template <class Spec>
const std::vector<const Spec*>& all();

template <class Spec>
std::vector<std::string> names() {
  std::vector<std::string> result;
  for (const Spec* spec : all<Spec>()) result.push_back(spec->name);
  return result;
}

/// The Spec of that name; an unknown one is an Error that lists the known and suggests the nearest. Spec::kKind says
/// what it is ("mixer").
template <class Spec>
const Spec& find(const std::string& name, const std::string& who = "") {
  for (const Spec* spec : all<Spec>()) {
    if (spec->name == name) return *spec;
  }
  fail_unknown(who, Spec::kKind, name, names<Spec>());
}

}  // namespace lineal
