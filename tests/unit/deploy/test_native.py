"""What `make native` compiles is loaded where it fits the sources, all or none; whatever is wrong, the sources run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common import native
from deploy.native.building import need_compiler
from deploy.native.modules import MODULES, chosen, depended_on
from deploy.work import CHECKOUT, BuildError

SETTINGS = "[tool.mypy]\nstrict = true\nexplicit_package_bases = true\n"
FILES = {
    "pyproject.toml": SETTINGS,
    "far/__init__.py": "",
    "far/constants.py": "from typing import Final\n\nSTEP: Final = 3\n",
    "far/lends.py": "from far.constants import STEP as STEP\n",
    "near/__init__.py": "",
    "near/adds.py": "from far.lends import STEP\n\ndef add(a: int) -> int:\n    return a + STEP\n",
    "near/alone.py": "def nothing() -> None: ...\n",
    "near/fails.py": "from near.adds import add\n\ndef fail() -> None:\n    raise ValueError(str(add(1)))\n",
}
BUILD = """
from pathlib import Path
from deploy.native.building import build
from deploy.work import Work
build(Path.cwd(), ["near/*.py"], Work(), optimization="0")
"""
LOOK = """
import sys
from pathlib import Path
from common import native
print(native.install(Path.cwd()))
from near import adds, fails
print(type(adds.add).__name__, type(fails.fail).__name__, adds.add(1))
"""


def run(folder: Path, program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if key != native.SWITCH}
    environ |= {"PYTHONPATH": f"{folder}{os.pathsep}{CHECKOUT}", **environment}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


def look(folder: Path, program: str = LOOK, **environment: str) -> tuple[str, str]:
    """What install() says, and what two of the modules then are and do."""
    done = run(folder, program, **environment)
    assert done.returncode == 0, done.stderr
    state, found = done.stdout.splitlines()
    return state, found


COMPILED = "builtin_function_or_method builtin_function_or_method 4"
INTERPRETED = "function function 4"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkout with its native build."""
    root = tmp_path_factory.mktemp("checkout")
    for name, text in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    done = run(root, BUILD)
    assert done.returncode == 0, done.stderr
    assert "native: 3 modules are compiled" in done.stdout
    return root


@pytest.fixture
def checkout(built: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "copy"))


def test_a_build_is_used(built: Path) -> None:
    """The modules run compiled; the answer says how many and how they were made."""
    state, found = look(built)
    assert state.startswith("on: 3 modules, mypyc ")
    assert found == COMPILED


def test_a_compiled_module_leads_to_its_source(built: Path) -> None:
    """`__file__`, inspect and tracebacks name the source, and its lines are shown."""
    program = """
import inspect, traceback
from pathlib import Path
from common import native
native.install(Path.cwd())
from near import fails
assert Path(fails.__file__) == Path.cwd() / "near/fails.py", fails.__file__
assert fails.__spec__.origin == fails.__file__
assert inspect.getsource(fails) == Path("near/fails.py").read_text()
try:
    fails.fail()
except ValueError:
    traceback.print_exc()
"""
    done = run(built, program)
    assert done.returncode == 0, done.stderr
    assert 'near/fails.py", line 4, in fail' in done.stderr
    assert "raise ValueError(str(add(1)))" in done.stderr


def change(root: Path, name: str, text: str) -> str:
    (root / name).write_text(text)
    return f"off: {name} has changed since `make native`"


def lose_source(root: Path) -> str:
    (root / "near/alone.py").unlink()
    return "off: near/alone.py has changed since `make native`"


def manifest_of(root: Path) -> Path:
    return native.folder_of(root) / "manifest.json"


def library_of(root: Path) -> Path:
    return native.folder_of(root) / native.read(root).files[native.LIBRARY]


def lose_extension(root: Path) -> str:
    library_of(root).unlink()
    return f"off: {native.LIBRARY}.{native.ABI}.so is missing or cut short; `make native` builds it anew"


def cut_extension(root: Path) -> str:
    os.truncate(library_of(root), 5000)
    return f"off: {native.LIBRARY}.{native.ABI}.so is missing or cut short; `make native` builds it anew"


def foreign_extension(root: Path) -> str:
    size = library_of(root).stat().st_size
    library_of(root).write_bytes(b"\0" * size)
    return "off: "


def break_manifest(text: str) -> Callable[[Path], str]:
    def damage(root: Path) -> str:
        manifest_of(root).write_text(text)
        return f"off: {manifest_of(root)} is broken; `make native` builds it anew"

    return damage


def forget_library(root: Path) -> str:
    found = json.loads(manifest_of(root).read_text())
    del found["files"][native.LIBRARY]
    return break_manifest(json.dumps(found))(root)


