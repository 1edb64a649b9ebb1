#include "interop/name_rules.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <set>

#include "backbones/model_files.h"
#include "core/error.h"

namespace lineal {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFile = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

std::string numbered(const std::string& name, size_t layer) {
  const auto star = name.find('*');
  return star == name.npos ? name : name.substr(0, star) + std::to_string(layer) + name.substr(star + 1);
}

/// Whether `name` is the pattern's with some number for its '*'.
bool matches(const std::string& pattern, const std::string& name) {
  const auto star = pattern.find('*');
  if (star == pattern.npos) return pattern == name;
  const std::string head = pattern.substr(0, star), tail = pattern.substr(star + 1);
  if (name.size() <= head.size() + tail.size() || !name.starts_with(head) || !name.ends_with(tail)) return false;
  const std::string number = name.substr(head.size(), name.size() - head.size() - tail.size());
  return number.find_first_not_of("0123456789") == number.npos;
}

/// One published tensor of one model.
struct Place {
  const NameRule* rule;
  std::string theirs;
  std::vector<Tensor> ours;
};

/// Places of all tensors, in the table's order; `left` are names that no rule has.
std::vector<Place> places_of(const NamedTensors& named, size_t layers, const NameRules& table,
                             std::vector<std::string>& left) {
  static const NameRule kSame;
  std::map<std::string, Tensor> own(named.begin(), named.end());
  std::vector<Place> places;
  if (table.rules.empty()) {
    for (const auto& [name, tensor] : named) places.push_back({&kSame, name, {tensor}});
    return places;
  }
  for (const NameRule& rule : table.rules) {
    const size_t count = rule.theirs.find('*') == rule.theirs.npos ? 1 : layers;
    for (size_t layer = 0; layer < count; ++layer) {
      Place place{&rule, numbered(rule.theirs, layer), {}};
      for (const auto& name : rule.ours) {
        if (const auto found = own.find(numbered(name, layer)); found != own.end()) place.ours.push_back(found->second);
      }
      if (place.ours.size() < rule.ours.size()) continue;
      for (const auto& name : rule.ours) own.erase(numbered(name, layer));
      places.push_back(std::move(place));
    }
  }
  for (const auto& [name, tensor] : named) {
    if (own.count(name) > 0) left.push_back(name);
  }
  return places;
}

/// Sizes of the published tensor, without leading ones.
std::vector<int64_t> shape_of(const Place& place) {
  std::vector<int64_t> shape = place.ours[0].sizes().vec();
  for (size_t i = 1; i < place.ours.size(); ++i) shape[0] += place.ours[i].size(0);
  const Layout layout = place.rule->layout;
  if (layout == Layout::transposed || layout == Layout::side_by_side) std::reverse(shape.begin(), shape.end());
  return shape;
}

bool has_shape(const Tensor& tensor, const Place& place) {
  std::vector<int64_t> shape = tensor.sizes().vec();
  const std::vector<int64_t> expected = shape_of(place);
  if (place.rule->layout == Layout::same) {
    while (shape.size() > expected.size() && shape[0] == 1) shape.erase(shape.begin());
  }
  return shape == expected;
}

/// Ours as they lie in theirs, which is of shape_of(): views where that is possible.
std::vector<Tensor> ours_in(const Tensor& theirs, const Place& place, int64_t heads) {
  const auto n = static_cast<int64_t>(place.ours.size());
  std::vector<Tensor> result;
  switch (place.rule->layout) {
    case Layout::same:
      result = {theirs.view(place.ours[0].sizes())};
      break;
    case Layout::transposed:
      result = {theirs.t()};
      break;
    case Layout::side_by_side: {
      std::vector<int64_t> rows;
      for (const Tensor& own : place.ours) rows.push_back(own.size(0));
      result = (theirs.dim() == 2 ? theirs.t() : theirs).split_with_sizes(rows, 0);
      break;
    }
    case Layout::by_head:
      for (const Tensor& part : theirs.unflatten(0, {heads, n, -1}).unbind(1)) result.push_back(part.flatten(0, 1));
  }
  return result;
}

Tensor theirs_of(const Place& place, int64_t heads) {
  const Tensor& first = place.ours[0];
  std::vector<Tensor> parts;
  switch (place.rule->layout) {
    case Layout::same: {
      std::vector<int64_t> shape(static_cast<size_t>(place.rule->ones), 1);
      shape.insert(shape.end(), first.sizes().begin(), first.sizes().end());
      return first.reshape(shape);
    }
    case Layout::transposed:
      return first.t();
    case Layout::side_by_side: {
      const Tensor all = at::cat(place.ours, 0);
      return all.dim() == 2 ? all.t() : all;
    }
    case Layout::by_head:
      for (const Tensor& own : place.ours) parts.push_back(own.unflatten(0, {heads, -1}));
      return at::stack(parts, 1).flatten(0, 2);
  }
  return {};
}

std::vector<FileTensor> read_index(const fs::path& dir) {
  const fs::path path = dir / kIndex;
  const Json json = read_json(path, "the file of each tensor");
  if (!json.contains("weight_map") || !json["weight_map"].is_object()) {
    fail(path.string(), ": expected a JSON object with \"weight_map\", the file of each tensor");
  }
  std::map<std::string, std::set<std::string>> files;
  for (const auto& [name, file] : json["weight_map"].items()) {
    const bool good = file.is_string() && !file.get<std::string>().empty() &&
                      fs::path(file.get<std::string>()).filename() == file.get<std::string>();
    if (!good) fail(path.string(), ": tensor ", line_of(name), " is in ", line_of(file), ", expected a file beside it");
    files[file.get<std::string>()].insert(name);
  }
  std::vector<FileTensor> result;
  for (auto& [file, names] : files) {
    const std::string who = (dir / file).string();
    for (const auto& [name, tensor] : load_safetensors(dir / file).tensors) {
      if (names.erase(name) == 0) fail(who, ": tensor ", line_of(name), " is not in ", kIndex);
      result.push_back({name, tensor, who});
    }
    if (!names.empty())
      fail(who, ": tensor ", line_of(*names.begin()), " is missing, which ", kIndex, " says is there");
  }
  return result;
}

}  // namespace

