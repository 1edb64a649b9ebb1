"""torch.ops.lineal: each operation as PyTorch wants it, and several under torch.compile."""
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import unittest
import warnings

import torch
from torch import nn
from torch.nn import functional as F

import lineal  # which registers them
import operations

ops = torch.ops.lineal
README = (pathlib.Path(__file__).resolve().parents[1] / "README.md").read_text().split("## Operations")[1]

# Arguments that may be bfloat16, all together.
NARROW = {"ttt_linear": "q k v", "ttt_mlp": "q k v", "linear_attention": "q k v", "delta_rule": "q k v",
          "selective_scan": "u delta B C z", "short_conv": "x", "add_rms_norm": "added", "rope": "x",
          "swiglu": "gate up"}
ANY = {"feature_attention": "projection", "feature_attention_in_documents": "projection",
       "token_loss": "hidden head weights"}


class Model(nn.Module):
    """A language model of one layer in operations, its loss; tokens and targets [B, T]."""

    def __init__(self, N=17, D=12, H=3):
        super().__init__()
        self.H = H
        self.embed = nn.Parameter(torch.randn(N, D))
        self.norms = nn.Parameter(torch.ones(2, D))
        self.taps = nn.Parameter(0.3 * torch.randn(D, 1, 4))
        self.bias = nn.Parameter(torch.zeros(D))
        self.qkvb = nn.Linear(D, 3 * D + H)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(2 * D, D)

    def forward(self, tokens, targets):
        (B, T), (N, D), H = tokens.shape, self.embed.shape, self.H
        x = F.embedding(tokens, self.embed)
        h = ops.rms_norm(x, self.norms[0])
        h, _ = ops.short_conv(h, self.taps, self.bias, x.new_zeros(B, 3, D), silu=True)
        q, k, v, b = self.qkvb(h).split([D, D, D, H], 2)
        q, k, v = (y.view(B, T, H, D // H) for y in (q, k, v))
        o, _ = ops.delta_rule(q, F.normalize(k, dim=3), v, b.sigmoid(), x.new_zeros(B, H, D // H, D // H))
        h, x = ops.add_rms_norm(x, o.reshape(B, T, D), self.norms[1])
        gate, up = self.up(h).chunk(2, 2)
        x = x + self.down(ops.swiglu(gate, up))
        weights = torch.full((B * T,), 1 / (B * T))
        return ops.token_loss(x.view(B * T, D), self.embed, targets.view(B * T), weights)


class OperationsTest(unittest.TestCase):
    def test_all_are_covered(self):
        known = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("lineal::")}
        differentiable = [name for name in operations.CASES if name != "nearest_code"]
        self.assertEqual(known, {f"lineal::{name}" for name in operations.CASES}
                         | {f"lineal::{name}_backward" for name in differentiable})

    def test_the_readme_says_how_to_call_them(self):
        example = re.search(r"(?m)^    import torch\n(?:(?:    .*)?\n)+", README)[0]
        found = {}
        exec(textwrap.dedent(example), {"print": lambda schema: self.assertIn("Tensor S, *", str(schema))}, found)
        self.assertGreater(found["v"].grad.abs().sum().item(), 0)
        narrow = {}
        for names, arguments in re.findall(r"(?m)^\| (`.*`) \|.*\|(.*)\|$", README):
            narrow |= {name: " ".join(re.findall(r"\w+", arguments)) for name in re.findall(r"`(\w+)`", names)}
        self.assertEqual(narrow.pop("token_loss")[:3], "all")
        self.assertEqual(narrow, {name: NARROW.get(name, "") for name in operations.CASES if name != "token_loss"})

    def test_opcheck(self):
        for name in operations.CASES:
            with self.subTest(name):
                operator, arguments, keywords = operations.of(name)
                torch.library.opcheck(operator, arguments, keywords)

    def test_opcheck_of_backward(self):
        for name in operations.CASES:
            if name == "nearest_code":
                continue
            with self.subTest(name):
                operator, arguments, keywords = operations.of(name)
                out = [y for y in torch.utils._pytree.tree_leaves(operator(*arguments, **keywords))
                       if isinstance(y, torch.Tensor) and y.is_floating_point()]
                detached = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, (arguments, keywords))
                torch.library.opcheck(getattr(ops, name + "_backward").default,
                                      ([torch.randn_like(y).detach() for y in out], *detached[0]), detached[1],
                                      test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))

    def test_the_watched_gradients_are_the_kernels(self):
        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                names.add(str(function))
                return function(*args, **(kwargs or {}))

        for name in operations.CASES:
            if name == "nearest_code":
                continue
            with self.subTest(name):
                results = []
                for watched in (False, True):
                    operator, arguments, keywords = operations.of(name)
                    leaves = [x for x in torch.utils._pytree.tree_leaves((arguments, keywords))
                              if isinstance(x, torch.Tensor) and x.requires_grad]
                    names = set()

                    def run():
                        out = torch.utils._pytree.tree_leaves(operator(*arguments, **keywords))
                        out = [y for y in out if isinstance(y, torch.Tensor) and y.is_floating_point()]
                        return out, torch.autograd.grad(out, leaves, [torch.ones_like(y) for y in out])

                    if watched:
                        with Watch():
                            results.append(run())
                        self.assertIn(f"lineal.{name}_backward.default", names)
                    else:
                        results.append(run())
                for (a, b) in zip(*(out + list(gradients) for out, gradients in results)):
                    self.assertTrue(torch.equal(a, b))

    def test_an_input_without_gradient_is_refused(self):
        operator, arguments, keywords = operations.of("feature_attention")
        arguments[3].requires_grad_()
        with self.assertRaisesRegex(lineal.Error, "asks for a gradient and has none"):
            operator(*arguments, **keywords)

    def given(self, name):
        """The arguments of the case by name."""
        operator, arguments, keywords = operations.of(name)
        return {a.name: x for a, x in zip(operator._schema.arguments, arguments)} | keywords

    def call(self, name, changed):
        """The operation of the case with some arguments changed, each by a function."""
        operator, given = getattr(ops, name).default, self.given(name)
        given |= {key: change(given.get(key)) for key, change in changed.items()}
        return operator(**given)

    def refused(self, name, expected, **changed):
        with self.subTest(name, expected=expected):
            with self.assertRaisesRegex(lineal.Error, f"^(lineal::)?{name}: .*{expected}"):
                self.call(name, changed)

    def test_arguments_that_do_not_fit_are_refused(self):
        shorter = lambda x: x.detach()[:-1]
        narrower = lambda x: x.detach()[..., :-1]
        first = lambda change: lambda list: [change(list[0]), *list[1:]]
        number = lambda value: lambda x: torch.full_like(x, value)
        for name in ("ttt_linear", "ttt_mlp"):
            self.refused(name, "initial weight 0", initial=first(shorter))
            self.refused(name, "initial weight 0", initial=first(narrower))
            self.refused(name, "tensors, expected", initial=lambda x: x[:-1])
            self.refused(name, "tensors, expected", **{key: lambda x: x + x[:1] for key in ("initial", "W", "D")})
            self.refused(name, "gamma is", gamma=narrower)
            self.refused(name, "beta is", beta=shorter)
            self.refused(name, "beta is undefined", beta=lambda x: None)
            self.refused(name, "position is", position=shorter)
            self.refused(name, "position has -1", position=number(-1))
            self.refused(name, "position is Int", position=lambda x: x.int())
            self.refused(name, "starts is", starts=narrower)
            self.refused(name, "starts is Float", starts=lambda x: x.float())
            self.refused(name, "to be 0", scale=lambda x: x.detach()[:0])
        self.refused("rope", "place has 9, expected 0 to 8", place=number(9))
        self.refused("rope", "place has -1", place=number(-1))
        self.refused("rope", "even", x=narrower, c=narrower, s=narrower)
        self.refused("token_loss", r"head is \[0, 6\], expected no size to be 0", head=lambda x: x.detach()[:0])
        for name in ("rms_norm", "add_rms_norm"):
            empty = {key: lambda x: x.detach()[:0] for key in self.given(name) if key != "weight"}
            self.refused(name, r"x is \[0, 5, 6\], expected no size to be 0", **empty)
        self.refused("vq_attention", "block 0", block=lambda x: 0)
        self.refused("vq_attention", "distance", r=lambda x: x.detach()[:0])
        self.refused("vq_attention", "position has -1", position=number(-1))
        self.refused("vq_attention", "code 6", code=number(6))
        self.refused("vq_attention", "code -1", past_code=number(-1))
        for name in ("feature_attention", "feature_attention_in_documents"):
            self.refused(name, "at least one feature", projection=lambda x: x[:0])
            self.refused(name, "no peak", peak=lambda x: None)
            self.refused(name, "fresh is Long", fresh=lambda x: x.long())
        for name in ("wkv", "linear_attention", "delta_rule", "selective_scan", "short_conv", "vq_attention",
                     "feature_attention"):
            self.refused(name, "starts is Byte", starts=lambda x: x.byte())
        self.refused("wkv", "one device", v=lambda x: x.to("meta"))
        self.refused("token_loss", "targets has 11, expected 0 to 10", targets=number(11))
        self.refused("token_loss", "targets has -100, expected 0 to 10", targets=number(-100))
        self.refused("token_loss", "hidden is Long, expected floats", hidden=lambda x: x.detach().long())
        self.refused("token_loss", "targets is Int", targets=lambda x: x.int())
        for name in ("rms_norm", "add_rms_norm"):
            self.refused(name, r"x is .* and weight \[5\]", weight=narrower)
            self.refused(name, "eps is -1e-06, expected at least 0", eps=lambda x: -1e-6)
            self.refused(name, "eps is nan", eps=lambda x: float("nan"))
            self.call(name, {"eps": lambda x: 0.0})

    def test_types(self):
        def to(dtype):
            def cast(x):
                if isinstance(x, list):
                    return [cast(y) for y in x]
                return x.detach().to(dtype).requires_grad_(x.requires_grad)
            return cast

        for name in operations.CASES:
            narrow, anything = NARROW.get(name, "").split(), ANY.get(name, "").split()
            if narrow:
                out = torch.utils._pytree.tree_leaves(self.call(name, {key: to(torch.bfloat16) for key in narrow}))
                with self.subTest(name):
                    out[0].sum().backward()
                if len(narrow) > 1:
                    for key in narrow:
                        self.refused(name, rf"expected \w+ as {narrow[0]} is", **{key: to(torch.bfloat16)})
            for key, x in self.given(name).items():
                first = x[0] if isinstance(x, list) else x
                if not isinstance(first, torch.Tensor) or not first.is_floating_point() or key in anything:
                    continue
                also = " or BFloat16" if key in narrow else ""
                self.refused(name, f"{key} is Double \[[0-9, ]+\] on cpu, expected Float{also} on the CPU",
                             **{key: to(torch.double)})
                if not also:
                    self.refused(name, f"{key} is BFloat16 .*, expected Float on the CPU", **{key: to(torch.bfloat16)})
            if anything:
                for dtype in (torch.bfloat16, torch.double):
                    self.call(name, {key: to(dtype) for key in anything})
        self.refused("swiglu", "gate is Long .*, expected Float or BFloat16", gate=torch.Tensor.long)
        self.refused("nearest_code", r"no kernel for k Long \[2, 7, 3, 4\] on cpu, codebook", k=torch.Tensor.long)

    def test_without_kernels_that_is_what_it_says(self):
        try:
            lineal.kernels("reference")
            self.refused("rope", r"kernels are off.*lineal.kernels\(\"auto\"\)")
        finally:
            lineal.kernels("auto")

    def test_an_unknown_map_lists_the_known(self):
        for name in ("feature_attention", "feature_attention_in_documents"):
            self.refused(name, "unknown map 'rleu'; did you mean 'relu'.*known: abs, ", map=lambda x: "rleu")

    def test_what_the_backward_pass_refuses(self):
        for name in operations.CASES:
            if name == "nearest_code":
                continue
            for batched in (False, True):
                if name == "token_loss" and batched:
                    continue  # which is none of its own
                expected = "the gradients are a batch of them" if batched else "the fused kernel has no second derivative"
                with self.subTest(name, expected=expected):
                    operator, arguments, keywords = operations.of(name)
                    out = torch.utils._pytree.tree_leaves(operator(*arguments, **keywords))[0]
                    leaf = next(x for x in arguments if x.requires_grad)
                    with self.assertRaisesRegex(RuntimeError, f"^{name}: {expected}"):
                        torch.autograd.grad(out, leaf, torch.ones_like(out.expand(3, *out.shape) if batched else out),
                                            is_grads_batched=batched, create_graph=not batched)

    def test_vmap_is_a_loop(self):
        x, y = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
        swiglu = torch.ops.lineal.swiglu
        expected = torch.stack([swiglu(a, b) for a, b in zip(x, y)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there is no batching rule
            torch.testing.assert_close(torch.vmap(swiglu)(x, y), expected)

    def test_what_has_no_derivative_says_so(self):
        x = torch.randn(3, 4)
        loss = lambda a: torch.ops.lineal.swiglu(a, a).sum()
        for transform in (torch.func.grad(loss), lambda a: torch.func.vjp(loss, a)):
            with self.assertRaisesRegex(lineal.Error, "swiglu: has no gradient under transforms of torch.func"):
                transform(x)
        with self.assertRaisesRegex(lineal.Error, "swiglu: an input has a tangent"):
            torch.func.jvp(loss, (x,), (x,))
        with torch.autograd.forward_ad.dual_level():
            with self.assertRaisesRegex(lineal.Error, "swiglu: an input has a tangent"):
                loss(torch.autograd.forward_ad.make_dual(x, x))

    def test_the_library_of_operations_can_be_there_too(self):
        load, use = f"torch.ops.load_library({os.environ['LINEAL_OPS']!r})", "import lineal"
        script = """
x = torch.ones(3, requires_grad=True)
torch.ops.lineal.swiglu(x, x).sum().backward()
assert x.grad.abs().sum() > 0
lineal.mixer("delta_net", 8)(torch.ones(1, 3, 8))
try:
    torch.ops.lineal.swiglu(x, x.double())
except lineal.Error as error:
    print(error)
"""
        for order in ([load, use], [use, load]):
            with self.subTest(order):
                done = subprocess.run([sys.executable, "-c", "\n".join(["import torch", *order, script])],
                                      capture_output=True, text=True, env=os.environ | {"LD_DEBUG": "bindings"})
                self.assertEqual(done.returncode, 0, done.stderr[-2000:])
                self.assertIn("swiglu: up is Double", done.stdout)
                bound = {frozenset(re.findall(r"/(_C|liblineal_ops)[.\w-]*\.so", line))
                         for line in done.stderr.split("\n") if "binding file" in line}
                self.assertIn({"_C"}, bound)
                self.assertNotIn({"_C", "liblineal_ops"}, bound)  # kernels of one that call the other's

    @unittest.skipUnless(sys.platform == "linux", "elsewhere no memory waits")
    def test_memory_of_results_waits_until_the_cache_is_emptied(self):
        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        x = torch.ones(16 << 20)
        lineal.empty_cache()
        before = resident()
        ops.swiglu(x, x)
        self.assertGreater(resident() - before, 60 << 20)
        lineal.empty_cache()
        self.assertLess(resident() - before, 4 << 20)

    def test_compiled(self):
        torch.manual_seed(0)
        model = Model()
        compiled = torch.compile(model, fullgraph=True)
        tokens, targets = torch.randint(17, (2, 9)), torch.randint(17, (2, 9))
        results = []
        for f in (model, compiled):
            model.zero_grad()
            loss = f(tokens, targets)
            loss.backward()
            results.append([loss.detach()] + [p.grad.clone() for p in model.parameters()])
        for eager, fast in zip(*results):
            torch.testing.assert_close(fast, eager, rtol=1e-5, atol=1e-5)
            self.assertGreater(eager.abs().sum().item(), 0)


if __name__ == "__main__":
    unittest.main()