def spoil_manifest(part: str, value: object) -> Callable[[Path], str]:
    def damage(root: Path) -> str:
        return break_manifest(json.dumps(json.loads(manifest_of(root).read_text()) | {part: value}))(root)

    return damage


def lose_manifest(root: Path) -> str:
    manifest_of(root).unlink()
    return "off: nothing is built; `make native` builds it"


def lose_folder(root: Path) -> str:
    shutil.rmtree(root / "build")
    return "off: nothing is built; `make native` builds it"


def other_python(root: Path) -> str:
    native.folder_of(root).rename(root / "build/native/cpython-399-any")
    return f"off: built for cpython-399-any, and this is {native.ABI}; `make native` builds it"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda root: change(root, "near/adds.py", FILES["near/adds.py"] + "\n"), id="changed source"),
        pytest.param(lambda root: change(root, "far/constants.py", "STEP = 3\n"), id="changed constant"),
        lose_source,
        lose_extension,
        cut_extension,
        foreign_extension,
        pytest.param(break_manifest("{"), id="no JSON"),
        pytest.param(break_manifest("[]"), id="no object"),
        pytest.param(break_manifest('{"made_with": "x"}'), id="half a manifest"),
        pytest.param(spoil_manifest("sources", 1), id="no sources"),
        pytest.param(spoil_manifest("sources", {"near/adds.py": 1}), id="no hashes"),
        pytest.param(spoil_manifest("sizes", []), id="no sizes"),
        pytest.param(spoil_manifest("unknown", {}), id="another version's manifest"),
        forget_library,
        lose_manifest,
        lose_folder,
        other_python,
    ],
)
def test_what_does_not_fit_is_not_used(checkout: Path, damage: Callable[[Path], str]) -> None:
    """One wrong file of many, and everything is interpreted, with the reason."""
    reason = damage(checkout)
    state, found = look(checkout)
    assert state.startswith(reason)
    assert state != "off: "
    assert found == INTERPRETED


def test_it_can_be_turned_off(built: Path) -> None:
    """By the environment."""
    assert look(built, **{native.SWITCH: "off"}) == ("off: FAIRLEAD_NATIVE=off", INTERPRETED)


def test_nothing_is_mixed_with_what_was_imported_before(built: Path) -> None:
    """A module that was imported already stays, and so all stay as they are."""
    assert look(built, "import near.adds" + LOOK) == ("off: near.adds was imported before", INTERPRETED)


def test_the_builder_builds_what_is_missing_only(checkout: Path) -> None:
    """A second build does nothing; another source makes another build, and the one before stays for who loads it."""
    done = run(checkout, BUILD)
    assert (done.returncode, done.stderr) == (0, "")
    assert "compiled already" in done.stdout
    before = library_of(checkout)
    (checkout / "far/constants.py").write_text("from typing import Final\n\nSTEP: Final = 4\n")
    assert run(checkout, BUILD).returncode == 0
    assert look(checkout)[1] == COMPILED.replace("4", "5")
    assert library_of(checkout) != before
    assert before.exists()


def test_what_cannot_be_compiled_leaves_the_build_alone(checkout: Path) -> None:
    """The message has mypy's; what was built still lies there and does not fit."""
    (checkout / "near/adds.py").write_text("def add(a: int) -> str:\n    return a\n")
    done = run(checkout, BUILD)
    assert done.returncode == 1
    assert "near/adds.py:2: error: Incompatible return value type" in done.stderr
    assert native.read(checkout).modules.keys() == {"near.adds", "near.alone", "near.fails"}


def test_what_cannot_be_imported_is_not_put_in_force(checkout: Path) -> None:
    """A module that compiles and fails at its import is found by the builder, not by a router."""
    (checkout / "near/alone.py").write_text("raise ValueError('never')\n")
    done = run(checkout, BUILD)
    assert done.returncode == 1
    assert "what was compiled cannot be imported" in done.stderr
    assert "ValueError: never" in done.stderr
    assert look(checkout)[0] == "off: near/alone.py has changed since `make native`"


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """And that nothing else needs one."""
    need_compiler()
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(
        BuildError, match=r"no C compiler \(no-such-compiler\): install gcc and python3-dev; everything"
    ):
        need_compiler()


def test_the_list_fits_the_checkout() -> None:
    """Every pattern stands for something, and nothing in it asks for its own file or loads the finder."""
    paths = chosen(CHECKOUT)
    assert len(paths) >= len(MODULES)
    assert "common/native.py" not in paths
    for path in paths:
        assert "__file__" not in (CHECKOUT / path).read_text(), path
    assert set(paths) < set(depended_on(CHECKOUT, paths))
    with pytest.raises(ValueError, match="no module is called common/nothing"):
        chosen(CHECKOUT, ["common/nothing*.py"])
