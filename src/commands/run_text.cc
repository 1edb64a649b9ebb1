#include "commands/run_text.h"

#include "commands/progress.h"
#include "core/error.h"
#include "core/file.h"
#include "core/run_mark.h"

namespace lineal {

RunText read_run_text(const std::filesystem::path& run, const std::string& who) {
  if (!is_run(run)) {
    fail(who, ": ", run.string(),
         " is no run, whose config.json would tell what it learned from; expected -m runs/NAME");
  }
  const std::string path = (run / "config.json").string();
  RunText text;
  try {
    const Json json = Json::parse(read_file(path));
    text.train.read(json.at("train"), path);
    text.data = json.at("data").get<std::vector<std::string>>();
    text.text_field = json.at("text_field").get<std::string>();
  } catch (const Json::exception& error) {
    fail(path, ": not the configuration of a run: ", error.what());
  }
  return text;
}

std::shared_ptr<const TokenStore> open_tokens(const std::vector<std::string>& data, const std::string& text_field,
                                              const LoadedModel& loaded, const std::string& who, bool show_progress) {
  TokenStoreOptions options;
  options.text.text_field = text_field;
  ProgressBar bar(show_progress);
  options.progress = [&bar](int64_t read, int64_t total) {
    bar.draw(static_cast<double>(read), static_cast<double>(total),
             text("reading text: ", short_number(static_cast<double>(read)), " bytes"));
  };
  auto store = TokenStore::open(data, tokenizer_of(loaded, who),
                                loaded.model->config().tokenizer + tokenizer_of(loaded, who).identity(), options);
  bar.clear();
  return store;
}

Split divide(const std::shared_ptr<const TokenStore>& store, const TrainConfig& train) {
  return split(store, train.validation, static_cast<uint64_t>(train.seed), train.test);
}

Masking masking_of(const TrainConfig& train, const LoadedModel& loaded, const std::string& who) {
  return {who,
          loaded.model->config().tokenizer,
          tokenizer_of(loaded, who),
          {train.mask_fraction, train.mask_share, train.random_share}};
}

}  // namespace lineal
