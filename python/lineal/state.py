"""The state is a value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ItemsView, Iterator, Mapping, Optional, ValuesView

import torch
from torch import Tensor

from . import _C

if TYPE_CHECKING:
    from .model import LanguageModel

RECENT = 1024  # tokens a state knows by their ids, for the repetition penalty and unfinished characters


class State(Mapping[str, Tensor]):
    """What a layer or a model remembers of what it has read, for B sequences: tensors [B, ...] by name.

    `state["layers.0.mixer.S"]` is the tensor itself, not a copy. A call with a state returns a new one and leaves the
    old as it was; only `LanguageModel.step` changes the state it is given.

    A model's state also has

    - `tokens`: how many it has read
    - `logits`: float32 [B, N], of the next token; None before the first
    - `model`: whose it is
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        """A layer's state from its tensors: `State(dict(state))` is `state`."""
        self._c = _C.State(list(parts.items()))
        self._alone = False  # whether nobody else has its tensors
        self.model: Optional[LanguageModel] = None
        self.tokens = 0
        self.logits: Optional[Tensor] = None
        self._recent = torch.empty(0, 0, dtype=torch.long)

    @classmethod
    def _of(cls, c: _C.State, like: Optional[State] = None) -> State:
        state = cls({})
        state._c = c
        if like is not None:
            state.model, state.tokens = like.model, like.tokens
            state.logits, state._recent = like.logits, like._recent
        return state

    def _after(self, c: _C.State, tokens: Tensor, logits: Tensor) -> State:
        """After `tokens` [B, T] more, with the logits [B, N] of the next."""
        state = self._of(c, self)
        state._count(tokens, logits)
        return state

    def _count(self, tokens: Tensor, logits: Tensor) -> None:
        ids = tokens.detach().to("cpu", torch.long)
        self._recent = torch.cat([self._recent, ids], 1)[:, -RECENT:]
        self.tokens += ids.shape[1]
        self.logits = logits.detach().to(torch.float32, copy=True)

    def _parts(self) -> dict[str, Tensor]:
        return dict(self._c.named())

    def __getitem__(self, name: str) -> Tensor:
        return self._parts()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts())

    def __len__(self) -> int:
        return len(self._parts())

    def items(self) -> ItemsView[str, Tensor]:
        return self._parts().items()

    def values(self) -> ValuesView[Tensor]:
        return self._parts().values()

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}: {list(part.shape)}" for name, part in self.items())
        return f"State({parts})"

    @property
    def batch(self) -> int:
        """Sequences it holds."""
        return self._c.batch()

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.numel() * part.element_size() for part in self.values())

    def fork(self) -> State:
        """The same with memory of its own, apart from any graph."""
        state = self._of(self._c.clone(), self)
        state._alone = True
        return state

    copy = fork
    __copy__ = fork

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        return self.fork()

    def detach(self) -> State:
        """The same memory without the graph that made it, for truncated backpropagation through time."""
        return self._of(self._c.detach(), self)

    def rows(self, index: Tensor) -> State:
        """Some of its sequences, int64 [R], in any order; repeats allowed."""
        index = torch.as_tensor(index, dtype=torch.long)
        state = self._of(self._c.rows(index), self)
        if self.model is not None:
            state._recent = self._recent[index.cpu()]
        if self.logits is not None:
            state.logits = self.logits[index.to(self.logits.device)]
        return state

    def save(self, path: str) -> None:
        """Writes FILE.state, which `lineal.load_state` and `lineal generate --state` go on from.

        It is that of one sequence: of more, save `state.rows([b])`.
        """
        if self.model is None:
            raise _C.Error(
                "state: it is a layer's, which belongs to no model; save it with torch.save(dict(state), path)"
            )
        self.model._session(self).save(str(path))
