"""Language models."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Sequence, Union

import torch
from torch import Tensor

from . import _C
from .module import Module, graph_break
from .state import State

Tokens = Union[str, Sequence[int], Tensor]  # a text, or ids [T]


class Generation(NamedTuple):
    """What `LanguageModel.generate` returns."""

    text: str
    tokens: list[int]  # those of the stop too
    finish: str  # "length", "stop" or "end": the tokenizer's end of a document
    stop: str  # the stop that was found
    state: State  # after the last token


class LanguageModel(Module):
    """Token embedding, blocks of a sequence layer and a feed-forward part each, norm, head.

    Letters: B sequences, T tokens, N the vocabulary.

    - `losses`: what the layers' last forward in training mode leaves to minimise beside your loss, scalars by name
    """

    def __init__(self, layers: Union[str, list[dict[str, Any]]], **config: Any) -> None:
        """A new model: `LanguageModel("ttt_linear*4", hidden_size=256)`; config takes the fields of config.json.

        Parameters are drawn from PyTorch's generator (torch.manual_seed).
        """
        self._setup(_C.Model(json.dumps({**config, "layers": layers})))

    def _setup(self, c: _C.Model) -> None:
        self._model = c
        self.losses: dict[str, Tensor] = {}
        super().__init__(c.net)

    @property
    def config(self) -> dict[str, Any]:
        """What config.json of its directory holds."""
        return json.loads(self._model.config)

    @graph_break
    def initial_state(self, batch: int = 1) -> State:
        """The state before the first token, for B = batch sequences."""
        self._check_type("model")
        state = State._of(self._model.initial_state(batch))
        state.model = self
        state._recent = torch.empty(batch, 0, dtype=torch.long)
        return state

    @graph_break
    def forward(
        self, tokens: Tensor, state: Optional[State] = None, starts: Optional[Tensor] = None
    ) -> Union[Tensor, tuple[Tensor, State]]:
        """tokens int64 [B, T] -> logits [B, T, N], and with `state` also the state after the last token.

        starts: bool [B, T], true at the first token of a document, before which the state restarts.
        """
        tokens = self._tokens(tokens)
        self._check_type("model")
        before = self._own(state) if state is not None else self.initial_state(len(tokens))
        logits, after = self._model.forward(tokens, before._c, starts)
        self.losses = dict(self._model.take_losses())
        if state is None:
            return logits
        return logits, state._after(after, tokens, logits[:, -1])

    @graph_break
    def step(self, tokens: Union[int, Tensor], state: State) -> Tensor:
        """The next token of every sequence: int64 [B] -> logits [B, N]. Changes `state`; no gradients."""
        self._own(state)
        ids = torch.as_tensor(tokens).reshape(-1)
        if not state._alone:
            state._c, state._alone = state._c.clone(), True
        logits = self._model.step(ids, state._c)
        state._count(ids.unsqueeze(1), logits)
        return logits

    @graph_break
    def read(self, text: Tokens, state: Optional[State] = None) -> State:
        """The state after a text of any length, or ids [T], in memory that does not grow with it where the layers'
        does not. `state` is what was read before, and stays as it was."""
        session = self._session(state)
        self._model.read(session, self._ids(text, session))
        return self._state(session)

    @graph_break
    def generate(
        self,
        prompt: Tokens = "",
        max_tokens: int = 256,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        repeat_window: int = 64,
        seed: int = 0,
        stop: Sequence[str] = (),
        state: Optional[State] = None,
        on_text: Optional[Callable[[str], object]] = None,
    ) -> Generation:
        """Continues a text, after `state` if that is given: what `lineal generate` prints for the same flags.

        temperature 0 takes the most probable token; top_k 0 and top_p 1 leave all. The text ends before the first of
        `stop`. on_text is called with each piece of text as soon as it is certain. `state` stays as it was.
        """
        session = self._session(state)
        self._model.read(session, self._ids(prompt, session))
        sampling = {
            "temp": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repeat_penalty": repeat_penalty,
            "repeat_window": repeat_window,
        }
        stops = [stop] if isinstance(stop, str) else list(stop)
        made = self._model.generate(session, json.dumps(sampling), seed, max_tokens, stops, on_text)
        return Generation(made.text, made.tokens, made.finish, made.stop, self._state(session))

    def encode(self, text: str) -> Tensor:
        """Ids int64 [T] of a text."""
        return torch.tensor(self._model.encode(text), dtype=torch.long)

    def decode(self, ids: Union[Sequence[int], Tensor]) -> str:
        """The text of ids [T]; what is no UTF-8 becomes U+FFFD."""
        return self._model.decode(torch.as_tensor(ids).tolist()).decode("utf-8", "replace")

    def save(self, path: str) -> None:
        """Writes a model directory: config.json, model.safetensors and the tokenizer's file."""
        self._model.save(str(path))

    def begin_step(self, step: int) -> None:
        """Training is about to make its step `step`, from 0; see Mixer.begin_step."""
        self._model.begin_step(step)

    def __reduce__(self) -> tuple[Any, ...]:
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder + "/model")
            files = {file.name: file.read_bytes() for file in Path(folder, "model").iterdir()}
        taught = [parameter.requires_grad for parameter in self.parameters()]
        return _from_files, (files, next(self.parameters()).dtype, self.training, taught)

    def _tokens(self, tokens: Tensor) -> Tensor:
        if not isinstance(tokens, Tensor) or tokens.is_floating_point():
            got = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
            raise _C.Error(f"tokens: they are {got}, expected a tensor of int64 [B, T]")
        return tokens

    def _own(self, state: State) -> State:
        if not isinstance(state, State):
            raise _C.Error(f"state: it is {type(state).__name__}, expected a lineal.State")
        if state.model is not self:
            raise _C.Error("state: it is another model's, expected one of this model's initial_state, read or load_state")
        return state

    def _ids(self, text: Tokens, session: _C.Session) -> list[int]:
        if not isinstance(text, str):
            return torch.as_tensor(text, dtype=torch.long).reshape(-1).tolist()
        begin = self._model.prompt_begin if text else self._model.begin  # nothing: a document from its beginning
        return ([begin] if begin is not None and session.tokens == 0 else []) + self._model.encode(text)

    def _session(self, state: Optional[State]) -> _C.Session:
        self._check_type("model")
        before = self._own(state) if state is not None else self.initial_state()
        logits = before.logits
        if len(before._recent) != 1:
            raise _C.Error(f"state: it holds {len(before._recent)} sequences, expected one; take state.rows([b])")
        return _C.Session(
            self._model, before._c, None if logits is None else logits[0], before.tokens, before._recent[0].tolist()
        )

    def _state(self, session: _C.Session) -> State:
        state = State._of(session.state)
        state.model, state.tokens = self, session.tokens
        state.logits = session.logits.unsqueeze(0) if state.tokens > 0 else None
        state._recent = torch.tensor([session.recent], dtype=torch.long)
        state._alone = True
        return state


def load(path: str) -> LanguageModel:
    """A model directory, ours or a published one, or a run's folder (its newest checkpoint); float32, in evaluation
    mode."""
    model = LanguageModel.__new__(LanguageModel)
    model._setup(_C.Model.load(str(path)))
    model.eval()
    return model


def _from_files(files: dict[str, bytes], dtype: torch.dtype, training: bool, taught: list[bool]) -> LanguageModel:
    """The copy of a model, from its directory's files."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        model = load(folder)
    for parameter, is_taught in zip(model.parameters(), taught):
        parameter.requires_grad_(is_taught)
    model.to(dtype).train(training)
    return model


def load_state(path: str, model: LanguageModel) -> State:
    """What State.save, `lineal read` or `lineal generate --save` wrote; that of another model is an Error."""
    return model._state(_C.Session.load(str(path), model._model))
