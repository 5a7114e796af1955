"""Names -> plugins: built in, from entry points, or from a single file. Only what is asked for is imported.

Built-in plugins are found by reading the source of `models/` and `tasks/` without importing it: every class there with
a literal `name = "…"` is one. So names can be listed and checked without torch, and a new plugin is one new file. The
blocks and mixers of `models/blocks` and `models/mixers` are found in the same way; each pair is a model `block:mixer`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, cast

from suite.errors import PluginError, unknown
from suite.plugin import Model, Task

Kind = Literal["model", "task"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_+-]*")

SHARED_SECTIONS = ("shell", "budget", "preset")
"""Sections of settings that belong to no plugin."""

_HOME = Path(__file__).resolve().parent.parent

_CONTRACTS: dict[Kind, type[Model] | type[Task]] = {"model": Model, "task": Task}


@dataclass(frozen=True)
class Entry:
    """A name and where it leads."""

    name: str
    origin: str
    """For people: a module, a distribution or a file."""
    load: Callable[[], Any]
    source_sha256: str | None = None
    """Digest of the file, for a plugin from a single file."""
    is_built_in: bool = False


class Registry:
    """All plugins there are.

    Raises:
        PluginError: a plugin file cannot be imported or holds no plugin, or two plugins share a name (names both).
    """

    def __init__(self, plugin_files: Sequence[Path] = ()) -> None:
        self._entries: dict[Kind, dict[str, Entry]] = {"model": {}, "task": {}}
        kinds: tuple[Kind, ...] = ("model", "task")
        for kind in kinds:
            for entry in (*_built_in(kind), *_installed(kind)):
                self._add(kind, entry)
        self._adapters = []
        for entry in _built_in("model", "adapters"):
            self._add("model", entry)
            self._adapters.append(entry.name)
        for path in plugin_files:
            for kind, entry in _from_file(path):
                self._add(kind, entry)
        self.blocks, self.mixers = _part_names("blocks"), _part_names("mixers")
        """What stands before and behind the colon of a composition."""
        self._compositions = {
            name: Entry(name, "models.composition", _composition_loader(block, mixer))
            for block in self.blocks
            for mixer in self.mixers
            for name in [f"{block}:{mixer}"]
        }

    def model_names(self) -> list[str]:
        """Models with a name of their own, without the compositions and the adapters."""
        return sorted(set(self._entries["model"]) - set(self._adapters))

    def composition_names(self) -> list[str]:
        """`block:mixer` for every pair."""
        return sorted(self._compositions)

    def adapter_names(self) -> list[str]:
        """Models that other packages ship; each says what to install where its package is missing."""
        return sorted(self._adapters)

    def task_names(self) -> list[str]:
        return sorted(self._entries["task"])

    def entry(self, kind: Kind, name: str) -> Entry:
        """Raises UsageError for a name that nobody knows."""
        entries = self._entries[kind]
        if kind == "model" and ":" in name:
            return self._composition(name)
        if name not in entries:
            raise unknown(kind, name, entries)
        return entries[name]

    def model(self, name: str) -> type[Model]:
        """The model's class, imported now."""
        return cast("type[Model]", self._load("model", name))

    def task(self, name: str) -> type[Task]:
        """The task's class, imported now."""
        return cast("type[Task]", self._load("task", name))

    def _composition(self, name: str) -> Entry:
        if name in self._compositions:
            return self._compositions[name]
        block, _, mixer = name.partition(":")
        where = f"in the composition '{name}'"
        if block not in self.blocks:
            raise unknown("block", block, self.blocks, where=where)
        raise unknown("mixer", mixer, self.mixers, where=where)

    def _load(self, kind: Kind, name: str) -> Any:
        entry = self.entry(kind, name)
        try:
            plugin = entry.load()
        except Exception as error:
            raise PluginError(f"The {kind} '{name}' from {entry.origin} cannot be imported: {error!r}") from error
        whose = f"The {kind} '{name}' from {entry.origin}"
        if not (isinstance(plugin, type) and issubclass(plugin, _CONTRACTS[kind])):
            raise PluginError(f"{whose} is not a subclass of suite.{kind.capitalize()}")
        if missing := sorted(getattr(plugin, "__abstractmethods__", ())):
            raise PluginError(f"{whose} lacks {', '.join(missing)}. suite.{kind.capitalize()} says what each must be")
        if kind == "task" and not isinstance(getattr(plugin, "presets", None), Mapping):
            raise PluginError(f'{whose} lacks presets. Give the class a line `presets = {{"quick": Preset(…)}}`')
        return plugin

    def _add(self, kind: Kind, entry: Entry) -> None:
        if not _NAME.fullmatch(entry.name) or entry.name in SHARED_SECTIONS:
            raise PluginError(
                f"The {kind} from {entry.origin} cannot be called '{entry.name}': a name has lower-case letters, "
                f"digits, '_', '-' and '+', and is none of {', '.join(SHARED_SECTIONS)}"
            )
        for other_kind, entries in self._entries.items():
            if other := entries.get(entry.name):
                raise PluginError(
                    f"Two plugins are called '{entry.name}': the {other_kind} from {other.origin} and the {kind} from "
                    f"{entry.origin}. Rename one of them"
                )
        self._entries[kind][entry.name] = entry


