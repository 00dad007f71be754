"""The MLflow store: where it is, its client, its experiments, and runs that are found in it without MLflow."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from stages.common.errors import UserError
from stages.common.passwords import is_escaped, without_passwords
from stages.configuration.schema import Config

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

KEY_TAG = "content_key"
SQLITE = "sqlite:///"
ARTIFACTS = "mlartifacts"
# Where MLflow 3 writes down, in full, the places of files.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


class Run(NamedTuple):
    """A logged result."""

    name: str
    experiment_id: str
    id: str


def tracking_uri(config: Config) -> str:
    """Where to log: the environment's MLFLOW_TRACKING_URI, or the configured one; a relative SQLite file is the project's.

    DVC runs queued experiments in a temporary copy of the project and names the project itself in DVC_ROOT.

    Raises:
        UserError: it has no scheme, or a special character in user or password is not escaped. Drivers would take a part of it for the
            host, and print that.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or config.tracking.tracking_uri
    place = "MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") else "tracking.tracking_uri"
    if ":" in uri and "://" not in uri:
        raise UserError(
            f"{place}: no address; expected sqlite:///mlflow.db, another database, or a server's address with http:// before it"
        )
    if not is_escaped(uri):
        raise UserError(f"{place}: special characters in user and password must be escaped: @ as %40, / as %2F, ? as %3F, # as %23")
    if not uri.startswith(SQLITE):
        return uri
    return f"{SQLITE}{(_project() / uri.removeprefix(SQLITE)).resolve()}"


def _project() -> Path:
    """The project's folder, also from one of DVC's temporary copies."""
    root = Path(os.environ.get("DVC_ROOT") or ".").resolve()
    return root if root.is_dir() else Path.cwd()


def _home(uri: str) -> Path:
    """The folder that a store which is no server keeps its files in."""
    return Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else _project()


def find_in_sqlite(uri: str, experiment: str, key: str) -> Run | None:
    """The finished run with this key; None if there is none or the store is no readable SQLite file."""
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or not path.exists():
        return None
    query = """
        SELECT runs.name, runs.experiment_id, runs.run_uuid FROM runs
        JOIN tags ON tags.run_uuid = runs.run_uuid
        JOIN experiments ON experiments.experiment_id = runs.experiment_id
        WHERE tags.key = ? AND tags.value = ? AND experiments.name = ?
          AND runs.status = 'FINISHED' AND runs.lifecycle_stage = 'active'
    """
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)) as database:
        row = database.execute(query, (KEY_TAG, key, experiment)).fetchone()
        return Run(row[0], str(row[1]), row[2]) if row else None
    return None


def follow_the_project(uri: str) -> None:
    """Where an SQLite store and the artifacts beside it have been moved or copied, let the store say where they are now.

    MLflow writes their places down in full: it would go on writing to the old one, and has no command for this.
    """
    path, home = Path(uri.removeprefix(SQLITE)), (_home(uri) / ARTIFACTS).as_uri()
    if not uri.startswith(SQLITE) or not path.exists():
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=5)) as database:
        locations = [location for (location,) in database.execute("SELECT DISTINCT artifact_location FROM experiments")]
        for old in locations:
            if old != home and str(old).startswith("file:") and str(old).endswith(f"/{ARTIFACTS}") and _is_left(old, path.name):
                with database:
                    for table, column in _PLACES:
                        known = database.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone()
                        if known is not None:
                            begins = f"{column} = ? OR substr({column}, 1, ?) = ?"
                            renamed = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {begins}"
                            database.execute(renamed, (home, len(old) + 1, old, len(old) + 1, f"{old}/"))
                was = Path(unquote(urlsplit(old).path)).parent
                print(f"MLflow: the project was in {was}; its artifacts are now looked for in {_home(uri)}")


def _is_left(location: str, store: str) -> bool:
    """Whether the project has been moved away from this place of artifacts, or is a copy of the one there."""
    folder = Path(unquote(urlsplit(location).path))
    return not folder.exists() or (folder.parent / store).is_file()


@contextmanager
def mlflow_client(uri: str) -> Iterator[MlflowClient]:
    """MLflow's client; one process at a time has it where the store is an SQLite file, which several could not create at once.

    Raises:
        UserError: MLflow refuses or cannot be reached.
    """
    _check_writable(uri)
    # A server that does not answer is reported in seconds; MLflow's own defaults retry for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow.exceptions import MlflowException
    from mlflow.store.db import utils as databases
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError  # comes with MLflow, which lets it through where a database is damaged

    for name in ("alembic", "mlflow"):  # they tell every step of making an SQLite file
        logging.getLogger(name).setLevel(logging.WARNING)
    # Nor has MLflow a setting for databases, where it waits for 100 seconds and tells every attempt in five lines.
    databases.MAX_RETRY_COUNT = 3
    logging.getLogger(databases.__name__).setLevel(logging.ERROR)
    try:
        with _only_writer(uri):
            yield MlflowClient(uri)
    except (MlflowException, SQLAlchemyError, ImportError, PermissionError) as error:  # ImportError: a driver is missing
        raise UserError(f"MLflow at {without_passwords(uri)}: {without_passwords(_why(error))}") from error


def _check_writable(uri: str) -> None:
    """Refuse an SQLite store that cannot be written; MLflow would say so in a traceback of SQLAlchemy's."""
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or not path.is_file():
        return
    effective = os.access in os.supports_effective_ids
    for place in (path, path.parent):  # SQLite makes a journal beside it
        if not os.access(place, os.W_OK, effective_ids=effective):
            raise UserError(f"MLflow at {uri}: {place.name} is read-only; expected a file and a folder that can be written")


def _why(error: Exception) -> str:
    """What is wrong with a store, in one line."""
    text = str(error).splitlines()[0]
    if isinstance(error, ImportError):
        hint = "pip install -e '.[postgresql]'" if error.name == "psycopg" else "install the driver that the address asks for"
        return f"{text}; {hint}"
    if "Max retries exceeded" in text:  # the rest is about how it was tried
        return f"the server cannot be reached: {text.rpartition(': ')[2].rstrip(')' + chr(34) + chr(39))}"
    return text


@contextmanager
def _only_writer(uri: str) -> Iterator[None]:
    """Hold the lock beside an SQLite store; the kernel releases it however the process ends."""
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or not path.parent.is_dir():  # no place for a store either: MLflow says so
        yield
        return
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def experiment_id_of(client: MlflowClient, uri: str, name: str, description: str = "") -> str:
    """The experiment's id; it is created where it does not exist, with a description. Its artifacts are then beside an SQLite store, or in
    the project.

    An MLflow server knows a place of its own for them.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise UserError(f"MLflow's experiment {name!r} is deleted: `mlflow experiments restore -x {found.experiment_id}`, or rename it")
        return str(found.experiment_id)
    location = None if uri.startswith(("http", "databricks")) else (_home(uri) / ARTIFACTS).as_uri()
    tags = {"mlflow.experimentKind": "custom_model_development"} | ({"mlflow.note.content": description} if description else {})
    return client.create_experiment(name, artifact_location=location, tags=tags)
