// Words and numbers out of text as a user types them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lineal {

/// Without the white space around it.
std::string trim(std::string_view text);

/// The whole text as a decimal number: 3, -.7, 1., +1e-3. Nothing for anything else, infinities and NaN included.
std::optional<double> parse_double(std::string_view text);
/// The whole text as a decimal integer of 64 bits.
std::optional<int64_t> parse_integer(std::string_view text);

}  // namespace lineal
