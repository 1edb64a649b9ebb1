"""What the tokenizers library makes of tricky strings and of random ones of all of Unicode.

expected.py TOKENIZER.json OUT COUNT SEED   writes for each string its UTF-8, its ids and the text of these ids, each
as a little-endian count of 32 bits and so many bytes or ids of 32 bits. Exit code 77: the library is not there.
"""
import pathlib
import random
import struct
import sys

try:
    from tokenizers import Tokenizer
except ImportError:
    sys.exit(77)

WORDS = ("the of and to a in that it is was I for on you he be with as by at have are this not but had his they from she "
         "which or we an there her were one do been all their has would will what if can when so my don't I'll we've it's "
         "they're he'd I'm DON'T I'LL WE'VE IT'S THEY'RE state constant context token caf\u00e9 nai\u0308ve \u00c5ngstro\u0308m").split()
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>", "<mask>", "<r>", "<|begin_of_text|>", "caf\u00e9",
           "cafe\u0301", "<0x41>", "  ", "    ", "<|endof", "\u2581", "\u2581\u2581", "\u0120", "\u010a", "\u00ad"]
BLANKS = [" ", "  ", "\n", "\r\n", "\r", "\t", "\n\n", "   \n  ", "\u00a0", "\u3000", "\u2028", "\u0085", "\u200b", "\u180e", "\ufeff", "\v", "\f"]
JOINERS = ["\u200d", "\u200c", "\ufe0f", "\u20e3", "\U0001f3fd", "\U0001f1e9\U0001f1ea", "\u0301", "\u0323", "\u0308", "\u05b0",
           "\u0345", "\u3099", "\u1161", "\u11a8", "\u0334", "\u0f71", "\u0f72"]
RANGES = [(0x0, 0x7f), (0x80, 0x24f), (0x250, 0x36f), (0x370, 0x58f), (0x590, 0x8ff), (0x900, 0xdff), (0xe00, 0x109f),
          (0x1100, 0x11ff), (0x1200, 0x1fff), (0x2000, 0x2bff), (0x2c00, 0x2fff), (0x3000, 0x33ff), (0x3400, 0x9fff),
          (0xa000, 0xabff), (0xac00, 0xd7ff), (0xe000, 0xfaff), (0xfb00, 0xffff), (0x10000, 0x11fff), (0x12000, 0x1bfff),
          (0x1c000, 0x1efff), (0x1f000, 0x1ffff), (0x20000, 0x323af), (0x323b0, 0xdffff), (0xe0000, 0xe01ef), (0xf0000, 0x10ffff)]

TRICKY = ["", " ", "  ", "\n", " \n ", "a", " a", "Hello world", "  two  blanks  ", "I'll we've DON'T it\u2019s", "\r\n\r\n x\r\ny", "1234567 89",
          "cafe\u0301 caf\u00e9 caf\u00e9s", "\u1112\u1161\u11ab\uae00", "e\u0323\u0301 e\u0301\u0323", "\U0001f469\u200d\U0001f4bb\U0001f1e9\U0001f1ea",
          "\ufb01\u2460\u00bd\u3392", "\u0130\u017f\u1e9e", "\U000e0041\U0010ffff\u0378", "<s>a</s> <|endoftext|>\n<|im_start|>x  <mask> <r>  y",
          "\u2581\u2581a \u2581b", "tab\tvt\vff\f\u0085nel\u00a0nbsp\u3000ideographic", "\u4f60\u597d\uff0c\u4e16\u754c", "x" * 70 + " " * 9 + "y" * 3]


def character(draw):
    low, high = draw.choice(RANGES)
    while True:
        point = draw.randint(low, high)
        if not 0xd800 <= point < 0xe000:
            return chr(point)


def word(draw):
    kind = draw.randrange(8)
    if kind == 0:
        return draw.choice(SPECIAL)
    if kind == 1:
        return draw.choice(BLANKS)
    if kind == 2:
        return draw.choice(JOINERS) * draw.randint(1, 3)
    if kind == 3:
        return str(draw.randrange(10 ** draw.randint(1, 12)))
    if kind == 4:
        low, high = draw.choice(RANGES)
        return "".join(chr(p) for p in (draw.randint(low, high) for _ in range(draw.randint(1, 6))) if not 0xd800 <= p < 0xe000)
    if kind == 5:
        return character(draw) + "".join(draw.choice(JOINERS) for _ in range(draw.randint(0, 4)))
    return draw.choice(WORDS)


def string(draw):
    return "".join(word(draw) + (" " if draw.random() < .4 else "") for _ in range(draw.randint(0, 12)))


def field(values, code):
    return struct.pack(f"<I{len(values)}{code}", len(values), *values)


def record(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return field(text.encode(), "B") + field(ids, "I") + field(tokenizer.decode(ids, skip_special_tokens=True).encode(), "B")


def main(path, out, count, seed):
    tokenizer = Tokenizer.from_file(path)
    draw = random.Random(int(seed))
    with open(out, "wb") as file:
        for text in TRICKY + [string(draw) for _ in range(int(count))]:
            file.write(record(tokenizer, text))


if __name__ == "__main__":
    main(*sys.argv[1:])
