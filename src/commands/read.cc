// lineal read: a document once, its state for many continuations.
#include <iostream>

#include "commands/command.h"
#include "commands/output.h"
#include "commands/position_flags.h"
#include "commands/read_text.h"
#include "core/error.h"
#include "generate/session.h"

namespace lineal {
namespace {

int run_read(const std::vector<std::string>& args) {
  CLI::App app("reads a document, of any length, and saves the state after it: lineal generate --state goes on there",
               "read");
  std::string model, document, out, state;
  Extrapolation how;
  bool json = false;
  app.add_option("document", document, "a file of text, - for standard input")->required();
  app.add_option("-m,--model", model, "model directory or run")->required();
  app.add_option("-o,--output", out, "FILE.state to write")->required();
  app.add_option("--state", state, "FILE.state to go on from");
  app.add_flag("--json", json, "for scripts");
  add_position(app, how);
  add_compute(app);
  if (!parse(app, args)) return 0;
  check_state_output("read", "--output", out, {document}, model);
  const LoadedModel loaded = load_model(model, how);
  const Tokenizer& tokenizer = tokenizer_of(loaded, "read");
  Session session = state.empty() ? Session(loaded.model) : Session::load(state, loaded.model);
  const int64_t before = session.tokens();
  read_text(session, tokenizer, document, "read");
  session.save(out);
  const int64_t bytes = session.state().bytes();
  if (json) {
    std::cout << Json{{"tokens", session.tokens()}, {"read", session.tokens() - before}, {"state_bytes", bytes}}.dump()
              << "\n";
  } else {
    std::cout << "read " << session.tokens() - before << " tokens (" << session.tokens() << " in all); state of "
              << bytes << " bytes in " << out << "\n";
  }
  return 0;
}

}  // namespace

extern const CommandSpec read_spec;
const CommandSpec read_spec = {.name = "read", .help = "read a document and save the state after it", .run = run_read};

}  // namespace lineal
