// The safetensors format: 8 bytes of header length, a JSON header, tensor bytes.       docs/formats.md
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace lineal {

using at::Tensor;

struct SafeTensors {
  std::vector<std::pair<std::string, Tensor>> tensors;  // in the file's order of offsets
  std::map<std::string, std::string> metadata;

  const Tensor* find(const std::string& name) const;
  /// The tensor of that name; throws Error naming `who` and the nearest name.
  const Tensor& at(const std::string& name, const std::string& who) const;
};

/// Tensors share a private memory map of the file, so nothing is read before it is used; writing to them does not reach
/// the file. Every length, offset, shape product and overlap is checked: a bad file is an Error that names the file,
/// the tensor, what was expected and what was found, and nothing is allocated beyond what the file's size justifies.
SafeTensors load_safetensors(const std::filesystem::path& path);

/// Gives back the memory of a tensor on a file's map, but for the pages it shares with others: numbers that were not
/// changed are read again when they are used again. For one that load_safetensors returned.
void drop_pages(const Tensor& tensor);

/// Atomic. Tensors of any strides and device, in the given order; F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL.
void save_safetensors(const std::filesystem::path& path, const std::vector<std::pair<std::string, Tensor>>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

/// What the header says of one tensor.
struct TensorEntry {
  std::string name;
  at::ScalarType type;
  std::vector<int64_t> shape;
};

/// The bytes before the first tensor's, for tensors that follow each other in this order: a multiple of 8, padded with
/// spaces to `length` when that is given. Throws Error naming `who` and the tensor for a name given twice, a type the
/// format lacks, text that is not UTF-8, or a header that does not fit.
std::string safetensors_header(const std::string& who, const std::vector<TensorEntry>& entries,
                               const std::map<std::string, std::string>& metadata, size_t length = 0);

}  // namespace lineal
