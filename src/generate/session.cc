#include "generate/session.h"

#include <ATen/ATen.h>
#include <zlib.h>

#include <algorithm>
#include <charconv>
#include <iomanip>

#include "backbones/model_files.h"
#include "core/error.h"
#include "core/registry.h"
#include "core/safetensors.h"

namespace lineal {
namespace {

using Named = std::vector<std::pair<std::string, Tensor>>;
using Metadata = std::map<std::string, std::string>;

constexpr const char* kFormat = "lineal-state-1";
constexpr const char* kPrefix = "state.";

/// CRC-32 of the metadata but the checksum, and of every tensor's name and bytes, whatever their order: eight
/// hexadecimal digits.
std::string checksum(Metadata metadata, Named tensors) {
  metadata.erase("checksum");
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  uLong crc = 0;
  const auto add = [&](const void* bytes, size_t size) { crc = crc32_z(crc, static_cast<const Bytef*>(bytes), size); };
  for (const auto& [name, value] : metadata) {
    const std::string line = name + "=" + value + "\n";
    add(line.data(), line.size());
  }
  for (const auto& [name, tensor] : tensors) {
    const Tensor plain = tensor.cpu().contiguous();
    add(name.data(), name.size());
    add(plain.const_data_ptr(), plain.nbytes());
  }
  return (std::ostringstream() << std::hex << std::setfill('0') << std::setw(8) << crc).str();
}

/// "ttt_linear*3, attention": the layers without their options.
std::string plan_of(const LanguageModel& model) {
  const auto& layers = model.config().layers;
  std::string plan;
  for (size_t i = 0, next; i < layers.size(); i = next) {
    for (next = i + 1; next < layers.size() && layers[next].mixer == layers[i].mixer;) ++next;
    plan += (plan.empty() ? "" : ", ") + layers[i].mixer + (next - i > 1 ? "*" + std::to_string(next - i) : "");
  }
  return plan;
}

int64_t read_count(const std::string& who, const std::string& value) {
  int64_t count = -1;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), count);
  if (error != std::errc() || end != value.data() + value.size() || count < 0) {
    fail(who, ": metadata tokens is '", value, "', expected a count");
  }
  return count;
}

/// Whether a part of a state may be longer along dimension 1 than the initial state's: what grows starts empty.
bool may_grow(const LanguageModel& model, const std::string& name, const Tensor& initial) {
  if (initial.dim() < 2 || initial.size(1) != 0) return false;
  const auto& layers = model.config().layers;
  return std::any_of(layers.begin(), layers.end(), [&, i = 0](const Layer& layer) mutable {
    return name.starts_with(text("layers.", i++, ".")) && !find<MixerSpec>(layer.mixer).constant_state;
  });
}

void check_part(const std::string& who, const std::string& name, const Tensor& found, const Tensor& expected,
                bool grows) {
  auto shape = expected.sizes().vec();
  if (grows && found.dim() == expected.dim()) shape[1] = found.size(1);
  if (found.sizes() != at::IntArrayRef(shape) || found.scalar_type() != expected.scalar_type()) {
    fail(who, ": tensor ", name, " is ", found.dtype().name(), " ", found.sizes(), ", this model's is ",
         expected.dtype().name(), " ", expected.sizes(), grows ? " with any second size" : "");
  }
}

}  // namespace

Session::Session(std::shared_ptr<LanguageModel> model) : model_(std::move(model)) {
  at::NoGradGuard no_grad;
  state_ = model_->initial_state(1);
}

Session::Session(std::shared_ptr<LanguageModel> model, State state, Tensor logits, int64_t tokens,
                 std::deque<int64_t> recent)
    : model_(std::move(model)),
      state_(std::move(state)),
      logits_(std::move(logits)),
      tokens_(tokens),
      recent_(std::move(recent)) {
  if (state_.first_part() && state_.batch() != 1) {
    fail("session: the state holds ", state_.batch(), " sequences, expected one");
  }
}

