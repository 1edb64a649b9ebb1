"""A model in Python beside the program: the same bits, in both directions."""
import copy
import json
import os
import pathlib
import pickle
import tempfile
import unittest

import torch

import lineal
from common import TESTDATA, TEXT, ids, program, small_model, tensors


class ModelTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.dir = pathlib.Path(cls.folder.name)
        small_model().save(cls.dir / "model")
        cls.model = lineal.load(cls.dir / "model")

    def assertSame(self, a, b):
        self.assertTrue(torch.equal(a, b), f"{a.shape} {b.shape}")

    def assertClose(self, a, b):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    def generated(self, *flags):
        return json.loads(program("generate", "-m", self.dir / "model", "--json", *flags))

    def test_logits_are_the_programs(self):
        for name in ("ttt_linear_mamba_tied", "ttt_mlp_transformer_untied"):
            model, tokens = TESTDATA / "models" / name, TESTDATA / "models" / name / "tokens.safetensors"
            program("eval", "-m", model, "--tokens", tokens, "--logits", self.dir / "logits")
            with torch.no_grad():
                for row, expected in zip(tensors(tokens)["input_ids"], tensors(self.dir / "logits")["logits"]):
                    self.assertSame(lineal.load(model)(row.unsqueeze(0))[0], expected)

    def test_generations_are_the_programs(self):
        flags = ["--temp", 0.7, "--top-k", 50, "--top-p", 0.9, "--min-p", 0.01, "--repeat-penalty", 1.2,
                 "--repeat-window", 9, "-s", 3, "-n", 40]
        sampling = dict(temperature=0.7, top_k=50, top_p=0.9, min_p=0.01, repeat_penalty=1.2, repeat_window=9, seed=3)
        expected = self.generated("-p", TEXT, *flags)
        found = self.model.generate(TEXT, 40, **sampling)
        self.assertEqual(found.tokens, expected["tokens"])
        self.assertEqual(found.text, expected["text"])
        self.assertEqual(found.finish, "length")
        self.assertEqual(found.state.tokens, len(TEXT) + 40)
        again = self.model.generate(self.model.encode(TEXT), 40, **sampling)
        self.assertEqual(again.tokens, expected["tokens"])
        self.assertNotEqual(self.model.generate(TEXT, 40, **{**sampling, "seed": 4}).tokens, expected["tokens"])

    def test_copies(self):
        model = lineal.load(TESTDATA / "models" / "ttt_linear_mamba_tied").to(torch.float64).train()
        next(model.parameters()).requires_grad_(False)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            self.assertEqual(other.config, model.config)
            self.assertTrue(other.training)
            for (name, mine), (_, theirs) in zip(model.named_parameters(), other.named_parameters()):
                self.assertSame(mine, theirs)
                self.assertEqual((mine.dtype, mine.requires_grad), (theirs.dtype, theirs.requires_grad), name)
                self.assertNotEqual(mine.data_ptr(), theirs.data_ptr())

    def test_stop_and_pieces(self):
        whole = self.model.generate(TEXT, 60, temperature=0.8, seed=1).text
        stop = whole[20:22]
        pieces = []
        cut = self.model.generate(TEXT, 60, temperature=0.8, seed=1, stop=[stop], on_text=pieces.append)
        self.assertEqual((cut.finish, cut.stop, cut.text), ("stop", stop, whole[:whole.index(stop)]))
        self.assertEqual("".join(pieces), cut.text)
        with self.assertRaisesRegex(KeyError, "mine"):
            self.model.generate(TEXT, 60, on_text=lambda piece: {}["mine"])

    def test_the_program_goes_on_from_a_state_of_python(self):
        state = self.model.read(TEXT)
        state.save(self.dir / "python.state")
        expected = self.generated("--state", self.dir / "python.state", "-p", "In short", "-n", 30, "-s", 2)
        self.assertEqual(expected["restored_tokens"], len(TEXT))
        self.assertEqual(self.model.generate("In short", 30, seed=2, state=state).tokens, expected["tokens"])

    def test_python_goes_on_from_a_state_of_the_program(self):
        (self.dir / "text").write_text(TEXT)
        program("read", self.dir / "text", "-m", self.dir / "model", "-o", self.dir / "program.state")
        state = lineal.load_state(self.dir / "program.state", self.model)
        self.assertEqual(state.tokens, len(TEXT))
        own = self.model.read(TEXT)
        self.assertEqual(list(state), list(own))
        for name in own:
            self.assertSame(state[name], own[name])
        self.assertSame(state.logits, own.logits)
        state.save(self.dir / "again.state")
        self.assertEqual((self.dir / "again.state").read_bytes(), (self.dir / "program.state").read_bytes())

    def test_a_call_with_a_state_goes_on(self):
        tokens = ids(2, 23)
        with torch.no_grad():
            whole, end = self.model(tokens, self.model.initial_state(2))
            self.assertSame(whole, self.model(tokens))
            _, middle = self.model(tokens[:, :9], self.model.initial_state(2))
            before = middle.fork()
            rest, after = self.model(tokens[:, 9:], middle)
        self.assertClose(rest, whole[:, 9:])
        for name in end:
            self.assertSame(middle[name], before[name])
            self.assertClose(after[name].float(), end[name].float())
        self.assertEqual((after.tokens, after.batch), (23, 2))
        self.assertClose(after.logits, whole[:, -1])
        starts = torch.zeros(2, 23, dtype=torch.bool)
        starts[:, 9] = True
        with torch.no_grad():
            self.assertClose(self.model(tokens, starts=starts)[:, 9:], self.model(tokens[:, 9:]))

    def test_step_is_forward(self):
        tokens = ids(3, 14)
        with torch.no_grad():
            _, state = self.model(tokens[:, :5], self.model.initial_state(3))
            whole = self.model(tokens)
        kept = {name: part.clone() for name, part in state.items()}
        one, other = state.fork(), state.rows([2, 0])
        for t in range(5, 14):
            self.assertClose(self.model.step(tokens[:, t], one), whole[:, t])
        self.assertClose(self.model.step(tokens[[2, 0], 5], other), whole[[2, 0], 5])
        self.assertEqual((one.tokens, other.tokens), (14, 6))
        for name, part in kept.items():
            self.assertSame(state[name], part)

    def test_step_leaves_other_states_alone(self):
        self.addCleanup(lineal.kernels, "auto")
        for kernels in ("auto", "reference"):  # the references hand on tensors that did not change
            with self.subTest(kernels):
                lineal.kernels(kernels)
                self.steps()

    def steps(self):
        tokens = ids(1, 12)
        with torch.no_grad():
            _, first = self.model(tokens[:, :5], self.model.initial_state())
            _, second = self.model(tokens[:, 5:6], first)  # may have tensors of the first
        kept = {name: part.clone() for name, part in first.items()}
        fork = second.fork()
        for t in range(6, 12):
            self.model.step(tokens[:, t], second)
        for name, part in kept.items():
            self.assertSame(first[name], part)
        with torch.no_grad():
            self.assertClose(self.model.step(int(tokens[0, 6]), fork), self.model(tokens[:, :7])[:, -1])

    def test_a_stepped_state_is_saved(self):
        state = self.model.read(TEXT[:-1])
        self.model.step(ord(TEXT[-1]), state)
        state.save(self.dir / "stepped.state")
        loaded = lineal.load_state(self.dir / "stepped.state", self.model)
        read = self.model.read(TEXT)
        self.assertEqual(self.model.generate("", 9, temperature=0, state=loaded).tokens,
                         self.model.generate("", 9, temperature=0, state=read).tokens)

    def test_training(self):
        torch.manual_seed(0)
        model = lineal.LanguageModel("ttt_linear(mini_batch_size=4), vq_attention(num_codes=8)", hidden_size=16,
                                     intermediate_size=32)
        tokens = torch.frombuffer(bytearray(TEXT.encode()), dtype=torch.uint8).long().unsqueeze(0)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        losses = []
        for step in range(15):
            model.begin_step(step)
            loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1])[0], tokens[0, 1:])
            self.assertEqual(list(model.losses), ["layers.1.commitment"])
            optimizer.zero_grad()
            (loss + sum(model.losses.values())).backward()
            optimizer.step()
            losses.append(loss.item())
        self.assertLess(losses[-1], losses[0] - 1)
        model.save(self.dir / "trained")
        self.assertSame(lineal.load(self.dir / "trained")(tokens), model.eval()(tokens))
        self.assertEqual(model.losses, {})

    def test_parameters_are_the_models(self):
        names = dict(self.model.named_parameters())
        self.assertIn("model.layers.0.seq_modeling_block.q_proj.weight", names)
        self.assertTrue(all(isinstance(p, torch.nn.Parameter) for p in names.values()))
        stored = tensors(self.dir / "model" / "model.safetensors")
        self.assertEqual(set(stored), set(self.model.state_dict()))
        other = small_model()
        with torch.no_grad():
            other.model.norm.weight.mul_(2)
            self.assertClose(other(ids(1, 4)), 2 * self.model(ids(1, 4)))
        other.load_state_dict(self.model.state_dict())
        self.assertSame(other(ids(1, 4)), self.model(ids(1, 4)))
        self.assertEqual(self.model.config["hidden_size"], 24)

    def test_text(self):
        text = "Grüße, Ω"
        self.assertEqual(self.model.decode(self.model.encode(text)), text)
        self.assertEqual(self.model.decode(self.model.encode(text)[:3]), "Gr\ufffd")

    def test_errors(self):
        model, Error = self.model, lineal.Error
        self.assertTrue(issubclass(Error, ValueError))
        other = small_model()
        with torch.no_grad():
            other.model.norm.weight.add_(1)
        for words, call in [
            ("does not exist, expected a model directory", lambda: lineal.load("nowhere")),
            ("token id 256 at \\[0, 1\\] is out of range", lambda: model(torch.tensor([[1, 256]]))),
            ("tokens is \\[2\\], expected \\[B, T\\]", lambda: model(torch.tensor([1, 2]))),
            ("another model's", lambda: model(ids(1, 3), other.initial_state())),
            ("unknown mixer 'mambo'; did you mean 'mamba'", lambda: lineal.LanguageModel("mambo")),
            ("unknown field 'hidden_sise'; did you mean 'hidden_size'", lambda: lineal.LanguageModel("mamba", hidden_sise=3)),
            ("top_p", lambda: model.generate("a", top_p=3)),
            ("nothing has been read", lambda: model.generate("")),
            ("holds 2 sequences, expected one", lambda: model.initial_state(2).save(self.dir / "two")),
            ("saved with another model", lambda: self.foreign(other)),
            ("tokens: they are torch.float32, expected a tensor of int64", lambda: model(torch.ones(1, 2))),
            ("tokens: they are list", lambda: model([[1, 2]])),
            ("state: it is dict, expected a lineal.State", lambda: model(ids(1, 4), {})),
            ("model: its parameters are torch.bfloat16, expected", lambda: small_model().bfloat16()(ids(1, 3))),
            ("model: its parameters are torch.bfloat16, expected", self.narrow),
            ("assign=True", lambda: model.load_state_dict(model.state_dict(), assign=True)),
        ]:
            with self.subTest(words), self.assertRaisesRegex(Error, words) as caught:
                call()
            self.assertNotIn("\n", str(caught.exception))

    def narrow(self):
        model = small_model()
        state = model.initial_state()
        model.bfloat16()(ids(1, 3), state)

    def foreign(self, other):
        other.read("a").save(self.dir / "other.state")
        lineal.load_state(self.dir / "other.state", self.model)


if __name__ == "__main__":
    unittest.main()
