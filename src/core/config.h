// Options as a list of fields, written once: parsing, --help, checkpoint writing and reading all visit that list.
#pragma once

#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

namespace lineal {

using Json = nlohmann::ordered_json;

/// The value as one line; bytes that are not UTF-8 become U+FFFD.
std::string line_of(const Json& value);
/// Whether JSON can hold these bytes.
bool is_utf8(const std::string& bytes);

/// What a field admits: an interval for numbers, a choice for strings (empty: anything).
struct Range {
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  std::vector<std::string> choices;
};

inline Range at_least(double least) { return {.least = least}; }
inline Range between(double least, double most) { return {.least = least, .most = most}; }
inline Range one_of(std::vector<std::string> choices) { return {.choices = std::move(choices)}; }
/// Sizes: small enough that a product of three fits 64 bits.
inline Range size_range() { return between(1, 1 << 20); }

/// One option: its name, where it lives, what it admits, and a line of help. The default is the value it holds. A
/// field that came later has that default as `unwritten`: files and fingerprints from before it stay as they are.
struct Field {
  std::string name;
  std::variant<bool*, int64_t*, double*, std::string*> target;
  Range range;
  std::string help;
  Json unwritten = nullptr;

  /// Sets the value from JSON, or from text as a command line gives it; throws Error "who: field ... expected ... got".
  void set(const Json& value, const std::string& who);
  void parse(const std::string& value, const std::string& who);
  Json get() const;
  /// "integer, 1 to 1048576" and the like.
  std::string admits() const;
};

/// A struct of options. `fields` lists each member once; `validate` checks what one field alone cannot tell.
struct Config {
  virtual ~Config() = default;
  virtual std::vector<Field> fields() = 0;
  virtual void validate(const std::string& /*who*/) {}

  /// Sets the fields named in `object`; an unknown name is an error that suggests the nearest. Validates.
  void read(const Json& object, const std::string& who);
  /// The fields, but those that hold what they need not write.
  Json write() const;
  /// Every field.
  Json values() const;
  std::vector<std::string> names() const;
  bool has(const std::string& name) const;
  /// One line per field: name, default, range, help.
  std::string help() const;
};

}  // namespace lineal