void Session::read(const std::vector<int64_t>& tokens) {
  const at::NoGradGuard no_grad;
  const at::AutoDispatchBelowADInplaceOrView below;  // nothing here is recorded
  const int64_t N = model_->config().vocab_size;
  for (const int64_t token : tokens) {
    if (token < 0 || token >= N) fail("session: token id ", token, " is out of range, expected 0 to ", N - 1);
  }
  const auto T = static_cast<int64_t>(tokens.size());
  for (int64_t from = 0; from < T; from += kChunk) {
    const int64_t to = std::min(from + kChunk, T);
    const Tensor part =
        at::tensor(at::ArrayRef<int64_t>(tokens).slice(static_cast<size_t>(from), static_cast<size_t>(to - from)),
                   at::kLong)
            .unsqueeze(0);
    const Tensor hidden = model_->hidden(part, state_);
    tokens_ += to - from;
    if (to == T) logits_ = model_->head(hidden.slice(1, -1)).flatten().to(at::kFloat);
  }
  for (const int64_t token : tokens) remember(token);
}

void Session::remember(int64_t token) {
  recent_.push_back(token);
  if (recent_.size() > kRecent) recent_.pop_front();
}

const Tensor& Session::logits() const {
  if (!logits_.defined()) fail("session: nothing has been read yet, expected a token at least before the next");
  return logits_;
}

std::vector<Session> Session::fork(int64_t n) const {
  std::vector<Session> sessions;
  for (int64_t i = 0; i < n; ++i) {
    sessions.push_back(*this);
    sessions.back().state_ = state_.clone();
  }
  return sessions;
}

void Session::save(const std::filesystem::path& path) const {
  const auto check = [&](const std::string& what, const Tensor& part) {
    if (part.isnan().any().item<bool>()) {
      fail("session: ", what, " after ", tokens_, " tokens holds nan, expected numbers; is the model sound?");
    }
  };
  check("the logits", logits());
  for (const auto& [name, part] : state_.named()) check("the state " + name, part);
  Named tensors;
  for (const auto& [name, part] : state_.named()) tensors.emplace_back(kPrefix + name, part.detach());
  tensors.emplace_back("last_logits", logits());
  tensors.emplace_back("recent", at::tensor(std::vector<int64_t>(recent_.begin(), recent_.end()), at::kLong));
  Metadata metadata = {{"format", kFormat},
                       {"tokens", std::to_string(tokens_)},
                       {"layers", plan_of(*model_)},
                       {"fingerprint", fingerprint(*model_)}};
  metadata["checksum"] = checksum(metadata, tensors);
  save_safetensors(path, tensors, metadata);
}

bool Session::is_saved(const std::filesystem::path& path) {
  try {
    const Metadata metadata = load_safetensors(path).metadata;
    const auto format = metadata.find("format");
    return format != metadata.end() && format->second == kFormat;
  } catch (const Error&) {
    return false;
  }
}

Session Session::load(const std::filesystem::path& path, std::shared_ptr<LanguageModel> model) {
  const std::string who = path.string();
  const SafeTensors file = load_safetensors(path);
  const auto field = [&](const std::string& name) {
    const auto found = file.metadata.find(name);
    if (found == file.metadata.end()) fail(who, ": no metadata '", name, "'; expected a file that lineal read wrote");
    return found->second;
  };
  if (field("format") != kFormat) fail(who, ": format is '", field("format"), "', expected '", kFormat, "'");
  const std::string ours = fingerprint(*model);
  if (field("fingerprint") != ours) {
    fail(who, ": saved with another model, fingerprint ", field("fingerprint"), " with layers ", field("layers"),
         "; this model's is ", ours, "; expected the model that read the text");
  }
  if (field("checksum") != checksum(file.metadata, file.tensors)) {
    fail(who, ": the checksum does not fit the content: the file is damaged; read the text again");
  }

  Session session(std::move(model));
  session.tokens_ = read_count(who, field("tokens"));
  const Named initial = session.state_.named();
  Named parts;
  for (const auto& [name, part] : initial) {
    const Tensor& found = file.at(kPrefix + name, who);
    check_part(who, kPrefix + name, found, part, may_grow(*session.model_, name, part));
    parts.emplace_back(name, found.clone());
  }
  session.state_ = State::from_named(parts);
  session.logits_ = file.at("last_logits", who).clone();
  check_part(who, "last_logits", session.logits_, at::empty({session.model_->config().vocab_size}), false);
  const Tensor& recent = file.at("recent", who);
  check_part(who, "recent", recent, at::empty({std::min<int64_t>(session.tokens_, kRecent)}, at::kLong), false);
  for (int64_t i = 0; i < recent.numel(); ++i) session.recent_.push_back(recent.const_data_ptr<int64_t>()[i]);
  if (file.tensors.size() != parts.size() + 2) {
    fail(who, ": ", file.tensors.size(), " tensors, expected ", parts.size() + 2, " for this model");
  }
  return session;
}

}  // namespace lineal
