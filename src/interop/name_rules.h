// A published model's tensors and ours: one table of rules for a family, read in both directions.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <utility>
#include <vector>

#include "backbones/language_model.h"
#include "core/safetensors.h"

namespace lineal {

/// How the numbers of a published tensor lie, where ours are [out, in], or [out] for a bias.
enum class Layout {
  same,          // as ours, and sizes of one before them do not matter
  transposed,    // [in, out]
  side_by_side,  // several of ours: [in, sum of out], or [sum of out]
  by_head,       // n of ours with H heads: [H n K, in], or [H n K]: the heads of all of them in turn
};

/// One published tensor. '*' in names is the number of a layer. Of a rule whose own names a model does not have, that
/// model has no tensor.
struct NameRule {
  std::string theirs;
  std::vector<std::string> ours;
  Layout layout = Layout::same;
  int64_t ones = 0;  // sizes of one before theirs when it is written
};

/// A family's table.
struct NameRules {
  std::string prefix;              // that some files leave out before each name: "transformer."
  std::vector<NameRule> rules;     // without any, names are ours
  std::vector<std::string> empty;  // names of tensors that say nothing: masks, frequencies, copies of a tied head
};

/// A published tensor and its file.
struct FileTensor {
  std::string name;
  Tensor tensor;
  std::string file;
};

/// The tensors of dir/model.safetensors, or of the files that dir/model.safetensors.index.json names.
std::vector<FileTensor> read_tensors(const std::filesystem::path& dir);

/// Every parameter and buffer of the model becomes the file's: itself, on its memory map, where type and layout are
/// ours, else converted, one tensor after another. `heads` is H of by_head. Without rules a buffer that is not there is
/// drawn as in a new model: weights trained with attention become a Performer's. A tensor that is missing, unexpected
/// or of another shape is an Error that names file, tensor and both shapes, and changes nothing.
void read_parameters(LanguageModel& model, const NameRules& table, int64_t heads, const std::vector<FileTensor>& files);

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// Tensors of a model of that many layers, by our names -> by the family's, laid as it lays them, in the table's order;
/// one without a rule is an Error "who: ...".
NamedTensors published_tensors(const NamedTensors& ours, size_t layers, const NameRules& table, int64_t heads,
                               const std::string& who);

}  // namespace lineal
