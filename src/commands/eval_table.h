// The loss by position of several models, or of one that reads in several ways, in one table.
#pragma once

#include <string>
#include <vector>

#include "data/sources.h"
#include "eval/extrapolation.h"
#include "eval/perplexity.h"

namespace lineal {

struct TableOptions {
  std::vector<std::string> models;   // paths
  std::vector<std::string> methods;  // of Extrapolation, for the models with attention; none: each model as it is
  Extrapolation how;                 // method "all": those that do not fit a model are left out and said
  EvalOptions eval;                  // first_bucket 0: original_length; max_context 0: texts of factor times as much
  std::vector<std::string> files;
  TextOptions text;
  std::string csv;  // file to write: model,position,begin,end,tokens,nats_per_token
  bool json = false;
};

/// Splits --position at commas; `all` stands for every method.
std::vector<std::string> position_list(const std::string& list);

/// Measures and prints.
void print_table(const TableOptions& options);

}  // namespace lineal
