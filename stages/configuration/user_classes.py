"""Checks a section with a `_target_` (Hydra's way to name a class and its arguments) without importing the class.

The class is looked up in its source file, so that a misspelt argument of a data set is known before NumPy or OpenVINO
are imported, and code of a user's own is never run just to check its arguments.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import importlib.util
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from stages.common.errors import ConfigError
from stages.common.messages import listed, nearest, show, unknown
from stages.common.paths import is_there, of_a_copy

MOST_IMPORTS = 5  # from one module to the next, until the name of a type is not followed further
HYDRA_KEYS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")

_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "Path": (str,),
    "PathLike": (str,),
    "None": (type(None),),
    "list": (list,),
    "List": (list,),
    "tuple": (list,),
    "Tuple": (list,),
    "Sequence": (list,),
    "Iterable": (list,),
    "dict": (dict,),
    "Dict": (dict,),
    "Mapping": (dict,),
}
_WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false", list: "a list", dict: "a section", type(None): "null"}


@dataclass(frozen=True)
class Argument:
    """One argument of a class or function: its annotation is kept as source, None when there is none."""

    name: str
    required: bool
    annotation: ast.expr | None


@dataclass(frozen=True)
class Signature:
    """What a target accepts. `more` means that it takes further keywords, or that its source does not tell."""

    arguments: tuple[Argument, ...]
    more: bool


def check(section: object, key: str) -> None:
    """Check that `section` names a class or function that exists, with arguments that it accepts and files that exist.

    Raises:
        ConfigError: naming `key`, the value and what is allowed.
    """
    if not isinstance(section, dict) or "_target_" not in section:
        raise ConfigError(f"{key}: {show(section)} is not allowed; expected a section with _target_ (a class) and its arguments")
    signature = find(section["_target_"], f"{key}._target_")
    arguments = {argument.name: argument for argument in signature.arguments}
    positional = len(section.get("_args_") or ())
    for name, value in section.items():
        if name in HYDRA_KEYS:
            continue
        if name not in arguments:
            if not signature.more:
                raise ConfigError(unknown(f"{key}.{name}", value, arguments))
        else:
            _check_value(arguments[name], value, f"{key}.{name}")
        for nested, inner in _nested(value, f"{key}.{name}"):
            check(inner, nested)
    for argument in signature.arguments[positional:]:
        if argument.required and argument.name not in section and not section.get("_partial_"):
            raise ConfigError(f"{key}.{argument.name}: missing; {section['_target_']} needs it, expected {_expected(argument)}")


def source_files(section: object) -> Iterator[Path]:
    """The source files of every class that `section` names by `_target_`, at any depth."""
    if isinstance(section, dict):
        found = _module(str(section["_target_"])) if "_target_" in section else None
        if found and found[0].origin and Path(found[0].origin).is_file():
            yield Path(found[0].origin)
        for value in section.values():
            yield from source_files(value)
    elif isinstance(section, list):
        for value in section:
            yield from source_files(value)


def with_imports(files: Iterable[Path]) -> set[Path]:
    """These files, and those below the current folder that they import, directly or through others; read, not run."""
    waiting, found = [path.resolve() for path in files], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += _imported_files(path)
    return found


def _imported_files(path: Path) -> Iterator[Path]:
    root = Path.cwd()
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # importing it will say more
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [root.joinpath(*alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = path.parents[node.level - 1] if 0 < node.level <= len(path.parents) else root
            module = package.joinpath(*(node.module or "").split("."))
            modules = [module, *(module / alias.name for alias in node.names)]
        else:
            continue
        files = [file for module in modules for file in (module.with_name(f"{module.name}.py"), module / "__init__.py")]
        yield from (file for file in files if file.is_file() and file.is_relative_to(root) and not file.is_relative_to(root / "stages"))


def meaning(target: object) -> str:
    """The first sentence of the documentation of the class or function `target`; empty where there is none."""
    found = _module(target) if isinstance(target, str) else None
    if found is None or len(found[1]) != 1 or not str(found[0].origin).endswith(".py"):
        return ""
    node = _defined(ast.parse(Path(str(found[0].origin)).read_text(encoding="utf-8"))).get(found[1][0])
    text = ast.get_docstring(node) if isinstance(node, ast.ClassDef | ast.FunctionDef) else None
    return f"{' '.join(text.split()).split('. ')[0].rstrip('.')}." if text else ""


def find(target: object, key: str) -> Signature:
    """The signature of `target` (`package.module.Class`), read from its source.

    Raises:
        ConfigError: when the module or the name in it does not exist.
    """
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"{key}: {show(target)} is not allowed; expected the dotted name of a class, e.g. my_module.MyDataset")
    found = _module(target)
    if found is None:
        top = target.split(".")[0]
        raise ConfigError(
            f"{key}: {show(target)} cannot be found; there is no module '{top}' in the project's folder or among the installed packages"
        )
    spec, names = found
    if spec.origin is None and names:
        raise ConfigError(f"{key}: {show(target)} cannot be found; {_listed(spec, names[0], [])}")
    if not spec.origin or not spec.origin.endswith(".py"):
        return Signature((), more=True)
    try:
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"), spec.origin)
    except SyntaxError as error:
        raise ConfigError(f"{key}: {show(target)} cannot be read; {spec.origin}, line {error.lineno}: {error.msg}") from None
    if not names:
        raise ConfigError(f"{key}: {show(target)} is a module; expected a class or function in it, e.g. {target}.{_example(tree)}")
    defined = _defined(tree)
    if names[0] not in defined and "*" not in defined and "__getattr__" not in defined:
        public = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        if spec.submodule_search_locations:  # a package's __init__.py hands on the classes of its modules
            public += [name for name, node in defined.items() if isinstance(node, ast.ImportFrom) and name[0].isupper()]
        raise ConfigError(f"{key}: {show(target)} cannot be found; {_listed(spec, names[0], public)}")
    node = defined.get(names[0])
    if isinstance(node, ast.ImportFrom) and len(names) == 1 and spec.name:
        return find(_origin(node, names[0], spec), key)
    if len(names) > 1:
        return Signature((), more=True)
    signature = _signature(node, tree)
    written_out = _Aliases(defined, spec)
    return Signature(tuple(written_out.in_argument(argument) for argument in signature.arguments), signature.more)


def _origin(node: ast.ImportFrom, name: str, spec: ModuleSpec) -> str:
    """The dotted name of what a module imports under `name`."""
    package = spec.name if spec.submodule_search_locations else spec.name.rpartition(".")[0]
    base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
    return f"{base}.{next(alias.name for alias in node.names if (alias.asname or alias.name) == name)}"


class _Aliases(ast.NodeTransformer):
    """Writes out the names of types in annotations: `Mode = Literal["a", "b"]`, here or in a module that it is imported from."""

    def __init__(self, defined: Mapping[str, ast.stmt], spec: ModuleSpec) -> None:
        self.defined = defined
        self.spec = spec

    def in_argument(self, argument: Argument) -> Argument:
        if argument.annotation is None:
            return argument
        return dataclasses.replace(argument, annotation=self.visit(copy.deepcopy(argument.annotation)))

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return _alias(node.id, self.defined, self.spec) or node


def _alias(name: str, defined: Mapping[str, ast.stmt], spec: ModuleSpec, depth: int = 0) -> ast.expr | None:
    """What a name stands for where the project's own code makes it one for a choice of literals; None for anything else."""
    node = defined.get(name)
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript) and _name(node.value.value) == "Literal":
        return node.value
    if not isinstance(node, ast.ImportFrom) or depth > MOST_IMPORTS:
        return None
    module, _, original = _origin(node, name, spec).rpartition(".")
    found = _module(module)
    if found is None or found[1] or not str(found[0].origin).endswith(".py"):
        return None
    file = Path(str(found[0].origin))
    # Nothing of Python's or a package's is read: that would take longer than all the rest.
    own = any(file.is_relative_to(folder) for folder in (Path.cwd(), Path(__file__).parents[1]))
    if not own or "site-packages" in file.parts:
        return None
    try:
        return _alias(original, _defined(ast.parse(file.read_text(encoding="utf-8"))), found[0], depth + 1)
    except (OSError, SyntaxError, ValueError):
        return None


