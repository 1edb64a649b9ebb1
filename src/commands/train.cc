// lineal train: learns a model from text, or goes on with a run.
#include <ATen/ATen.h>
#include <unistd.h>

#include <iomanip>
#include <iostream>

#include "backbones/model_files.h"
#include "commands/command.h"
#include "commands/interrupt.h"
#include "commands/progress.h"
#include "commands/run_text.h"
#include "core/registry.h"
#include "core/run_mark.h"
#include "data/batches.h"
#include "data/document_batches.h"
#include "interop/load.h"
#include "train/run.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

/// A bar on standard error when that is a terminal; on standard output a line per log step, unless it is a terminal
/// that shows the bar, or JSON for scripts.
class Console : public Reporter {
 public:
  explicit Console(bool json) : json_(json), bar_(!json), lines_(!bar_.shown() || !::isatty(STDOUT_FILENO)) {}

  void step(int64_t done, int64_t steps, const StepResult& result, double tokens_per_second) override {
    if (!bar_.shown()) return;
    std::ostringstream what;
    what << done << "/" << steps << "  loss " << std::fixed << std::setprecision(4) << result.loss << "  "
         << short_number(tokens_per_second) << " tokens/s";
    bar_.draw(static_cast<double>(done), static_cast<double>(steps), what.str());
  }

  void metrics(const Json& line) override {
    if (json_) {
      std::cout << line.dump() << std::endl;
      return;
    }
    if (!lines_ && !line.contains("validation_loss")) return;
    bar_.clear();
    std::ostringstream out;
    out << "step " << line["step"] << "  loss " << std::fixed << std::setprecision(4) << line["loss"].get<double>()
        << " (" << line["bits_per_token"].get<double>() << " bits)";
    if (line.contains("validation_loss")) {
      out << "  validation " << line["validation_loss"].get<double>() << " ("
          << line["validation_bits_per_token"].get<double>() << " bits)";
    }
    out << "  lr " << std::defaultfloat << line["lr"].get<double>() << "  grad norm " << std::setprecision(3)
        << line["grad_norm"].get<double>() << "  " << short_number(line["tokens_per_second"].get<double>())
        << " tokens/s";
    std::cout << out.str() << std::endl;
  }

 private:
  bool json_;
  ProgressBar bar_;
  bool lines_;
};

/// Everything that config.json says of a run.
struct Plan {
  TrainConfig train;
  std::vector<std::string> data;  // absolute
  std::string text_field = "text";
  int64_t threads = 0;           // sums depend on how they are divided among threads
  std::string tokenizer_file;    // absolute, what the tokenizer is made from; empty: nothing
  std::string init;              // absolute, a model directory to start from; empty: from random parameters
  std::string init_fingerprint;  // of that model
  std::string teacher;           // absolute, a model directory to learn from; empty: from the text alone
  std::string teacher_fingerprint;
  Json model;   // LanguageModelConfig::to_json()
  Json corpus;  // what the data held, so that resuming on other data is refused

  Json to_json() const {
    Json json = {{"train", train.write()}, {"data", data},    {"text_field", text_field},
                 {"threads", threads},     {"init", init},    {"init_fingerprint", init_fingerprint},
                 {"model", model},         {"corpus", corpus}};
    if (!tokenizer_file.empty()) json["tokenizer_file"] = tokenizer_file;
    if (!teacher.empty()) json["teacher"] = teacher, json["teacher_fingerprint"] = teacher_fingerprint;
    return json;
  }

  static Plan from_json(const Json& json, const std::string& who) {
    Plan plan;
    try {
      plan.train.read(json.at("train"), who);
      plan.data = json.at("data").get<std::vector<std::string>>();
      plan.text_field = json.at("text_field").get<std::string>();
      plan.threads = json.at("threads").get<int64_t>();
      plan.tokenizer_file = json.value("tokenizer_file", "");
      plan.teacher = json.value("teacher", "");
      plan.teacher_fingerprint = json.value("teacher_fingerprint", "");
      plan.init = json.at("init").get<std::string>();
      plan.init_fingerprint = json.at("init_fingerprint").get<std::string>();
      plan.model = json.at("model");
      plan.corpus = json.at("corpus");
    } catch (const Json::exception& error) {
      fail(who, ": not the configuration of a run: ", error.what());
    }
    if (plan.threads < 1 || plan.threads > kMostThreads) {
      fail(who, ": threads is ", plan.threads, ", expected 1 to ", kMostThreads);
    }
    return plan;
  }
};

/// As config.json keeps it: found from any folder, and text.
std::string kept_path(const std::string& path) {
  if (!is_utf8(path))
    fail("train: the name ", line_of(path), " is not UTF-8, which config.json cannot hold; rename it");
  return path == "-" ? path : fs::absolute(path).string();
}

