#include "eval/logits.h"

#include <ATen/ATen.h>

#include <limits>

#include "core/error.h"
#include "core/file.h"
#include "core/safetensors.h"

namespace lineal {
namespace {

constexpr int64_t kMostLogits = 1 << 22;

Tensor read_ids(const std::filesystem::path& path, int64_t N) {
  const Tensor ids = load_safetensors(path).at("input_ids", path.string());
  const std::string who = text(path.string(), ": input_ids");
  if (ids.scalar_type() != at::kLong) fail(who, " is ", c10::toString(ids.scalar_type()), ", expected Long (I64)");
  if (ids.dim() != 2 || ids.numel() == 0) fail(who, " is ", ids.sizes(), ", expected [B, T], one token at least");
  const Tensor bad = (ids < 0).logical_or(ids >= N);
  if (bad.any().item<bool>()) {
    const int64_t first = bad.flatten().to(at::kByte).argmax().item<int64_t>(), T = ids.size(1);
    fail(who, " holds ", ids.flatten()[first].item<int64_t>(), " at [", first / T, ", ", first % T, "], expected 0 to ",
         N - 1);
  }
  return ids;
}

}  // namespace

int64_t tokens_per_head(const LanguageModel& model, int64_t B) {
  return std::max<int64_t>(1, kMostLogits / (B * model.config().vocab_size));
}

void write_logits(LanguageModel& model, const std::filesystem::path& in, const std::filesystem::path& out,
                  int64_t chunk) {
  if (chunk < 1) fail("eval: chunk is ", chunk, ", expected at least 1");
  at::NoGradGuard no_grad;
  const int64_t N = model.config().vocab_size;
  const Tensor ids = read_ids(in, N);
  const int64_t B = ids.size(0), T = ids.size(1), step = tokens_per_head(model, B);
  const std::string header = safetensors_header(out.string(), {{"logits", at::kFloat, {B, T, N}}}, {});
  write_atomic(out, [&](FileWriter& writer) {
    writer.write(header.data(), header.size());
    State state = model.initial_state(B);
    for (int64_t begin = 0; begin < T; begin += chunk) {
      const Tensor hidden = model.hidden(ids.slice(1, begin, std::min(begin + chunk, T)), state);
      for (int64_t from = 0; from < hidden.size(1); from += step) {
        const Tensor logits = model.head(hidden.slice(1, from, std::min(from + step, hidden.size(1))))
                                  .to(at::kFloat)
                                  .contiguous();  // [B, step, N]
        if (!(logits < std::numeric_limits<float>::infinity()).all().item<bool>()) {
          fail("eval: logits of the tokens ", begin + from, " to ", begin + from + logits.size(1) - 1,
               " are not finite; is the model sound?");
        }
        for (int64_t b = 0; b < B; ++b) {
          const Tensor row = logits[b];
          writer.write_at(header.size() + static_cast<size_t>((b * T + begin + from) * N) * sizeof(float),
                          row.const_data_ptr(), static_cast<size_t>(row.nbytes()));
        }
      }
    }
  });
}

}  // namespace lineal
