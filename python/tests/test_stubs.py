"""lineal/_C.pyi says what the compiled part has."""
import ast
import pathlib
import re
import unittest

import lineal

STUB = pathlib.Path(lineal.__file__).parent / "_C.pyi"


def declared(body):
    """{name: parameters of a function, None of a value or property, {...} of a class}"""
    found = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = declared(node.body)
        elif isinstance(node, ast.AnnAssign):
            found[node.target.id] = None
        elif isinstance(node, ast.FunctionDef):
            decorators = [decorator.id for decorator in node.decorator_list]
            found[node.name] = None if "property" in decorators else [a.arg for a in node.args.args]
    return found


def compiled(thing):
    found = {}
    for name, value in vars(thing).items():
        if name == "__init__" or not name.startswith("_"):
            if isinstance(value, type):
                found[name] = compiled(value)
            elif isinstance(value, property) or not callable(value) and not isinstance(value, staticmethod):
                found[name] = None
            else:
                line = getattr(thing, name).__doc__.splitlines()[0]
                parameters = re.findall(r"(?:\(|, )(\w+): ", line)
                if name != "__init__" or parameters:  # else there is no constructor
                    found[name] = parameters
    return found


class StubTest(unittest.TestCase):
    def test_names_and_parameters(self):
        self.maxDiff = None
        self.assertEqual(declared(ast.parse(STUB.read_text()).body), compiled(lineal._C))

    def test_all_is_there(self):
        for name in lineal.__all__:
            self.assertTrue(getattr(lineal, name).__doc__, name)
        self.assertTrue((STUB.parent / "py.typed").exists())


if __name__ == "__main__":
    unittest.main()
