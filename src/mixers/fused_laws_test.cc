// The laws over fused kernels: every mixer of the table that has them, in float32, nothing falling back.
#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <cctype>

#include "core/error.h"
#include "core/registry.h"
#include "kernels/kernels.h"
#include "testing/laws.h"
#include "testing/testing.h"

namespace lineal {
namespace {

struct Case {
  std::string mixer;
  Json options;
};

std::vector<Case> cases() {
  std::vector<Case> list;
  for (const MixerSpec* spec : all<MixerSpec>()) {
    list.push_back({spec->name, Json::object()});
    for (const auto& name : spec->config()->names()) {
      if (name == "chunk_size" || name == "mini_batch_size") list.push_back({spec->name, {{name, 5}}});
    }
  }
  list.push_back({"ttt_linear", {{"mini_batch_size", 7}, {"share_qk", true}, {"norm", false}, {"bias", false}}});
  return list;
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
  std::string name = info.param.mixer;
  for (const auto& [key, value] : info.param.options.items()) name += "_" + key + "_" + value.dump();
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

int64_t fused_so_far() {
  int64_t count = 0;
  for (const auto* operation : kernels::uses()) count += operation->fused;
  return count;
}

class FusedLaws : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    subject_ = make_subject(find<MixerSpec>(GetParam().mixer), GetParam().options, 24).float32();
    kernels::choose(kernels::Choice::fused);
    const int64_t before = fused_so_far();
    try {
      at::NoGradGuard no_grad;
      State state = subject_.mixer->initial_state(1);
      subject_.mixer->forward(at::zeros({1, 2, 24}), state);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
    if (fused_so_far() == before) GTEST_SKIP() << GetParam().mixer << " asks for no kernel";
  }
  void TearDown() override { kernels::choose(kernels::Choice::automatic); }

  Subject subject_;
};

TEST_P(FusedLaws, Split) { EXPECT_EQ(split_law(subject_), ""); }
TEST_P(FusedLaws, NoLeakAndThePastIsSeen) { EXPECT_EQ(past_law(subject_), ""); }
TEST_P(FusedLaws, Segments) { EXPECT_EQ(segments_law(subject_), ""); }
TEST_P(FusedLaws, Batch) { EXPECT_EQ(batch_law(subject_), ""); }
TEST_P(FusedLaws, RoundTrip) { EXPECT_EQ(round_trip_law(subject_), ""); }
TEST_P(FusedLaws, FusedIsReference) { EXPECT_EQ(fused_law(subject_), ""); }
TEST_P(FusedLaws, ConstantState) { EXPECT_EQ(constant_state_law(subject_), ""); }
TEST_P(FusedLaws, Step) { EXPECT_EQ(step_law(subject_), ""); }

/// The largest of the allocations of LibTorch while it is asked, in bytes.
class Largest : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    largest = std::max(largest, bytes);
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t largest = 0;
};

/// How often a recurrence's kernel ran: a mixer without one steps on copies.
int64_t recurrences_so_far() {
  int64_t count = 0;
  for (const kernels::Uses* operation : std::initializer_list<const kernels::Uses*>{
           &kernels::ttt_linear, &kernels::ttt_mlp, &kernels::linear_attention, &kernels::delta_rule,
           &kernels::feature_attention, &kernels::selective_scan}) {
    count += operation->fused;
  }
  return count;
}

/// A step in place makes no copy of a row's state, nor of a part of it.
TEST_P(FusedLaws, StepAllocatesNoState) {
  const MixerSpec& spec = find<MixerSpec>(GetParam().mixer);
  if (!spec.constant_state) GTEST_SKIP() << "steps on copies: its state grows";
  if (!spec.causal) GTEST_SKIP() << "steps on copies: it looks ahead";
  const int64_t D = 192;
  Json options = GetParam().options;
  for (const auto& name : find<MixerSpec>(GetParam().mixer).config()->names()) {
    if (name == "num_attention_heads") options[name] = 1;
  }
  const auto mixer = make_mixer(GetParam().mixer, options, D);
  at::NoGradGuard no_grad;
  State pool = mixer->initial_state(5);
  const Rows rows({3, 1}, 5);
  const Tensor x = normal({2, 1, D}, 1);
  int64_t part = 0;
  for (const auto& [name, tensor] : pool.named()) part = std::max(part, static_cast<int64_t>(tensor.nbytes()) / 5);
  const int64_t before = recurrences_so_far();
  mixer->step(x, pool, rows);
  if (recurrences_so_far() == before) GTEST_SKIP() << "steps on copies: its recurrence has no kernel";
  const auto largest = std::make_shared<Largest>();
  {
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, largest);
    for (int64_t i = 0; i < 20; ++i) mixer->step(x, pool, rows);
  }
  EXPECT_GT(largest->largest, 0);
  EXPECT_LT(largest->largest, part);
}

INSTANTIATE_TEST_SUITE_P(Mixers, FusedLaws, testing::ValuesIn(cases()), case_name);

}  // namespace
}  // namespace lineal
