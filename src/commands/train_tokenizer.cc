// lineal train-tokenizer: learns a vocabulary from text.
#include <algorithm>
#include <filesystem>
#include <iostream>

#include "commands/command.h"
#include "commands/progress.h"
#include "core/error.h"
#include "core/file.h"
#include "data/bpe_trainer.h"
#include "data/pieces.h"
#include "data/sources.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDocument = "<|endoftext|>";

/// The text, piece by piece, with a bar for how much of it is read.
class TrainingText {
 public:
  TrainingText(const std::vector<std::string>& paths, const std::string& field, bool show_progress)
      : sources_(find_sources(paths)), reader_(sources_, {field}), bar_(show_progress) {
    for (const Source& source : sources_) total_ += static_cast<double>(source.size);
  }
  bool next(TextPiece& piece) {
    if (!reader_.next(piece)) {
      bar_.clear();
      return false;
    }
    bytes_ += static_cast<double>(piece.bytes.size());
    bar_.draw(static_cast<double>(reader_.bytes_read()), total_,
              text("reading text: ", short_number(bytes_), " bytes"));
    return true;
  }
  double bytes() const { return bytes_; }

 private:
  std::vector<Source> sources_;
  TextReader reader_;
  ProgressBar bar_;
  double total_ = 0, bytes_ = 0;
};

/// tokenizer.json
std::string train_byte_bpe(TrainingText& data, int64_t vocabulary, bool show_progress, int64_t& tokens) {
  BpeTrainer trainer;
  for (TextPiece piece; data.next(piece);) trainer.read(piece.bytes);
  ProgressBar bar(show_progress);
  const auto progress = [&](int64_t done) {
    bar.draw(static_cast<double>(done), static_cast<double>(vocabulary), text(done, "/", vocabulary, " tokens"));
  };
  const BpeModel model = trainer.train(vocabulary, kDocument, progress);
  bar.clear();
  tokens = static_cast<int64_t>(model.vocabulary.size());
  return write_tokenizer_json(model, kDocument);
}

/// Lines of at most so many bytes, what SentencePiece calls sentences: longer ones are cut before a blank or, where
/// there is none, after a character.
class Lines {
 public:
  explicit Lines(TrainingText& data) : data_(data) {}
  bool next(std::string& line) {
    while (at_ == held_.size()) {
      TextPiece piece;
      if (!data_.next(piece)) return false;
      held_ = piece.bytes;
      at_ = 0;
    }
    size_t end = std::min(held_.find('\n', at_), held_.size());
    const bool whole = end - at_ <= kMost;
    if (!whole) {
      end = held_.rfind(' ', at_ + kMost);
      if (end == held_.npos || end <= at_) {
        for (end = at_ + kMost; end > at_ + 1 && (static_cast<unsigned char>(held_[end]) & 0xC0) == 0x80;) --end;
      }
    }
    line = held_.substr(at_, end - at_);
    at_ = whole ? std::min(end + 1, held_.size()) : end;
    return true;
  }

 private:
  static constexpr size_t kMost = 4192;  // spm_train's default
  TrainingText& data_;
  std::string held_;
  size_t at_ = 0;
};

/// tokenizer.model, by SentencePiece's own trainer. Text is kept as it is, and what has no piece becomes bytes.
std::string train_pieces(TrainingText& data, const std::string& type, int64_t vocabulary) {
  Lines lines(data);
  const auto train = reinterpret_cast<TrainPieceModel>(piece_function(kTrainPieceModel));
  std::string model;
  std::string wrong = train(
      {{"model_type", type},
       {"vocab_size", std::to_string(vocabulary)},
       {"normalization_rule_name", "identity"},
       {"remove_extra_whitespaces", "false"},
       {"byte_fallback", "true"},
       {"num_threads", "16"},  // sums depend on it
       {"minloglevel", "2"}},
      [&](std::string& line) { return lines.next(line); }, model);
  std::replace(wrong.begin(), wrong.end(), '\n', ' ');
  if (!wrong.empty()) fail("train-tokenizer: sentencepiece refuses --vocab-size ", vocabulary, " or the text: ", wrong);
  return model;
}

int run_train_tokenizer(const std::vector<std::string>& args) {
  CLI::App app("learns a vocabulary from text, for lineal train --tokenizer NAME --tokenizer-file", "train-tokenizer");
  std::vector<std::string> data;
  std::string out, type = "byte_bpe", field = "text";
  int64_t vocabulary = 8192;
  bool json = false;
  app.add_option("data,--data", data, "files or folders of text, .jsonl and .gz too; - is standard input")->required();
  app.add_option("-o,--out", out, "file to write, or a folder for tokenizer.json or tokenizer.model")->required();
  app.add_option("--type", type,
                 "byte_bpe: byte pair encoding as in GPT-2, a tokenizer.json for --tokenizer bpe; unigram, bpe: "
                 "SentencePiece's, a tokenizer.model for --tokenizer sentencepiece")
      ->check(CLI::IsMember({"byte_bpe", "unigram", "bpe"}))
      ->capture_default_str();
  app.add_option("--vocab-size", vocabulary, "tokens, bytes and special ones among them")
      ->check(CLI::Range(int64_t{257}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--text-field", field, "field of a JSON line that holds its text")->capture_default_str();
  app.add_flag("--json", json, "for scripts");
  if (!parse(app, args)) return 0;

  const bool byte_bpe = type == "byte_bpe";
  const std::string name = byte_bpe ? "tokenizer.json" : "tokenizer.model";
  fs::path file = out;
  std::error_code error;
  if (file.extension() != fs::path(name).extension()) {
    fs::create_directories(file, error);
    if (error) fail("train-tokenizer: cannot make the folder --out ", out, ": ", error.message());
    file /= name;
  }
  if (fs::exists(file, error)) fail("train-tokenizer: ", file.string(), " exists, expected a new --out");

  TrainingText texts(data, field, !json);
  int64_t tokens = vocabulary;
  write_atomic(file,
               byte_bpe ? train_byte_bpe(texts, vocabulary, !json, tokens) : train_pieces(texts, type, vocabulary));
  if (json) {
    std::cout
        << Json{{"file", file.string()}, {"tokens", tokens}, {"bytes", static_cast<int64_t>(texts.bytes())}}.dump()
        << "\n";
  } else {
    std::cout << "saved " << file.string() << ": " << tokens << " tokens, from " << short_number(texts.bytes())
              << " bytes of text"
              << (tokens < vocabulary ? text("; fewer than ", vocabulary, ", as no pair occurs twice any more") : "")
              << "\n";
  }
  return 0;
}

}  // namespace

extern const CommandSpec train_tokenizer_spec;
const CommandSpec train_tokenizer_spec = {.name = "train-tokenizer",
                                          .help = "learn a vocabulary from text",
                                          .run = run_train_tokenizer,
                                          .less_memory = "less text"};

}  // namespace lineal
