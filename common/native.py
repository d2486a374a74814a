"""Runs modules as machine code where `make native` has compiled them from exactly the sources that lie here.

`install()` puts a finder in front of Python's own. It finds all compiled modules or none: they know each other's
memory layout, and have each other's constants built in. Whatever is missing, stale or broken means that Python's own
finder does its work, as it does where nothing was ever compiled; the answer says which it was, and why.

    build/native/cpython-311-x86_64-linux-gnu/manifest.json      what was compiled, from what: see Manifest
    build/native/cpython-311-x86_64-linux-gnu/3f2a.../*.so       the extensions

Standard library only: nothing that may be compiled can be imported before `install()`. See docs/native.md.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parent.parent

SWITCH: Final = "FAIRLEAD_NATIVE"
"""Environment variable: `off` runs the sources, whatever was compiled."""

ABI: Final = EXTENSION_SUFFIXES[0].split(".")[1]
"""What an extension must have been compiled for; Python's version, the machine's processor and system."""

LIBRARY: Final = "fairlead_native__mypyc"
"""The extension that holds the code of all others."""

_MANIFEST: Final = "manifest.json"


class NotUsableError(Exception):
    """There is no build that can be used; the message says why not."""


@dataclass(frozen=True)
class Manifest:
    """What `make native` has made.

    Attributes:
        made_with: Compiler and its options, for people and for the builder.
        sources: SHA-256 by path below the checkout: of what was compiled, and of what it imports, whose constants are
            built in.
        modules: Source path by module that was compiled.
        files: Extension by module, below the manifest's folder; `LIBRARY` is one of them.
        sizes: Length by extension in bytes: a file that was cut short is not loaded.
    """

    made_with: str
    sources: Mapping[str, str]
    modules: Mapping[str, str]
    files: Mapping[str, str]
    sizes: Mapping[str, int]


def folder_of(root: Path) -> Path:
    """Where builds of a checkout for this Python lie."""
    return root / "build" / "native" / ABI


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(root: Path) -> Manifest:
    """Reads the manifest of a checkout's build.

    Raises:
        NotUsableError: There is none, or it is broken.
    """
    path = folder_of(root) / _MANIFEST
    try:
        found = Manifest(**json.loads(path.read_bytes()))
        whole = LIBRARY in found.files and found.modules.keys() < found.files.keys() == found.sizes.keys()
        for texts in (found.sources, found.modules, found.files):
            whole = whole and all(isinstance(text, str) for text in texts.values())
    except FileNotFoundError:
        others = sorted(other.parent.name for other in path.parent.parent.glob(f"*/{_MANIFEST}"))
        made = f"built for {', '.join(others)}, and this is {ABI}" if others else "nothing is built"
        raise NotUsableError(f"{made}; `make native` builds it") from None
    except (OSError, ValueError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise NotUsableError(f"{path} is broken; `make native` builds it anew")
    return found


def write(manifest: Manifest, root: Path) -> None:
    """Puts a manifest in force."""
    path = folder_of(root) / _MANIFEST
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(vars(manifest), indent=1) + "\n")
    scratch.replace(path)


def check(manifest: Manifest, root: Path) -> None:
    """Compares a build with the sources.

    Raises:
        NotUsableError: A source has changed, or an extension is missing.
    """
    for name, size in manifest.sizes.items():
        path = folder_of(root) / manifest.files[name]
        if not path.is_file() or path.stat().st_size != size:
            raise NotUsableError(f"{path.name} is missing or cut short; `make native` builds it anew")
    for source, known in manifest.sources.items():
        path = root / source
        if not path.is_file() or digest(path) != known:
            raise NotUsableError(f"{source} has changed since `make native`")


def install(root: Path = CHECKOUT) -> str:
    """Has every module that was compiled loaded as such from here on, all or none.

    Args:
        root: The checkout.

    Returns:
        "on: ..." or "off: ..." with the reason, for the log.
    """
    if os.environ.get(SWITCH, "") == "off":
        return f"off: {SWITCH}=off"
    try:
        manifest = read(root)
        check(manifest, root)
        use(manifest, root)
    except (NotUsableError, OSError) as reason:
        return f"off: {reason}"
    return f"on: {len(manifest.modules)} modules, {manifest.made_with}"


def use(manifest: Manifest, root: Path) -> None:
    """Has the modules of a manifest loaded as extensions from here on.

    Raises:
        NotUsableError: One was imported before, or the machine cannot load them.
    """
    early = sorted(manifest.modules.keys() & sys.modules.keys())
    if early:
        raise NotUsableError(f"{early[0]} was imported before")
    finder = _Finder(manifest, root)
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module(LIBRARY)
    except ImportError as error:
        sys.meta_path.remove(finder)
        raise NotUsableError(f"{error}; `make native` builds it for this machine") from error


class _Finder:
    """Finds the modules of a manifest. An importlib.abc.MetaPathFinder, whose import takes longer than all of this."""

    def __init__(self, manifest: Manifest, root: Path) -> None:
        folder = folder_of(root)
        self._files = {name: str(folder / file) for name, file in manifest.files.items()}
        self._sources = {name: str(root / source) for name, source in manifest.modules.items()}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        """See MetaPathFinder."""
        file = self._files.get(fullname)
        if file is None:
            return None
        source = self._sources.get(fullname, file)
        return spec_from_file_location(fullname, source, loader=_Loader(fullname, file, source))


class _Loader(ExtensionFileLoader):
    """Loads an extension under the name of its source, so that `__file__` and inspect lead to what people read."""

    def __init__(self, fullname: str, file: str, source: str) -> None:
        super().__init__(fullname, file)
        self._source = source

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """See Loader."""
        return super().create_module(ModuleSpec(spec.name, self, origin=self.path))

    def exec_module(self, module: ModuleType) -> None:
        """See Loader. The module has run its own body in create_module, under the attributes of an extension."""
        super().exec_module(module)
        module.__file__, module.__loader__ = self._source, self
