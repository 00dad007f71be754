"""What Hydra's programs show on request (`--cfg`, `--info`, completion), for one that is started as a module, params.yaml coming last."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from stages.common.errors import ConfigError
from stages.common.messages import nearest, show
from stages.configuration.composition import PARAMS, additions, composing
from stages.configuration.overrides import Combination, edited, merged
from stages.configuration.schema import Config

CONFIGS = ("job", "hydra", "all")
INFOS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
INSTALL, UNINSTALL, QUERY = "install=bash", "uninstall=bash", "query=bash"
COMPLETION = """\
_stages_sweep() {{
    local line="${{COMP_LINE:0:$COMP_POINT}}"
    [[ "$line" =~ ^[^\\ ]*python[0-9.]*\\ +-m\\ +{program}\\ (.*)$ ]] || return 0
    local found; found=$(COMP_LINE="${{BASH_REMATCH[1]}}" "${{COMP_WORDS[0]}}" -m {program} --shell-completion query=bash 2>/dev/null)
    local word="${{line##* }}"
    COMPREPLY=($(compgen -W "$found" -- "$word"))
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
complete -o nospace -o default -F _stages_sweep python python3
"""
REMOVAL = "complete -r python python3; unset -f _stages_sweep\n"


def composed(own: Sequence[str], hydra: Sequence[str], wanted: Sequence[Combination], kind: str, package: str | None) -> Iterator[str]:
    """The configuration in YAML: of each job as it would be built, or with `hydra` and `all` what Hydra makes of its own.

    Args:
        own: Overrides of the project's configuration.
        hydra: Overrides of Hydra's.
        wanted: The jobs that they make.
        kind: One of `CONFIGS`.
        package: The section to show, by its dotted key; None: all of it.

    Raises:
        ConfigError: an override does not fit, or there is no such section.
    """
    if kind != "job":
        yield _hydras_own(own, hydra, kind, package)
        return
    text = PARAMS.read_text(encoding="utf-8") if PARAMS.exists() else ""
    for number, combination in enumerate(wanted):
        values = _selected(merged(edited(text, combination.overrides).text), package)
        title = f"# job {number}: {' '.join(combination.differences)}\n" if len(wanted) > 1 else ""
        yield title + (f"# @package {package}\n" if package else "") + _yaml(values)


def _hydras_own(own: Sequence[str], overrides: Sequence[str], kind: str, package: str | None) -> str:
    import hydra
    from omegaconf import OmegaConf

    with composing():
        made = hydra.compose("config", overrides=[*additions(own), *overrides], return_hydra_config=True)
        values: Any = OmegaConf.to_container(made, resolve=False)
    shown = {"hydra": values["hydra"]} if kind == "hydra" else values
    return _yaml(_selected(shown, package))


def _selected(values: Any, package: str | None) -> Any:
    for place, name in enumerate(names := (package or "").split(".") if package else []):
        if not isinstance(values, dict) or name not in values:
            known = values if isinstance(values, dict) else ()
            raise ConfigError(f"--package: there is no section {'.'.join(names[: place + 1])!r}; {nearest(name, known)}".rstrip("; "))
        values = values[name]
    return values


def _yaml(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=140).removesuffix("...\n")


def composition_info(what: str, own: Sequence[str], overrides: Sequence[str]) -> str:
    """How Hydra composes the configuration, in its own words: one of `INFOS`.

    Raises:
        ConfigError: an override does not fit.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    # Hydra logs it line by line, with a traceback for each that a closed pipe does not take.
    with composing(), contextlib.redirect_stdout(io.StringIO()) as said:
        GlobalHydra.instance().hydra.show_info(what, "config", [*additions(own), *overrides], RunMode.MULTIRUN)
    return said.getvalue().strip("\n") + "\n"


# ------------------------------------------------------------------------------------------------ completion


def completion(command: str, line: str, program: str) -> str:
    """What a shell needs: `install=bash` and `uninstall=bash` for its start-up file, and what it then asks for, `query=bash`.

    Args:
        command: One of the three.
        line: For a query, what stands behind the program's name so far.
        program: The module's name.

    Raises:
        ConfigError: another command, or another shell.
    """
    if command == INSTALL:
        return COMPLETION.format(program=re.escape(program))
    if command == UNINSTALL:
        return REMOVAL
    if command != QUERY:
        raise ConfigError(
            f"--shell-completion: {show(command)} is not allowed; expected {INSTALL} or {UNINSTALL}, which zsh takes, too, after"
            " `autoload -Uz bashcompinit && bashcompinit`"
        )
    return " ".join(completions(line)) + "\n"


def completions(line: str) -> list[str]:
    """What the last word of a line can become; of a list `a,b` the last value."""
    from hydra._internal.core_plugins.bash_completion import BashCompletion
    from hydra.core.global_hydra import GlobalHydra

    *before, word = line.split(" ")
    given = [other for other in before if "=" in other]
    key, separator, values = word.partition("=")
    listed, comma, value = values.rpartition(",")
    if separator and (choices := _choices(key.lstrip("+"))):
        return [f"{key}={listed}{comma}{choice}" for choice in choices if choice.startswith(value)]
    with composing():
        found = BashCompletion(GlobalHydra.instance().config_loader())._query("config", " ".join([*given, f"{key}{separator}{value}"]))
    names = [name for name in found if name.startswith(key) and not name.startswith(".") and ("=" in name or name.endswith("."))]
    return [f"{key}={listed}{comma}{name.partition('=')[2]}" for name in names] if separator else names


def _choices(key: str) -> list[str]:
    """The values that the schema allows at a dotted key, where it lists them."""
    section: Any = Config
    *sections, name = key.split(".")
    for part in sections:
        field = next((field for field in dataclasses.fields(section) if field.name == part), None)
        kind: Any = field.default_factory if field is not None else None
        if not dataclasses.is_dataclass(kind):
            return []
        section = kind
    for field in dataclasses.fields(section):
        if field.name == name:
            default: Any = field.default
            return ["true", "false"] if isinstance(default, bool) else [str(choice) for choice in field.metadata.get("choices", ())]
    return []
