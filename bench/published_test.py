"""Tiny random models of every family that Lineal reads, made by transformers: their logits, gradients and greedy
continuations must be Lineal's, and what Lineal writes back must be the same model to transformers.

    published_test.py PATH/TO/lineal PATH/TO/published_test      exit code 77 where transformers is not installed

Each is a directory as in testdata/models, read by published_test through LINEAL_PUBLISHED.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

try:
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
except ImportError as error:
    print(f"skipped: {error}; pip install transformers to compare with it")
    sys.exit(77)

T, N = 40, 61  # tokens of a text, of the vocabulary
TRANSFORMER = dict(vocab_size=N, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=36,
                   max_position_embeddings=64)
GPT2 = dict(vocab_size=N, n_embd=24, n_layer=3, n_head=4, n_positions=64)
MAMBA = dict(vocab_size=N, hidden_size=24, num_hidden_layers=2, state_size=5, conv_kernel=3)
MAMBA2 = dict(MAMBA, num_heads=6, head_dim=8, chunk_size=7)
RWKV = dict(vocab_size=N, hidden_size=24, num_hidden_layers=3, context_length=64)
# A low base and many turns, so that the ramp ends among the pairs.
YARN = dict(rope_type="yarn", rope_theta=50.0, factor=4.0, original_max_position_embeddings=300)


def rope(kind, **more):
    return dict(rope_scaling=dict(rope_type=kind, **more))


CASES = {
    "gpt2_plain": ("gpt2", GPT2),
    "gpt2_n_inner_relu": ("gpt2", dict(GPT2, n_inner=20, activation_function="relu")),
    "gpt2_untied_gelu": ("gpt2", dict(GPT2, tie_word_embeddings=False, activation_function="gelu")),
    "gpt2_no_scale": ("gpt2", dict(GPT2, scale_attn_weights=False)),
    "gpt2_scale_by_layer": ("gpt2", dict(GPT2, scale_attn_by_inverse_layer_idx=True, layer_norm_epsilon=1e-3)),
    "gpt2_silu_wide": ("gpt2", dict(GPT2, activation_function="silu", n_head=1, n_inner=100)),
    "neox_parallel": ("gpt_neox", dict(TRANSFORMER, rotary_pct=0.34)),
    "neox_sequential": ("gpt_neox", dict(TRANSFORMER, rotary_pct=0.67, use_parallel_residual=False)),
    "neox_full_tied": ("gpt_neox", dict(TRANSFORMER, rotary_pct=1.0, tie_word_embeddings=True, rotary_emb_base=500)),
    "neox_no_bias_gelu_new": ("gpt_neox", dict(TRANSFORMER, attention_bias=False, hidden_act="gelu_new",
                                               num_attention_heads=3, layer_norm_eps=1e-3)),
    "neox_odd_share": ("gpt_neox", dict(TRANSFORMER, hidden_size=36, num_attention_heads=2, rotary_pct=0.5)),
    "neox_linear": ("gpt_neox", dict(TRANSFORMER, rotary_pct=0.67, **rope("linear", factor=2.0))),
    "neox_dynamic": ("gpt_neox", dict(TRANSFORMER, rotary_pct=0.67, **rope("dynamic", factor=2.0))),
    "llama_plain": ("llama", TRANSFORMER),
    "llama_gqa_tied": ("llama", dict(TRANSFORMER, num_key_value_heads=2, tie_word_embeddings=True, rope_theta=300.0)),
    "llama_mqa_head_dim": ("llama", dict(TRANSFORMER, num_key_value_heads=1, head_dim=10)),
    "llama_biases": ("llama", dict(TRANSFORMER, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-3)),
    "llama_share_ignored": ("llama", dict(TRANSFORMER, partial_rotary_factor=0.5)),
    "llama_gelu": ("llama", dict(TRANSFORMER, hidden_act="gelu", head_dim=4)),
    "llama_linear": ("llama", dict(TRANSFORMER, **rope("linear", factor=2.5))),
    "llama_dynamic": ("llama", dict(TRANSFORMER, **rope("dynamic", factor=2.0))),
    "llama_yarn": ("llama", dict(TRANSFORMER, head_dim=16, rope_scaling=YARN)),
    "llama_yarn_factor": ("llama", dict(TRANSFORMER, head_dim=16, rope_scaling=dict(
        YARN, attention_factor=1.3, beta_fast=20.0, beta_slow=2.0, truncate=False))),
    "llama_yarn_mscale": ("llama", dict(TRANSFORMER, head_dim=16, rope_scaling=dict(
        YARN, mscale=1.2, mscale_all_dim=0.7))),
    "llama_llama3": ("llama", dict(TRANSFORMER, head_dim=16, **rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32))),
    "llama_llama3_length_beside": ("llama", dict(
        TRANSFORMER, head_dim=16, original_max_position_embeddings=16,
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32))),
    "qwen2_tied": ("qwen2", dict(TRANSFORMER, num_key_value_heads=2, tie_word_embeddings=True)),
    "qwen2_untied_yarn": ("qwen2", dict(TRANSFORMER, num_key_value_heads=4, rope_scaling=YARN)),
    "qwen2_upper_windows": ("qwen2", dict(TRANSFORMER, num_key_value_heads=1, use_sliding_window=True, sliding_window=7,
                                    max_window_layers=1)),
    "qwen2_window_ignored": ("qwen2", dict(TRANSFORMER, num_key_value_heads=2, sliding_window=7)),
    "mamba_plain": ("mamba", MAMBA),
    "mamba_biases_untied": ("mamba", dict(MAMBA, use_bias=True, tie_word_embeddings=False, time_step_rank=3, expand=3)),
    "mamba_no_conv_bias": ("mamba", dict(MAMBA, use_conv_bias=False, layer_norm_epsilon=1e-3)),
    "mamba2_one_group": ("mamba2", dict(MAMBA2, n_groups=1)),
    "mamba2_two_groups_tied": ("mamba2", dict(MAMBA2, n_groups=2, tie_word_embeddings=True, layer_norm_epsilon=1e-3)),
    "mamba2_limited_biases": ("mamba2", dict(MAMBA2, n_groups=3, use_bias=True, use_conv_bias=False,
                                             time_step_limit=(0.02, 0.05))),
    "rwkv_plain": ("rwkv", dict(RWKV, rescale_every=0)),
    "rwkv_rescaled_tied": ("rwkv", dict(RWKV, rescale_every=2, tie_word_embeddings=True, intermediate_size=33)),
    "rwkv_rescaled_deep": ("rwkv", dict(RWKV, rescale_every=1, num_hidden_layers=6)),
    "rwkv_wide_eps": ("rwkv", dict(RWKV, rescale_every=0, attention_hidden_size=31, layer_norm_epsilon=1e-3)),
}
OLD_SPELLINGS = ("llama_linear", "llama_yarn", "neox_sequential")  # of config.json


def old_spelling(config):
    """rope_parameters as the fields that they were before transformers 5."""
    parameters = config.pop("rope_parameters", None)
    if parameters is None:
        return
    neox = config["model_type"] == "gpt_neox"
    config["rotary_emb_base" if neox else "rope_theta"] = parameters.pop("rope_theta")
    share = parameters.pop("partial_rotary_factor", None)
    if neox:
        config["rotary_pct"] = share
    kind = parameters.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else dict(type=kind, **parameters)


def randomise(model):
    """Parameters of which none is an initial zero or one."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        with torch.no_grad():
            if "time_decay" in name or "A_log" in name:
                parameter.copy_(0.5 * noise)
            elif parameter.dim() == 1 or "time_mix" in name:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise * (0.7 / parameter.shape[-1] ** 0.5 if "embed" not in name else 0.7))


