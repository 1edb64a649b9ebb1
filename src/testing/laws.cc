#include "testing/laws.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <unistd.h>

#include <filesystem>

#include "core/error.h"
#include "core/rows.h"
#include "core/safetensors.h"
#include "kernels/kernels.h"
#include "testing/testing.h"

namespace lineal {
namespace {

constexpr int64_t kLength = 50;

Tensor tokens(const Subject& subject, int64_t B, int64_t T, uint64_t seed) {
  return normal({B, T, subject.D}, seed, subject.type);
}

/// Documents that start where `starts` says, as (row, token).
Segments documents(int64_t B, int64_t T, const std::vector<std::pair<int64_t, int64_t>>& starts) {
  Segments segments{at::zeros({B, T}, at::kBool)};
  for (const auto& [row, token] : starts) segments.starts[row][token] = true;
  return segments;
}

struct Run {
  Tensor y;
  State state;
};

/// x [B, T, D] read from `start` in calls of the given lengths, the last one repeated as needed.
Run read(const Subject& subject, const State& start, const Tensor& x, const Segments& segments = {},
         const std::vector<int64_t>& lengths = {kLength * 2}) {
  State state = start;
  std::vector<Tensor> y;
  const int64_t T = x.size(1);
  for (int64_t from = 0, call = 0; from < T; ++call) {
    const int64_t length = lengths[static_cast<size_t>(std::min<int64_t>(call, std::ssize(lengths) - 1))];
    const int64_t to = std::min(T, from + length);
    y.push_back(subject.mixer->forward(x.slice(1, from, to), state, segments.slice(from, to)));
    from = to;
  }
  return {at::cat(y, 1), state};
}

State warm_state(const Subject& subject, int64_t B, int64_t T) {
  return read(subject, subject.mixer->initial_state(B), tokens(subject, B, T, 5)).state;
}

std::string run_difference(const Subject& subject, const Run& actual, const Run& expected) {
  if (auto found = difference(actual.y, expected.y, subject.tolerance); !found.empty()) return "output: " + found;
  return state_difference(actual.state, expected.state, subject.tolerance, !subject.constant_state);
}

std::string when(const std::string& found, const std::string& where) {
  return found.empty() ? "" : where + ": " + found;
}

bool is_count(const Tensor& part) { return part.scalar_type() == at::kLong; }

State one_row(const State& state, int64_t row) { return state.rows(at::tensor({row}, at::kLong)); }

}  // namespace

Subject make_subject(const MixerSpec& spec, const Json& options, int64_t D) {
  Subject subject{make_mixer(spec.name, options, D), D, spec.causal, spec.constant_state, spec.mixes};
  at::NoGradGuard no_grad;
  subject.mixer->reset_parameters(1 / std::sqrt(static_cast<double>(D)));
  for (Tensor& parameter : subject.mixer->parameters()) parameter.add_(0.1 * at::rand_like(parameter));
  subject.mixer->to(at::kDouble);
  subject.mixer->eval();  // training may replace gradients: straight through the choice of a codeword
  return subject;
}

Subject Subject::float32() const {
  Subject subject = *this;
  subject.mixer->to(at::kFloat);
  subject.type = at::kFloat;
  subject.tolerance = 1e-4;
  return subject;
}

/// "" when every part has a storage of its own, no larger than itself and no parameter's.
std::string storage_difference(const Subject& subject, const State& state) {
  for (const auto& [name, part] : state.named()) {
    if (part.storage().nbytes() != part.nbytes()) {
      return text("state part ", name, " of ", part.nbytes(), " bytes keeps ", part.storage().nbytes(), " alive");
    }
    for (const auto& parameter : subject.mixer->named_parameters()) {
      if (part.is_alias_of(parameter.value())) return "state part " + name + " is a view of " + parameter.key();
    }
  }
  return "";
}

std::string state_difference(const State& actual, const State& expected, double tolerance, bool growing) {
  const auto found = actual.named(), wanted = expected.named();
  if (found.size() != wanted.size()) return text("state has ", found.size(), " parts, expected ", wanted.size());
  for (size_t i = 0; i < found.size(); ++i) {
    const auto& [name, part] = found[i];
    Tensor a = part, e = wanted[i].second;
    if (name != wanted[i].first) return "state part " + name + ", expected " + wanted[i].first;
    if (a.scalar_type() != e.scalar_type()) return text("state part ", name, " is ", a.scalar_type());
    if (growing && a.dim() > 1 && e.dim() == a.dim() && a.size(1) != e.size(1)) {
      const int64_t length = std::max(a.size(1), e.size(1));
      const auto padded = [&](const Tensor& x) {
        auto sizes = x.sizes().vec();
        sizes[1] = length - sizes[1];
        return at::cat({at::zeros(sizes, x.options()), x}, 1);
      };
      a = padded(a), e = padded(e);
    }
    if (auto wrong = difference(a, e, tolerance); !wrong.empty()) return "state part " + name + ": " + wrong;
  }
  return "";
}

std::string split_law(const Subject& subject) {
  if (!subject.causal) return "";
  at::NoGradGuard no_grad;
  const int64_t B = 2, T = kLength;
  const Tensor x = tokens(subject, B, T, 1);
  const State start = subject.mixer->initial_state(B);
  for (const auto& segments : {Segments{}, documents(B, T, {{0, 11}, {0, 12}, {1, 31}})}) {
    const std::string packed = segments.none() ? "" : ", with documents";
    const Run whole = read(subject, start, x, segments);
    for (int64_t cut = 1; cut < T; ++cut) {
      const Run split = read(subject, start, x, segments, {cut, T});
      if (auto found = run_difference(subject, split, whole); !found.empty()) {
        return text("split at ", cut, packed, ": ", found);
      }
    }
    for (const int64_t length : {1, 7}) {
      const Run split = read(subject, start, x, segments, {length});
      if (auto found = run_difference(subject, split, whole); !found.empty()) {
        return text("split every ", length, packed, ": ", found);
      }
    }
  }
  return "";
}

std::string past_law(const Subject& subject) {
  const int64_t B = 2, T = 11;
  const State start = warm_state(subject, B, 3).detach();
  const Tensor x = tokens(subject, B, T, 1).requires_grad_();
  const Tensor y = read(subject, start, x).y;
  for (int64_t t = 0; t < T; ++t) {
    const Tensor cotangent = normal({B, subject.D}, 50 + static_cast<uint64_t>(t), subject.type);
    const Tensor gradient = torch::autograd::grad({(y.select(1, t) * cotangent).sum()}, {x}, {}, true)[0];
    const Tensor past = gradient.slice(1, 0, t), future = gradient.slice(1, t + 1);
    const auto reaches = [](const Tensor& part) { return part.ne(0).flatten(1).any(1).all().item<bool>(); };
    if (gradient.isnan().any().item<bool>()) return text("d y_", t, " / d x is NaN");
    if (!reaches(gradient.select(1, t))) return text("d y_", t, " / d x_", t, " is 0 in some row");
    if (subject.causal && future.ne(0).any().item<bool>()) {
      return text("d y_", t, " / d x of later tokens is not 0: ", difference(future, at::zeros_like(future), 0));
    }
    if (!subject.causal && t + 1 < T && !reaches(future)) return text("d y_", t, " / d x of later tokens is 0");
    if (t > 0 && reaches(past) != subject.mixes) {
      return text("d y_", t, " / d x of earlier tokens is ", subject.mixes ? "0" : "not 0", " in some row");
    }
  }
  return "";
}

std::string segments_law(const Subject& subject) {
  at::NoGradGuard no_grad;
  const int64_t B = 3, T = 23;
  const std::vector<std::pair<int64_t, int64_t>> starts = {{0, 9}, {1, 1}, {1, 17}, {2, 0}, {2, 15}, {2, 16}};
  const Segments segments = documents(B, T, starts);
  const State start = warm_state(subject, B, 5);
  const Tensor x = tokens(subject, B, T, 1);
  const Run packed = read(subject, start, x, segments);

  for (size_t i = 0; i < starts.size(); ++i) {
    const auto [row, from] = starts[i];
    if (from > 0) {  // another last token of document A
      const Tensor other = x.clone();
      other[row][from - 1].add_(1);
      const Run changed = read(subject, start, other, segments);
      if (at::equal(changed.y[row][from - 1], packed.y[row][from - 1])) {
        return text("row ", row, ": the output does not depend on its own token ", from - 1);
      }
      const auto where = text("row ", row, ", another token before the document that starts at ", from);
      const auto found = bit_difference(changed.y[row].slice(0, from), packed.y[row].slice(0, from));
      if (!found.empty()) return where + ": " + found;
      const auto state = state_difference(one_row(changed.state, row), one_row(packed.state, row), 0, false);
      if (!state.empty()) return where + ": " + state;
    }
    const bool last = i + 1 == starts.size() || starts[i + 1].first != row;
    const int64_t to = last ? T : starts[i + 1].second;
    const Run alone = read(subject, subject.mixer->initial_state(1), x.slice(0, row, row + 1).slice(1, from, to));
    const auto where = text("row ", row, ", tokens ", from, " to ", to, " packed and alone");
    if (auto found = difference(packed.y[row].slice(0, from, to), alone.y[0], subject.tolerance); !found.empty()) {
      return where + ": " + found;
    }
    if (!last) continue;
    const auto state =
        state_difference(one_row(packed.state, row), alone.state, subject.tolerance, !subject.constant_state);
    if (!state.empty()) return where + ": " + state;
  }
  // Before its first start a row goes on with the state it came with.
  const Run going_on = read(subject, one_row(start, 0), x.slice(0, 0, 1).slice(1, 0, 9));
  return when(difference(packed.y[0].slice(0, 0, 9), going_on.y[0], subject.tolerance),
              "row 0, tokens of the running document");
}

std::string batch_law(const Subject& subject) {
  at::NoGradGuard no_grad;
  const int64_t B = 3, T = 19;
  const State start = warm_state(subject, B, 6);
  const Tensor x = tokens(subject, B, T, 1);
  const Run together = read(subject, start, x);
  for (int64_t row = 0; row < B; ++row) {
    const Run alone = read(subject, one_row(start, row), x.slice(0, row, row + 1));
    const Run part{together.y.slice(0, row, row + 1), one_row(together.state, row)};
    if (auto found = run_difference(subject, part, alone); !found.empty()) {
      return text("row ", row, " in a batch and alone: ", found);
    }
  }
  return "";
}

std::string round_trip_law(const Subject& subject) {
  at::NoGradGuard no_grad;
  const int64_t B = 2;
  const State state = warm_state(subject, B, 17), copy = state.clone();
  const Tensor next = tokens(subject, B, 9, 2);
  const Run expected = read(subject, state, next);
  if (auto found = state_difference(state, copy, 0, false); !found.empty()) {
    return "reading changed the tensors of the state it started from: " + found;
  }
  for (const auto& [name, part] : state.named()) {
    if (part.size(0) != B) return text("state part ", name, " is ", part.sizes(), ", expected [B=2, ...]");
    if (!is_count(part) && part.scalar_type() != subject.type)
      return text("state part ", name, " is ", part.scalar_type());
  }
  const auto continues = [&](const State& from, const Tensor& x, const Run& wanted, const char* how) {
    return when(run_difference(subject, read(subject, from, x), wanted), how);
  };
  const auto at_rows = [&](const Run& run, const Tensor& index) {
    return Run{run.y.index_select(0, index), run.state.rows(index)};
  };
  if (auto found = continues(copy, next, expected, "clone"); !found.empty()) return found;
  if (auto found = continues(State::from_named(state.named()), next, expected, "names"); !found.empty()) return found;

  const auto path = std::filesystem::temp_directory_path() / text("lineal_laws_", ::getpid(), ".safetensors");
  save_safetensors(path, state.named());
  const State loaded = State::from_named(load_safetensors(path).tensors);
  std::filesystem::remove(path);
  if (auto found = continues(loaded, next, expected, "save and load"); !found.empty()) return found;

  const Tensor thrice = at::tensor({0, 0, 0, 1, 1, 1}, at::kLong);
  const Tensor repeated = next.index_select(0, thrice);
  if (auto found = continues(state.fork(3), repeated, at_rows(expected, thrice), "fork"); !found.empty()) return found;
  const Tensor swapped = at::tensor({1, 0}, at::kLong);
  const Run swapped_run = at_rows(expected, swapped);
  const Tensor swapped_next = next.index_select(0, swapped);
  if (auto found = continues(state.rows(swapped), swapped_next, swapped_run, "rows"); !found.empty()) return found;
  const State joined = State::cat({one_row(state, 1), one_row(state, 0)});
  if (auto found = continues(joined, swapped_next, swapped_run, "cat"); !found.empty()) return found;

  State other = warm_state(subject, 3, 4);  // a row of a batch that has read less
  other.set_rows(at::tensor({2}, at::kLong), one_row(state, 1));
  const Run among = read(subject, other, next.index_select(0, at::tensor({0, 0, 1}, at::kLong)));
  const Run third{among.y.slice(0, 2), one_row(among.state, 2)};
  return when(run_difference(subject, third, at_rows(expected, at::tensor({1}, at::kLong))), "set_rows");
}

std::string gradient_law(const Subject& subject) {
  const int64_t B = 2, T = 7;
  std::vector<Tensor> leaves = {tokens(subject, B, T, 1).requires_grad_()};
  std::vector<std::string> names = {"x"};
  for (const auto& parameter : subject.mixer->named_parameters()) {
    leaves.push_back(parameter.value());
    names.push_back(parameter.key());
  }
  std::vector<std::pair<std::string, Tensor>> start;
  for (const auto& [name, part] : warm_state(subject, B, 3).detach().named()) {
    start.emplace_back(name, is_count(part) ? part : part.clone().requires_grad_());
    if (is_count(part)) continue;
    leaves.push_back(start.back().second);
    names.push_back("initial state " + name);
  }
  const Segments segments = documents(B, T, {{0, 4}});
  const auto outputs = [&] {
    std::vector<Tensor> result;
    const auto add = [&](const Run& run) {
      result.push_back(run.y);
      for (const auto& [name, part] : run.state.named()) {
        if (!is_count(part)) result.push_back(part);
      }
    };
    add(read(subject, subject.mixer->initial_state(B), leaves[0]));
    add(read(subject, State::from_named(start), leaves[0]));
    add(read(subject, State::from_named(start), leaves[0], segments));
    return result;
  };
  return gradient_difference(outputs, leaves, names, {.elements = 4});
}

std::string fused_law(const Subject& subject) {
  const int64_t B = 2, T = 37;
  const State warm = warm_state(subject, B, 7).detach();
  const Tensor tokens_read = tokens(subject, B, T, 1);
  std::vector<std::string> names = {"x"};
  for (const auto& parameter : subject.mixer->named_parameters()) names.push_back(parameter.key());
  const auto outcome = [&](kernels::Choice choice, const Segments& segments) {
    std::vector<Tensor> leaves = {tokens_read.clone().requires_grad_()};
    for (const auto& parameter : subject.mixer->parameters()) leaves.push_back(parameter);
    const State start = warm.map([&](const Tensor& part) {
      if (is_count(part)) return part;
      leaves.push_back(part.clone().requires_grad_());
      return leaves.back();
    });
    kernels::choose(choice);
    const Run run = read(subject, start, leaves[0], segments);
    std::vector<Tensor> values = {run.y};
    for (const auto& [name, part] : run.state.named()) {
      if (!is_count(part)) values.push_back(part);
    }
    Tensor loss = at::zeros({}, tokens_read.options());
    for (size_t i = 0; i < values.size(); ++i) loss = loss + (values[i] * normal(values[i].sizes(), 70 + i)).sum();
    auto gradients = torch::autograd::grad({loss}, leaves, {}, {}, false, /*allow_unused=*/true);
    for (size_t i = 0; i < leaves.size(); ++i) {
      if (!gradients[i].defined()) gradients[i] = at::zeros_like(leaves[i]);
    }
    kernels::choose(kernels::Choice::automatic);
    return std::pair(values, gradients);
  };
  for (const auto& segments : {Segments{}, documents(B, T, {{0, 11}, {0, 12}, {1, 31}})}) {
    const auto [values, gradients] = outcome(kernels::Choice::fused, segments);
    const auto [expected, expected_gradients] = outcome(kernels::Choice::reference, segments);
    for (size_t i = 0; i < values.size(); ++i) {
      if (auto found = rms_difference(values[i], expected[i], 1e-5); !found.empty()) {
        return text(i == 0 ? "output" : "final state, part ", i, ": ", found);
      }
    }
    for (size_t i = 0; i < gradients.size(); ++i) {
      const std::string what = i < names.size() ? names[i] : text("initial state, part ", i - names.size());
      if (auto found = rms_difference(gradients[i], expected_gradients[i], 1e-4); !found.empty()) {
        return "gradient of " + what + ": " + found;
      }
    }
  }
  return "";
}

std::string constant_state_law(const Subject& subject) {
  at::NoGradGuard no_grad;
  for (const int64_t B : {1, 2}) {
    State state = subject.mixer->initial_state(B);
    const int64_t bytes = state.bytes();
    if (auto found = storage_difference(subject, state); !found.empty()) return "initial state: " + found;
    int64_t read_so_far = 0;
    for (const int64_t T : {1, 2, 16, 31}) {
      const Segments segments = T == 31 ? documents(B, T, {{B - 1, 30}}) : Segments{};
      state = read(subject, state, tokens(subject, B, T, 3), segments).state;
      read_so_far += T;
      const auto after = text("after ", read_so_far, " tokens");
      if (subject.constant_state && state.bytes() != bytes) {
        return text("the state has ", state.bytes(), " bytes ", after, ", expected ", bytes);
      }
      if (auto found = storage_difference(subject, state); !found.empty()) return after + ": " + found;
    }
  }
  return "";
}

namespace {

/// P rows that have read different texts, the first of them nothing.
State make_pool(const Subject& subject, int64_t P) {
  std::vector<State> rows = {subject.mixer->initial_state(1)};
  while (std::ssize(rows) < P) {
    const int64_t T = 3 * std::ssize(rows) - 2;
    rows.push_back(read(subject, subject.mixer->initial_state(1), tokens(subject, 1, T, 80 + T)).state);
  }
  return State::cat(rows).detach();
}

/// The same numbers, every second row of tensors twice as long.
State with_gaps(const State& pool) {
  return pool.map([](const Tensor& part) { return at::stack({part, at::ones_like(part)}, 1).select(1, 0); });
}

/// The same numbers, each row's last dimension first in memory.
State turned(const State& pool) {
  return pool.map(
      [](const Tensor& part) { return part.dim() < 3 ? part : part.transpose(1, -1).contiguous().transpose(1, -1); });
}

}  // namespace

std::string step_law(const Subject& subject) {
  if (!subject.causal) return "";
  const bool fused = kernels::chosen() == kernels::Choice::fused;
  const double tolerance = fused ? 0 : subject.tolerance;  // a step and forward have the same kernels
  const int64_t P = 5;
  const std::vector<std::vector<int64_t>> steps = {{3}, {4, 0, 2}, {0, 2, 4}, {1, 3}, {2, 1, 0, 3, 4}};
  const State start = make_pool(subject, P);
  const Tensor x = tokens(subject, P, 1, 1);
  {
    State pool = start.clone();
    const Rows one({1}, P), other({1}, P + 1);
    if (!throws_error([&] { subject.mixer->step(x.slice(0, 0, 1), pool, one); }, {"expected gradients to be off"})) {
      return "a step with gradients is no Error";
    }
    at::NoGradGuard no_grad;
    if (!throws_error([&] { subject.mixer->step(x, pool, one); }, {"expected [B=1, 1, "})) {
      return "other numbers of tokens and rows are no Error";
    }
    if (!throws_error([&] { subject.mixer->step(x.slice(0, 0, 1), pool, other); }, {"rows were chosen of 6"})) {
      return "rows of a larger pool are no Error";
    }
    if (auto found = state_difference(pool, start, 0, false); !found.empty()) return "after an Error: " + found;
  }
  at::NoGradGuard no_grad;
  std::vector<std::pair<std::string, State>> pools = {{"", start.clone()}, {"rows apart: ", with_gaps(start)}};
  if (!fused) pools.emplace_back("rows turned: ", turned(start));
  for (auto& [how, pool] : pools) {
    for (int64_t n = 0; n < 40; ++n) {
      const auto& index = steps[static_cast<size_t>(n) % steps.size()];
      const Rows rows(index, P);
      const Tensor token = tokens(subject, rows.count(), 1, 90 + static_cast<uint64_t>(n));
      const State before = pool.clone();
      const auto parts = pool.named();
      const Tensor y = subject.mixer->step(token, pool, rows);
      const auto where = text(how, "step ", n, " of rows ", at::IntArrayRef(index), ": ");
      Run expected{Tensor(), before.rows(rows.index())};
      expected.y = subject.mixer->forward(token, expected.state);
      if (auto found = difference(y, expected.y, tolerance); !found.empty()) return where + "output: " + found;
      const State after = pool.rows(rows.index());
      if (auto found = state_difference(after, expected.state, tolerance, !subject.constant_state); !found.empty()) {
        return where + found;
      }
      std::vector<int64_t> others;
      for (int64_t row = 0; row < P; ++row) {
        if (std::find(index.begin(), index.end(), row) == index.end()) others.push_back(row);
      }
      const Tensor rest = at::tensor(others, at::kLong);
      if (auto found = state_difference(pool.rows(rest), before.rows(rest), 0, !subject.constant_state);
          !found.empty()) {
        return where + "another row: " + found;
      }
      if (!subject.constant_state) continue;
      const auto now = pool.named();
      for (size_t i = 0; i < parts.size(); ++i) {
        if (!now[i].second.is_same(parts[i].second)) return where + "part " + parts[i].first + " is another tensor";
      }
    }
  }
  return "";
}

}  // namespace lineal
