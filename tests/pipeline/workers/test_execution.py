"""An `Execution` refuses what does not fit, and becomes the options of Beam."""

from dataclasses import replace

import pytest

from pipeline.errors import SettingsError
from pipeline.workers.beam_options import pipeline_options, submitted
from pipeline.workers.execution import HERE, Execution
from pipeline.workers.runners import prepare


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "--workers must be at least 1, not 0"),
        ({"workers": -2}, "--workers must be at least 1, not -2"),
        ({"workers": 2, "beam_args": ("--runner=FlinkRunner",)}, "--workers is for the local"),
        ({"workers": 2, "beam_args": ("--runner", "FlinkRunner")}, "--workers is for the local"),
        ({"beam_args": ("another_out",)}, "unexpected argument 'another_out'; valid: one OUT"),
        ({"start_timeout": -1.0}, "--start-timeout must be at least 0 seconds, not -1"),
        ({"start_timeout": float("nan")}, "--start-timeout must be at least 0 seconds, not nan"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        Execution(**settings)


def test_one_worker_beside_a_runner_is_no_contradiction():
    assert Execution(workers=1, beam_args=("--runner=FlinkRunner",)).chooses_runner
    assert not Execution(workers=1, beam_args=("--runner_version=1",)).chooses_runner


@pytest.mark.parametrize(
    ("workers", "mode"), [(None, "in_memory"), (1, "in_memory"), (3, "multi_processing")]
)
def test_workers_are_processes_of_the_local_runner(workers, mode, tmp_path):
    job = prepare(Execution(workers=workers), "cpu", str(tmp_path))
    options = job.options.get_all_options()
    assert options["runner"] == "FnApiRunner"
    assert options["direct_num_workers"] == job.devices.workers == (workers or 1)
    assert options["direct_running_mode"] == mode


def test_workers_lock_cores_in_a_folder_of_their_run_alone(tmp_path):
    first, second = (prepare(Execution(workers=2), "cpu", str(tmp_path)) for _ in range(2))
    assert first.devices.folder != second.devices.folder
    assert replace(first.devices, folder="") == replace(second.devices, folder="")
    assert prepare(HERE, "cpu", str(tmp_path)).devices.folder == ""


def test_work_without_gpus_keeps_everything_else():
    asked = Execution(3, "all", ("--save_main_session",), 7.0, 9.0, "type:nvidia-l4;count:1")
    assert asked.without_gpus() == Execution(3, None, ("--save_main_session",), 7.0, 9.0, None)


@pytest.mark.parametrize(
    ("beam_args", "expected"),
    [
        ((), None),
        (("--runner=DataflowRunner",), None),
        (("--runner=DataflowRunner", "--no_wait_until_finish"), "submitted the job"),
        (("--template_location=gs://b/t.json",), "wrote the template gs://b/t.json"),
        (
            ("--runner=PortableRunner", "--output_executable_path=/tmp/job.jar"),
            "made /tmp/job.jar and ran nothing; give it to spark-submit",
        ),
    ],
)
def test_what_is_done_instead_of_running_the_job(beam_args, expected):
    assert submitted(pipeline_options(Execution(beam_args=beam_args))) == expected
