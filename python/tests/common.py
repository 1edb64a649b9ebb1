"""What the tests share: the program, the test data, a small model of several layers."""
import json
import os
import pathlib
import struct
import subprocess

import torch

import lineal

PROGRAM = os.environ["LINEAL_PROGRAM"]
TESTDATA = pathlib.Path(os.environ["LINEAL_TESTDATA"])
TEXT = "The state is a value: it can be copied, forked, moved between batches, saved and loaded. "

torch.set_num_threads(1)


def program(*arguments):
    """Standard output of `lineal ...` on one thread."""
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"lineal {' '.join(map(str, arguments))}: {done.stderr}")
    return done.stdout


def tensors(path):
    """A safetensors file."""
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    types = {"F32": torch.float32, "I64": torch.int64, "I32": torch.int32}
    result = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            flat = torch.frombuffer(bytearray(data[8 + size + begin:8 + size + end]), dtype=types[entry["dtype"]])
            result[name] = flat.reshape(entry["shape"])
    return result


def small_model():
    """Random weights, of the size of trained ones: what it writes is noise, but not one letter."""
    torch.manual_seed(5)
    layers = ("ttt_linear(mini_batch_size=4), delta_net, performer(num_features=16), attention, "
              "vq_attention(num_codes=7, window=6, chunk_size=4), mamba, identity")
    model = lineal.LanguageModel(layers, hidden_size=24, intermediate_size=40, pre_conv=True, initializer_range=0.3)
    return model.eval()


def ids(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed))
