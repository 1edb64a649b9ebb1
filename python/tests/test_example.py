"""examples/python at tiny sizes."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

from common import TEXT, small_model

FORK = pathlib.Path(__file__).resolve().parents[2] / "examples" / "python" / "fork.py"


class ExampleTest(unittest.TestCase):
    def run_fork(self, *arguments):
        with tempfile.TemporaryDirectory() as folder:
            document = pathlib.Path(folder) / "document.txt"
            document.write_text(TEXT * 5)
            small_model().save(pathlib.Path(folder) / "model")
            words = [word.replace("MODEL", f"{folder}/model") for word in arguments]
            done = subprocess.run([sys.executable, FORK, document, *words], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"{len(TEXT * 5)} tokens read, ", done.stdout)
        self.assertIn("--- In short, ", done.stdout)
        self.assertIn("--- But why ", done.stdout)
        return done.stdout

    def test_a_new_model(self):
        run = self.run_fork("--steps", "2", "--context", "20", "--layers", "delta_net")
        self.assertRegex(run, r"step 0: loss 5\.[3-7]")  # about log 256

    def test_a_given_model(self):
        self.assertNotIn("step", self.run_fork("-m", "MODEL"))


if __name__ == "__main__":
    unittest.main()
