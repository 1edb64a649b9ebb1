"""Lineal's modules as PyTorch's: their parameters are the same tensors on both sides."""

from __future__ import annotations

import functools
import json
from typing import Any, Callable, Optional, TypeVar, Union

import torch
from torch import Tensor, nn

from . import _C
from .state import State


Method = TypeVar("Method", bound=Callable[..., Any])


def graph_break(method: Method) -> Method:
    """The method as a graph break under torch.compile."""

    @functools.wraps(method)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if torch.compiler.is_compiling():
            from .untraced import untraced

            return untraced(method, *arguments, **keywords)
        return method(*arguments, **keywords)

    return call  # type: ignore[return-value]


class Part(nn.Module):
    """A node in the tree of a module's parameters."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        if local_metadata.get("assign_to_params_buffers", False):
            raise _C.Error("load_state_dict: assign=True would put other tensors beside lineal's, expected assign=False")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class Module(Part):
    """A module of lineal's: parameters, buffers, dtype, device and training mode are shared with it."""

    def __init__(self, c: _C.Module) -> None:
        super().__init__()
        self._c = c
        for name, parameter in c.named_parameters():
            parameter.__class__ = nn.Parameter
            part, leaf = self._part_of(name)
            part._parameters[leaf] = parameter
        for name, buffer in c.named_buffers():
            part, leaf = self._part_of(name)
            part._buffers[leaf] = buffer

    def _part_of(self, name: str) -> tuple[nn.Module, str]:
        *path, leaf = name.split(".")
        part: nn.Module = self
        for child in path:
            part = part._modules.setdefault(child, Part())
        return part, leaf

    def _check_type(self, name: str) -> Optional[torch.dtype]:
        """The type of its parameters, None without any."""
        dtype = None
        for parameter in self.parameters():
            dtype = parameter.dtype
            if dtype not in (torch.float32, torch.float64):
                raise _C.Error(
                    f"{name}: its parameters are {dtype}, expected torch.float32 or torch.float64; "
                    "under torch.autocast float32 parameters compute in torch.bfloat16"
                )
        return dtype

    def train(self, mode: bool = True) -> Module:
        super().train(mode)
        self._c.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Module:
        own = [(part, name, buffer) for part in self.modules() for name, buffer in part._buffers.items()]
        super()._apply(fn, recurse)
        for part, name, buffer in own:  # PyTorch replaces buffers, and changes parameters in place
            buffer.data = part._buffers[name]
            part._buffers[name] = buffer
        return self


class Mixer(Module):
    """One sequence layer; make it with `lineal.mixer`.

    - `name`, `hidden_size`, `config`: what it was made of; config has every option
    - `losses`: what else its last forward in training mode leaves to minimise, scalars by name (vq_attention: its
      commitment), weighted already
    """

    def __init__(self, name: str, hidden_size: int, /, **options: Any) -> None:
        given = json.dumps(options)
        self.name = name
        self.hidden_size = hidden_size
        self.config: dict[str, Any] = json.loads(_C.Mixer.options(name, given))
        self.losses: dict[str, Tensor] = {}
        super().__init__(_C.Mixer(name, given, hidden_size))

    @graph_break
    def initial_state(self, batch: int = 1) -> State:
        """The state before the first token, for B = batch sequences."""
        self._check_type(self.name)
        return State._of(self._c.initial_state(batch))

    @graph_break
    def forward(
        self, x: Tensor, state: Optional[State] = None, starts: Optional[Tensor] = None
    ) -> Union[Tensor, tuple[Tensor, State]]:
        """x [B, T, D] -> y [B, T, D], and with `state` also the state after the last token.

        starts: bool [B, T], true at the first token of a document, before which the state restarts. Any split of a
        text into calls gives the same outputs and state, gradients included.
        """
        self._check(x, state)
        before = self.initial_state(len(x)) if state is None else state
        y, after = self._c.forward(x, before._c, starts)
        self.losses = dict(self._c.take_losses())
        return y if state is None else (y, State._of(after))

    def _check(self, x: Tensor, state: Optional[State]) -> None:
        if state is not None and not isinstance(state, State):
            raise _C.Error(f"state: it is {type(state).__name__}, expected a lineal.State")
        dtype = self._check_type(self.name) or x.dtype
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise _C.Error(f"x: it is {x.dtype}, expected {dtype} as the parameters of {self.name} are")

    def begin_step(self, step: int) -> None:
        """Training is about to make its step `step`, from 0: what changes by the clock and not by the gradient
        changes here (performer: new random features; vq_attention: the codebook)."""
        self._c.begin_step(step)

    def reset_parameters(self, deviation: float = 0.02) -> None:
        """Draws all anew; weights of linear maps are N(0, deviation^2)."""
        self._c.reset_parameters(deviation)

    def extra_repr(self) -> str:
        return f"{self.name!r}, {self.hidden_size}"

    def __reduce__(self) -> tuple[Any, ...]:
        frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        return _restore, (self.name, self.hidden_size, self.config, self.state_dict(), self.training, frozen)


def _restore(
    name: str, hidden_size: int, config: dict[str, Any], tensors: dict[str, Tensor], training: bool, frozen: list[str]
) -> Mixer:
    layer = Mixer(name, hidden_size, **config)
    floats = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    if floats:
        layer.to(floats[0].device, floats[0].dtype)
    layer.load_state_dict(tensors)
    for key, parameter in layer.named_parameters():
        parameter.requires_grad_(key not in frozen)
    return layer.train(training)


def mixer(name: str, hidden_size: int, /, **options: Any) -> Mixer:
    """A sequence layer of width D = hidden_size for a PyTorch model: `lineal.mixer("performer", 64)`.

    `lineal.mixers()` names what there is, `lineal list NAME` on the command line the options of each. Parameters are
    drawn from PyTorch's generator (torch.manual_seed). An unknown name or option is an Error that suggests the nearest.
    """
    return Mixer(name, hidden_size, **options)