/// `tokenizer_file`: what the tokenizer is made from, if it is made from a file.
LoadedModel make_model(const Json& json, Parameters parameters, const fs::path& tokenizer_file,
                       const std::string& who) {
  const auto config = LanguageModelConfig::from_json(json, who);
  std::shared_ptr<Tokenizer> tokenizer;
  if (!config.tokenizer.empty()) tokenizer = find<TokenizerSpec>(config.tokenizer, who).make(tokenizer_file);
  return {std::make_shared<LanguageModel>(config, parameters), tokenizer};
}

/// The model of a run's first step; fills in what the plan does not say of it yet.
LoadedModel first_model(Plan& plan, const std::string& who) {
  at::manual_seed(static_cast<uint64_t>(plan.train.seed));
  if (plan.init.empty()) return make_model(plan.model, Parameters::random, plan.tokenizer_file, who);
  const LoadedModel loaded = load_model(plan.init, plan.train.objective);
  const std::string found = fingerprint(*loaded.model);
  if (!plan.init_fingerprint.empty() && found != plan.init_fingerprint) {
    fail("train: the model ", plan.init,
         " has changed since the run began, and the run has no checkpoint yet; start it ", "again in another --out");
  }
  plan.init_fingerprint = found;
  plan.model = loaded.model->config().to_json();
  return loaded;
}

/// The model to learn from, if there is one: as it was when the run began, and of the same tokens.
std::shared_ptr<LanguageModel> teacher_of(Plan& plan, const LoadedModel& learner) {
  if (plan.teacher.empty()) return nullptr;
  const LoadedModel loaded = load_model(plan.teacher);
  const std::string found = fingerprint(*loaded.model);
  if (!plan.teacher_fingerprint.empty() && found != plan.teacher_fingerprint) {
    fail("train: the teacher ", plan.teacher, " has changed since the run began; start it again in another --out");
  }
  plan.teacher_fingerprint = found;
  const std::string &theirs = loaded.model->config().tokenizer, &ours = learner.model->config().tokenizer;
  if (theirs != ours || (loaded.tokenizer && loaded.tokenizer->identity() != learner.tokenizer->identity())) {
    fail("train: the teacher reads text as ", theirs.empty() ? "ids" : theirs, ", the model as ",
         ours.empty() ? "ids" : ours, theirs == ours ? " from another file" : "", "; expected the same tokens");
  }
  return loaded.model;
}

/// The model of a run that goes on; its parameters come with the checkpoint, if there is one.
LoadedModel resumed_model(Plan& plan, const RunFolder& folder) {
  const auto checkpoint = folder.newest();
  if (!checkpoint) return first_model(plan, (folder.path() / "config.json").string());
  const fs::path& dir = checkpoint->path;
  const std::string who = (dir / "config.json").string();
  const Json config = read_model_config(dir);
  const std::string tokenizer = config.value("tokenizer", LanguageModelConfig().tokenizer);
  const std::string file = tokenizer.empty() ? "" : find<TokenizerSpec>(tokenizer, who).file;
  return make_model(config, Parameters::empty, file.empty() ? fs::path() : dir / file, who);
}

/// Training and validation batches, and what they were cut from.
struct Text {
  TrainData batches;
  Json corpus;
  int64_t test_tokens = 0;
  std::string uncached;  // why its tokens are in memory, see TokenStore
  std::string cut;       // which documents are not read to their ends
};

/// Rows of documents, or documents one after another; what masked_lm then hides of them depends on (seed, row) alone.
TrainData make_batches(const TrainConfig& config, const Split& parts, const SpecialTokens& special,
                       const std::shared_ptr<const Masking>& masking, std::string* cut) {
  const auto seed = static_cast<uint64_t>(config.seed);
  TrainData data;
  if (config.pack == "none") {
    const DocumentRows rows{config.batch_size, config.context, special.pad.value_or(special.mask.value_or(0)),
                            !masking};
    const auto train = std::make_shared<DocumentBatches>(parts.train, rows, seed);
    data.batch = [train](int64_t number) { return train->at(number); };
    int64_t shortened = train->cut(), documents = train->documents();
    if (config.validation > 0) {
      const auto validation = std::make_shared<DocumentBatches>(parts.validation, rows, seed);
      data.validation = [validation](int64_t number) { return validation->in_order(number); };
      data.validation_batches = validation->steps_in_order();
      shortened += validation->cut(), documents += validation->documents();
    }
    if (shortened > 0) {
      *cut = text(shortened, " of ", documents, " documents are cut to their first ", config.context,
                  " tokens (--context)");
    }
  } else {
    const auto joined = [join = config.pack == "join"](Batch batch) {
      if (join) batch.segments = {};
      return batch;
    };
    const auto train = std::make_shared<Batches>(parts.train, config.batch_size, config.context, seed);
    data.batch = [train, joined](int64_t number) { return joined(train->at(number)); };
    if (config.validation > 0) {
      constexpr int64_t kMostTokens = 2048;  // of a call; the state is carried from one to the next
      const auto validation = std::make_shared<SequentialBatches>(parts.validation, config.batch_size,
                                                                  std::min(config.segment_length(), kMostTokens));
      data.validation = [validation, joined](int64_t number) { return joined(validation->at(number)); };
      data.validation_batches = validation->steps();
    }
  }
  if (!masking) return data;
  const auto hidden = [masking, B = config.batch_size](const auto& batches, uint64_t of) {
    return [=](int64_t number) { return masking->hide(batches(number), of, number * B); };
  };
  data.batch = hidden(data.batch, seed);
  if (data.validation) data.validation = hidden(data.validation, ~seed);
  return data;
}

