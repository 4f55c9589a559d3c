"""Test runs in separate checkouts, which are saved as experiments and pushed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from threading import Barrier

import boto3
import httpx
import pytest

from flows import workspace
from tests.conftest import Clone, wait_for
from tests.flows.conftest import free_port
from tests.flows.test_pipeline import FLOW, run_name

ISOLATED = (*FLOW, "--isolated")


def test_two_at_once_leave_the_working_tree_alone(clone: Clone, prefect_env: dict[str, str]) -> None:
    (clone.folder / "notes.txt").write_text("not committed")
    before = clone.run("git", "status", "--porcelain").stdout
    runs = [
        subprocess.Popen(
            [*ISOLATED, "--recipe", recipe],
            cwd=clone.folder,
            env=clone.environment(prefect_env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for recipe in ("article", "convnet")
    ]
    outputs = [run.communicate(timeout=240)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    article, convnet = map(run_name, outputs)
    assert clone.run("git", "status", "--porcelain").stdout == before
    assert not any((clone.folder / workspace.CHECKOUTS).iterdir())
    assert len(clone.run("git", "worktree", "list").stdout.splitlines()) == 1

    names = clone.run("dvc", "exp", "list", "--name-only").stdout.split()
    assert {article, convnet} <= set(names)
    diff = json.loads(clone.run("dvc", "metrics", "diff", "--json", article, convnet).stdout)
    loss = diff["artifacts/metrics/evaluation.json"]["loss"]
    assert loss["old"] != loss["new"]
    (clone.folder / "notes.txt").unlink()
    clone.run("dvc", "exp", "apply", article)
    assert clone.read_yaml("params.yaml")["recipe"] == "article"
    assert "up to date" in clone.run("dvc", "status").stdout


def test_a_dead_runs_checkout_is_swept(clone: Clone) -> None:
    code = "import os, sys; from pathlib import Path; from flows import workspace\n"
    code += "with workspace.isolated(Path.cwd(), 'dead-run'): os.kill(os.getpid(), 9)"
    clone.run(sys.executable, "-c", code, check=False)
    assert (clone.folder / workspace.CHECKOUTS / "dead-run/dvc.yaml").exists()
    with workspace.isolated(clone.folder, "next-run") as folder:
        left = {path.name for path in folder.parent.iterdir()}
    assert left == {"next-run", "next-run.lock"}
    assert "dead-run" not in clone.run("git", "worktree", "list").stdout


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of an S3 server on loopback that has a bucket `data`."""
    port = free_port()
    log = (tmp_path_factory.mktemp("moto") / "log").open("w")
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        endpoint = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            try:
                return httpx.get(f"{endpoint}/moto-api/").is_success
            except httpx.TransportError:
                return False

        wait_for(answers, 60, "the S3 server")
        client = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
        )
        client.create_bucket(Bucket="data")
        yield endpoint
        server.terminate()


def test_push_to_a_folder_and_a_git_remote(project: Clone, prefect_env: dict[str, str], tmp_path: Path) -> None:
    project.run("git", "init", "--quiet", "--bare", str(tmp_path / "origin.git"))
    project.run("git", "remote", "add", "origin", str(tmp_path / "origin.git"))
    project.run("git", "push", "--quiet", "origin", "main")
    # The remote is configured for this machine only, as credentials are.
    project.run("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    name = run_name(project.run(*ISOLATED, env=prefect_env).stdout)
    assert sum(path.is_file() for path in (tmp_path / "store/files/md5").rglob("*")) == 4
    assert name in project.run("dvc", "exp", "list", "origin", "--name-only").stdout


@pytest.mark.slow
def test_push_from_a_shallow_clone_in_any_folder(
    project: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.run("git", "commit", "--quiet", "--allow-empty", "--message=another revision")
    project.run("git", "clone", "--quiet", "--bare", ".", str(tmp_path / "origin.git"))
    shallow = copy(project)
    shallow.folder = tmp_path / "Jörgs Kopie"
    author = ("--config=user.name=Test", "--config=user.email=test@localhost")
    source = f"file://{tmp_path}/origin.git"
    project.run("git", "clone", "--quiet", "--depth=1", *author, source, str(shallow.folder))
    shallow.run("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    monkeypatch.setenv("LC_ALL", "C")
    with workspace.isolated(shallow.folder, "brave-otter") as folder:
        workspace.dvc(folder, "repro", "--quiet")
        workspace.save(folder, "brave-otter")
        workspace.push(shallow.folder, folder, "brave-otter")
    assert sum(path.is_file() for path in (tmp_path / "store/files/md5").rglob("*")) == 4
    assert "brave-otter" in shallow.run("dvc", "exp", "list", "origin", "--name-only").stdout


def test_push_to_s3(project: Clone, prefect_env: dict[str, str], s3_endpoint: str) -> None:
    project.run("dvc", "remote", "add", "--default", "store", "s3://data/cache")
    project.run("dvc", "remote", "modify", "store", "endpointurl", s3_endpoint)
    project.run("git", "commit", "--quiet", "--all", "--message=remote")
    secrets = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "planted-s3cr3t"}
    done = project.run(*ISOLATED, env={**prefect_env, **secrets})
    assert "planted-s3cr3t" not in done.stdout
    client = boto3.client(
        "s3", endpoint_url=s3_endpoint, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    stored = client.list_objects_v2(Bucket="data", Prefix="cache/files/md5/")
    assert stored["KeyCount"] == 4


def test_runs_that_start_at_once_do_not_sweep_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    # Only the locks are tested here, not DVC.
    monkeypatch.setattr(workspace, "check_out", lambda _, folder: folder.mkdir())
    together = Barrier(8, timeout=20)

    def run(name: str) -> bool:
        together.wait()
        with workspace.isolated(tmp_path, name) as folder:
            together.wait()
            return folder.is_dir()

    with ThreadPoolExecutor(8) as pool:
        for turn in range(10):
            assert all(pool.map(run, [f"run-{turn}-{index}" for index in range(8)]))
    assert not any((tmp_path / workspace.CHECKOUTS).iterdir())
