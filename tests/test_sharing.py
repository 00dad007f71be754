"""README's "Share results": what one clone of the repository built, another one takes from the remote and builds nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from stages.common.artifacts import file_sha256
from tests.project import Project
from tests.repository import commit, dvc, git, repository

pytestmark = pytest.mark.slow

BUCKET = "pot"
OF_EVERY_CLONE = ("records/config.json", "records/track.json", "report.html")
KEYS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "sekret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server with an empty bucket."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {"aws_access_key_id": KEYS["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": KEYS["AWS_SECRET_ACCESS_KEY"]}
    boto3.client("s3", endpoint_url=address, region_name=KEYS["AWS_DEFAULT_REGION"], **keys).create_bucket(Bucket=BUCKET)
    yield address
    server.stop()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, s3: str) -> Project:
    """A git repository with a network and samples of its own, built and pushed to two remotes; all but dvc.lock is committed."""
    folder = tmp_path_factory.mktemp("first")
    project = repository(folder, "tracking: {enabled: false} # test_track has a restored result logged\n")
    dvc(project, "remote", "add", "folder", str(folder / "shared"))
    dvc(project, "remote", "add", "s3", f"s3://{BUCKET}/results")
    dvc(project, "remote", "modify", "s3", "endpointurl", s3)
    commit(project)
    assert {"prepare", "quantize", "evaluate"} <= set(dvc(project, "repro").stages)
    for remote in ("folder", "s3"):
        dvc(project, "push", "--run-cache", "--remote", remote, env=KEYS)
    return project


def results(project: Project) -> dict[str, str]:
    """SHA-256 of everything that DVC knows in build/, but for what the two stages write that run in every clone."""
    build = project.root / "build"
    names = {path.relative_to(build).as_posix(): path for path in build.rglob("*") if path.is_file()}
    return {name: file_sha256(path) for name, path in names.items() if not name.startswith(".") and name not in OF_EVERY_CLONE}


@pytest.mark.parametrize(("remote", "locked"), [("folder", True), ("s3", False)])
def test_a_clone_takes_everything_from_the_remote(first: Project, tmp_path: Path, remote: str, locked: bool) -> None:
    """Nothing runs but `track`, whether dvc.lock tells what was built or only the run cache, as after an edit that another one had made."""
    git(first, "clone", "--quiet", ".", str(tmp_path / "second"))
    second = Project(tmp_path / "second")
    dvc(second, "remote", "default", remote)
    if locked:
        shutil.copy(first.root / "dvc.lock", second.root)
    assert (second.root / "dvc.lock").exists() == locked
    assert not (second.root / "build").exists() and not (second.root / ".dvc/cache").exists()
    outcome = dvc(second, "repro", "--pull", env=KEYS)
    assert outcome.stages == ["config", "track"], outcome.output
    found = results(second)
    assert found == results(first)
    assert {"correct_bias/model.xml", "evaluate/evaluation.json", "records/prepare.json", "reports/metrics.json"} <= found.keys()