Text open_text(const Plan& plan, const LoadedModel& loaded, bool show_progress) {
  const TrainConfig& config = plan.train;
  std::shared_ptr<const Masking> masking;
  if (find<ObjectiveSpec>(config.objective, "train").masks) {
    masking = std::make_shared<Masking>(masking_of(config, loaded, "train"));
  }
  const auto store = open_tokens(plan.data, plan.text_field, loaded, "train", show_progress);
  const Split parts = divide(store, config);
  Text result;
  result.batches = make_batches(config, parts, tokenizer_of(loaded, "train").special(), masking, &result.cut);
  result.batches.save = [tokenizer = loaded.tokenizer](const fs::path& dir) { tokenizer->save(dir); };
  result.corpus = {{"tokens", store->size()},
                   {"documents", store->documents()},
                   {"fingerprint", store->fingerprint()},
                   {"train_tokens", parts.train.tokens()}};
  result.test_tokens = parts.test.tokens();
  result.uncached = store->uncached();
  return result;
}

void print_start(const LoadedModel& loaded, const Text& text) {
  const double tokens = text.corpus["tokens"].get<double>() - static_cast<double>(text.test_tokens),
               train_tokens = text.corpus["train_tokens"].get<double>();
  if (!text.cut.empty()) std::cerr << text.cut << "\n";
  if (!text.uncached.empty()) std::cerr << "tokens are kept in memory: " << text.uncached << "\n";
  std::cerr << "model: " << short_number(static_cast<double>(loaded.model->parameter_count()))
            << " parameters; text: " << short_number(train_tokens) << " tokens to learn from, "
            << short_number(tokens - train_tokens) << " to validate on; " << at::get_num_threads() << " threads\n";
}

