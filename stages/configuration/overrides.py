"""Command-line overrides as an edit of params.yaml: what was asked for wins, everything else and the comments stay.

params.yaml is the last layer of the configuration, so a value in it would hide what an option chosen on the command line
says. An option is chosen for what it changes: a value of params.yaml that stands in the way of such a change is taken out of
the edited text, and named in its notes.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from stages.common.errors import ConfigError
from stages.common.messages import show
from stages.common.passwords import addresses, has_password, is_secret_name, without_passwords
from stages.configuration.composition import CONF, PARAMS, choices, composing, merge
from stages.configuration.schema import MISSING

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

ABSENT = object()
DEFAULTS = "defaults"

Key = tuple[str, ...]


class Combination(NamedTuple):
    """One job of a sweep: all of its overrides, and those of them that not every job has, with keys as short as is clear."""

    overrides: tuple[str, ...]
    differences: tuple[str, ...]


class EditedParams(NamedTuple):
    """The text of an edited params.yaml, and the values that gave way, one sentence each."""

    text: str
    notes: tuple[str, ...]


def combinations(overrides: Sequence[str]) -> list[Combination]:
    """Every combination of the values that `overrides` lists, in Hydra's order: `data=arrays,custom`, `seed=range(3)`.

    Raises:
        ConfigError: an override cannot be read, or holds a password.
    """
    _refuse_passwords(overrides)
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra

    with composing():
        parsed = parse(overrides, GlobalHydra.instance().config_loader())
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    varying = [place for place in range(len(jobs[0])) if len({each[place] for each in jobs}) > 1]
    short = _shortest([jobs[0][place].partition("=")[0].lstrip("+") for place in varying])
    return [
        Combination(
            tuple(each), tuple(f"{name}={_as_yaml(each[place].partition('=')[2])}" for name, place in zip(short, varying, strict=True))
        )
        for each in jobs
    ]


def _refuse_passwords(overrides: Sequence[str]) -> None:
    """What sets jobs apart names them: in tables, files, logs and MLflow."""
    for override in overrides:
        if (name := _written_secret(override)) is not None:
            raise ConfigError(
                f"{name}: a secret is not allowed, as jobs are named by their values, and these are stored; expected it in the environment,"
                " and ${oc.env:NAME} in params.yaml"
            )
        key, _, value = override.partition("=")
        # Of where results are tracked, an address may lack its scheme.
        if any(has_password(address) for address in addresses(value)) or (key.lstrip("+").startswith("tracking") and has_password(value)):
            raise ConfigError(
                f"{without_passwords(key)}: a password or token is not allowed, as jobs are named by their values, and these are stored; "
                "expected an address without it: one with a password goes into the environment, as MLFLOW_TRACKING_URI"
            )


def _written_secret(override: str) -> str | None:
    """The argument whose secret an override writes down: `data.calibration.api_key=...`, or in a section."""
    pairs = re.finditer(r"([\w.-]+)\s*[:=]\s*([^\s,{}\[\]]+)", override.lstrip("+"))
    return next((match[1] for match in pairs if is_secret_name(match[1].rpartition(".")[2]) and not match[2].startswith("$")), None)


def _as_yaml(value: str) -> str:
    """A value of Hydra's as one writes it: `true`, where Hydra says `True`."""
    return {"True": "true", "False": "false", "None": "null"}.get(value, value)


def _shortest(keys: Sequence[str]) -> list[str]:
    """The ends of dotted keys that tell them apart."""

    def end(key: str, length: int) -> str:
        return ".".join(key.split(".")[-length:])

    lengths = [next(n for n in range(1, key.count(".") + 2) if [end(other, n) for other in keys].count(end(key, n)) == 1) for key in keys]
    return [end(key, length) for key, length in zip(keys, lengths, strict=True)]


def edited(text: str, overrides: Sequence[str]) -> EditedParams:
    """`text`, the content of params.yaml, with Hydra's `overrides` written into it: `data=arrays`, `quantization.preset=mixed`.

    Raises:
        ConfigError: an override cannot be read or cannot be written into params.yaml, or does not have the effect it asks for.
    """
    chosen, values = _parsed(overrides)
    merged(text, overrides)  # as Hydra's launchers will: it knows which keys and options there are
    rewriter = _rewriter()
    params = rewriter.load(text) or rewriter.map()
    before = _without_values(params) if chosen else {}
    notes = []
    for group, option in chosen.items():
        _choose(params, group, option)
        notes += _make_way_for_choices(params, group, option, chosen)
    if chosen:
        notes += _make_way(params, before, _without_values(params))
    for key, value in values.items():
        _set(params, key, value)
    written = _dump(params)
    _check_effect(written, values)
    return EditedParams(written, tuple(notes))


def is_group(key: str) -> bool:
    """Whether the key of an override names a group of conf/."""
    return bool(key) and (CONF / key).is_dir()