std::vector<FileTensor> read_tensors(const fs::path& dir) {
  std::error_code error;
  if (!fs::exists(dir / kFile, error)) {
    if (fs::exists(dir / kIndex, error)) return read_index(dir);
    for (const char* old : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
      if (!fs::exists(dir / old, error)) continue;
      fail("model: ", dir.string(), " has ", old, ", which only Python reads, expected ", kFile);
    }
  }
  std::vector<FileTensor> result;
  const std::string who = (dir / kFile).string();
  for (auto& [name, tensor] : load_safetensors(dir / kFile).tensors) result.push_back({name, tensor, who});
  return result;
}

void read_parameters(LanguageModel& model, const NameRules& table, int64_t heads,
                     const std::vector<FileTensor>& files) {
  const auto parameters = model.named_parameters(), buffers = model.named_buffers();
  NamedTensors own;
  for (const auto* list : {&parameters, &buffers}) {
    for (const auto& item : *list) own.emplace_back(item.key(), item.value());
  }
  std::vector<std::string> left, known;
  std::vector<Place> places = places_of(own, model.config().layers.size(), table, left);
  if (!left.empty()) fail("model: no published name for the parameter ", left[0]);
  std::map<std::string, const Place*> expected;
  for (const Place& place : places) expected[place.theirs] = &place, known.push_back(place.theirs);
  std::map<const Place*, const FileTensor*> found;
  for (const FileTensor& item : files) {
    auto at = expected.find(item.name);
    std::string name = item.name;
    if (at == expected.end()) at = expected.find(name = table.prefix + item.name);
    if (at == expected.end()) {
      const bool says_nothing = std::any_of(table.empty.begin(), table.empty.end(), [&](const std::string& pattern) {
        return matches(pattern, item.name) || matches(pattern, name);
      });
      if (says_nothing) continue;
      fail_unknown(item.file, "tensor", item.name, known);
    }
    const Place& place = *at->second;
    if (!found.emplace(&place, &item).second) fail(item.file, ": tensor ", place.theirs, " is there twice");
    if (!item.tensor.is_floating_point()) {
      fail(item.file, ": tensor ", item.name, " is ", item.tensor.dtype().name(), ", expected floats");
    }
    if (!has_shape(item.tensor, place)) {
      fail(item.file, ": tensor ", item.name, " is ", item.tensor.sizes(), ", config.json asks for ",
           at::IntArrayRef(shape_of(place)));
    }
  }
  const std::string where = files.empty() ? kFile : files[0].file;
  bool draws = false;
  for (const Place& place : places) {
    if (found.count(&place) > 0) continue;
    const bool is_buffer = table.rules.empty() && !parameters.contains(place.theirs);
    if (!is_buffer) fail(where, ": tensor ", place.theirs, " ", at::IntArrayRef(shape_of(place)), " is missing");
    draws = true;
  }
  if (draws) model.reset_parameters();
  for (const Place& place : places) {
    if (found.count(&place) == 0) continue;
    const Tensor& theirs = found[&place]->tensor;
    const std::vector<Tensor> values = ours_in(theirs, place, heads);
    bool shared = false;
    for (size_t i = 0; i < values.size(); ++i) shared = share_or_copy(place.ours[i], values[i]) || shared;
    if (!shared) drop_pages(theirs);
  }
}

NamedTensors published_tensors(const NamedTensors& ours, size_t layers, const NameRules& table, int64_t heads,
                               const std::string& who) {
  std::vector<std::string> left;
  const std::vector<Place> places = places_of(ours, layers, table, left);
  if (!left.empty()) fail(who, ": the model has the tensor ", left[0], ", for which there is no place");
  NamedTensors result;
  for (const Place& place : places) result.emplace_back(place.theirs, theirs_of(place, heads));
  return result;
}

}  // namespace lineal
