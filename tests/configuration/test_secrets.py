"""Secrets of users' classes reach the class, and no file."""

from __future__ import annotations

import shutil

import pytest

from stages.common import passwords
from stages.common.errors import ConfigError
from stages.configuration.loading import create
from stages.configuration.overrides import combinations
from tests.configuration.resolving import EXAMPLE, Resolve
from tests.project import Project
from tests.sweeping import NETWORK

SECRET = "correct-horse-7"
OWN = """
import numpy as np

class Own:
    def __init__(self, api_key: str, url: str = "", split: str = "train", more: dict | None = None):
        assert api_key == "correct-horse-7", api_key
        assert url in ("", "https://me:correct-horse-7@host/x")
        assert more in (None, {"headers": ["correct-horse-7"]})
        self.split = split

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return np.full((1, 3, 32, 32), index / 8, np.float32)
"""
CHOICES = (EXAMPLE[0], "data: custom", "metric: reference_error")
KEYS = "data: {{calibration: {{_target_: own_data.Own, {}}}}}"


@pytest.mark.parametrize(
    ("arguments", "key", "variable"),
    [
        (f"api_key: {SECRET}", "data.calibration.api_key", "API_KEY"),
        (f"api_key: '${{oc.env:NOT_SET,{SECRET}}}'", "data.calibration.api_key", "API_KEY"),
        (f"api_key: a, url: 'https://me:{SECRET}@host/x'", "data.calibration.api_key", "API_KEY"),
        (f"url: 'https://me:{SECRET}@host/x'", "data.calibration.url", "URL"),
        (f"more: {{headers: ['https://host/?token={SECRET}']}}", "data.calibration.more.headers[0]", "HEADERS"),
        ("split: hf_abcdefghijklmnopqrstuvwxyz", "data.calibration.split", "SPLIT"),
    ],
)
def test_a_secret_that_is_written_down_is_refused(resolve: Resolve, project: Project, arguments: str, key: str, variable: str) -> None:
    project.write("own_data.py", OWN)
    with pytest.raises(ConfigError) as error:
        resolve(KEYS.format(arguments), *CHOICES)
    assert str(error.value).startswith(f"{key}: a secret is not allowed here")
    assert f"expected ${{oc.env:{variable}}}, and the secret in the environment's {variable}" in str(error.value)
    assert SECRET not in str(error.value) and "\n" not in str(error.value)


def test_of_a_secret_of_the_environment_the_name_is_stored(resolve: Resolve, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write("own_data.py", OWN)
    monkeypatch.syspath_prepend(str(project.root))
    for name, value in {"OWN_KEY": SECRET, "OWN_SPLIT": "test", "PART": SECRET}.items():
        monkeypatch.setenv(name, value)
    arguments = (
        "api_key: '${oc.env:OWN_KEY}', url: 'https://me:${oc.env:PART}@host/x', split: '${oc.env:OWN_SPLIT}', "
        "more: {headers: ['${data.calibration.api_key}']}"
    )
    config = resolve(KEYS.format(arguments), *CHOICES)
    # Of two variables with the same value either will do.
    stored = str(config.data.calibration)
    assert SECRET not in stored and stored.count("${oc.env:") == 3
    assert config.data.calibration["api_key"] in ("${oc.env:OWN_KEY}", "${oc.env:PART}")
    assert config.data.calibration["split"] == "test"  # no secret: another value re-runs what it concerns
    assert create(config.data.calibration, "data.calibration").split == "test"
    monkeypatch.delenv("OWN_KEY")
    monkeypatch.delenv("PART")
    with pytest.raises(ConfigError, match=r"data\.calibration: .*Environment variable '(OWN_KEY|PART)' not found"):
        create(config.data.calibration, "data.calibration")
    with pytest.raises(ConfigError, match=r"Environment variable '(OWN_KEY|PART)' not found"):
        resolve(KEYS.format(arguments), *CHOICES)


def test_no_file_of_a_run_holds_the_secret(project: Project) -> None:
    project.write("own_data.py", OWN)
    for suffix in (".xml", ".bin"):
        shutil.copy(NETWORK.with_suffix(suffix), project.root / f"net{suffix}")
    keys = KEYS.format("api_key: '${oc.env:OWN_KEY}'").replace("}}", "}, calibration_size: 4}")
    project.params(f"{keys}\nmodel: {{path: net.xml}}", "model: local", *CHOICES[1:])
    outcome = project.repro("prepare", env={"OWN_KEY": SECRET})
    assert outcome.code == 0, outcome.output
    assert SECRET not in outcome.output
    files = [path for path in project.root.rglob("*") if path.is_file() and path != project.root / "own_data.py"]
    assert [path for path in files if SECRET.encode() in path.read_bytes() and "__pycache__" not in path.parts] == []
    assert "${oc.env:OWN_KEY}" in (project.root / "dvc.lock").read_text()


@pytest.mark.parametrize(
    "override", [f"data.calibration.api_key={SECRET}", f"data.calibration={{api_key: {SECRET}}}", f"metric.m.token={SECRET},b"]
)
def test_sweeps_write_no_secret_down(override: str) -> None:
    with pytest.raises(ConfigError, match=r"(api_key|token): a secret is not allowed, as jobs are named") as error:
        combinations([override])
    assert SECRET not in str(error.value)


def test_names_of_secrets() -> None:
    for name in ("api_key", "apiKey", "HF_TOKEN", "token", "db_password", "AWS_SECRET_ACCESS_KEY", "client_secret", "password"):
        assert passwords.is_secret_name(name), name
    for name in ("pad_token", "max_tokens", "tokenizer", "key", "keys", "path", "secretary", "passage", "author", "token_type"):
        assert not passwords.is_secret_name(name), name
    assert not passwords.is_secret("api_key", "${oc.env:X}") and not passwords.is_secret("api_key", None)
