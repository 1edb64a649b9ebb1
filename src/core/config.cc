#include "core/config.h"

#include <charconv>
#include <cmath>

#include "core/error.h"

namespace lineal {
namespace {

template <class... Cases>
struct Overloaded : Cases... {
  using Cases::operator()...;
};

std::string number(double value) {
  return Json(value == std::floor(value) && std::abs(value) < 1e15 ? Json(static_cast<int64_t>(value)) : Json(value))
      .dump();
}

[[noreturn]] void fail_value(const Field& field, const std::string& who, const std::string& got) {
  fail(who, ": ", field.name, " is ", got, ", expected ", field.admits());
}

}  // namespace

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
                   if (!value.is_boolean()) fail_value(*this, who, value.dump());
                   *to = value.get<bool>();
                 },
                 [&](int64_t* to) {
                   const bool whole = value.is_number_integer() &&
                                      !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX});
                   if (!whole || !in_range(value.get<double>())) fail_value(*this, who, value.dump());
                   *to = value.get<int64_t>();
                 },
                 [&](double* to) {
                   if (!value.is_number() || !in_range(value.get<double>())) fail_value(*this, who, value.dump());
                   *to = value.get<double>();
                 },
                 [&](std::string* to) {
                   if (!value.is_string()) fail_value(*this, who, value.dump());
                   const auto chosen = value.get<std::string>();
                   const auto& choices = range.choices;
                   if (!choices.empty() && std::find(choices.begin(), choices.end(), chosen) == choices.end()) {
                     fail_value(*this, who, value.dump());
                   }
                   *to = chosen;
                 },
             },
             target);
}

void Field::parse(const std::string& value, const std::string& who) {
  if (std::holds_alternative<std::string*>(target)) return set(value, who);
  const Json parsed = Json::parse(value, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) fail_value(*this, who, "'" + value + "'");
  set(parsed, who);
}

Json Field::get() const {
  return std::visit([](auto* from) { return Json(*from); }, target);
}

void Config::read(const Json& object, const std::string& who) {
  if (!object.is_object()) fail(who, ": expected an object of options, got ", object.type_name());
  auto list = fields();
  for (const auto& [name, value] : object.items()) {
    const auto field = std::find_if(list.begin(), list.end(), [&](const Field& f) { return f.name == name; });
    if (field == list.end()) fail_unknown(who, "field", name, names());
    field->set(value, who);
  }
  validate(who);
}

Json Config::write() const {
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
