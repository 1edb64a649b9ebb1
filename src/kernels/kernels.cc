#include "kernels/kernels.h"

#include "kernels/cpu/instructions.h"

namespace lineal::kernels {
namespace {

std::atomic<Choice> current = Choice::automatic;

}  // namespace

void choose(Choice choice) { current = choice; }

void choose(const std::string& name) {
  if (name == "auto") return choose(Choice::automatic);
  if (name == "reference") return choose(Choice::reference);
  if (name == "fused") return choose(Choice::fused);
  fail_unknown("kernels", "choice", name, {"auto", "reference", "fused"});
}

Choice chosen() {
  static const bool limited = (cpu::limit_instructions(), true);
  return limited ? current.load() : Choice::reference;
}

std::string cpu_instructions() {
  chosen();
  return cpu::instructions();
}

const std::vector<const Uses*>& uses() {
  static const std::vector<const Uses*> all = {&ttt_linear};
  return all;
}

}  // namespace lineal::kernels
