#include "commands/eval_table.h"

#include <cstdio>
#include <iostream>

#include "commands/position_flags.h"
#include "commands/progress.h"
#include "commands/same_tokenizer.h"
#include "core/error.h"
#include "core/file.h"
#include "core/registry.h"
#include "objectives/objective.h"

namespace lineal {
namespace {

struct Row {
  std::string model, position;  // position "": as the model is
  Evaluation result;
};

std::string padded(std::string s, size_t width) {
  s.resize(std::max(s.size() + 1, width), ' ');
  return s;
}

void print_rows(const std::vector<Row>& rows) {
  std::vector<const Bucket*> columns;  // of the row with most buckets
  size_t width = 8;
  for (const Row& row : rows) {
    if (row.result.buckets.size() > columns.size()) {
      columns.clear();
      for (const Bucket& bucket : row.result.buckets) columns.push_back(&bucket);
    }
    width = std::max(width, row.model.size() + row.position.size() + 3);
  }
  std::cout << padded("nats per token at", width);
  for (const Bucket* bucket : columns) std::cout << padded(text(bucket->begin, "-", bucket->end - 1), 13);
  std::cout << "\n";
  for (const Row& row : rows) {
    std::cout << padded(row.model + (row.position.empty() ? "" : " " + row.position), width);
    for (const Bucket& bucket : row.result.buckets) {
      std::cout << padded(formatted("%.4f", bucket.loss.mean()), 13);
    }
    std::cout << "\n";
  }
}

std::string csv_of(const std::vector<Row>& rows) {
  const auto quoted = [](const std::string& name) {
    std::string result = "\"";
    for (const char c : name) result += c == '"' ? "\"\"" : std::string(1, c);
    return result + "\"";
  };
  std::string lines = "model,position,begin,end,tokens,nats_per_token\n";
  for (const Row& row : rows) {
    for (const Bucket& bucket : row.result.buckets) {
      lines += text(quoted(row.model), ",", row.position, ",", bucket.begin, ",", bucket.end, ",", bucket.loss.tokens,
                    ",", formatted("%.6f", bucket.loss.mean()), "\n");
    }
  }
  return lines;
}

Json json_of(const std::vector<Row>& rows) {
  Json list = Json::array();
  for (const Row& row : rows) {
    Json buckets = Json::array();
    for (const Bucket& bucket : row.result.buckets) {
      buckets.push_back({{"begin", bucket.begin},
                         {"end", bucket.end},
                         {"tokens", bucket.loss.tokens},
                         {"nats_per_token", bucket.loss.mean()}});
    }
    list.push_back({{"model", row.model},
                    {"position", row.position},
                    {"nats_per_token", row.result.loss.mean()},
                    {"tokens", row.result.tokens},
                    {"positions", buckets}});
  }
  return list;
}

}  // namespace

std::vector<std::string> position_list(const std::string& list) {
  if (list.empty()) return {};
  if (list == "all") return extrapolation_methods();
  std::vector<std::string> methods(1);
  for (const char c : list) {
    if (c == ',') {
      methods.emplace_back();
    } else {
      methods.back() += c;
    }
  }
  return methods;
}

void print_table(const TableOptions& options) {
  struct Reader {
    std::string path;
    LoadedModel loaded;
    Extrapolation how;
    std::vector<std::string> methods;  // "": as it is
  };
  std::vector<Reader> readers;
  int64_t length = options.how.original_length;
  bool any = false;
  const bool all = options.how.method == "all";
  std::string left_out;  // of all methods, those that do not fit
  for (const auto& path : options.models) {
    Reader reader{path, load_model(path), with_length(options.how, path), {""}};
    const bool attends = can_extrapolate(reader.loaded.model->config());
    if (length == 0 && (attends || options.methods.empty())) length = reader.how.original_length;
    if (attends && !options.methods.empty()) reader.methods.clear();
    any = any || attends;
    for (const auto& method : options.methods) {  // mistakes before work
      if (!attends) break;
      reader.how.method = method;
      try {
        extrapolated(*reader.loaded.model, reader.how);
        reader.methods.push_back(method);
      } catch (const Error& error) {
        if (!all) throw;
        left_out += text("left out of ", path, ": ", error.what(), "\n");
      }
    }
    const Reader& first = readers.empty() ? reader : readers.front();
    check_same_tokenizer("eval", first.path, first.loaded, path, reader.loaded);
    if (find<ObjectiveSpec>(reader.loaded.model->config().objective, "eval").masks) {
      fail("eval: ", path, " finds masked tokens, expected models that predict the next in a table by position");
    }
    readers.push_back(std::move(reader));
  }
  if (!any && !options.methods.empty()) {
    fail("eval: --position changes attention layers, and no model here has any; expected one, or no --position");
  }
  EvalOptions eval = options.eval;
  if (eval.first_bucket == 0 || eval.max_context == 0) {
    if (length == 0) {
      fail("eval: ", options.models.front(), " does not say how many tokens it was trained on, expected ",
           "--original-length, or both --buckets and --max-context");
    }
    if (eval.first_bucket == 0) eval.first_bucket = length;
    if (eval.max_context == 0) {  // the last token of the longest text is predicted from all before it
      eval.max_context = std::max<int64_t>(1, std::llround(options.how.factor * static_cast<double>(length)) - 1);
    }
  }
  const auto sources = find_sources(options.files, readers.front().loaded.tokenizer->format());
  for (const auto& source : sources) {
    if (!source.regular) fail("eval: ", source.path, " can be read once only, expected files for a table");
  }
  std::cerr << left_out;
  std::vector<Row> rows;
  for (Reader& reader : readers) {
    for (const auto& method : reader.methods) {
      auto model = reader.loaded.model;
      reader.how.method = method;
      if (!method.empty()) model = extrapolated(*model, reader.how);
      TextReader text_reader(sources, options.text);
      ReadingBar bar(sources, eval.limit);
      eval.progress = [&](int64_t tokens, int64_t bytes) { bar.draw(tokens, bytes); };
      rows.push_back({reader.path, method, evaluate(model, *reader.loaded.tokenizer, text_reader, eval)});
      bar.clear();
    }
  }
  if (!options.csv.empty()) write_atomic(options.csv, csv_of(rows));
  if (options.json) {
    std::cout << json_of(rows).dump() << "\n";
  } else {
    print_rows(rows);
  }
}

}  // namespace lineal