def _listed(spec: ModuleSpec, name: str, public: list[str]) -> str:
    """What a module or package has instead of `name`."""
    names = public + [module.name for module in pkgutil.iter_modules(spec.submodule_search_locations or [])]
    return f"{nearest(name, names)}{spec.name} has {', '.join(names) or 'no class'}"


def _module(target: str) -> tuple[ModuleSpec, list[str]] | None:
    """The spec of the longest prefix of `target` that is a module, and the names after it. Imports nothing."""
    parts = target.split(".")
    try:
        spec = importlib.util.find_spec(parts[0])
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    for index, part in enumerate(parts[1:], start=1):
        locations = spec.submodule_search_locations
        inner = _inner(f"{spec.name}.{part}", list(locations)) if locations else None
        if inner is None:
            return spec, parts[index:]
        spec = inner
    return spec, []


def _inner(name: str, locations: list[str]) -> ModuleSpec | None:
    """The spec of module `name`, the package that it is in being at `locations`."""
    try:
        return PathFinder.find_spec(name, locations)
    except KeyError:
        # A folder without __init__.py inside another such folder: Python wants the outer one imported to tell where it is.
        spec = ModuleSpec(name, None, is_package=True)
        folders = (Path(location) / name.rpartition(".")[2] for location in locations)
        spec.submodule_search_locations = [str(folder) for folder in folders if folder.is_dir()]
        return spec


