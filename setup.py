"""Builds lineal._C with CMake, for and with the PyTorch of the Python that runs pip; pyproject.toml has the rest.

The folder build/ is used if it was configured for the same PyTorch and Python, else build-python/.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = pathlib.Path(__file__).resolve().parent
OLDEST, NEWEST = (2, 11), (2, 13)


def stop(message):
    sys.exit(f"lineal: {message}")


def torch_folder():
    """Of the environment's PyTorch: -I looks past pip's isolation, which hides it."""
    look = "import torch, os; print(torch.__version__, os.path.dirname(torch.__file__), sep='\\n')"
    found = subprocess.run([sys.executable, "-I", "-c", look], capture_output=True, text=True)
    install = f"type: {sys.executable} -m pip install 'torch>={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}'"
    if found.returncode != 0:
        reason = found.stderr.strip().splitlines()[-1]
        stop(f"it is compiled with the PyTorch that is installed, and there is none ({reason}); {install}")
    version, folder = found.stdout.split("\n")[:2]
    if not OLDEST <= tuple(int(n) for n in version.split(".")[:2]) <= NEWEST:
        stop(f"PyTorch is {version}, expected {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}; {install}")
    return pathlib.Path(folder)


def cached(tree):
    """What CMake keeps of a build folder."""
    cache = tree / "CMakeCache.txt"
    lines = cache.read_text().splitlines() if cache.exists() else []
    return dict(re.match(r"([^:#]+):\w+=(.*)", line).groups() for line in lines if re.match(r"[^:#]+:\w+=", line))


def same(path, other):
    return path is not None and other.exists() and os.path.realpath(path) == os.path.realpath(other)


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        torch = torch_folder()
        for tool in ("cmake", "ninja"):
            if not shutil.which(tool):
                stop(f"no {tool} here; type: {HERE}/tools/setup.sh (on Debian), or {sys.executable} -m pip install {tool}")
        tree, flags = HERE / "build", []
        known = cached(tree)
        python = known.get("Python_EXECUTABLE")
        in_use = known.get("LINEAL_TORCH") or known.get("LINEAL_TORCH_FOUND")
        if not same(in_use, torch) or not same(python, pathlib.Path(sys.executable)):
            tree = HERE / "build-python"
            flags = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -DNDEBUG",
                     "-DLINEAL_TESTS=OFF", f"-DLINEAL_TORCH={torch}", f"-DPython_EXECUTABLE={sys.executable}"]
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count())
        self.run_tool(["cmake", "-S", HERE, "-B", tree, "-DLINEAL_PYTHON=ON", *flags])
        self.run_tool(["cmake", "--build", tree, "-j", jobs, "--target", "lineal_python"])
        to = pathlib.Path(self.get_ext_fullpath(ext.name)).parent
        to.mkdir(parents=True, exist_ok=True)
        for library in (tree / "python" / "lineal").glob("*.so"):
            shutil.copy2(library, to)

    def run_tool(self, command):
        done = subprocess.run([str(word) for word in command])
        if done.returncode != 0:
            stop(f"{command[0]} failed, the reason is above; 'pip install -v .' shows everything as it comes")


version = re.search(r"project\(lineal VERSION ([0-9.]+)", (HERE / "CMakeLists.txt").read_text())[1]
if "sdist" not in sys.argv:
    torch_folder()  # before pip fetches or builds anything
setup(version=version, ext_modules=[Extension("lineal._C", [])], cmdclass={"build_ext": CMakeBuild},
      options={"build": {"build_base": "build-python/wheel"}})  # build/ is CMake's
