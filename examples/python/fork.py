"""Reads a document once, then goes on from it in two ways.

    python fork.py document.txt                 # with a small model that it trains on the document first
    python fork.py document.txt -m runs/books   # with a model of lineal train
"""
import argparse

import torch
from torch.nn.functional import cross_entropy

import lineal

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("document")
parser.add_argument("-m", "--model", help="model directory or run")
parser.add_argument("--layers", default="gated_delta_net*2")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--context", type=int, default=256)
arguments = parser.parse_args()
text = open(arguments.document, encoding="utf-8").read()


def train(layers, steps, context):
    """A model that predicts the next byte of `context` bytes, eight places of the document at a time."""
    model = lineal.LanguageModel(layers, hidden_size=64, intermediate_size=128)
    tokens = model.encode(text)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(steps):
        model.begin_step(step)
        start = torch.randint(len(tokens) - context, (8, 1))
        rows = tokens[start + torch.arange(context + 1)]  # [8, context + 1]
        logits = model(rows[:, :-1])  # [8, context, 256]
        loss = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + sum(model.losses.values())).backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    return model.eval()


model = lineal.load(arguments.model) if arguments.model else train(arguments.layers, arguments.steps, arguments.context)

# The state after the document. It is all that is kept of it, and with such layers of one size for any document.
state = model.read(text)
print(f"{state.tokens} tokens read, {state.nbytes} bytes of state")

# Two continuations, each from a memory of its own; nothing of the document is computed again.
for prompt in ("\nIn short, ", "\nBut why "):
    answer = model.generate(prompt, 120, temperature=0.8, seed=1, state=state)
    print("---", (prompt + answer.text).strip())

# The same by hand, token by token, in a fork; `state` stays what it was.
fork = state.fork()
written = []
for _ in range(40):
    written.append(int(fork.logits.argmax()))
    model.step(written[-1], fork)
print("--- most probable:", model.decode(written))
