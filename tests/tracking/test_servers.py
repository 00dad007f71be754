"""README's MLflow server with PostgreSQL behind it, both real: what `track` logs is read back, and the password is nowhere."""

from __future__ import annotations

import base64
import http.server
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from stages.tracking import lineage, links
from tests import built

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SECRET = "sekret/@:?"
ESCAPED = "sekret%2F%40%3A%3F"
DATABASE_USER = "postgres"  # PostgreSQL refuses to run as root; Debian's package makes this user


class Servers(NamedTuple):
    """Where they are."""

    database: str
    """Address with the password."""
    mlflow: str
    artifacts: Path
    """The MLflow server's folder."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def postgresql(name: str) -> str:
    """One of PostgreSQL's programs, which Debian keeps out of PATH."""
    installed = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))]
    found = installed[-1] if installed else shutil.which(name)
    if found is None:
        pytest.skip("needs PostgreSQL")
    return found


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of an empty database of an own PostgreSQL server, which asks for a password."""
    initdb, server, port = postgresql("initdb"), postgresql("postgres"), free_port()
    user = DATABASE_USER if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        (folder / "password").write_text(SECRET)
        if user:
            for path in (folder, folder / "password"):
                os.chown(path, pwd.getpwnam(user).pw_uid, -1)
        options = ("--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--username=mlflow", "--no-sync")
        subprocess.run([initdb, *options, folder / "data"], user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        settings = ("-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F")
        with open(folder / "log", "w") as log:
            process = subprocess.Popen([server, "-D", folder / "data", *settings], user=user, cwd=folder, stderr=log)
        try:
            address = f"postgresql+psycopg://mlflow:{ESCAPED}@127.0.0.1:{port}/postgres"
            wait_for(lambda: connected(address), folder / "log")
            yield address
        finally:
            process.send_signal(signal.SIGINT)  # does not wait for clients
            process.wait(30)


def connected(address: str) -> bool:
    import psycopg

    with suppress(psycopg.OperationalError):
        psycopg.connect(address.replace("+psycopg", "")).close()
        return True
    return False


@pytest.fixture(scope="module")
def servers(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """An MLflow server as README starts it, before an empty database."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    options = ("--artifacts-destination", str(folder / "artifacts"), "--port", str(port), "--workers", "1")
    command = [sys.executable, "-m", "mlflow", "server", *options]
    own = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            command, env=own | {"MLFLOW_BACKEND_STORE_URI": database}, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: healthy(address), folder / "log")
        yield Servers(database, address, folder / "artifacts")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def healthy(address: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
        return True
    return False


def wait_for(ready: object, log: Path, seconds: float = 120) -> None:
    assert callable(ready)
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def run_track(folder: Path, uri: str) -> subprocess.CompletedProcess[str]:
    """The stage as DVC runs it, with the store in the environment."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_"))}
    return subprocess.run(
        [sys.executable, "-m", "stages.track"],
        cwd=folder,
        env=own | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


def test_a_run_is_logged_to_the_server_and_read_back(servers: Servers, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    config = built.config()
    built.write_build(tmp_path, config)
    done = run_track(tmp_path, servers.mlflow)
    assert done.returncode == 0, done.stdout
    assert "MLflow: logged as performance·" in done.stdout
    assert f"compare: {servers.mlflow}/#/experiments/" in done.stdout

    client = MlflowClient(servers.mlflow)
    experiment = client.get_experiment_by_name("quantization")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["int8/value_percent.exact_match"] == pytest.approx(88.1)
    assert run.data.params["quantization.preset"] == "performance"
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "layers.json", str(tmp_path))).read_text())
    logged = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    for row, expected in zip(logged, lineage.worst_first(built.layers()), strict=True):
        assert row.keys() == expected.keys()
        # MLflow writes ten decimals.
        assert [row[key] for key in row] == [
            pytest.approx(value, abs=1e-10) if isinstance(value, float) else value for value in expected.values()
        ]
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "layers.json", "models", "plots", "report.html"} <= names
    model = Path(client.download_artifacts(run.info.run_id, "models/int8/model.bin", str(tmp_path)))
    assert model.read_text() == "int8 performance bin"

    # The database itself, by its address with the password, in an experiment of its own: that of the server keeps files there.
    built.write_build(tmp_path, built.config("mixed", experiment="direct"))
    direct = run_track(tmp_path, servers.database)
    assert "MLflow: logged as mixed·" in direct.stdout
    assert 'compare: mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"' in direct.stdout
    (run,) = client.search_runs([client.get_experiment_by_name("direct").experiment_id])
    assert run.info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri())

    assert "sekret" not in done.stdout + direct.stdout
    for folder in (tmp_path, servers.artifacts):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {"report.html", "config.json"} <= {path.name for path in files}
        assert not [path for path in files if b"sekret" in path.read_bytes()]
    assert "sekret" not in dump(servers.database)


def dump(address: str) -> str:
    """Every row of every table."""
    import psycopg

    with psycopg.connect(address.replace("+psycopg", "")) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert ("runs",) in names
        return json.dumps([connection.execute(f'SELECT * FROM "{name}"').fetchall() for (name,) in names], default=str)


def test_a_wrong_password_is_one_line_without_it(servers: Servers, tmp_path: Path) -> None:
    built.write_build(tmp_path, built.config())
    done = run_track(tmp_path, servers.database.replace(ESCAPED, "wrong%2Fsekret"))
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("track: error")]
    assert done.stdout.endswith(f"{line}\n") and "WARNING" not in done.stdout and "Traceback" not in done.stdout
    assert line.startswith("track: error: MLflow at postgresql+psycopg://***@127.0.0.1:")
    assert "password authentication failed" in line
    assert "sekret" not in done.stdout


def test_a_server_is_given_user_and_password(tmp_path: Path) -> None:
    seen = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_error(401)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    built.write_build(tmp_path, built.config())
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = run_track(tmp_path, f"http://me:{ESCAPED}@127.0.0.1:{server.server_port}")
        server.shutdown()
    assert seen and set(seen) == {f"Basic {base64.b64encode(f'me:{SECRET}'.encode()).decode()}"}
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith(f"track: error: MLflow at http://***@127.0.0.1:{server.server_port}: ")
    assert "401" in done.stdout and "sekret" not in done.stdout
    assert links.comparison(f"http://me:{ESCAPED}@host", "1").startswith("http://host/#/")
