// Work is counted by the products of the formulas, a multiplication and an addition being two and an exponential two
// more: of the forward pass that of the form that needs the fewest, of the backward pass those for the gradients that
// the operation has, twice as much where every factor has one. Beside products elementwise parts are not counted, nor
// is what a kernel computes again to save memory. Traffic is that of the rows of tokens: forward reads inputs and
// writes outputs; the backward pass, unless it is said otherwise, reads the inputs and the gradient of the output and
// writes the inputs' gradients. Parameters and states are not in it, but of a step, where the state is what matters: of
// TTT's it reads W and D and writes D, but at the ends of inner batches.
#include "bench/operations.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "bench/operation_inputs.h"
#include "core/error.h"
#include "core/memory.h"

namespace lineal {
namespace {

using Sizes = OperationSizes;

/// Of a call: numbers in the type asked for, and in float32.
struct Numbers {
  double narrow = 0, wide = 0;

  double bytes(const Sizes& n) const { return narrow * (n.type == at::kFloat ? 4 : 2) + 4 * wide; }
};

struct Benched {
  std::string name;
  Prepared (*prepare)(const Sizes&);
  double (*flops)(const Sizes&);  // of a call, forward
  Numbers (*inputs)(const Sizes&);
  Numbers (*outputs)(const Sizes&);
  double (*backward_flops)(const Sizes&) = nullptr;  // null: twice as many
  Numbers (*backward)(const Sizes&) = nullptr;       // what it reads and writes; null: inputs, output, inputs
  bool bfloat16 = true, odd = true;                  // takes bfloat16; an odd K
  bool differentiable = true;
  // Null: cannot step in place.
  double (*step_flops)(const Sizes&) = nullptr;  // of one token
  double (*state)(const Sizes&) = nullptr;       // numbers of one sequence's, float32
  double (*traffic)(const Sizes&) = nullptr;     // those of it that a step reads or writes
};

double heads(const Sizes& n, double count) { return static_cast<double>(n.H) * count; }
double tokens(const Sizes& n, double count) { return static_cast<double>(n.tokens()) * count; }
/// Of all heads and tokens.
double all(const Sizes& n, double count) { return tokens(n, heads(n, count)); }
/// Of all channels and tokens.
double channels(const Sizes& n, double count) { return all(n, count * static_cast<double>(n.K)); }

double square(const Sizes& n) { return heads(n, 1.0 * n.K * n.K); }
double twice_square(const Sizes& n) { return 2 * square(n); }
Numbers one_row(const Sizes& n) { return {.narrow = channels(n, 1)}; }
Numbers two_rows(const Sizes& n) { return {.narrow = channels(n, 2)}; }
Numbers three_rows(const Sizes& n) { return {.narrow = channels(n, 3)}; }
Numbers three_rows_and_rate(const Sizes& n) { return {.narrow = channels(n, 3), .wide = all(n, 1)}; }
// W k, W q, phi(k) v^T and S^T phi(q)
double feature_flops(const Sizes& n) { return all(n, 8.0 * n.K * Sizes::M); }
// of the first two one gradient each, for W has none
double feature_backward_flops(const Sizes& n) { return all(n, 12.0 * n.K * Sizes::M); }
// of each number of the state dt A, its exponential, that times h, dt u B, their sum and C . h
double scan_flops(const Sizes& n) { return heads(n, 8.0 * n.K * Sizes::N); }

/// What a token of attention over quantised keys meets, summed over the tokens of a sequence.
struct Met {
  double keys = 0;       // one by one: of its block, and up to `window` before it
  double distances = 0;  // up to `window`, of those keys
  double codes = 0;      // if there are tokens before those keys
};
Met met(const Sizes& n) {
  Met sum;
  for (int64_t t = n.read; t < n.read + n.T; ++t) {
    const int64_t in_block = t % kVqBlock, before = t - in_block;
    sum.keys += static_cast<double>(std::min(n.window, before) + in_block + 1);
    sum.distances += static_cast<double>(std::min(n.window, t) + 1);
    sum.codes += before > n.window ? static_cast<double>(n.codes) : 0;
  }
  return sum;
}
/// Of as many numbers of each head's key, for all sequences.
double vq_flops(const Sizes& n, double numbers) { return static_cast<double>(n.B) * heads(n, 2.0 * n.K * numbers); }

const std::vector<Benched>& benched() {
  static const std::vector<Benched> operations = {
      {.name = "ttt_linear",
       .prepare = prepare_ttt_linear,
       // k W, q W and k^T G; the lower halves of q k^T and its product with G
       .flops = [](const Sizes& n) { return all(n, 6.0 * n.K * n.K + 2.0 * (n.C + 1) * n.K); },
       .inputs = three_rows_and_rate,
       .outputs = one_row,
       // k W, q W, q D and k^T G
       .step_flops = [](const Sizes& n) { return heads(n, 8.0 * n.K * n.K); },
       .state = [](const Sizes& n) { return heads(n, 2.0 * n.K * (n.K + 1)); },
       .traffic = [](const Sizes& n) { return heads(n, 3.0 * n.K * (n.K + 1)); }},
      {.name = "ttt_mlp",
       .prepare = prepare_ttt_mlp,
       // k W1, h W2, G2 W2^T, q W1, a W2, k^T G1 and h^T G2; the lower halves of q k^T and a h^T and their products
       // with G1 and G2
       .flops = [](const Sizes& n) { return all(n, 56.0 * n.K * n.K + 10.0 * (n.C + 1) * n.K); },
       .inputs = three_rows_and_rate,
       .outputs = one_row,
       // the seven above, q D1 and a D2
       .step_flops = [](const Sizes& n) { return heads(n, 72.0 * n.K * n.K); },
       .state = [](const Sizes& n) { return heads(n, 2.0 * n.K * (8 * n.K + 5)); },
       .traffic = [](const Sizes& n) { return heads(n, 3.0 * n.K * (8 * n.K + 5)); }},
      {.name = "linear_attention",
       .prepare = prepare_linear_attention,
       // k v^T and S^T q
       .flops = [](const Sizes& n) { return all(n, 4.0 * n.K * n.K); },
       .inputs = three_rows,
       .outputs = one_row,
       .step_flops = [](const Sizes& n) { return heads(n, 4.0 * n.K * n.K); },
       .state = square,
       .traffic = twice_square},
      {.name = "delta_rule",
       .prepare = prepare_delta_rule,
       // S^T k, k u^T and S^T q
       .flops = [](const Sizes& n) { return all(n, 6.0 * n.K * n.K); },
       .inputs = three_rows_and_rate,
       .outputs = one_row,
       .step_flops = [](const Sizes& n) { return heads(n, 6.0 * n.K * n.K); },
       .state = square,
       .traffic = twice_square},
      {.name = "feature_attention",
       .prepare = prepare_feature_attention,
       .flops = feature_flops,
       .inputs = three_rows,
       .outputs = one_row,
       .backward_flops = feature_backward_flops,
       .bfloat16 = false,
       .step_flops = [](const Sizes& n) { return heads(n, 8.0 * n.K * Sizes::M); },
       .state = [](const Sizes& n) { return heads(n, 1.0 * n.K * Sizes::M); },
       .traffic = [](const Sizes& n) { return heads(n, 2.0 * n.K * Sizes::M); }},
      {.name = "feature_attention_in_documents",
       .prepare = prepare_feature_attention_in_documents,
       .flops = feature_flops,
       .inputs = three_rows,
       .outputs = one_row,
       .backward_flops = feature_backward_flops,
       .bfloat16 = false},
      {.name = "selective_scan",
       .prepare = prepare_selective_scan,
       .flops = [](const Sizes& n) { return tokens(n, scan_flops(n)); },
       .inputs = [](const Sizes& n) { return Numbers{.narrow = channels(n, 2) + tokens(n, 2 * Sizes::N)}; },
       .outputs = one_row,
       .step_flops = scan_flops,
       .state = [](const Sizes& n) { return heads(n, 1.0 * n.K * Sizes::N); },
       .traffic = [](const Sizes& n) { return heads(n, 2.0 * n.K * Sizes::N); }},
      {.name = "nearest_code",
       .prepare = prepare_nearest_code,
       // k c^T
       .flops = [](const Sizes& n) { return channels(n, 2.0 * n.codes); },
       .inputs = one_row,
       .outputs = [](const Sizes& n) { return Numbers{.wide = all(n, 2)}; },  // int64
       .bfloat16 = false,
       .differentiable = false},
      {.name = "vq_attention",
       .prepare = prepare_vq_attention,
       // k c^T of the search; q k^T, p r^T and the sum of values; q c^T and the sum of means
       .flops =
           [](const Sizes& n) {
             const auto searched = static_cast<double>(n.T * n.codes);
             return vq_flops(n, searched + 2 * met(n).keys + met(n).distances + 2 * met(n).codes);
           },
       .inputs = [](const Sizes& n) { return Numbers{.narrow = channels(n, 4)}; },
       .outputs = one_row,
       // of the search none, of q c^T one, for the codewords have none
       .backward_flops =
           [](const Sizes& n) { return vq_flops(n, 4 * met(n).keys + 2 * met(n).distances + 3 * met(n).codes); },
       .bfloat16 = false},
      {.name = "wkv",
       .prepare = prepare_wkv,
       // four exponentials of differences from two maxima, a, b and y
       .flops = [](const Sizes& n) { return channels(n, 27); },
       .inputs = two_rows,
       .outputs = one_row,
       .bfloat16 = false,
       .step_flops = [](const Sizes& n) { return heads(n, 27.0 * n.K); },
       .state = [](const Sizes& n) { return heads(n, 3.0 * n.K); },
       .traffic = [](const Sizes& n) { return heads(n, 6.0 * n.K); }},
      {.name = "short_conv",
       .prepare = prepare_short_conv,
       // the taps; silu
       .flops = [](const Sizes& n) { return channels(n, 2.0 * Sizes::J + 4); },
       .inputs = one_row,
       .outputs = one_row,
       .step_flops = [](const Sizes& n) { return heads(n, n.K * (2.0 * Sizes::J + 4)); },
       .state = [](const Sizes& n) { return heads(n, 1.0 * n.K * (Sizes::J - 1)); },
       .traffic = [](const Sizes& n) { return heads(n, 2.0 * n.K * (Sizes::J - 1)); }},
      {.name = "rope",
       .prepare = prepare_rope,
       // x c + x' s
       .flops = [](const Sizes& n) { return channels(n, 3); },
       .inputs = one_row,
       .outputs = one_row,
       // the same of dy
       .backward_flops = [](const Sizes& n) { return channels(n, 3); },
       .backward = two_rows,
       .odd = false},
      {.name = "rms_norm",
       .prepare = prepare_rms_norm,
       // the sum of squares, twice a product
       .flops = [](const Sizes& n) { return channels(n, 4); },
       .inputs = [](const Sizes& n) { return Numbers{.wide = channels(n, 1)}; },
       .outputs = one_row},
      {.name = "add_rms_norm",
       .prepare = prepare_add_rms_norm,
       .flops = [](const Sizes& n) { return channels(n, 5); },
       .inputs = [](const Sizes& n) { return Numbers{.narrow = channels(n, 1), .wide = channels(n, 1)}; },
       .outputs = [](const Sizes& n) { return Numbers{.narrow = channels(n, 1), .wide = channels(n, 1)}; },
       // the sum, dy and dx, which in float32 is the gradient of both
       .backward =
           [](const Sizes& n) {
             const double rows = channels(n, 1), of_added = n.type == at::kFloat ? 0 : rows;
             return Numbers{.narrow = rows + of_added, .wide = 2 * rows};
           }},
      {.name = "swiglu",
       .prepare = prepare_swiglu,
       // gate / (1 + exp(-gate)) up
       .flops = [](const Sizes& n) { return channels(n, 5); },
       .inputs = two_rows,
       .outputs = one_row},
      {.name = "token_loss",
       .prepare = prepare_token_loss,
       .flops = [](const Sizes& n) { return channels(n, 2.0 * n.vocabulary); },
       .inputs =
           [](const Sizes& n) { return Numbers{.narrow = channels(n, 1), .wide = 1.0 * n.vocabulary * n.channels()}; },
       .outputs = [](const Sizes&) { return Numbers{.wide = 1}; }},
  };
  return operations;
}

const Benched& find_benched(const std::string& name) {
  for (const Benched& bench : benched()) {
    if (bench.name == name) return bench;
  }
  fail_unknown("bench op", "operation", name, operation_names());
}

/// For the step: as many states as no cache holds, if that takes no more than some thousand calls.
Sizes with_pool(const Benched& bench, Sizes sizes) {
  constexpr double kUncached = 256 << 20;  // bytes
  constexpr int64_t kMostTurns = 1 << 14;
  sizes.B = sizes.sessions, sizes.T = 1;
  const auto turns = static_cast<int64_t>(std::ceil(kUncached / (4 * bench.state(sizes)))) / sizes.sessions + 1;
  sizes.pool = std::min(turns, kMostTurns) * sizes.sessions;
  return sizes;
}

double forward_bytes(const Benched& bench, const Sizes& n) {
  return bench.inputs(n).bytes(n) + bench.outputs(n).bytes(n);
}
double backward_bytes(const Benched& bench, const Sizes& n) {
  if (bench.backward) return bench.backward(n).bytes(n);
  return 2 * bench.inputs(n).bytes(n) + bench.outputs(n).bytes(n);
}

/// All inputs, states and gradients of outputs are there at once, and one operation's results.
void check_memory(const std::vector<const Benched*>& wanted, const Sizes& sizes) {
  constexpr double kMiB = 1 << 20;
  double kept = 0, results = 0;
  for (const Benched* bench : wanted) {
    kept += forward_bytes(*bench, sizes);
    results = std::max(results, forward_bytes(*bench, sizes));
    if (!bench->state) continue;
    const int64_t states = with_pool(*bench, sizes).pool + sizes.B;
    kept += 4 * bench->state(sizes) * static_cast<double>(states);
  }
  const auto free = static_cast<double>(proc_bytes("/proc/meminfo", "MemAvailable"));
  if (free == 0 || kept + results <= free) return;
  fail("bench op: these sizes need more than ", std::llround((kept + results) / kMiB), " MiB, and ",
       std::llround(free / kMiB), " MiB are free; needs less: ", kOperationsNeedLess);
}

OperationPass step_pass(const Benched& bench, const Sizes& sizes) {
  const Sizes n = with_pool(bench, sizes);
  const auto step = [prepared = bench.prepare(n)] {
    const at::NoGradGuard no_grad;
    prepared.o();
  };
  const std::string name = bench.name + " step";
  const auto count = static_cast<double>(n.B);
  const double bytes = forward_bytes(bench, n) + 4 * count * bench.traffic(n);
  return {name, {name, step}, n.B, count * bench.step_flops(n), bytes};
}

void add_passes(const Benched& bench, const Sizes& n, std::vector<OperationPass>& passes) {
  const Prepared prepared = bench.prepare(n);
  const auto forward = [prepared] {
    const at::NoGradGuard no_grad;
    return prepared.o();
  };
  const double flops = bench.flops(n), bytes = forward_bytes(bench, n);
  const double backward = bench.backward_flops ? bench.backward_flops(n) : 2 * flops;
  passes.push_back({bench.name, {bench.name, [forward] { forward(); }}, n.tokens(), flops, bytes});
  if (bench.differentiable) {
    const auto both = [prepared, weights = at::randn_like(forward())] {
      torch::autograd::grad({prepared.o()}, prepared.leaves, {weights});
    };
    const std::string name = bench.name + " both";
    passes.push_back({name, {name, both}, n.tokens(), flops + backward, bytes + backward_bytes(bench, n)});
  }
  if (bench.state) passes.push_back(step_pass(bench, n));
}

}  // namespace

std::vector<std::string> operation_names() {
  std::vector<std::string> names;
  for (const Benched& bench : benched()) names.push_back(bench.name);
  return names;
}

std::string operation_refusal(const std::string& name, const OperationSizes& sizes) {
  const Benched& bench = find_benched(name);
  if (sizes.type != at::kFloat && !bench.bfloat16) return "float32 only";
  return sizes.K % 2 != 0 && !bench.odd ? "an even --head-size only" : "";
}

std::vector<OperationPass> operation_passes(const std::vector<std::string>& names, const OperationSizes& sizes) {
  std::vector<const Benched*> wanted;
  for (const std::string& name : names) {
    if (const std::string why = operation_refusal(name, sizes); !why.empty()) fail("bench op: ", name, ": ", why);
  }
  for (const Benched& bench : benched()) {
    const bool is_named = std::find(names.begin(), names.end(), bench.name) != names.end();
    if (names.empty() ? operation_refusal(bench.name, sizes).empty() : is_named) wanted.push_back(&bench);
  }
  check_memory(wanted, sizes);
  at::manual_seed(0);
  std::vector<OperationPass> passes;
  for (const Benched* bench : wanted) add_passes(*bench, sizes, passes);
  return passes;
}

}  // namespace lineal