int run_train(const std::vector<std::string>& args) {
  CLI::App app("learns a model from text, or goes on with a run", "train");
  Plan plan;
  LanguageModelConfig model;
  std::string out, resume, note, layers = "ttt_linear*4";
  int64_t heads = 0;
  bool json = false;
  app.add_option("data", plan.data, "files or folders of text, .jsonl and .gz too; - is standard input");
  app.add_option("-o,--out", out, "folder of the run, runs/NAME");
  app.add_option("--resume", resume,
                 "folder of a run to go on with; takes no other flags but --steps, -t, --kernels and --json");
  app.add_option("--init", plan.init, "model directory or run to start from");
  app.add_option("--distill", plan.teacher, "model directory or run to learn from, a model of the same tokens");
  app.add_option(
      "--tokenizer-file", plan.tokenizer_file,
      "what the tokenizer is made from (sentencepiece: FILE.model; bpe: tokenizer.json, or a folder that has it)");
  app.add_option("--text-field", plan.text_field, "field of a JSON line that holds its text");
  app.add_flag("--json", json, "a line of JSON per log step");
  add_compute(app);
  const size_t before_model = app.get_options().size();
  app.add_option("--layers", layers, "mixers, such as 'ttt_linear(mini_batch_size=32)*3, identity' (lineal list)")
      ->capture_default_str();
  app.add_option("--num-attention-heads", heads, "heads of every mixer that has them")->check(CLI::Range(1, 1 << 20));
  add_fields(app, model, "train", {"vocab_size", "objective"});
  const size_t after_model = app.get_options().size();
  add_fields(app, plan.train, "train", {"seed", "context"});
  for (Field& field : plan.train.fields()) {
    if (field.name != "seed" && field.name != "context") continue;
    const std::string name = field.name == "seed" ? "-s,--seed" : "-c,--context";
    app.add_option_function<std::string>(
           name, [field](const std::string& value) mutable { field.parse(value, "train"); }, field.help)
        ->type_name(field.admits())
        ->default_str(field.get().dump());
  }
  if (!parse(app, args)) return 0;

  const auto options = app.get_options();
  std::unique_ptr<RunFolder> folder;
  if (!resume.empty()) {
    const std::vector<std::string> may = {"--resume", "--steps", "-t,--threads", "--kernels", "--json"};
    for (const CLI::Option* option : options) {
      if (option->count() == 0 || std::find(may.begin(), may.end(), option->get_name(false, true)) != may.end())
        continue;
      fail("train: ", option->get_name(false, true), " cannot change in a run that goes on, expected --resume ", resume,
           " alone, or with --steps, -t, --json");
    }
    folder = RunFolder::open(resume);
    if (!folder->newest()) note = resume + " has no checkpoint yet: it starts from step 0\n";
    const int64_t steps = plan.train.steps;
    plan = Plan::from_json(folder->config(), (folder->path() / "config.json").string());
    if (app.get_option("--steps")->count() > 0) plan.train.steps = steps;
    if (app.get_option("--threads")->count() == 0) at::set_num_threads(static_cast<int>(plan.threads));
  } else {
    if (out.empty()) fail("train: no folder for the run, expected --out runs/NAME (or --resume runs/NAME)");
    if (plan.data.empty()) fail("train: no text to learn from, expected files or folders before --out");
    if (!is_utf8(plan.text_field)) fail("train: --text-field is ", line_of(plan.text_field), ", expected UTF-8");
    for (std::string& path : plan.data) path = kept_path(path);
    if (!plan.init.empty()) {
      if (!plan.tokenizer_file.empty()) fail("train: --tokenizer-file does not go with --init, whose model has it");
      plan.init = kept_path(plan.init);
      for (size_t i = before_model; i < after_model; ++i) {
        if (options[i]->count() > 0)
          fail("train: ", options[i]->get_name(), " does not go with --init, whose model has it");
      }
    } else {
      Json defaults = Json::object();
      if (heads > 0) defaults["num_attention_heads"] = heads;
      model.layers = parse_plan(layers, defaults);
      model.objective = find<ObjectiveSpec>(plan.train.objective, "train").name;
      const auto& tokenizer = find<TokenizerSpec>(model.tokenizer, "train");
      if (!plan.tokenizer_file.empty()) {
        if (tokenizer.file.empty()) fail("train: tokenizer ", model.tokenizer, " needs no --tokenizer-file");
        plan.tokenizer_file = kept_path(plan.tokenizer_file);
      }
      model.vocab_size = tokenizer.make(plan.tokenizer_file)->vocab_size();
      model.validate("train");
      plan.model = model.to_json();
    }
    if (!plan.teacher.empty()) {
      plan.teacher = kept_path(plan.teacher);
      if (plan.train.objective != "causal_lm") fail("train: --distill goes with --objective causal_lm");
      if (app.get_option("--match-steps")->count() == 0) plan.train.match_steps = plan.train.steps / 2;
    } else if (app.get_option("--match-steps")->count() > 0) {
      fail("train: --match-steps goes with --distill");
    }
    plan.train.validate("train");
    if (is_run(out)) note = "the run in " + out + " has no checkpoint: a new one takes its place\n";
    folder = RunFolder::reserve(out);
  }
  plan.threads = at::get_num_threads();

  const LoadedModel loaded = resume.empty() ? first_model(plan, "train") : resumed_model(plan, *folder);
  const Text text = open_text(plan, loaded, !json);
  Trainer trainer(loaded.model, plan.train, text.batches, teacher_of(plan, loaded));
  if (!resume.empty() && plan.corpus != text.corpus) {
    fail("train: the text has changed since ", resume, " began: ", text.corpus.dump(), ", expected ",
         plan.corpus.dump());
  }
  catch_interrupts("\nfinishing this step and saving; once more to quit at once\n");
  plan.corpus = text.corpus;
  const double elapsed = restore(trainer, *folder);
  if (trainer.steps_done() >= plan.train.steps) {
    fail("train: ", folder->path().string(), " has made ", trainer.steps_done(), " of ", plan.train.steps,
         " steps; --steps ", trainer.steps_done() * 2, " would go on");
  }
  if (plan.to_json() != folder->config()) folder->set_config(plan.to_json());

  std::cerr << note;
  if (!json) print_start(loaded, text);
  bool done = false;
  {
    Console console(json);
    done = train(trainer, *folder, elapsed, console, interrupted);
  }
  if (done) {
    if (!json) std::cerr << "saved " << folder->newest()->path.string() << "\n";
    return 0;
  }
  std::cerr << "stopped after step " << trainer.steps_done() << " of " << plan.train.steps
            << "; go on with: lineal train --resume " << folder->path().string() << "\n";
  return kInterruptedCode;
}

}  // namespace

extern const CommandSpec train_spec;
const CommandSpec train_spec = {
    .name = "train",
    .help = "learn a model from text, or resume a run",
    .run = run_train,
    .less_memory = "a smaller --batch-size or model, a shorter --segment or --context, or --recompute true"};

}  // namespace lineal
