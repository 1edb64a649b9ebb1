#include "kernels/kernels.h"

#include <ATen/ATen.h>

#include "kernels/cpu/instructions.h"
#include "kernels/vq_attention.h"
#include "kernels/wkv.h"

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
  static const std::vector<const Uses*> all = {&ttt_linear,        &ttt_mlp,
                                               &linear_attention,  &delta_rule,
                                               &feature_attention, &feature_attention_in_documents,
                                               &selective_scan,    &nearest_code,
                                               &vq_attention,      &wkv,
                                               &short_conv,        &rope,
                                               &rms_norm,          &swiglu,
                                               &token_loss};
  return all;
}

std::string summary() {
  std::string result;
  for (const Uses* operation : uses()) {
    const auto add = [&](const std::string& form) {
      result += text(result.empty() ? "" : ", ", operation->name, " ", form);
    };
    if (operation->fused > 0) add("fused on " + cpu_instructions());
    if (operation->reference > 0) add("reference");
  }
  return result;
}

void take_rows(const Rows& rows, const std::vector<Tensor*>& parts) {
  for (Tensor* part : parts) *part = part->index_select(0, rows.index().to(part->device()));
}

void put_rows(const Rows& rows, const std::vector<Tensor*>& parts, const std::vector<Tensor*>& pool) {
  for (size_t i = 0; i < parts.size(); ++i) {
    pool[i]->index_copy_(0, rows.index().to(pool[i]->device()), *parts[i]);
    *parts[i] = *pool[i];
  }
}

}  // namespace lineal::kernels
