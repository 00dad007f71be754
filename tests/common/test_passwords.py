"""No password of a tracking server is stored, logged or shown; with the environment's MLFLOW_TRACKING_URI it works (test_servers)."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages import sweep
from stages.common.errors import UserError
from stages.common.messages import show
from stages.common.passwords import has_password, is_escaped, without_passwords, without_user
from stages.configuration.overrides import combinations
from stages.tracking import links, store
from tests import built
from tests.project import Project

EXAMPLE = ("model: ppocrv4_rec", "data: text_lines", "metric: text")
SECRET = "sekret"
# The address, and whether it can be read in one way only.
WITH_PASSWORD = {
    "http://me:sekret@host:5000/path": True,
    "http://me:p@sekret@host": False,
    "postgresql://me:pa/sekret@host/db": False,
    "postgresql://me:p?sekret@host/db": False,
    "postgresql+psycopg://me:p#sekret@host/db": False,
    "mysql+pymysql://me:%40sekret@host:3306/db?charset=utf8": True,
    "https://sekret@host": True,  # a token
    "postgresql://host/db?user=me&password=sekret": True,
    "postgresql:///db?host=/run&PASSWORD=sekret&connect_timeout=3": True,
    "postgresql://me@host/db?sslpassword=sekret": True,
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dsekret": True,
    "http://host/?access_token=sekret": True,
}
WITHOUT_PASSWORD = (
    "sqlite:///mlflow.db",
    "sqlite:////home/me@work/a:b/mlflow.db",
    "http://host:5000/mlflow/",
    "postgresql://me@host:5432/db?sslmode=require",
    "databricks",
)


@pytest.mark.parametrize("address", WITH_PASSWORD)
def test_a_password_is_found_and_hidden(address: str) -> None:
    assert has_password(address)
    assert is_escaped(address) == WITH_PASSWORD[address]
    hidden = without_passwords(f"cannot reach '{address}': is it up?")
    assert SECRET not in hidden and "***" in hidden
    assert hidden.startswith("cannot reach '") and hidden.endswith(": is it up?")
    assert SECRET not in show({"uri": address}) and SECRET not in show(f"{'long ' * 14}{address}")


@pytest.mark.parametrize("address", WITHOUT_PASSWORD)
def test_other_addresses_are_left_alone(address: str) -> None:
    assert not has_password(address) and is_escaped(address)
    if "me@host" not in address:
        assert without_passwords(f"at {address}: me@example") == f"at {address}: me@example"
        assert without_user(address) == address


@pytest.mark.parametrize("address", ["http://me:sekret@host:5000/path", "postgresql://me:pa/sekret@host/db", "me:sekret@host/db"])
def test_the_configuration_refuses_a_password_and_keeps_none(project: Project, address: str) -> None:
    project.params(f"tracking: {{tracking_uri: '{address}', enabled: false}}", *EXAMPLE)
    outcome = project.run("python", "-m", "stages.config")
    assert outcome.code == 1
    (line,) = outcome.output.splitlines()
    assert line.startswith("config: error: tracking.tracking_uri: a password or token is not allowed")
    assert "MLFLOW_TRACKING_URI" in line and SECRET not in line
    assert holding(project) == {"params.yaml"}


@pytest.mark.parametrize(
    "keys",
    [
        "tracking: {uri: 'postgresql://me:sekret@host/db'}",
        "tracking: 'http://me:sekret@host'",
        "tracking: {experiment: ['http://me:sekret@host']}",
        "tracking: {tracking_uri: '${oc.env:STORE}'}",
    ],
)
def test_other_mistakes_with_an_address_do_not_tell_it(project: Project, keys: str) -> None:
    project.params(keys, *EXAMPLE)
    outcome = project.repro(env={"STORE": "http://me:sekret@host"})
    assert len(outcome.errors) == 1 and "tracking" in outcome.errors[0], outcome.output
    assert SECRET not in outcome.output
    assert holding(project) <= {"params.yaml"}


@pytest.mark.parametrize(
    "override",
    [f"tracking.tracking_uri={address}" for address in WITH_PASSWORD]
    + [
        "tracking.tracking_uri=sqlite:///mlflow.db,http://me:sekret@host",
        "tracking.tracking_uri=me:sekret@host/db",
        "tracking={tracking_uri: 'http://me:sekret@host', enabled: true}",
        "+data.calibration.address=[a,'https://sekret@host/file']",
    ],
)
def test_a_sweep_refuses_a_password_before_anything_is_named_by_it(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sweep.main(["-m", override, "quantization.preset=performance,mixed"]) == 1
    (line,) = "".join(capsys.readouterr()).splitlines()
    assert line.startswith(f"sweep: error: {override.partition('=')[0]}: a password or token is not allowed")
    assert SECRET not in line and not list(tmp_path.iterdir())


def test_a_sweep_takes_other_addresses() -> None:
    addresses = "sqlite:///mlflow.db,http://host:5000/mlflow/,postgresql://me@host/db,databricks"
    jobs = combinations([f"tracking.tracking_uri={addresses}", "+data.calibration.tokenizer=a,b"])
    assert len(jobs) == 2 * (addresses.count(",") + 1)
    assert {job.differences[1] for job in jobs} == {"tokenizer=a", "tokenizer=b"}


def holding(project: Project) -> set[str]:
    """The project's files that hold the password."""
    files = [path for path in project.root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    return {path.relative_to(project.root).as_posix() for path in files}


@pytest.mark.parametrize("address", [address for address, escaped in WITH_PASSWORD.items() if not escaped])
def test_an_address_that_is_not_escaped_is_explained(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Drivers would look for a host of which the password's rest is a part, and tell that they have not found it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI: special characters .* must be escaped: @ as %40"):
        store.tracking_uri(built.config())


def test_an_address_without_a_scheme_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "me:sekret@host/db")
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI: no address; expected") as caught:
        store.tracking_uri(built.config())
    assert SECRET not in str(caught.value)


def test_the_link_to_compare_does_without_the_password() -> None:
    page = "#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART"
    assert links.comparison("http://me:sekret@tracking:5000/", "7") == f"http://tracking:5000/{page}"
    database = links.comparison("postgresql://me:sekret@host/db", "7")
    assert database.splitlines()[0] == 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'
    assert links.comparison("postgresql://me@host/db", "7").splitlines()[0] == "mlflow ui --backend-store-uri postgresql://me@host/db"
