#include "objectives/distillation.h"

#include <ATen/ATen.h>

#include "backbones/recompute.h"
#include "core/error.h"
#include "objectives/token_loss.h"

namespace lineal {
namespace {

constexpr int64_t kMostLogits = 1 << 23;  // held at once, of each model

void check(const LanguageModel& model, const Distillation& distillation) {
  const auto &own = model.config(), &teacher = distillation.teacher->config();
  if (own.vocab_size != teacher.vocab_size) {
    fail("distill: the teacher has ", teacher.vocab_size, " tokens, the model ", own.vocab_size);
  }
  if (distillation.match_steps == 0) return;
  if (own.hidden_size != teacher.hidden_size || own.layers.size() != teacher.layers.size()) {
    fail("distill: the teacher has ", teacher.layers.size(), " layers of width ", teacher.hidden_size, ", the model ",
         own.layers.size(), " of ", own.hidden_size, "; layers can be matched one to one alone: --match-steps 0");
  }
}

State& teacher_state(const Distillation& distillation, State& state, int64_t B) {
  const bool begins = !state.has_child("teacher");
  State& own = state.child("teacher");
  if (begins) own = distillation.teacher->initial_state(B);
  return own;
}

Tensor match(LanguageModel& model, LanguageModel& teacher, const Batch& batch, State& state, State& of_teacher) {
  const auto &blocks = model.blocks(), &examples = teacher.blocks();
  const Tensor mask = batch.mask.unsqueeze(2);
  Tensor x, sum;
  {
    const at::NoGradGuard no_grad;
    x = teacher.embed(batch.inputs, of_teacher, batch.segments);
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    const std::string name = std::to_string(i);
    Tensor y, scale;
    {
      const at::NoGradGuard no_grad;
      y = examples[i]->forward(x, of_teacher.child("layers").child(name), batch.segments);
      scale = ((y - x) * mask).square().sum().clamp_min(1e-12);
    }
    const Tensor error = (blocks[i]->forward(x, state.child("layers").child(name), batch.segments) - y) * mask;
    const Tensor share = error.square().sum() / scale;
    sum = sum.defined() ? sum + share : share;
    x = y;
  }
  return sum / static_cast<double>(blocks.size());
}

/// Over rows of hidden states [R, D], as many at a time as their logits may be.
Tensor divergence(const Tensor& hidden, const Tensor& head, const Tensor& of_teacher, const Tensor& teacher_head,
                  const Tensor& mask) {
  const int64_t R = hidden.size(0), step = std::max<int64_t>(1, kMostLogits / head.size(0));
  Tensor sum;
  for (int64_t from = 0; from < R; from += step) {
    const int64_t to = std::min(from + step, R);
    const Tensor teacher_rows = of_teacher.slice(0, from, to), weights = mask.slice(0, from, to);
    const auto piece = [=](const std::vector<Tensor>& in) {
      const Tensor log_q = at::linear(in[0], in[1]).to(at::kFloat).log_softmax(1);
      const Tensor log_p = at::linear(teacher_rows, teacher_head).to(at::kFloat).log_softmax(1);
      const Tensor each = (log_p.exp() * (log_p - log_q)).sum(1);
      return std::vector<Tensor>{(each * weights).sum()};
    };
    const Tensor part = recompute(piece, {hidden.slice(0, from, to), head}, {})[0];
    sum = sum.defined() ? sum + part : part;
  }
  return sum / mask.sum().clamp_min(1);
}

Tensor distill(LanguageModel& model, LanguageModel& teacher, const Batch& batch, State& state, State& of_teacher) {
  Tensor expected;
  {
    const at::NoGradGuard no_grad;
    expected = teacher.hidden(batch.inputs, of_teacher, batch.segments).flatten(0, 1);
  }
  const Tensor hidden = model.hidden(batch.inputs, state, batch.segments).flatten(0, 1);
  return divergence(hidden, model.head_weight(), expected, teacher.head_weight().detach(), batch.mask.flatten());
}

}  // namespace

std::vector<Player> distillation_player(const std::shared_ptr<LanguageModel>& model, const Distillation& distillation) {
  check(*model, distillation);
  distillation.teacher->eval();
  Player player = token_player(model).front();
  player.validation = player.loss;
  const auto matching = std::make_shared<bool>(false);
  player.begin_step = [=](int64_t step) -> std::string {
    *matching = step < distillation.match_steps;
    return *matching ? "match" : "distill";
  };
  player.loss = [=](const Batch& batch, State& state) {
    State& of_teacher = teacher_state(distillation, state, batch.size());
    return (*matching ? match : distill)(*model, *distillation.teacher, batch, state, of_teacher);
  };
  return {player};
}

}  // namespace lineal
