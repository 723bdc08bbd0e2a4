"""The inner side: what comes from Redis, from a model's folder or by id runs no code and opens no
door; secrets and prompts stay out of the logs."""

import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
import torch
from safetensors.torch import load_file

from jobs.catalog import Catalog
from jobs.errors import ModelLoadFailed
from jobs.queue import GPU_QUEUE, RUN, make_app
from jobs.record import JobState
from jobs.settings import load_settings
from tests.conftest import PYTHON, ROOT, RunningFleet, Server, until
from tests.fixtures.worker import LoneWorker
from worker.keeper import PREFIX
from worker.rank.models import Models

CPU = torch.device("cpu")


class Touch:
    """Creates a file when somebody unpickles it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self._path,)  # type: ignore[return-value]


def redis_url(fleet: RunningFleet) -> str:
    return next(line.split()[1] for line in fleet.lines if line.startswith("valkey"))


def test_a_pickle_in_the_queue_is_not_opened(file_fleet: RunningFleet, tmp_path: Path) -> None:
    trap = tmp_path / "opened"
    settings = load_settings({"FLEET_REDIS_URL": redis_url(file_fleet)})
    app = make_app(settings)
    app.conf.accept_content = ["json", "pickle"]  # of the sender
    app.send_task(RUN, args=[Touch(trap)], queue=GPU_QUEUE, serializer="pickle")
    log = file_fleet.data / "logs" / "worker.log"
    until(lambda: "Refusing to deserialize" in log.read_text())
    assert file_fleet.wait(file_fleet.submit("counts"))["status"] == "succeeded", "and it goes on"
    assert not trap.exists()


def test_weights_in_a_pickle_are_not_opened(catalog: Catalog, models_dir: Path) -> None:
    folder, trap = models_dir / "no-encoder", models_dir / "opened"
    shutil.copytree(models_dir / "tiny-image", folder, dirs_exist_ok=True)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save({**load_file(weights), "trap": Touch(trap)}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ModelLoadFailed, match="safetensors"):
        Models(catalog, models_dir, CPU).get("no-encoder", "text-to-image")
    assert not trap.exists()


@pytest.mark.parametrize("how", ["pipeline", "component"])
def test_code_in_a_models_folder_is_not_run(catalog: Catalog, models_dir: Path, how: str) -> None:
    folder, trap = models_dir / "no-encoder", models_dir / "ran"
    shutil.copytree(models_dir / "tiny-image", folder, dirs_exist_ok=True)
    code = f"from pathlib import Path\nPath({str(trap)!r}).touch()\nclass Mine: pass\n"
    index = json.loads((folder / "model_index.json").read_text())
    if how == "pipeline":
        (folder / "mine.py").write_text(code)
        index["_class_name"] = ["mine", "Mine"]
    else:
        (folder / "vae" / "mine.py").write_text(code)
        index["vae"] = ["mine", "Mine"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadFailed):
        Models(catalog, models_dir, CPU).get("no-encoder", "text-to-image")
    assert not trap.exists()


def test_sockets_and_spool_are_private(file_fleet: RunningFleet) -> None:
    (agent,) = file_fleet.pids("worker.agent")
    socket = Path(agent.cmdline()[-3])
    assert socket.parent.name.startswith(PREFIX) and socket.is_socket()
    assert socket.parent.parent == Path(tempfile.gettempdir())
    assert [path.stat().st_mode & 0o777 for path in (socket.parent, socket)] == [0o700, 0o600]
    id = file_fleet.submit("sleeps", prompt=["a", "b", "c"], num_inference_steps=20)
    spool = file_fleet.data / "spool"
    until(lambda: list((spool / id).glob("*/0.png")))
    assert spool.stat().st_mode & 0o777 == 0o700
    file_fleet.wait(id)


def test_prompts_and_keys_are_in_no_log(s3_fleet: RunningFleet) -> None:
    prompt = f"secret-{secrets.token_hex(8)} " * 30  # longer than CLIP and T5 read here
    id = s3_fleet.submit("tiny-image", prompt)
    assert s3_fleet.wait(id)["status"] == "succeeded"
    refused = {"model": "tiny-image", "input": {"prompt": prompt, "width": -1}}
    assert s3_fleet.http.post("/v1/jobs", json=refused).status_code == 422
    failing = s3_fleet.submit("broken", prompt)
    assert s3_fleet.wait(failing)["status"] == "failed"
    access = json.loads((s3_fleet.data / "seaweedfs" / "access.json").read_text())
    logs = [file for file in (s3_fleet.data / "logs").rglob("*") if file.is_file()]
    assert len(logs) >= 5 and any(id in file.read_text() for file in logs)
    for word in (prompt.split()[0], access["secret"]):
        assert not [file for file in logs if word in file.read_text()]


@pytest.mark.parametrize(
    "id", ["..", "../..", "%2e%2e%2fworker:x", "job_../../etc/passwd", "a\x00b"]
)
def test_an_id_is_no_path(file_fleet: RunningFleet, id: str) -> None:
    quoted = id if "%" in id else "".join(f"%{byte:02x}" for byte in id.encode())
    for path in (f"/v1/jobs/{quoted}", f"/v1/jobs/{quoted}/outputs/0", f"/v1/models/{quoted}"):
        assert file_fleet.http.get(path).status_code == 404, path
    assert file_fleet.http.delete(f"/v1/jobs/{quoted}").status_code == 404
    answer = file_fleet.http.post("/v1/jobs", json={"model": id, "input": {"prompt": "x"}})
    assert answer.status_code == 404 and answer.json()["code"] == "model_not_found"


@pytest.fixture
def guarded(valkey: Server, tmp_path: Path) -> Iterator[str]:
    """rediss:// with a user who may do what docs/operations.md says and no more."""
    password, name = secrets.token_hex(16), f"fleet-{secrets.token_hex(4)}"
    rules = next(
        line.split()[4:] for line in (ROOT / "docs" / "operations.md").read_text().splitlines()
        if line.startswith("ACL SETUSER fleet ")
    )  # fmt: skip
    with redis.Redis.from_url(valkey.url) as direct:
        mine = [rule.replace("~fleet", f"~{name}") for rule in rules if not rule.startswith(">")]
        direct.execute_command("ACL", "SETUSER", name, "on", f">{password}", *mine)
        target = urlsplit(valkey.url)
        before = [PYTHON, "-m", "tests.fixtures.tls", str(target.hostname), str(target.port)]
        tls = subprocess.Popen(
            [*before, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert tls.stdout is not None
        with tls.stdout as lines:
            port = int(lines.readline())
        verified = f"ssl_cert_reqs=required&ssl_ca_certs={tmp_path / 'ca.pem'}"
        yield f"rediss://{name}:{password}@127.0.0.1:{port}/0?{verified}"
        tls.kill()
        tls.wait()
        direct.execute_command("ACL", "DELUSER", name)


def test_a_worker_runs_with_tls_and_an_acl(guarded: str, models_dir: Path, tmp_path: Path) -> None:
    parts = urlsplit(guarded)
    prefix = str(parts.username)
    worker = LoneWorker(tmp_path, models_dir, FLEET_REDIS_URL=guarded, FLEET_KEY_PREFIX=prefix)
    try:
        assert worker.wait(worker.submit("tiny-image")).state is JobState.SUCCEEDED
    finally:
        assert worker.stop() == 0
    assert str(parts.password) not in worker.log.read_text()
