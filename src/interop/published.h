// What the readers and writers of published config.json files share.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "backbones/language_model.h"

namespace lineal {

/// A family's fields with its defaults.
struct PublishedConfig : Config {
  /// Sets the fields that are there; null stands for the default, and fields of other names are passed over.
  void read_known(const Json& json, const std::string& who);
};

/// A whole number that may be null or absent: the value, or `otherwise`.
int64_t whole_or(const Json& json, const char* name, int64_t otherwise, const std::string& who);

/// Our name of an activation ("gelu_new" is gelu_tanh); another is an Error that names the field.
std::string read_activation(const std::string& field, const std::string& name, const std::string& who);
/// The published name.
std::string write_activation(const std::string& name);

/// The names under which a family keeps what rotary embedding needs, and what it takes for granted.
struct RopeNames {
  const char* theta = "rope_theta";
  const char* share = "partial_rotary_factor";  // of a head that is turned
  double default_share = 1;
  bool has_share = true;  // else a head is turned as a whole, whatever the file says, as in transformers
};
/// Options of attention for rotary embedding, from rope_scaling or rope_parameters and the fields beside them, for
/// heads of size K in a model of max_position_embeddings tokens.
Json read_rope(const Json& json, const RopeNames& names, int64_t K, int64_t length, const std::string& who);
/// Those fields of config.json, max_position_embeddings too.
Json write_rope(const Json& options, const RopeNames& names, int64_t K);

/// Every option of a layer, those at defaults that are not written too.
Json all_options(const Layer& layer);
/// Numbers of a head of an attention layer with these options, in a model of width D.
int64_t head_size_of(const Json& options, int64_t D);

/// The tokenizer of a published directory: "bpe" for tokenizer.json or vocab.json, "sentencepiece" for tokenizer.model
/// alone, "bytes" where there is none and the vocabulary has 256 tokens, else "".
std::string tokenizer_in(const std::filesystem::path& dir, int64_t vocab_size);

}  // namespace lineal
