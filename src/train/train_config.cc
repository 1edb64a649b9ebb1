#include "train/train_config.h"

#include "core/error.h"
#include "core/memory.h"

namespace lineal {

std::vector<Field> TrainConfig::fields() {
  constexpr double kMostSteps = 1LL << 40;
  constexpr double kLeastEps = 1e-20;  // in float32 the square of a smaller gradient is 0
  return {
      {"objective", &objective, {}, "what is learned (lineal list)"},
      {"steps", &steps, between(1, kMostSteps),
       "updates of the parameters; the schedule is a function of them, also when a run goes on with others"},
      {"batch_size", &batch_size, size_range(), "sequences per batch"},
      {"context", &context, between(1, 1 << 24), "tokens per sequence"},
      {"segment", &segment, between(0, 1 << 24), "tokens per call of the model, the state carried; 0: all at once"},
      {"carry", &carry, one_of({"detached", "differentiable"}), "whether gradients cross the segments' borders"},
      {"accumulate", &accumulate, size_range(), "batches per step"},
      {"lr", &lr, between(0, 1e3), "peak learning rate"},
      {"min_lr", &min_lr, between(0, 1e3), "learning rate of the last step (cosine, wsd)"},
      {"schedule", &schedule, one_of({"cosine", "constant", "wsd"}), "of the learning rate after warmup"},
      {"warmup", &warmup, between(0, 1),
       "fraction of the steps in which the learning rate rises from 0; other --steps change it"},
      {"decay", &decay, between(0, 1), "fraction of the steps in which wsd falls to min_lr; other --steps change it"},
      {"beta1", &beta1, between(0, 1), "AdamW: decay of the gradient's average"},
      {"beta2", &beta2, between(0, 1), "AdamW: decay of its square's average"},
      {"eps", &eps, between(kLeastEps, 1), "AdamW: added to the root"},
      {"weight_decay", &weight_decay, between(0, 1e3), "AdamW: of matrices; not of norms, biases, initial states"},
      {"lr_scale", &lr_scale, {}, "factors by parameter name: '*.W1=0.1, model.embed_tokens.*=2'"},
      {"clip", &clip, at_least(0), "largest norm of the gradient; 0: not clipped"},
      {"precision", &precision, one_of({"float32", "bfloat16"}), "of matrix products; parameters stay float32"},
      {"recompute", &recompute, {}, "keep only each block's input, run blocks again in the backward pass"},
      {"seed", &seed, between(0, 1LL << 53), "of initial parameters and of the order of the data"},
      {"validation", &validation, between(0, 0.99),
       "fraction of the documents kept for validation, chosen by chance; of the text where it is one document"},
      {"test", &test, between(0, 0.99), "fraction of the documents kept for lineal eval --part test"},
      {"pack", &pack, one_of({"restart", "join", "none"}),
       "rows of documents one after another, the state restarting at each or running on; none: a document a row"},
      {"mask_fraction", &mask_fraction, between(1e-6, 1), "masked_lm: of the tokens that are chosen"},
      {"mask_share", &mask_share, between(0, 1), "masked_lm: of the chosen that become the mask"},
      {"random_share", &random_share, between(0, 1), "masked_lm: of the chosen that become any token; the rest stay"},
      {"match_steps", &match_steps, between(0, kMostSteps),
       "distill: first steps, in which every layer learns by itself what the teacher's does; half of all if not given"},
      {"eval_batches", &eval_batches, between(0, 1 << 30), "batches per validation; 0: all"},
      {"log_every", &log_every, between(1, kMostSteps), "steps between lines of metrics"},
      {"eval_every", &eval_every, between(1, kMostSteps), "steps between validations"},
      {"save_every", &save_every, between(1, kMostSteps), "steps between checkpoints"},
      {"keep", &keep, between(0, 1 << 20), "newest checkpoints that are kept; 0: all"},
  };
}

void TrainConfig::validate(const std::string& who) {
  if (min_lr > lr) fail(who, ": min_lr is ", min_lr, ", expected at most lr ", lr);
  if (schedule == "wsd" && warmup + decay > 1) {
    fail(who, ": warmup ", warmup, " + decay ", decay, " is ", warmup + decay, ", expected at most 1");
  }
  if (validation + test >= 1) {
    fail(who, ": validation ", validation, " and test ", test,
         " leave nothing to learn from, expected less than 1 together");
  }
  if (mask_share + random_share > 1) {
    fail(who, ": mask_share ", mask_share, " + random_share ", random_share, " is ", mask_share + random_share,
         ", expected at most 1");
  }
  if (beta1 == 1 || beta2 == 1) fail(who, ": beta1 and beta2 must be below 1, got ", beta1, " and ", beta2);
  const double bytes = 20.0 * static_cast<double>(batch_size) * static_cast<double>(context) *
                       static_cast<double>(accumulate);  // two ids and a mask per token
  const auto memory = static_cast<double>(machine_memory());
  if (bytes > memory) {
    fail(who, ": batch_size ", batch_size, ", context ", context, ", accumulate ", accumulate,
         ": the token ids of one step alone take ", static_cast<int64_t>(bytes / (1 << 30)), " GiB, this machine has ",
         static_cast<int64_t>(memory / (1 << 30)));
  }
}

}  // namespace lineal
