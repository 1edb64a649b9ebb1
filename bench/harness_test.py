#!/usr/bin/env python3
"""lineal eval --task beside lm-evaluation-harness: the same questions, the same model, the same shares of right answers.

    python bench/harness_test.py build/lineal TEXT

TEXT is made into questions, half of which have an answer that the model writes; the model is a GPT-2 of random weights.
Needs torch, transformers and lm_eval, and nothing from outside; without them it says so and exits with 77.
"""
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

TASK = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/NAME.jsonl}}
test_split: test
doc_to_text: "{{query}}"
"""
KINDS = {
    "choices": """
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]
""",
    "targets": """
output_type: generate_until
doc_to_target: target
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
filter_list: [{name: words, filter: [{function: remove_whitespace}, {function: take_first}]}]
metric_list: [{metric: exact_match}]
""",
}


def make_model(torch, transformers, folder, vocabulary):
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=2000, n_positions=512, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)  # far from even odds
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=vocabulary, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = None  # as GPT-2's: nothing goes before a text
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer


def written(model, tokenizer, query):
    ids = tokenizer(query, return_tensors="pt", add_special_tokens=False).input_ids
    made = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids.size(1):]
    return tokenizer.decode(made, skip_special_tokens=True).split("\n")[0].strip()


def make_questions(folder, text, model, tokenizer, count):
    draw = random.Random(0)
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    paragraphs = [part for part in paragraphs if 80 < len(part) < 600]
    with open(folder / "choices.jsonl", "w") as choices, open(folder / "targets.jsonl", "w") as targets:
        for i in range(count):
            words = draw.choice(paragraphs).split(" ")
            half = len(words) // 2
            query = " ".join(words[:half])
            wrong = [" ".join(draw.choice(paragraphs).split(" ")[:draw.randrange(2, 12)]) for _ in range(3)]
            gold = draw.randrange(4)
            answers = wrong[:gold] + [" ".join(words[half:half + 8])] + wrong[gold:]
            choices.write(json.dumps({"query": query, "choices": answers, "gold": gold}) + "\n")
            target = written(model, tokenizer, query) if i % 2 == 0 else ""
            if not target or "\ufffd" in target:  # bytes that are no text, which transformers replaces
                target = "nothing of the kind"
            targets.write(json.dumps({"query": query, "target": target}) + "\n")


def main():
    try:
        import lm_eval
        import lm_eval.tasks
        import torch
        import transformers
    except ModuleNotFoundError as missing:
        print(f"skipped: {missing}; pip install torch==2.13.0 transformers lm_eval")
        sys.exit(77)
    lineal, text = sys.argv[1], pathlib.Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        subprocess.run([lineal, "train-tokenizer", text, "--vocab-size", "2000", "-o", folder / "tokenizer.json"],
                       check=True)
        model, tokenizer = make_model(torch, transformers, folder / "model", str(folder / "tokenizer.json"))
        make_questions(folder, text.read_text(), model, tokenizer, 200)
        (folder / "tasks").mkdir()
        for task, kind in KINDS.items():
            lines = TASK.replace("NAME", task).replace("FOLDER", str(folder)) + kind
            (folder / "tasks" / f"{task}.yaml").write_text(lines)
        theirs = lm_eval.simple_evaluate(
            model="hf", model_args={"pretrained": str(folder / "model"), "dtype": "float32"}, device="cpu",
            tasks=list(KINDS),
            task_manager=lm_eval.tasks.TaskManager(include_path=str(folder / "tasks"), include_defaults=False))["results"]
        run = subprocess.run([lineal, "eval", "-m", folder / "model", "--task", folder / "choices.jsonl", "--task",
                              folder / "targets.jsonl", "--max-answer", "8", "--json"], capture_output=True, text=True,
                             check=True)
        ours = json.loads(run.stdout)[0]["tasks"]
    pairs = [("acc", ours[0]["accuracy"], theirs["choices"], "acc,none"),
             ("acc_norm", ours[0]["accuracy_per_character"], theirs["choices"], "acc_norm,none"),
             ("acc_bytes", ours[0]["accuracy_per_byte"], theirs["choices"], "acc_bytes,none"),
             ("exact_match", ours[1]["exact_match"], theirs["targets"], "exact_match,words")]
    wrong = 0
    for metric, mine, row, key in pairs:
        error = row[key.replace(",", "_stderr,")]
        same = abs(mine["value"] - row[key]) < 1e-9 and abs(mine["error"] - error) < 1e-9
        print(f"{metric:12} {mine['value']:.4f} +- {mine['error']:.4f}  lm_eval {row[key]:.4f} +- {error:.4f}"
              f"{'' if same else '  DIFFERS'}")
        wrong += not same
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
