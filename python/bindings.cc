// The compiled half of the package lineal: lineal/_C.pyi lists what is here, lineal/*.py is what users see.
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "backbones/model_files.h"
#include "core/registry.h"
#include "generate/generate.h"
#include "interop/load.h"
#include "kernels/kernels.h"
#include "kernels/unfilled.h"
#include "objectives/objective.h"

namespace lineal {
namespace {

namespace py = pybind11;
using Release = py::call_guard<py::gil_scoped_release>;
using Named = std::vector<std::pair<std::string, Tensor>>;
using Options = std::string;  // an object of JSON

struct Model {
  std::shared_ptr<LanguageModel> net;
  std::shared_ptr<Tokenizer> tokenizer;  // or null
};

Json parsed(const Options& options, const std::string& who) {
  Json json = Json::parse(options, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) fail(who, ": an option is NaN, infinite or no Unicode text, expected what JSON can hold");
  return json;
}

Named parameters(const torch::nn::Module& module) {
  Named result;
  for (const auto& item : module.named_parameters()) result.emplace_back(item.key(), item.value());
  return result;
}

Named buffers(const torch::nn::Module& module) {
  Named result;
  for (const auto& item : module.named_buffers()) result.emplace_back(item.key(), item.value());
  return result;
}

Model make_model(const Options& options) {
  const LanguageModelConfig config =
      LanguageModelConfig::from_json(parsed(options, "language_model"), "language_model");
  const TokenizerSpec& spec = find<TokenizerSpec>(config.tokenizer, "language_model");
  return {std::make_shared<LanguageModel>(config), spec.file.empty() ? spec.make() : nullptr};
}

Model load(const std::string& path) {
  LoadedModel loaded = load_model(path);
  return {loaded.model, loaded.tokenizer};
}

Tokenizer& tokenizer(const Model& model) { return tokenizer_of({model.net, model.tokenizer}, "model"); }

SpecialTokens special(const Model& model) { return model.tokenizer ? model.tokenizer->special() : SpecialTokens(); }

/// The next token of every sequence of the state, which changes in place.
Tensor step(const Model& model, const Tensor& tokens, State& state) {
  std::vector<int64_t> all(static_cast<size_t>(state.first_part() ? state.batch() : tokens.size(0)));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int64_t>(i);
  return model.net->step(tokens, state, Rows(all, static_cast<int64_t>(all.size())));
}

template <class Module>
std::pair<Tensor, State> forward(Module& module, const Tensor& x, const State& before,
                                 const std::optional<Tensor>& starts) {
  State state = before;
  Tensor y = module.forward(x, state, {starts.value_or(Tensor())});
  return {std::move(y), std::move(state)};
}

/// Ctrl-C, while Python does not run.
void check_signals() {
  const py::gil_scoped_acquire python;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

void read(const Model&, Session& session, const std::vector<int64_t>& tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  for (int64_t from = 0; from < count; from += Session::kChunk) {
    session.read({tokens.begin() + from, tokens.begin() + std::min(count, from + Session::kChunk)});
    check_signals();
  }
}

Generation continue_text(const Model& model, Session& session, const Options& sampling, uint64_t seed, int64_t length,
                         std::vector<std::string> stops, const std::optional<py::function>& on_text) {
  const Tokenizer& reads = tokenizer(model);
  if (find<ObjectiveSpec>(model.net->config().objective, "generate").masks) {
    fail("generate: this model was trained with ", model.net->config().objective,
         ", which finds masked tokens; expected one that predicts the next (causal_lm)");
  }
  SamplerConfig config;
  config.read(parsed(sampling, "generate"), "generate");
  Sampler sampler(config, seed);
  for (const int64_t token : session.recent()) sampler.observe(token);
  GenerateOptions options{.length = length, .stops = std::move(stops)};
  if (on_text) {
    options.on_text = [&](std::string_view piece) {
      const py::gil_scoped_acquire python;
      (*on_text)(py::str(piece.data(), piece.size()));
    };
  }
  options.cancelled = [] {
    check_signals();
    return false;
  };
  return generate(session, reads, sampler, options);
}

std::string options_of(const std::string& name, const Options& options) {
  auto config = find<MixerSpec>(name).config();
  config->read(parsed(options, name), name);
  return config->write().dump();
}

std::pair<Tensor, State> forward_model(const Model& model, const Tensor& tokens, const State& state,
                                       const std::optional<Tensor>& starts) {
  return forward(*model.net, tokens, state, starts);
}

void begin_step(const Model& model, int64_t step) {
  for (const auto& block : model.net->blocks()) block->mixer().begin_step(step);
}

Named take_losses(const Model& model) {
  Named losses = mixer_losses(*model.net);
  for (const auto& block : model.net->blocks()) block->mixer().losses.clear();
  return losses;
}

void save(const Model& model, const std::string& path) {
  save_model(*model.net, path);
  if (model.tokenizer) model.tokenizer->save(path);
}

Session make_session(const Model& model, const State& state, const std::optional<Tensor>& logits, int64_t tokens,
                     const std::vector<int64_t>& recent) {
  return {model.net, state.detach().clone(), logits.value_or(Tensor()), tokens, {recent.begin(), recent.end()}};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using py::arg;
  py::register_exception<Error>(m, "Error", PyExc_ValueError).doc() =
      "A mistake a user can mend: one line that says who, what, expected, got, and what would work.";
  m.attr("torch_version") = TORCH_VERSION;
  m.attr("version") = LINEAL_VERSION;
  m.def("mixers", &names<MixerSpec>, "The names of all sequence layers.");
  m.def(
      "kernels", [](const std::string& choice) { kernels::choose(choice); }, arg("choice"),
      "Which kernels run: \"auto\", the fused ones where there are any; \"reference\"; \"fused\", or an Error.");
  m.def("empty_cache", &kernels::empty_cache, Release(),
        "Gives memory of former large results, which waits for the next of their size, back to the system.");
  m.def("kernels_used", &kernels::summary, "What ran so far, in words.");

  py::class_<State>(m, "State")
      .def(py::init(&State::from_named), arg("parts"))
      .def("named", &State::named)
      .def("clone", [](const State& state) { return state.detach().clone(); })
      .def("detach", &State::detach)
      .def("rows", &State::rows, arg("index"))
      .def("batch", &State::batch);

  using torch::nn::Module;
  py::class_<Module, std::shared_ptr<Module>>(m, "Module", py::module_local())  // PyTorch has one too
      .def("named_parameters", &parameters)
      .def("named_buffers", &buffers)
      .def(
          "train", [](Module& module, bool mode) { module.train(mode); }, arg("mode"));

  py::class_<Mixer, std::shared_ptr<Mixer>, Module>(m, "Mixer")
      .def(py::init([](const std::string& name, const Options& options, int64_t hidden_size) {
             if (hidden_size < 1) fail(name, ": hidden_size is ", hidden_size, ", expected at least 1");
             return make_mixer(name, parsed(options, name), hidden_size);
           }),
           arg("name"), arg("options"), arg("hidden_size"))
      .def_static("options", &options_of, arg("name"), arg("options"))
      .def("initial_state", &Mixer::initial_state, arg("batch"), Release())
      .def("forward", &forward<Mixer>, arg("x"), arg("state"), arg("starts"), Release())
      .def("begin_step", &Mixer::begin_step, arg("step"), Release())
      .def("reset_parameters", &Mixer::reset_parameters, arg("deviation"))
      .def("take_losses", [](Mixer& mixer) { return std::exchange(mixer.losses, {}); });

  py::class_<LanguageModel, std::shared_ptr<LanguageModel>, Module>(m, "Net");

  py::class_<Model>(m, "Model")
      .def(py::init(&make_model), arg("config"), Release())
      .def_static("load", &load, arg("path"), Release())
      .def_readonly("net", &Model::net)
      .def_property_readonly("config", [](const Model& model) { return model.net->config().to_json().dump(); })
      .def_property_readonly("begin", [](const Model& model) { return special(model).begin; })
      .def_property_readonly("prompt_begin", [](const Model& model) { return special(model).prompt_begin(); })
      .def(
          "initial_state", [](const Model& model, int64_t B) { return model.net->initial_state(B); }, arg("batch"),
          Release())
      .def("forward", &forward_model, arg("tokens"), arg("state"), arg("starts"), Release())
      .def("step", &step, arg("tokens"), arg("state"), Release())
      .def("begin_step", &begin_step, arg("step"), Release())
      .def("take_losses", &take_losses)
      .def(
          "encode", [](const Model& model, const std::string& text) { return tokenizer(model).encode(text); },
          arg("text"))
      .def(
          "decode",
          [](const Model& model, const std::vector<int64_t>& ids) { return py::bytes(tokenizer(model).decode(ids)); },
          arg("ids"))
      .def("save", &save, arg("path"), Release())
      .def("read", &read, arg("session"), arg("tokens"), Release())
      .def("generate", &continue_text, arg("session"), arg("sampling"), arg("seed"), arg("max_tokens"), arg("stop"),
           arg("on_text"), Release());

  py::class_<Session>(m, "Session")
      .def(py::init(&make_session), arg("model"), arg("state"), arg("logits"), arg("tokens"), arg("recent"))
      .def_static(
          "load", [](const std::string& path, const Model& model) { return Session::load(path, model.net); },
          arg("path"), arg("model"), Release())
      .def(
          "save", [](const Session& session, const std::string& path) { session.save(path); }, arg("path"), Release())
      .def_property_readonly("state", [](const Session& session) { return session.state(); })
      .def_property_readonly("logits", &Session::logits)
      .def_property_readonly("tokens", &Session::tokens)
      .def_property_readonly("recent", [](const Session& session) {
        return std::vector<int64_t>(session.recent().begin(), session.recent().end());
      });

  py::class_<Generation>(m, "Generation")
      .def_readonly("text", &Generation::text)
      .def_readonly("tokens", &Generation::tokens)
      .def_readonly("finish", &Generation::finish)
      .def_readonly("stop", &Generation::stop);
}

}  // namespace lineal
