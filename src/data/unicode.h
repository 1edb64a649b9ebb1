// Unicode text as tokenizers see it; bytes that are no UTF-8 pass through all of this unchanged.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace lineal {

/// Bytes of the UTF-8 character that begins at text[at]; 0 when none does (The Unicode Standard, table 3-7).
size_t character_size(std::string_view text, size_t at);
/// Where the UTF-8 that begins at text[at] ends: the text's end, or the first byte that belongs to no character.
size_t valid_end(std::string_view text, size_t at);
/// The code point of one UTF-8 character.
char32_t code_point(std::string_view character);
/// Appends the UTF-8 of a code point.
void append_utf8(std::string& to, char32_t code_point);

/// The text in quotes, on one line of bounded length, whatever a file holds.
std::string shown(std::string_view text);

/// White_Space of the Unicode Character Database.
bool is_white_space(char32_t code_point);

/// Normalization Forms (Unicode Standard Annex 15).
enum class NormalForm { nfc, nfd, nfkc, nfkd };
/// Characters newer than Unicode 9 do not decompose, compose or reorder: the tokenizers library has the tables of that
/// version, and a text must become the tokens it was trained with. Time is O(n log n) in the longest run of marks.
std::string normalize(std::string_view text, NormalForm form);

/// Each character's lower case by itself, without the special case of a final sigma.
std::string lower_case(std::string_view text);

}  // namespace lineal