def parse(overrides: Sequence[str], loader: Any = None) -> list[Override]:
    """Hydra's reading of overrides; its configuration loader is needed to list the options of `glob(*)`.

    Raises:
        ConfigError: one does not follow Hydra's grammar.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create(loader)
    parsed = []
    for override in overrides:
        try:
            parsed += parser.parse_overrides([override])
        except HydraException as error:
            reason = next(iter(str(error.__cause__ or error).splitlines()), "")
            raise ConfigError(f"{override!r} is no override of the form key=value: {reason}") from None
    return parsed


def _parsed(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[Key, Any]]:
    """The options chosen by group, and the values by key."""
    options: dict[str, Any] = {}
    values: dict[Key, Any] = {}
    for override in parse(overrides):
        if override.is_delete():
            raise ConfigError(f"{override.input_line}: params.yaml cannot delete a key of conf/; set it to null, or choose another option")
        if override.package is not None or not re.fullmatch(r"[\w\-./]+", override.key_or_group):
            raise ConfigError(f"{override.input_line}: expected the name of a group, or a dotted key")
        if is_group(override.key_or_group):
            options[override.key_or_group] = override.value()
        else:
            values[tuple(override.key_or_group.split("."))] = override.value()
    return options, values


def _choose(params: Any, group: str, option: Any) -> None:
    """Write the choice into the defaults list, where the group stands or before `_self_`."""
    defaults = params.setdefault(DEFAULTS, ["_self_"]) if DEFAULTS in params else _insert_defaults(params)
    for entry in defaults:
        if isinstance(entry, Mapping):
            for name in entry:
                if _group(name) == group:
                    entry[name] = option  # type: ignore[index]
                    return
    place = defaults.index("_self_") if "_self_" in defaults else len(defaults)
    defaults.insert(place, {f"override /{group}": option})


def _make_way_for_choices(params: Any, group: str, option: Any, chosen: Mapping[str, Any]) -> list[str]:
    """Take out choices of `params` where the chosen option, an experiment, makes another one; one sentence for each."""
    notes = []
    for other, wanted in choices(CONF / group / f"{option}.yaml").items():
        for entry in [entry for entry in params[DEFAULTS] if isinstance(entry, Mapping)]:
            hidden = next((value for name, value in entry.items() if _group(name) == other), wanted)
            if other not in chosen and hidden != wanted:
                params[DEFAULTS].remove(entry)
                notes.append(f"{other}: {show(hidden)} of params.yaml gives way to {show(wanted)} of {group} {option}")
    return notes


def _group(name: object) -> str:
    """The group that an entry of a defaults list chooses from: `override /model` is `model`."""
    return re.sub(r"^override\s+", "", str(name)).lstrip("/")


def _insert_defaults(params: Any) -> Any:
    params.insert(0, DEFAULTS, ["_self_"])
    return params[DEFAULTS]


def _without_values(params: Mapping[str, Any]) -> dict[str, Any]:
    """What conf/ and the choices of `params` make, without the values in it."""
    return merged(_dump({DEFAULTS: params[DEFAULTS]} if DEFAULTS in params else {}))


def merged(params: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What conf/ and the content of a params.yaml make, interpolations as they stand."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PARAMS
        path.write_text(params, encoding="utf-8")
        return merge(overrides, path, resolve=False)


def _make_way(params: Any, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Take out of `params` what stands in the way of the change from `before` to `after`; one sentence for each."""
    notes = []
    for key in [key for key in _leaves(params) if key[0] != DEFAULTS]:
        old, new = _at(before, key), _at(after, key)
        # A value that the chosen option leaves open (???) is for params.yaml to give.
        if old == new or new == MISSING:
            continue
        hidden = _at(params, key)
        _remove(params, key)
        if hidden != new:
            instead = "is not among the chosen option's keys" if new is ABSENT else f"gives way to {show(new)} of the chosen option"
            notes.append(f"{'.'.join(key)}: {show(hidden)} of params.yaml {instead}")
    return notes


def _leaves(values: Any, key: Key = ()) -> Iterator[Key]:
    if isinstance(values, Mapping) and values:
        for name, value in values.items():
            yield from _leaves(value, (*key, str(name)))
    elif key:
        yield key


def _at(values: Any, key: Iterable[str]) -> Any:
    for name in key:
        if not isinstance(values, Mapping) or name not in values:
            return ABSENT
        values = values[name]
    return values


def _remove(params: Any, key: Key) -> None:
    """Remove a key, and the sections that it leaves empty."""
    section = _at(params, key[:-1])
    del section[key[-1]]
    if not section and len(key) > 1:
        _remove(params, key[:-1])


def _set(params: Any, key: Key, value: Any) -> None:
    """Set a value; a section is merged into what is there, as Hydra does."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            _set(params, (*key, str(name)), inner)
        return
    section = params
    for name in key[:-1]:
        if not isinstance(section.get(name), Mapping):
            section[name] = {}
        section = section[name]
    section[key[-1]] = _quoted(value)


def _quoted(value: Any) -> Any:
    """A text that PyYAML, which is of YAML 1.1, would read as something else: `on`, `1_000`."""
    from ruamel.yaml.scalarstring import SingleQuotedScalarString

    if isinstance(value, list):
        return [_quoted(item) for item in value]
    if isinstance(value, str) and not _is_plain(value):
        return SingleQuotedScalarString(value)
    return value


def _is_plain(text: str) -> bool:
    try:
        return bool(yaml.safe_load(text) == text)
    except yaml.YAMLError:
        return False


def _check_effect(text: str, values: Mapping[Key, Any]) -> None:
    """Compose what was written, and see that every value has arrived."""
    composed = merged(text)
    for key, value in values.items():
        found = _at(composed, key)
        if found != value and not isinstance(value, Mapping):
            raise ConfigError(f"{'.'.join(key)}: {show(value)} of the command line has no effect, the configuration says {show(found)}")


def _rewriter() -> Any:
    from ruamel.yaml import YAML  # DVC has it, too: it keeps comments

    rewriter = YAML()
    rewriter.preserve_quotes = True
    rewriter.width = 140
    rewriter.indent(mapping=2, sequence=4, offset=2)
    return rewriter


def _dump(params: Any) -> str:
    stream = io.StringIO()
    _rewriter().dump(params, stream)
    return stream.getvalue()
