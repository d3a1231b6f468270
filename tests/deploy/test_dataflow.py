"""Dataflow by contract: the command's own job, posted to an endpoint that records it.

Google's storage is an emulator in this process, which the real client talks to; the Dataflow
service is an HTTP server that notes what it is sent. Credentials are a made-up service account, so
that it shows where they would leak.
"""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from pipeline import files
from pipeline.cli import backlight as command_line
from pipeline.errors import SettingsError
from pipeline.model.models import ModelSpec
from pipeline.sources import read_examples
from pipeline.store.verify import verify

HOW = "run `uv run --group dataflow pytest tests/deploy/test_dataflow.py`"
storage = pytest.importorskip("google.cloud.storage", reason=f"no Google client: {HOW}")
emulator = pytest.importorskip("gcp_storage_emulator.server", reason=f"no emulator: {HOW}")

pytestmark = pytest.mark.slow

DATAFLOW = Path(__file__).resolve().parents[2] / "deploy" / "dataflow"
BUCKET = "backlight-test"
ACCELERATOR = "type:nvidia-l4;count:1;install-nvidia-driver"
IMAGE = "europe-west4-docker.pkg.dev/project/backlight/worker:1"
TOKEN = "a-token-that-nobody-may-see"
JOB_ID = "2026-01-01_00_00_00-1"
# whose timings and whose paths differ between two equal runs
BUT = ("_meta/shards/", "_meta/plan.json")


@dataclass
class Cloud:
    """The bucket, the service's address, and what was posted to it."""

    service: str
    client: Any
    secrets: list[str]
    jobs: list[dict[str, Any]] = field(default_factory=list)
    state: str = "JOB_STATE_PENDING"

    def put(self, folder: Path, prefix: str) -> str:
        """Upload all files below a folder; returns its URL."""
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.blob(f"{prefix}/{path.relative_to(folder).as_posix()}").upload_from_filename(path)
        return f"gs://{BUCKET}/{prefix}"

    def blob(self, name: str) -> Any:
        return self.client.bucket(BUCKET).blob(name)

    def contents(self, prefix: str) -> dict[str, bytes]:
        """Name below the prefix -> content."""
        found = self.client.list_blobs(BUCKET, prefix=f"{prefix}/")
        return {blob.name.removeprefix(f"{prefix}/"): blob.download_as_bytes() for blob in found}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    store = emulator.create_server("localhost", port, in_memory=True, default_bucket=BUCKET)
    store.start()
    service = ThreadingHTTPServer(("localhost", 0), Service)
    Thread(target=service.serve_forever, daemon=True).start()
    address = f"http://localhost:{service.server_port}"
    account = service_account(f"{address}/token")
    key_file = tmp_path_factory.mktemp("credentials") / "account.json"
    key_file.write_text(json.dumps(account))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key_file))
        client = storage.Client.create_anonymous_client()
        key_lines = account["private_key"].strip().split("\n")[1:-1]
        secrets = [TOKEN, account["private_key_id"], str(key_file), *key_lines]
        Service.cloud = Cloud(address, client, secrets)
        yield Service.cloud
    service.shutdown()
    store.stop()