def logits_of(model, ids):
    """Of one call without a cache; RWKV's one-token path and its training mode differ, so both are kept out."""
    return model(input_ids=ids, use_cache=False).logits


def gradients_of(model, ids):
    """Of the mean next-token loss, by the names in the file."""
    logits = logits_of(model, ids)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    renamed = {"lm_head.weight": "embed_out.weight"} if model.config.model_type == "gpt_neox" else {}
    return {f"grad.{renamed.get(name, name)}": p.grad.clone() for name, p in model.named_parameters()}


def greedy(model, prompt, count):
    ids, steps = prompt, []
    for _ in range(count):
        steps.append(logits_of(model, ids)[:, -1])
        ids = torch.cat([ids, steps[-1].argmax(-1, keepdim=True)], 1)
    return ids[:, prompt.shape[1]:], torch.stack(steps, 1)


def make(folder, family, options):
    config = transformers.AutoConfig.for_model(family, **options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager") \
        if family in ("gpt2", "gpt_neox", "llama", "qwen2") else transformers.AutoModelForCausalLM.from_config(config)
    model = model.float().eval()
    randomise(model)
    model.tie_weights()
    model.save_pretrained(folder)
    ids = torch.randint(N, (2, T))
    save_file({"input_ids": ids}, folder / "tokens.safetensors")
    if family != "rwkv":  # whose loop writes in place, which autograd refuses
        save_file(gradients_of(model, ids), folder / "grads.safetensors")
    with torch.no_grad():
        logits = logits_of(model, ids)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        generated, steps = greedy(model, ids[:, :9], 12)
    save_file({"logits": logits.contiguous(), "loss": loss[None]}, folder / "logits.safetensors")
    save_file({"prompt": ids[:, :9].contiguous(), "generated": generated.contiguous(), "step_logits": steps.contiguous()},
              folder / "generation.safetensors")


def difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def written_back(lineal, folder, out, family, detour):
    """Largest difference of logits between the model and what Lineal writes of it, with a detour by its own layout."""
    def convert(source, to, layout):
        subprocess.run([lineal, "convert", "-m", source, "-o", to, "--to", layout], check=True, stdout=subprocess.DEVNULL)

    if detour:
        convert(folder, f"{out}.own", "lineal")
    convert(f"{out}.own" if detour else folder, out, family)
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    ids = load_file(folder / "tokens.safetensors")["input_ids"]
    with torch.no_grad():
        return difference(logits_of(model, ids), load_file(folder / "logits.safetensors")["logits"])


def main():
    lineal, test = sys.argv[1:]
    torch.manual_seed(3)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary, "published")
        for name, (family, options) in CASES.items():
            make(root / name, family, dict(options))
            if name in OLD_SPELLINGS:
                path = root / name / "config.json"
                config = json.loads(path.read_text())
                old_spelling(config)
                path.write_text(json.dumps(config))
        ran = subprocess.run([test, "--gtest_brief=1"], env=dict(os.environ, LINEAL_PUBLISHED=str(root)))
        if ran.returncode != 0:
            wrong.append("published_test failed, see above")
        seen = set()
        for name, (family, _) in CASES.items():
            found = written_back(lineal, root / name, pathlib.Path(temporary, f"back_{name}"), family, family not in seen)
            seen.add(family)
            if not found < 1e-4:
                wrong.append(f"{name}: written back, logits differ by {found:.2g}")
    print(f"{len(CASES)} models of transformers {transformers.__version__}", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
