"""The configuration as stages load it, and instances of the classes that it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.common import artifacts
from stages.common.errors import ConfigError, UserError
from stages.common.user_code import user_code
from stages.configuration.conversion import typed
from stages.configuration.schema import Config


def load_config(path: Path = artifacts.CONFIG) -> Config:
    """The configuration that the `config` stage checked and wrote.

    Raises:
        UserError: when it is missing, damaged, or does not fit this version of the schema.
    """
    return typed(Config, artifacts.read_json(path))


def create(section: Mapping[str, Any], key: str) -> Any:
    """An instance of the class that `section` names by `_target_`.

    Args:
        section: `_target_` and the class's arguments; `${oc.env:NAME}` in one becomes what the environment has.
        key: where the section stands in the configuration, for messages.

    Raises:
        UserError: what the class itself refuses, or another exception of it or of its module.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf.errors import OmegaConfBaseException

    with user_code(f"{key}: {section.get('_target_')}"):
        try:
            return instantiate(dict(section), _convert_="all")
        except InstantiationException as error:
            cause = error.__cause__
            while cause is not None and cause.__cause__ is not None:  # Hydra's own words about an import that fails
                cause = cause.__cause__
            if isinstance(cause, UserError):
                raise UserError(f"{key}: {cause}") from cause
            if cause is not None:
                raise cause from None
            raise ConfigError(f"{key}: {error}") from error
        except OmegaConfBaseException as error:  # a variable that the environment no longer has
            raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from None