def _defined(tree: ast.Module) -> dict[str, ast.stmt]:
    """The names that a module defines at its top level."""
    names: dict[str, ast.stmt] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names.update({alias.asname or alias.name.split(".")[0]: node for alias in node.names})
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names[node.name] = node
        elif isinstance(node, ast.Assign):
            names.update({name.id: node for name in node.targets if isinstance(name, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node
        elif isinstance(node, ast.If | ast.Try):
            # A conditional definition: the name exists, which of the definitions counts is not known here.
            inner = [item for item in ast.walk(node) if isinstance(item, ast.ClassDef | ast.FunctionDef)]
            names.update({item.name: node for item in inner})
    return names


def _signature(node: ast.stmt | None, tree: ast.Module) -> Signature:
    unknowable = Signature((), more=True)
    if isinstance(node, ast.FunctionDef):
        return unknowable if node.decorator_list else _function(node.args)
    if not isinstance(node, ast.ClassDef) or node.keywords:
        return unknowable
    decorators = [_name(item.func if isinstance(item, ast.Call) else item) for item in node.decorator_list]
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    if "__init__" in methods:
        initialiser = methods["__init__"]
        return unknowable if initialiser.decorator_list else _function(initialiser.args, skip=1)
    bases = [_name(base) for base in node.bases]
    if "__new__" in methods or any(decorator != "dataclass" for decorator in decorators):
        return unknowable
    inherited = Signature((), more=False)
    defined = _defined(tree)
    for base in bases:
        if base in ("object", "Protocol", "Generic", "ABC", "NamedTuple"):
            continue
        parent = _signature(defined.get(base), tree)
        inherited = Signature(inherited.arguments + parent.arguments, inherited.more or parent.more)
    if "dataclass" not in decorators and "NamedTuple" not in bases:
        return inherited
    fields = {argument.name: argument for argument in inherited.arguments}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and "ClassVar" not in ast.unparse(item.annotation):
            calls = item.value if isinstance(item.value, ast.Call) and _name(item.value.func) == "field" else None
            keywords = {keyword.arg: keyword.value for keyword in calls.keywords} if calls else {}
            if isinstance(initialised := keywords.get("init"), ast.Constant) and initialised.value is False:
                continue
            optional = ("default" in keywords or "default_factory" in keywords) if calls else item.value is not None
            fields[item.target.id] = Argument(item.target.id, not optional, item.annotation)
    return Signature(tuple(fields.values()), inherited.more)


def _function(args: ast.arguments, skip: int = 0) -> Signature:
    positional = [*args.posonlyargs, *args.args]
    optional = len(args.defaults)
    arguments = [
        Argument(argument.arg, index < len(positional) - optional, argument.annotation) for index, argument in enumerate(positional)
    ]
    keywords = [
        Argument(argument.arg, default is None, argument.annotation)
        for argument, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
    return Signature((*arguments[skip:], *keywords), more=args.kwarg is not None)


def _check_value(argument: Argument, value: object, key: str) -> None:
    """Check `value` against the argument's annotation as far as that is made of plain types, and that a path exists."""
    if isinstance(value, dict) and "_target_" in value:
        return
    kinds, choices, names = _allowed(argument.annotation)
    if kinds is not None and type(value) not in kinds and value not in choices:
        close = nearest(value, choices)
        raise ConfigError(f"{key}: {show(value)} is not allowed; expected {_expected(argument)}; {close}".rstrip("; "))
    if isinstance(value, str) and (argument.name == "path" or "Path" in names) and not is_there(value):
        raise ConfigError(f"{key}: {show(value)} is not allowed; expected an existing file or folder{of_a_copy(value)}")


def _expected(argument: Argument) -> str:
    """What an argument accepts, in words."""
    kinds, choices, _ = _allowed(argument.annotation)
    if kinds is None:
        return ast.unparse(argument.annotation) if argument.annotation else "any value"
    words = [_WORDS[kind] for kind in kinds if not (kind is int and float in kinds)]
    return listed(dict.fromkeys([*map(show, choices), *words]))


def _allowed(annotation: ast.expr | None) -> tuple[tuple[type, ...] | None, tuple[object, ...], set[str]]:
    """The YAML types (None: not known) and the literal values that an annotation allows, and the type names in it."""
    kinds: list[type] = []
    literals: list[object] = []
    names: set[str] = set()
    known = annotation is not None
    for part in _parts(annotation):
        name = _name(part.value if isinstance(part, ast.Subscript) else part)
        names.add(name)
        if isinstance(part, ast.Subscript) and name == "Literal":
            items = part.slice.elts if isinstance(part.slice, ast.Tuple) else [part.slice]
            literals += [item.value for item in items if isinstance(item, ast.Constant)]
        elif name in _KINDS:
            kinds += _KINDS[name]
        else:
            known = False
    return (tuple(kinds) if known else None), tuple(literals), names


def _parts(annotation: ast.expr | None) -> Iterator[ast.expr]:
    """The alternatives of a union."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        yield from _parts(annotation.left)
        yield from _parts(annotation.right)
    elif isinstance(annotation, ast.Subscript) and _name(annotation.value) == "Optional":
        yield from _parts(annotation.slice)
        yield ast.Constant(None)
    elif isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        yield from _parts(ast.parse(annotation.value, mode="eval").body)
    elif annotation is not None:
        yield annotation


def _nested(value: object, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections with a `_target_` inside an argument's value."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield key, value
        else:
            for name, item in value.items():
                yield from _nested(item, f"{key}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _nested(item, f"{key}[{index}]")


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Name):
        return node.id
    return "None" if isinstance(node, ast.Constant) and node.value is None else ""


def _example(tree: ast.Module) -> str:
    return next((node.name for node in tree.body if isinstance(node, ast.ClassDef)), "MyClass")