class Service(BaseHTTPRequestHandler):
    """Hands out tokens, takes jobs, and says how they are."""

    cloud: Cloud

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/token":
            self.answer({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"})
            return
        assert re.fullmatch(r"/v1b3/projects/project/locations/europe-west4/jobs\?.*", self.path)
        assert self.headers["Authorization"].startswith("Bearer ")
        self.cloud.jobs.append(json.loads(body))
        self.answer({"id": JOB_ID, "currentState": "JOB_STATE_PENDING"})

    def do_GET(self) -> None:
        text = "Error message from worker: no GPU left in europe-west4"
        message = {"id": "1", "time": "2026-01-01T00:00:00Z", "messageText": text}
        messages = [{**message, "messageImportance": "JOB_MESSAGE_ERROR"}]
        is_messages = "/messages" in self.path
        job = {"id": JOB_ID, "currentState": self.cloud.state}
        self.answer({"jobMessages": messages} if is_messages else job)

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def service_account(token_uri: str) -> dict[str, str]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "5ec4e7" * 6,
        "private_key": pem.decode(),
        "client_email": "submitter@project.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": token_uri,
    }


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five smooth made-up photos in two folders, one of them not an image."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(5):
        path = root / f"{i % 2}" / f"photo {i}.png"
        path.parent.mkdir(exist_ok=True)
        coarse = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((72, 64), Image.Resampling.BICUBIC).save(path)
    (root / "1" / "torn.png").write_bytes(b"\x89PNG\r\n")
    return root


def settings(root: object, weights: str = "random:0") -> list[str]:
    return [
        *("--source", "imagefolder", "--root", str(root)),
        *("--model", "squeezenet1_1", "--weights", weights, "--input-size", "64"),
        *("--layers", "last", "--methods", "gradient,grad_cam", "--roles", "top,least"),
        *("--shard-size", "2", "--format", "parquet,webdataset", "--max-error-rate", "0.5"),
    ]


def process(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PATH": path, **environment},
    )


def in_this_process(*arguments: object) -> Result:
    return CliRunner().invoke(command_line, [str(argument) for argument in arguments])


def dataflow_options(cloud: Cloud, *more: str) -> list[str]:
    return [
        "--",
        "--runner=DataflowRunner",
        f"--dataflow_endpoint={cloud.service}",
        *("--project=project", "--region=europe-west4", "--job_name=backlight-maps"),
        *(f"--temp_location=gs://{BUCKET}/temp", f"--staging_location=gs://{BUCKET}/staging"),
        *(f"--sdk_container_image={IMAGE}", "--sdk_location=container"),
        *("--machine_type=g2-standard-4", "--max_num_workers=4"),
        *more,
    ]


def hashes(contents: dict[str, bytes]) -> dict[str, str]:
    return {
        name: hashlib.sha256(content).hexdigest()
        for name, content in sorted(contents.items())
        if not name.startswith(BUT)
    }


@dataclass
class Submitted:
    """A job as the service got it, the pipeline that it staged, and what the command said."""

    job: dict[str, Any]
    pipeline: Any
    said: str
    written: dict[str, bytes]

    @property
    def hints(self) -> dict[str, dict[str, bytes]]:
        """Transform -> the resource hints of its environment."""
        environments = self.pipeline.components.environments
        return {
            transform.unique_name: dict(environments[transform.environment_id].resource_hints)
            for transform in self.pipeline.components.transforms.values()
            if transform.environment_id
        }

    @property
    def pool(self) -> dict[str, Any]:
        (pool,) = self.job["environment"]["workerPools"]
        return pool

    @property
    def options(self) -> dict[str, Any]:
        return self.job["environment"]["sdkPipelineOptions"]["options"]


def submitted(cloud: Cloud, out: str, *command: str, **environment: str) -> Submitted:
    """What one command, which writes to the folder `out` of the bucket, posts and leaves."""
    from apache_beam.portability.api import beam_runner_api_pb2

    before = len(cloud.jobs)
    run = process(*command, **environment)
    assert run.returncode == 0, run.stderr
    (job,) = cloud.jobs[before:]
    url = job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"]
    staged = cloud.blob(url.removeprefix(f"gs://{BUCKET}/")).download_as_bytes()
    pipeline = beam_runner_api_pb2.Pipeline.FromString(staged)
    return Submitted(job, pipeline, run.stdout + run.stderr, cloud.contents(out))


@pytest.fixture(scope="module")
def on_bucket(cloud: Cloud, photos: Path) -> str:
    return cloud.put(photos, "photos")


@pytest.fixture(scope="module")
def on_gpu(cloud: Cloud, on_bucket: str) -> Submitted:
    """As the script submits it."""
    return submitted(
        *(cloud, "on-gpu", str(DATAFLOW / "submit.sh"), *settings(on_bucket)),
        *(f"gs://{BUCKET}/on-gpu", "--", f"--dataflow_endpoint={cloud.service}"),
        *("--no_wait_until_finish", "--job_name=backlight-maps"),
        **{"PROJECT": "project", "REGION": "europe-west4", "BUCKET": BUCKET, "IMAGE": IMAGE},
    )


@pytest.fixture(scope="module")
def on_cpu(cloud: Cloud, on_bucket: str) -> Submitted:
    return submitted(
        *(cloud, "on-cpu", "backlight", "generate", *settings(on_bucket)),
        *(f"gs://{BUCKET}/on-cpu", *dataflow_options(cloud, "--no_wait_until_finish")),
    )


def test_the_accelerator_is_a_hint_of_the_explain_step_alone(on_gpu: Submitted) -> None:
    hinted = {name: hints for name, hints in on_gpu.hints.items() if hints}
    assert hinted == {
        "GenerateMaps/Explain": {"beam:resources:accelerator:v1": ACCELERATOR.encode()}
    }
    assert {"GenerateMaps/Finalise"} < on_gpu.hints.keys()


def test_without_an_accelerator_no_step_has_a_hint(on_cpu: Submitted) -> None:
    assert not any(on_cpu.hints.values())
    assert "numThreadsPerWorker" not in on_cpu.pool
    assert "no_use_multiple_sdk_containers" not in on_cpu.job["environment"]["experiments"]


def test_a_gpu_has_one_process_with_one_thread_of_work(on_gpu: Submitted) -> None:
    experiments = on_gpu.job["environment"]["experiments"]
    assert "no_use_multiple_sdk_containers" in experiments
    assert "use_multiple_sdk_containers" not in experiments
    assert on_gpu.pool["numThreadsPerWorker"] == 1


def test_every_worker_runs_the_image_and_installs_nothing(on_gpu: Submitted) -> None:
    from apache_beam.portability.api import beam_runner_api_pb2

    images = {image["containerImage"] for image in on_gpu.pool["sdkHarnessContainerImages"]}
    assert images == {IMAGE}
    for environment in on_gpu.pipeline.components.environments.values():
        payload = beam_runner_api_pb2.DockerPayload.FromString(environment.payload)
        assert payload.container_image == IMAGE
        assert not environment.dependencies
    assert on_gpu.options["sdk_location"] == "container"


def test_the_job_says_where_and_on_what_it_runs(on_gpu: Submitted) -> None:
    assert on_gpu.job["name"] == "backlight-maps"
    assert on_gpu.job["type"] == 1  # batch
    assert on_gpu.job["labels"] == {"app": "backlight"}
    assert on_gpu.pool["machineType"] == "g2-standard-4"
    assert on_gpu.pool["autoscalingSettings"]["maxNumWorkers"] == 4
    assert on_gpu.pool["diskSizeGb"] == 50
    temporary = on_gpu.job["environment"]["tempStoragePrefix"]
    assert temporary.startswith(f"storage.googleapis.com/{BUCKET}/dataflow/temp/backlight-maps.")
    for name in ("temp", "staging"):
        url = on_gpu.options[f"{name}_location"]
        assert url.startswith(f"gs://{BUCKET}/dataflow/{name}/backlight-maps.")
    assert on_gpu.options["pipelineUrl"].startswith(on_gpu.options["staging_location"])


def test_no_credentials_are_in_the_job_or_in_the_bucket(cloud: Cloud, on_gpu: Submitted) -> None:
    seen = {**cloud.contents("dataflow"), **cloud.contents("on-gpu")}
    assert any(name.endswith("pipeline.pb") for name in seen)
    seen["the job"] = json.dumps(on_gpu.job).encode()
    seen["the output"] = on_gpu.said.encode()
    leaks = [(n, s) for n, content in seen.items() for s in cloud.secrets if s.encode() in content]
    assert leaks == []


def test_the_accelerator_is_no_part_of_the_plan(on_gpu: Submitted, on_cpu: Submitted) -> None:
    gpu, cpu = (json.loads(run.written["_meta/plan.json"]) for run in (on_gpu, on_cpu))
    assert gpu["run_id"] == cpu["run_id"]
    assert ACCELERATOR.encode() not in on_gpu.written["_meta/plan.json"]


def test_a_submitted_run_leaves_its_plan_and_claims_no_maps(on_gpu: Submitted) -> None:
    assert set(on_gpu.written) == {"_meta/plan.json", "_meta/manifest.parquet"}
    assert "submitted the job: its plan is in gs://" in on_gpu.said
    assert "wrote" not in on_gpu.said


def test_the_flex_template_launches_a_run_as_a_template_and_posts_nothing(
    cloud: Cloud, on_bucket: str
) -> None:
    """The launcher gives parameters and options as one flat list of flags."""
    before = len(cloud.jobs)
    template = f"gs://{BUCKET}/templates/maps.json"
    flags = iter(settings(on_bucket))
    parameters = [f"--{name[2:].replace('-', '_')}={next(flags)}" for name in flags]
    options = dataflow_options(cloud, f"--template_location={template}")[2:]
    run = process(
        *(sys.executable, DATAFLOW / "launch.py", *parameters, f"--accelerator={ACCELERATOR}"),
        *(f"--out=gs://{BUCKET}/templated", *options),
    )
    assert run.returncode == 0, run.stderr
    assert len(cloud.jobs) == before
    job = json.loads(cloud.contents("templates")["maps.json"])
    assert job["name"] == "backlight-maps"
    assert job["environment"]["workerPools"][0]["numThreadsPerWorker"] == 1
    assert f"wrote the template {template}: its plan is in gs://" in run.stdout + run.stderr
    assert set(cloud.contents("templated")) == {"_meta/plan.json", "_meta/manifest.parquet"}


def test_a_job_that_fails_on_the_service_ends_the_command_with_its_message(
    cloud: Cloud, on_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "state", "JOB_STATE_FAILED")
    run = process(
        *(
            "backlight",
            "generate",
            *settings(on_bucket),
            f"gs://{BUCKET}/failing",
            *dataflow_options(cloud),
        )
    )
    assert run.returncode == 1
    assert "no GPU left in europe-west4" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("name", ["root", "out"])
def test_what_a_worker_cannot_read_is_refused_before_any_work(
    cloud: Cloud, on_bucket: str, photos: Path, tmp_path: Path, name: str
) -> None:
    root = photos if name == "root" else on_bucket
    out = tmp_path / "out" if name == "out" else f"gs://{BUCKET}/refused"
    before = len(cloud.jobs)
    wrong = photos if name == "root" else out
    run = in_this_process("generate", *settings(root), out, *dataflow_options(cloud))
    assert isinstance(run.exception, SettingsError)
    assert (
        f"cannot read this machine's disk: {'--root' if name == 'root' else 'OUT'} {wrong};"
        in str(run.exception)
    )
    assert len(cloud.jobs) == before
    assert not cloud.contents("refused")
    assert not (tmp_path / "out").exists()


def test_a_run_from_bucket_to_bucket_writes_the_bytes_of_a_local_one(
    cloud: Cloud, on_bucket: str, photos: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights" / "network.pth"
    weights.parent.mkdir()
    torch.save(ModelSpec("squeezenet1_1", "random:7").load().state_dict(), weights)
    local = process("backlight", "generate", *settings(photos, str(weights)), tmp_path / "out")
    assert local.returncode == 0, local.stderr
    expected = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    out = f"gs://{BUCKET}/maps"
    given = settings(on_bucket, f"{cloud.put(weights.parent, 'weights')}/network.pth")
    first = process("backlight", "generate", *given, out)
    assert first.returncode == 0, first.stderr
    assert "wrote 20 maps of 5 images" in first.stdout + first.stderr
    found = cloud.contents("maps")
    assert hashes(found) == hashes(expected)
    assert found.keys() == expected.keys()
    assert verify(out) == []
    again = in_this_process("generate", *given, out)
    assert "nothing to do: this run is complete" in again.output
    assert in_this_process("evaluate", out, "--replicates", "5").exit_code == 0
    assert "statistics.csv" in cloud.contents("maps")


@pytest.mark.parametrize(
    ("source", "folder", "more"),
    [
        ("imagefolder", "imagenet/images", {}),
        ("coco", "coco", {"split": "train2017"}),
        ("voc", "voc", {"split": "trainval"}),
    ],
)
def test_a_dataset_reads_the_same_from_a_bucket(
    cloud: Cloud, shared_data: Path, source: str, folder: str, more: dict[str, str]
) -> None:
    url = cloud.put(shared_data / folder, f"data/{folder}")
    local = read_examples(source, shared_data / folder, **more)
    assert read_examples(source, url, **more) == local


def test_a_table_and_its_wrong_names_read_the_same_from_a_bucket(
    cloud: Cloud, on_bucket: str
) -> None:
    cloud.blob("photos/set.csv").upload_from_string("path,label\n0/photo 0.png,dog\n")
    (example,) = read_examples("table", on_bucket, annotations="set.csv")
    assert (example.path, example.labels) == ("0/photo 0.png", ("dog",))
    cloud.blob("photos/set.csv").upload_from_string("path,label\nabsent.png,dog\n")
    with pytest.raises(SettingsError, match=f"none of the 1 .*be {on_bucket}/absent.png"):
        read_examples("table", on_bucket, annotations="set.csv")
    with pytest.raises(SettingsError, match=r"no annotations file absent\.csv"):
        read_examples("table", on_bucket, annotations="absent.csv")
    with pytest.raises(SettingsError, match="holds: 0, 1"):
        read_examples("imagefolder", on_bucket, split="val")
    for wrong in (f"gs://{BUCKET}/nothing", "gs://no-such-bucket/photos"):
        with pytest.raises(SettingsError, match=f"--root {wrong}"):
            read_examples("imagefolder", wrong)


def test_what_is_absent_from_a_bucket_is_a_missing_file(cloud: Cloud) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        files.read_bytes(f"gs://{BUCKET}/absent")


def test_a_file_that_was_not_written_to_its_end_is_not_in_the_bucket(cloud: Cloud) -> None:
    def write_half() -> None:
        with files.replacing(f"gs://{BUCKET}/halves", "half.parquet") as file:
            file.write(b"PAR1")
            raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        write_half()
    assert cloud.contents("halves") == {}


def test_a_large_folder_is_listed_and_not_asked_for_file_by_file(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(60):
        cloud.blob(f"many/{i % 3}/{i}.png").upload_from_string(b"")
    with caplog.at_level("DEBUG", logger="gcp_storage_emulator.server"):
        caplog.clear()
        assert len(read_examples("imagefolder", f"gs://{BUCKET}/many")) == 60
    asked = [record for record in caplog.records if "/storage/v1/b/" in record.getMessage()]
    assert 0 < len(asked) < 10
