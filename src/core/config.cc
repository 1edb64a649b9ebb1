#include "core/config.h"

#include <cmath>

#include "core/error.h"
#include "core/parse.h"

namespace lineal {
namespace {

template <class... Cases>
struct Overloaded : Cases... {
  using Cases::operator()...;
};
template <class... Cases>
Overloaded(Cases...) -> Overloaded<Cases...>;

std::string number(double value) {
  return Json(value == std::floor(value) && std::abs(value) < 1e15 ? Json(static_cast<int64_t>(value)) : Json(value))
      .dump();
}

[[noreturn]] void fail_value(const Field& field, const std::string& who, std::string got,
                             const std::string& advice = "") {
  constexpr size_t kMost = 200;
  if (got.size() > kMost) {
    size_t end = kMost;
    while (end > 0 && (static_cast<unsigned char>(got[end]) & 0xC0) == 0x80) --end;
    got.replace(end, got.npos, "...");
  }
  fail(who, ": ", field.name, " is ", got, ", expected ", field.admits(), advice);
}

}  // namespace

std::string line_of(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

bool is_utf8(const std::string& bytes) { return Json::parse(line_of(bytes)) == bytes; }

std::string Field::admits() const {
  std::string kind = std::visit(Overloaded{[](bool*) { return "true or false"; }, [](int64_t*) { return "an integer"; },
                                           [](double*) { return "a number"; }, [](std::string*) { return "text"; }},
                                target);
  if (!range.choices.empty()) {
    kind = "one of";
    for (const auto& choice : range.choices) kind += " " + choice;
  } else if (std::isfinite(range.least) && std::isfinite(range.most)) {
    kind += " from " + number(range.least) + " to " + number(range.most);
  } else if (std::isfinite(range.least)) {
    kind += " of at least " + number(range.least);
  }
  return kind;
}

void Field::set(const Json& value, const std::string& who) {
  const auto in_range = [&](double v) { return v >= range.least && v <= range.most; };
  std::visit(Overloaded{
                 [&](bool* to) {
                   if (!value.is_boolean()) fail_value(*this, who, line_of(value));
                   *to = value.get<bool>();
                 },
                 [&](int64_t* to) {
                   const bool whole = value.is_number_integer() &&
                                      !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX});
                   if (!whole || !in_range(value.get<double>())) fail_value(*this, who, line_of(value));
                   *to = value.get<int64_t>();
                 },
                 [&](double* to) {
                   if (!value.is_number() || !in_range(value.get<double>())) fail_value(*this, who, line_of(value));
                   *to = value.get<double>();
                 },
                 [&](std::string* to) {
                   if (!value.is_string() || !is_utf8(value.get<std::string>())) fail_value(*this, who, line_of(value));
                   const auto chosen = value.get<std::string>();
                   const auto& choices = range.choices;
                   if (!choices.empty() && std::find(choices.begin(), choices.end(), chosen) == choices.end()) {
                     const std::string near = nearest(chosen, choices);
                     fail_value(*this, who, line_of(value), near.empty() ? "" : "; did you mean '" + near + "'?");
                   }
                   *to = chosen;
                 },
             },
             target);
}

void Field::parse(const std::string& value, const std::string& who) {
  const auto given = [&](const auto& parsed) {
    const std::string quoted = line_of(value);
    if (!parsed) fail_value(*this, who, "'" + quoted.substr(1, quoted.size() - 2) + "'");
    set(*parsed, who);
  };
  std::visit(Overloaded{
                 [&](bool*) {
                   const auto parsed =
                       value == "true" || value == "false" ? std::optional(value == "true") : std::nullopt;
                   given(parsed);
                 },
                 [&](int64_t*) { given(parse_integer(value)); },
                 [&](double*) { given(parse_double(value)); },
                 [&](std::string*) { set(value, who); },
             },
             target);
}

Json Field::get() const {
  return std::visit([](auto* from) { return Json(*from); }, target);
}

void Config::read(const Json& object, const std::string& who) {
  if (!object.is_object()) fail(who, ": expected an object of options, got ", object.type_name());
  auto list = fields();
  for (const auto& [name, value] : object.items()) {
    const auto field =
        std::find_if(list.begin(), list.end(), [&, &wanted = name](const Field& f) { return f.name == wanted; });
    if (field == list.end()) fail_unknown(who, "field", name, names());
    field->set(value, who);
  }
  validate(who);
}

Json Config::write() const {
  Json object = values();
  for (const auto& field : const_cast<Config*>(this)->fields()) {
    if (!field.unwritten.is_null() && field.get() == field.unwritten) object.erase(field.name);
  }
  return object;
}

Json Config::values() const {
  Json object = Json::object();
  for (const auto& field : const_cast<Config*>(this)->fields()) object[field.name] = field.get();
  return object;
}

std::vector<std::string> Config::names() const {
  std::vector<std::string> result;
  for (const auto& field : const_cast<Config*>(this)->fields()) result.push_back(field.name);
  return result;
}

bool Config::has(const std::string& name) const {
  const auto all = names();
  return std::find(all.begin(), all.end(), name) != all.end();
}

std::string Config::help() const {
  std::string lines;
  for (const auto& field : const_cast<Config*>(this)->fields()) {
    std::string left = "  " + field.name + " = " + field.get().dump();
    left.resize(std::max<size_t>(left.size(), 34), ' ');
    lines += left + " " + field.help + " (" + field.admits() + ")\n";
  }
  return lines;
}

}  // namespace lineal
