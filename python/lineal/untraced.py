"""What torch.compile breaks its graph at. Importing torch._dynamo takes as long as PyTorch itself, so this is imported
by what it traces."""

from __future__ import annotations

from typing import Any, Callable

import torch


@torch.compiler.disable(
    reason="lineal's layers and models compute in C++, which is not traced; the operations torch.ops.lineal.NAME are"
)
def untraced(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    return function(*arguments, **keywords)
