"""Too little memory is one line that says what to make smaller; one photo's want of it is a row."""

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forked_process import ForkedProcess
from PIL import Image
from tiny_network import draw_set, draw_white, run_config

from pipeline.errors import NoMemoryError, memory_told
from pipeline.generate import generate
from transforms.engine import Explainer
from transforms.memory import is_out_of_memory

SECONDS = 300
BACKLIGHT = [sys.executable, "-c", "from pipeline.cli import main; main()"]

# What the process has, and some room for a run of small photos.
LIMITED = """
import resource, sys
from pipeline.cli import main
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (int(sys.argv.pop()) << 20),) * 2)
main()
"""


def refusals() -> list[BaseException]:
    """What really is raised where memory is refused."""
    found: list[BaseException] = []
    for allocate in (
        lambda: bytearray(1 << 60),
        lambda: torch.empty(1 << 60, dtype=torch.uint8),
        lambda: pa.allocate_buffer(1 << 60),
        lambda: __import__("numpy").empty(1 << 60, "uint8"),
    ):
        try:
            allocate()
        except Exception as error:
            found.append(error)
    return [*found, torch.OutOfMemoryError("CUDA out of memory"), OSError(12, "no memory")]


def test_every_librarys_refusal_of_memory_is_known():
    assert len(refusals()) == 6
    assert all(map(is_out_of_memory, refusals()))
    assert not any(map(is_out_of_memory, (ValueError("memory"), OSError(28, "disk"), KeyError())))
    for refusal in refusals():
        with (
            pytest.raises(NoMemoryError, match="make --workers smaller"),
            memory_told("--workers smaller"),
        ):
            raise refusal


def settings(root: Path, tmp_path: Path, **changes: object) -> list[str]:
    config = {k: v for k, v in run_config(root, **changes).to_settings().items() if v is not None}
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    return ["--config", str(tmp_path / "run.yaml")]


def test_a_photo_that_needs_too_much_memory_to_decode_is_an_error_row(tmp_path):
    root, out = draw_set(tmp_path / "set", 4), tmp_path / "out"
    Image.new("RGB", (9400, 9400)).save(root / "0" / "photo0.png")
    given = settings(root, tmp_path, device="cpu")
    process = ForkedProcess(
        [
            sys.executable,
            "-c",
            LIMITED,
            "generate",
            *given,
            "--max-error-rate",
            "1",
            str(out),
            "430",
        ]
    )
    _, stderr = process.communicate(SECONDS)
    assert process.returncode == 0, stderr
    (row,) = pq.read_table(out / "errors").to_pylist()
    assert (row["path"], row["kind"]) == ("0/photo0.png", "memory")
    assert "1 images failed" in stderr


def test_a_photo_whose_input_is_too_large_is_an_error_row(tmp_path, monkeypatch):
    root, out = draw_set(tmp_path / "set", 4), tmp_path / "out"
    draw_white(root / "0" / "photo0.png", (900, 40))
    monkeypatch.setenv("TINY_NETWORK_WHITE", "allocate")
    config = run_config(root, model="tiny_network:minds_white", preprocess="shortest_side")
    summary = generate(config, str(out))
    assert (summary.images, summary.errors) == (3, 1)
    (row,) = pq.read_table(out / "errors").to_pylist()
    assert (row["path"], row["kind"], row["stage"]) == ("0/photo0.png", "memory", "explain")
    assert row["message"] == "too little memory to explain an input of 720 x 32 px"


def test_too_little_memory_for_an_ordinary_input_is_one_line(tmp_path):
    root, out = draw_set(tmp_path / "set", 4), tmp_path / "out"
    draw_white(sorted(root.rglob("*.png"))[3])
    given = settings(root, tmp_path, model="tiny_network:minds_white")
    environment = {**os.environ, "TINY_NETWORK_WHITE": "allocate"}
    process = ForkedProcess([*BACKLIGHT, "generate", *given, str(out)], environment)
    stdout, stderr = process.communicate(SECONDS)
    assert (process.returncode, stdout) == (1, "")
    (line,) = [line for line in stderr.splitlines() if "error" in line]
    assert "there is too little memory (" in line
    assert "make --batch-size, --shard-size or --workers smaller" in line
    assert "Traceback" not in stderr


def test_a_batch_is_halved_where_the_host_refuses_memory(monkeypatch):
    """As it is on a GPU."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.LazyLinear(5)
    )
    images = torch.rand(4, 3, 8, 8)
    network(images)
    explainer = Explainer(network, ["0"], ["gradient"])
    whole = explainer(images, torch.tensor([[0]] * 4))

    def greedy(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > 1:
            torch.empty(1 << 60, dtype=torch.uint8)

    network.register_forward_pre_hook(greedy)
    halved = explainer(images, torch.tensor([[0]] * 4))
    assert explainer.micro_batch == 1
    torch.testing.assert_close(halved["gradient", "0"], whole["gradient", "0"])
