"""Sequence models whose cost per token does not grow with the context.

    model = lineal.load("runs/books")
    print(model.generate("It was", 400, temperature=0.8).text)

A layer's memory of what it has read is a State, a value: named tensors that can be copied, forked, batched and saved.
`lineal.mixer("performer", 64)` is one layer for a PyTorch model of your own; `torch.ops.lineal.NAME` are the fused
operations alone, differentiable and known to torch.compile.
"""

from __future__ import annotations

import torch

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        f"lineal: its compiled part does not load into PyTorch {torch.__version__} ({error}); install it again: "
        "pip install --force-reinstall --no-deps FOLDER"
    ) from error

if torch.__version__.split(".")[:2] != _C.torch_version.split(".")[:2]:
    raise ImportError(
        f"lineal: it was compiled with PyTorch {_C.torch_version}, this is {torch.__version__}; install it again: "
        "pip install --force-reinstall --no-deps FOLDER"
    )

from ._C import Error, empty_cache, kernels, mixers
from .model import Generation, LanguageModel, load, load_state
from .module import Mixer, mixer
from .state import State

Error.__module__ = "lineal"
__version__ = _C.version
__all__ = [
    "Error",
    "Generation",
    "LanguageModel",
    "Mixer",
    "State",
    "empty_cache",
    "kernels",
    "load",
    "load_state",
    "mixer",
    "mixers",
]
