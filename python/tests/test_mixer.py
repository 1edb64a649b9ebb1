"""A mixer as a layer of a PyTorch model."""
import copy
import io
import pickle
import unittest
import warnings

import torch
from torch import nn

import lineal

SHORT = {"vq_attention": {"num_codes": 7, "window": 6, "chunk_size": 4}, "ttt_linear": {"mini_batch_size": 4},
         "ttt_mlp": {"mini_batch_size": 4}}


def layer(name, hidden_size=8, seed=0, **options):
    torch.manual_seed(seed)
    made = lineal.mixer(name, hidden_size, **SHORT.get(name, {}), **options)
    made.reset_parameters(0.3)
    return made


def randn(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Tagger(nn.Module):
    """Somebody's model."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.mix = lineal.mixer("gated_delta_net", 16, num_attention_heads=2)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.head(x + self.mix(x))


class MixerTest(unittest.TestCase):
    def assertClose(self, a, b, tolerance=1e-4):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)

    def test_every_mixer_has_its_gradients(self):
        for name in lineal.mixers():
            with self.subTest(name):
                made = layer(name)
                x = randn(2, 9, 8).requires_grad_()
                y, state = made(x, made.initial_state(2))
                self.assertEqual(y.shape, x.shape)
                total = (y * randn(2, 9, 8, seed=2)).sum()
                total = total + sum(part.square().sum() for part in state.values() if part.is_floating_point())
                total.backward()
                self.assertGreater(x.grad.abs().sum().item(), 0)
                for key, parameter in made.named_parameters():
                    self.assertIsInstance(parameter, nn.Parameter)
                    self.assertIsNotNone(parameter.grad, key)

    def test_split(self):
        for name in ("performer", "ttt_linear", "attention", "mamba2"):
            with self.subTest(name):
                made = layer(name)
                x = randn(2, 13, 8).requires_grad_()
                whole = made(x)
                first, state = made(x[:, :5], made.initial_state(2))
                second, _ = made(x[:, 5:], state)
                self.assertClose(torch.cat([first, second], 1), whole)
                weights = randn(2, 13, 8, seed=2)
                (a,) = torch.autograd.grad((whole * weights).sum(), x)
                (b,) = torch.autograd.grad((torch.cat([first, second], 1) * weights).sum(), x)
                self.assertClose(a, b)
                _, cut = made(x[:, :5], made.initial_state(2))
                third, _ = made(x[:, 5:], cut.detach())
                (c,) = torch.autograd.grad((third * weights[:, 5:]).sum(), x)
                self.assertEqual(c[:, :5].abs().sum(), 0)

    def test_gradients_are_differences(self):
        for name in ("delta_net", "performer", "ttt_linear"):
            with self.subTest(name):
                made = layer(name, 4, num_attention_heads=2).double()
                self.assertEqual(made.initial_state(1)[list(made.initial_state(1))[0]].dtype, torch.float64)
                x = randn(1, 5, 4, dtype=torch.float64).requires_grad_()
                parameters = list(made.parameters())

                def output(x, *parameters):
                    return made(x)

                self.assertTrue(torch.autograd.gradcheck(output, (x, *parameters)))

    def test_to_is_seen_by_both_sides(self):
        made = layer("performer")
        x = randn(1, 6, 8)
        narrow = made(x)
        self.assertTrue(list(made.buffers()))
        made.double()
        wide = made(x.double())
        self.assertEqual(wide.dtype, torch.float64)
        self.assertClose(wide.float(), narrow)
        made.float()
        self.assertTrue(torch.equal(made(x), narrow))
        own = dict(made._c.named_buffers())
        for key, buffer in made.named_buffers():
            self.assertIs(buffer, own[key])

    def test_training_and_evaluation(self):
        made = layer("vq_attention")
        x = randn(2, 9, 8)
        made(x)
        self.assertEqual(list(made.losses), ["commitment"])
        nn.Sequential(made).eval()
        made(x)
        self.assertEqual(made.losses, {})

    def test_an_optimizer_trains_it(self):
        torch.manual_seed(0)
        model = Tagger()
        tokens = torch.randint(11, (4, 20))
        targets = (tokens + tokens.roll(1, 1)).remainder(3)  # needs the token before
        self.assertIn("mix.q_proj.weight", dict(model.named_parameters()))
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        losses = []
        for _ in range(60):
            loss = nn.functional.cross_entropy(model(tokens)[:, 1:].flatten(0, 1), targets[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        self.assertLess(losses[-1], 0.5 * losses[0])

    def test_copies(self):
        model = Tagger()
        tokens = torch.randint(11, (2, 7))
        loaded = Tagger()
        loaded.load_state_dict(model.state_dict())
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        others = [loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
        expected = model(tokens)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        for other in others:
            self.assertTrue(torch.equal(other(tokens), expected))
        frozen = layer("performer").double().eval().requires_grad_(False)
        again = copy.deepcopy(frozen)
        self.assertFalse(again.training or any(p.requires_grad for p in again.parameters()))
        self.assertEqual(next(again.parameters()).dtype, torch.float64)

    def test_compiled_it_is_a_graph_break(self):
        model, made, tokens = Tagger(), layer("delta_net"), torch.randint(11, (2, 7))
        x = randn(1, 4, 8)
        language = lineal.LanguageModel("delta_net", hidden_size=8)
        calls = [lambda: model(tokens), lambda: made(x), lambda: made(x, made.initial_state())[0],
                 lambda: language(tokens), lambda: language(tokens, language.initial_state(2))[0]]
        from torch._dynamo.exc import Unsupported
        for call in calls:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                y = torch.compile(call, backend="eager")()
            self.assertFalse([w for w in caught if "how to trace" in str(w.message)])
            self.assertTrue(torch.equal(y, call()))
            self.assertTrue(y.requires_grad)
            torch._dynamo.reset()
            with self.assertRaisesRegex(Unsupported, r"compute in C\+\+, which is not traced"):
                torch.compile(call, backend="eager", fullgraph=True)()

    def test_states_are_tensors_by_name(self):
        made = layer("delta_net")
        _, state = made(randn(2, 6, 8), made.initial_state(2))
        again = lineal.State({name: part.clone() for name, part in state.items()})
        x = randn(2, 3, 8, seed=3)
        self.assertTrue(torch.equal(made(x, again)[0], made(x, state)[0]))
        again[next(iter(again))].data.zero_()
        self.assertFalse(torch.equal(made(x, again)[0], made(x, state)[0]))
        fork = copy.copy(state)
        fork[next(iter(fork))].zero_()
        self.assertGreater(state[next(iter(state))].abs().sum().item(), 0)
        self.assertEqual((state.batch, state.rows([1]).batch), (2, 1))
        self.assertGreater(state.nbytes, 0)

    def test_errors(self):
        made = layer("delta_net")
        for words, call in [
            ("unknown mixer 'perfomer'; did you mean 'performer'", lambda: lineal.mixer("perfomer", 8)),
            ("unknown field 'num_featres'", lambda: lineal.mixer("performer", 8, num_featres=3)),
            ("delta_net: hidden_size is 0, expected at least 1", lambda: lineal.mixer("delta_net", 0)),
            ("expected a divisor of hidden_size 10", lambda: lineal.mixer("performer", 10, num_attention_heads=4)),
            ("x is \\[2, 8\\], expected \\[B, T, D=8\\]", lambda: made(randn(2, 8))),
            ("the state holds 3 sequences, x has 2", lambda: made(randn(2, 4, 8), made.initial_state(3))),
            ("delta_net: an option is NaN", lambda: lineal.mixer("delta_net", 8, rope_theta=float("nan"))),
            ("x: it is torch.float16, expected torch.float32 as the parameters", lambda: made(torch.ones(1, 2, 8).half())),
            ("state: it is dict, expected a lineal.State", lambda: made(torch.ones(1, 2, 8), {"S": 1})),
            ("belongs to no model", lambda: made.initial_state().save("x")),
            ("delta_net: its parameters are torch.bfloat16, expected torch.float32 or torch.float64; under torch.autocast",
             lambda: layer("delta_net").bfloat16()(torch.ones(1, 2, 8).bfloat16())),
            ("its parameters are torch.float16", lambda: layer("delta_net").half().initial_state()),
            (r"no second derivative; models and layers have one.*lineal.kernels\(\"reference\"\)",
             lambda: self.twice(made)),
            ("the gradients are a batch of them", lambda: torch.autograd.functional.jacobian(
                made, torch.ones(1, 2, 8), vectorize=True)),
        ]:
            with self.subTest(words), self.assertRaisesRegex((lineal.Error, RuntimeError), words):
                call()

    def twice(self, made):
        x = randn(1, 4, 8).requires_grad_()
        (d,) = torch.autograd.grad(made(x).sum(), x, create_graph=True)
        d.sum().backward()


if __name__ == "__main__":
    unittest.main()