def _built_in(kind: Kind, folder: str | None = None) -> Iterator[Entry]:
    """What `models/` or `tasks/` holds, or a folder of it."""
    package = f"{kind}s.{folder}" if folder else f"{kind}s"
    for path in sorted((_HOME / package.replace(".", "/")).glob("*.py")):
        for class_name, name in _named_classes(path):
            module = f"{package}.{path.stem}"
            yield Entry(name, module, _attribute_loader(module, class_name), is_built_in=True)


def _part_names(package: str) -> list[str]:
    """Names of the blocks or the mixers."""
    folder = _HOME / "models" / package
    return sorted(name for path in folder.glob("*.py") for _, name in _named_classes(path))


def _composition_loader(block: str, mixer: str) -> Callable[[], Any]:
    return lambda: importlib.import_module("models.composition").compose(block, mixer)


def _named_classes(path: Path) -> Iterator[tuple[str, str]]:
    """(class, plugin name) for each class with a literal `name = "…"` in its body."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for statement in node.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id="name")], value=ast.Constant(value=str(name))):
                    yield node.name, name
                case ast.AnnAssign(target=ast.Name(id="name"), value=ast.Constant(value=str(name))):
                    yield node.name, name


def _attribute_loader(module: str, attribute: str) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module(module), attribute)


def _installed(kind: Kind) -> Iterator[Entry]:
    for point in entry_points(group=f"suite.{kind}s"):
        distribution = point.dist.name if point.dist else "an unknown distribution"
        yield Entry(point.name, f"{distribution} ({point.value})", point.load)


def _from_file(path: Path) -> list[tuple[Kind, Entry]]:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise PluginError(f"There is no plugin file {path}. --plugin takes the path of a Python file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    module_name = f"suite_plugin_{path.stem}_{digest[:8]}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise PluginError(f"The plugin {path} is not a Python file. --plugin takes a file that ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[module_name]
            if isinstance(error, KeyboardInterrupt):
                raise
            raise PluginError(f"The plugin {path} cannot be imported: {_where(error, path)}") from error
    found: list[tuple[Kind, Entry]] = []
    for value in vars(module).values():
        for kind, contract in _CONTRACTS.items():
            if isinstance(value, type) and issubclass(value, contract) and value.__module__ == module_name:
                name = getattr(value, "name", None)
                if not isinstance(name, str):
                    raise PluginError(f'{value.__name__} in {path} has no name. Give the class a line `name = "…"`')
                found.append((kind, Entry(name, str(path), _constant(value), digest)))
    if not found:
        raise PluginError(f"The plugin {path} defines no model and no task: no subclass of suite.Model or suite.Task")
    return found


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _where(error: BaseException, path: Path) -> str:
    """The error with the last line of the plugin that it passed through."""
    line: int | None = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    place = f" (line {line})" if line else ""
    return f"{type(error).__name__}: {error}{place}"
