"""What setup.py says where PyTorch does not fit."""
import pathlib
import runpy
import sys
import tempfile
import unittest
from unittest import mock

SETUP = pathlib.Path(__file__).resolve().parents[2] / "setup.py"

try:
    import setuptools  # noqa: F401
except ImportError:
    setuptools = None


@unittest.skipUnless(setuptools, "no setuptools here, which pip brings when it installs")
class SetupTest(unittest.TestCase):
    def refusal(self, script):
        """The line that setup.py ends with when that is the Python."""
        with tempfile.TemporaryDirectory() as folder:
            python = pathlib.Path(folder) / "python"
            python.write_text(f"#!/bin/sh\n{script}\n")
            python.chmod(0o755)
            with mock.patch.object(sys, "executable", str(python)), mock.patch.object(sys, "argv", ["setup.py", "x"]):
                with self.assertRaises(SystemExit) as ended:
                    runpy.run_path(str(SETUP))
        line = str(ended.exception)
        self.assertNotIn("\n", line)
        self.assertIn(f"type: {python} -m pip install 'torch>=2.11,<2.14'", line)
        return line

    def test_none(self):
        self.assertIn("there is none (No module named 'torch')", self.refusal("echo \"No module named 'torch'\" >&2; exit 1"))

    def test_another(self):
        for version in ("2.10.1+cpu", "2.14.0", "3.0.0"):
            self.assertIn(f"PyTorch is {version}, expected 2.11 to 2.13", self.refusal(f"echo {version}; echo /torch"))


if __name__ == "__main__":
    unittest.main()
