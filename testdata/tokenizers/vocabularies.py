"""Small vocabularies by the tokenizers library, in the configurations that published models have."""
import json, sys, os
from tokenizers import Tokenizer, models, pre_tokenizers as P, normalizers as N, decoders as D, trainers, Regex, AddedToken
text = open(sys.argv[1]).read()
out = sys.argv[2]; size = int(sys.argv[3])
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
def train(t, name, size=size, **k):
    t.train_from_iterator([text], trainers.BpeTrainer(vocab_size=size, show_progress=False, **k))
    if name != "gpt2":
        pass
    t.save(f"{out}/{name}.json", pretty=False)
    return t
def gpt2(prefix=False):
    t = Tokenizer(models.BPE()); t.pre_tokenizer = P.ByteLevel(add_prefix_space=prefix); t.decoder = D.ByteLevel()
    return t
alphabet = P.ByteLevel.alphabet()
t = train(gpt2(), "gpt2", special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
t = Tokenizer(models.BPE(ignore_merges=True)); t.decoder = D.ByteLevel()
t.pre_tokenizer = P.Sequence([P.Split(Regex(LLAMA3), "isolated"), P.ByteLevel(add_prefix_space=False, use_regex=False)])
t = train(t, "llama3", special_tokens=["<|begin_of_text|>", "<|end_of_text|>"], initial_alphabet=alphabet)
t = Tokenizer(models.BPE()); t.decoder = D.ByteLevel(); t.normalizer = N.NFC()
t.pre_tokenizer = P.Sequence([P.Split(Regex(QWEN2), "isolated"), P.ByteLevel(add_prefix_space=False, use_regex=False)])
t = train(t, "qwen2", initial_alphabet=alphabet)
t.add_special_tokens([AddedToken("<|im_start|>", normalized=False), AddedToken("<|im_end|>")])
t.add_tokens([AddedToken("  "), AddedToken("    "), AddedToken("caf\u00e9", single_word=True), AddedToken("<mask>", lstrip=True), AddedToken("<r>", rstrip=True, normalized=False)])
t.save(f"{out}/qwen2.json", pretty=False)
# Llama 2: normalizer, no pre-tokenizer; merges learned within words
t = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
t.normalizer = N.Sequence([N.Prepend("\u2581"), N.Replace(" ", "\u2581")])
t.pre_tokenizer = P.Split("\u2581", "merged_with_next")
train(t, "llama2", size=size, special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)], limit_alphabet=100)
d = json.load(open(f"{out}/llama2.json")); d["pre_tokenizer"] = None
d["added_tokens"] = d["added_tokens"][:3]
d["decoder"] = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
json.dump(d, open(f"{out}/llama2.json", "w"), ensure_ascii=False)
# Metaspace, unknown tokens, everything else at once
t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=False)); t.normalizer = N.Sequence([N.NFKC(), N.Lowercase(), N.Replace(Regex("\\s+"), " ")])
t.pre_tokenizer = P.Sequence([P.Metaspace(prepend_scheme="first"), P.Digits(individual_digits=False), P.Punctuation()]); t.decoder = D.Metaspace(prepend_scheme="first")
train(t, "metaspace", special_tokens=["<unk>"], limit_alphabet=60)
t = Tokenizer(models.BPE()); t.decoder = D.ByteLevel()
t.pre_tokenizer = P.Sequence([P.Punctuation("contiguous"), P.ByteLevel(add_prefix_space=True), P.Digits(individual_digits=True), P.Split(Regex("[aeiou][^a-z]"), "merged_with_previous")])
train(t, "falcon", initial_alphabet=alphabet)
t = Tokenizer(models.BPE()); t.decoder = D.ByteLevel(); t.normalizer = N.Sequence([N.NFKD(), N.Strip()])
t.pre_tokenizer = P.Sequence([P.Split(Regex(" ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"), "isolated"), P.Split("t", "removed"), P.Split(Regex("x*"), "merged_with_next"), P.ByteLevel(add_prefix_space=False, use_regex=False)])
train(t, "bloom", initial_alphabet=alphabet)
