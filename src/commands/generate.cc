// lineal generate: continue a prompt, a file or a saved state.
#include "generate/generate.h"

#include <iostream>

#include "commands/command.h"
#include "commands/interrupt.h"
#include "commands/output.h"
#include "commands/position_flags.h"
#include "commands/read_text.h"
#include "core/error.h"
#include "core/registry.h"
#include "objectives/objective.h"

namespace lineal {
namespace {

void print_text(std::string_view piece) {
  if (!(std::cout << piece << std::flush)) fail("generate: cannot write to standard output");
}

int run_generate(const std::vector<std::string>& args) {
  CLI::App app(
      "continues a text: -p PROMPT, -f FILE, or --state FILE.state (after which -p or -f may add more); prints what "
      "comes "
      "after it, the text itself not again (--echo: the prompt too)",
      "generate");
  std::string model, prompt, file, state, save;
  GenerateOptions options;
  SamplerConfig config;
  int64_t seed = 0;
  int64_t count = 1;
  Extrapolation how;
  bool json = false, echo = false;
  app.add_option("-m,--model", model, "model directory or run")->required();
  auto* prompt_option = app.add_option("-p,--prompt", prompt, "text to continue");
  app.add_option("-f,--file", file, "file with that text, - for standard input")->excludes(prompt_option);
  app.add_option("--state", state, "FILE.state of lineal read or --save: nothing of it is computed again");
  app.add_option("-n,--length", options.length, "most tokens to generate")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 60))
      ->capture_default_str();
  add_fields(app, config, "generate");
  app.add_option("-s,--seed", seed, "continuation i draws with seed + i")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 53))
      ->capture_default_str();
  app.add_option("--stop", options.stops, "end before this text; may be given several times")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);  // else "[a,b]" would be taken for a list
  app.add_option("--count", count, "continuations of the same text")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--save", save, "FILE.state to write after the last token, and when interrupted");
  auto* json_flag = app.add_flag("--json", json, "one JSON object per continuation");
  app.add_flag("--echo", echo, "print the prompt before its continuation")->needs(prompt_option)->excludes(json_flag);
  add_position(app, how);
  add_compute(app);
  if (!parse(app, args)) return 0;
  if (!save.empty() && count != 1) fail("generate: --save keeps one continuation, --count is ", count);
  if (!save.empty()) check_state_output("generate", "--save", save, {file}, model);
  const LoadedModel loaded = load_model(model, how);
  const Tokenizer& tokenizer = tokenizer_of(loaded, "generate");
  if (find<ObjectiveSpec>(loaded.model->config().objective, "generate").masks) {
    fail("generate: ", model, " was trained with ", loaded.model->config().objective,
         ", which finds masked tokens; expected a model that predicts the next (causal_lm)");
  }
  const auto begin = tokenizer.special().begin;
  if (prompt.empty() && file.empty() && state.empty() && !begin) {
    fail("generate: no prompt, expected -p TEXT, -f FILE or --state FILE.state");
  }
  Session session = state.empty() ? Session(loaded.model) : Session::load(state, loaded.model);
  const int64_t restored = session.tokens();
  if (!file.empty()) read_text(session, tokenizer, file, "generate");
  std::vector<int64_t> ids = tokenizer.encode(prompt);
  const bool at_once = ids.empty() && file.empty();  // a document from its beginning
  if (const auto first = at_once ? begin : tokenizer.special().prompt_begin(); session.tokens() == 0 && first) {
    ids.insert(ids.begin(), *first);
  }
  session.read(ids);

  if (!json) options.on_text = print_text;
  if (!save.empty()) {
    options.continued = true;
    options.cancelled = interrupted;
    catch_interrupts("\nsaving; once more to quit at once\n");
  }
  for (int64_t i = 0; i < count; ++i) {
    if (!json && count > 1)
      print_text(text(i > 0 ? "\n" : "", "--- ", i + 1, " of ", count, ", seed ", seed + i, "\n"));
    if (echo) print_text(prompt);
    Session own = session.fork(1)[0];
    Sampler sampler(config, static_cast<uint64_t>(seed + i));
    for (const int64_t token : own.recent()) sampler.observe(token);
    const Generation result = generate(own, tokenizer, sampler, options);
    if (json) {
      print_text(Json{{"text", result.text},
                      {"tokens", result.tokens},
                      {"finish", result.finish},
                      {"stop", result.stop},
                      {"seed", seed + i},
                      {"restored_tokens", restored},
                      {"read_tokens", session.tokens() - restored}}
                     .dump() +
                 "\n");
    }
    if (!save.empty()) own.save(save);
  }
  if (!json) print_text("\n");
  if (!interrupted()) return 0;
  std::cerr << "stopped; go on with: lineal generate -m " << model << " --state " << save << "\n";
  return kInterruptedCode;
}

}  // namespace

extern const CommandSpec generate_spec;
const CommandSpec generate_spec = {
    .name = "generate", .help = "continue a prompt, a file or a saved state", .run = run_generate};

}  // namespace lineal
