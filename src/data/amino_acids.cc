// Amino acids: a letter is a token, a protein a document.                                        (IUPAC-IUB, 1984)
//   0 to 19   A C D E F G H I K L M N P Q R S T V W Y
//   20 to 24  B (D or N)  O (pyrrolysine)  U (selenocysteine)  X (any)  Z (E or Q)
//   25 to 28  begin, end, mask, pad
// J (I or L), which has no token of its own, is read as X.
#include <array>

#include "core/error.h"
#include "data/tokenizer.h"

namespace lineal {
namespace {

constexpr std::string_view kLetters = "ACDEFGHIKLMNPQRSTVWYBOUXZ";
constexpr int64_t kCount = kLetters.size(), kBegin = kCount, kEnd = kCount + 1, kMask = kCount + 2, kPad = kCount + 3;

class AminoAcids : public Tokenizer {
 public:
  AminoAcids() {
    id_.fill(-1);
    for (int64_t i = 0; i < kCount; ++i) {
      const char letter = kLetters[static_cast<size_t>(i)];
      of(letter) = of(static_cast<char>(letter - 'A' + 'a')) = i;
    }
    of('J') = of('j') = of('X');
  }

  int64_t vocab_size() const override { return kPad + 1; }
  SpecialTokens special() const override { return {kBegin, kEnd, kMask, kPad}; }
  Format format() const override { return Format::fasta; }

  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int64_t> ids;
    ids.reserve(text.size());
    for (const char c : text) {
      ids.push_back(id_[static_cast<unsigned char>(c)]);
      if (ids.back() < 0) {
        fail("amino_acids: byte ", static_cast<int>(static_cast<unsigned char>(c)), " at place ", ids.size(),
             " is no amino acid, expected letters");
      }
    }
    return ids;
  }

  std::string decode(const std::vector<int64_t>& ids) const override {
    std::string letters;
    for (const int64_t id : ids) {
      if (id < 0 || id > kPad) fail("amino_acids: token id ", id, " is out of range, expected 0 to ", kPad);
      if (id < kCount) letters.push_back(kLetters[static_cast<size_t>(id)]);
    }
    return letters;
  }

 private:
  int64_t& of(char letter) { return id_[static_cast<unsigned char>(letter)]; }

  std::array<int64_t, 256> id_;
};

}  // namespace

extern const TokenizerSpec amino_acids_spec;
const TokenizerSpec amino_acids_spec = {
    .name = "amino_acids",
    .help = "a letter of a protein is a token; reads FASTA",
    .from_file = [](const std::filesystem::path&) -> std::shared_ptr<Tokenizer> {
      return std::make_shared<AminoAcids>();
    },
};

}  // namespace lineal
