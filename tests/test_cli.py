"""The command line as a user meets it: real processes in an empty folder."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["trace=workload", "workload.requests=20000", "workload.objects=2000", "report.html=false"]


def kvpredict(folder: Path, *arguments: str, prelude: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "HYDRA_FULL_ERROR")}
    code = f"import sys; {prelude or 'pass'}\nfrom kvpredict.cli import main\nmain()"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def results(folder: Path) -> list[Path]:
    return sorted(path for kind in ("outputs", "multirun") for path in (folder / kind).rglob("result.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["capasity.fraction=0.1"], "Did you mean 'capacity.fraction'?"),
        (["policy=lrru"], "Did you mean 'lru'?"),
        (["-m", "policy=lru,lrru"], "Did you mean 'lru'?"),
        (["capacity.unit=object"], "Did you mean 'objects'?"),
        (["policy=lru,sieve"], "several values need -m"),
        (["trace.path=my=b.csv"], "needs quotes"),
        (["workload=online_shop"], "add trace=workload"),
        (["pipeline=prefix_train", "learner=mlp"], "learner=mlp has no effect on pipeline=prefix_train"),
        (["pipeline=decode_record", "pipeline.text=texts/"], "expected a list, such as pipeline.text=[texts/]"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = kvpredict(tmp_path, *arguments, "tracking=none")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "kvpredict", "--help"], capture_output=True, text=True, check=True)
    assert "pipeline" in done.stdout


def test_a_missing_file_is_one_line_and_status_one(tmp_path: Path) -> None:
    done = kvpredict(tmp_path, "trace.path=absent.csv", "tracking=none")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "absent.csv" in done.stderr


def test_a_traceback_on_request(tmp_path: Path) -> None:
    done = kvpredict(tmp_path, "trace.path=absent.csv", "tracking=none", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "TraceError" in done.stderr


def test_without_hydra_the_extra_is_named(tmp_path: Path) -> None:
    done = kvpredict(tmp_path, prelude="sys.modules['hydra'] = None")
    assert done.returncode == 1
    assert "pip install 'kvpredict[train]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def contribute(folder: Path, entries: str) -> str:
    """Install a distribution, whose module ``mine`` has two policies, in ``folder``; return it as PYTHONPATH."""
    (folder / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from kvpredict.policies.lru import LRU\n"
        "@dataclass(frozen=True)\n"
        "class Mine(LRU):\n"
        "    name = 'mine'\n"
        "    depth: int = 3\n"
        "    tags: tuple[str, ...] = ('a',)\n"
        "class Other(LRU):\n"
        "    name = 'another'\n"
    )
    info = folder / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kvpredict.policies]\n" + entries)
    return str(folder)


def test_a_policy_of_another_distribution_is_one_of_the_choices(tmp_path: Path) -> None:
    site = contribute(tmp_path, "mine = mine:Mine\n")
    done = kvpredict(tmp_path, *SMALL, "policy=mine", "policy.depth=9", "policy.tags=[b,c]", PYTHONPATH=site)
    assert done.returncode == 0, done.stderr
    (path,) = results(tmp_path)
    compared = {row["policy"]: row for row in json.loads(path.read_text())["policies"]}
    assert compared["mine"]["hits"] == compared["lru"]["hits"]
    assert "depth: 9" in (path.parent / ".hydra" / "config.yaml").read_text()
    for arguments, message in [
        (["policy=min"], "Did you mean 'mine'?"),
        (["policy=mine", "policy.dept=9"], "Did you mean 'policy.depth'?"),
        (["policy=mine", "policy.depth=deep"], "policy.depth=deep"),
    ]:
        wrong = kvpredict(tmp_path, *SMALL, *arguments, PYTHONPATH=site)
        assert wrong.returncode == 2
        assert message in wrong.stderr


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("mine = absent:Mine", "the entry point 'absent:Mine' of mine cannot be loaded: ModuleNotFoundError"),
        ("mine = mine:dataclass", "expected a class derived from kvpredict.core.policy.Policy"),
        ("mine = mine:Other", "has the name 'another'; give both the same name"),
    ],
)
def test_a_policy_that_cannot_be_loaded_is_in_nobodys_way(tmp_path: Path, entry: str, message: str) -> None:
    site = contribute(tmp_path, entry + "\n")
    done = kvpredict(tmp_path, *SMALL, "policy=mine", "tracking=none", PYTHONPATH=site)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = kvpredict(tmp_path, *SMALL, "policy=lru", "tracking=none", PYTHONPATH=site)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_policy_under_a_name_that_is_taken_does_not_replace_it(tmp_path: Path) -> None:
    site = contribute(tmp_path, "lru = mine:Mine\n")
    done = kvpredict(tmp_path, *SMALL, "policy=lru", "tracking=none", PYTHONPATH=site)
    assert done.returncode == 0
    assert done.stderr == "the entry point 'mine:Mine' gives no policy: 'lru' is one that comes with kvpredict\n"


def test_help_shows_commands_and_choices(tmp_path: Path) -> None:
    done = kvpredict(tmp_path, "--help")
    assert done.returncode == 0
    assert "kvpredict trace.path=orders.csv" in done.stdout
    assert "online_shop" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_own_file_with_named_columns_and_without_mlflow(tmp_path: Path) -> None:
    lines = [f"{i},/page/{i * i % 97},{i % 9 + 1}" for i in range(3000)]
    (tmp_path / "log.csv").write_text("when,url,bytes\n" + "\n".join(lines))
    done = kvpredict(
        tmp_path, "trace.path=log.csv", "trace.columns.key=url", "policy=sieve", "capacity.count=9", "tracking=none",
        prelude="sys.modules['mlflow'] = None",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (path,) = results(tmp_path)
    result = json.loads(path.read_text())
    assert result["capacity"] == {"count": 9, "unit": "objects"}
    assert str(path) in done.stdout
    assert str(path.parent / "report.html") in done.stdout
    assert (path.parent / "report.html").is_file()
    assert not (tmp_path / "mlflow.db").exists()


def test_a_dead_server_is_said_before_any_work(tmp_path: Path) -> None:
    done = kvpredict(tmp_path, *SMALL, "policy=lru", "tracking.uri=http://127.0.0.1:9")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "no MLflow server answers" in done.stderr
    assert results(tmp_path) == []


def test_a_server_that_fails_later_loses_nothing(tmp_path: Path) -> None:
    class Broken(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 503)
            self.end_headers()

        do_POST = do_GET  # noqa: N815

        def log_message(self, *said: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        done = kvpredict(tmp_path, *SMALL, "policy=lru", f"tracking.uri={uri}", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
        server.shutdown()
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"tracking to {uri} failed" in done.stderr
    (path,) = results(tmp_path)
    assert json.loads(path.read_text())["policies"]


@pytest.mark.parametrize("seconds", [0.2, 0.5])
def test_an_interrupted_first_run_leaves_a_store_that_works(tmp_path: Path, seconds: float) -> None:
    """Making the tables takes seconds; a database half made could never be used again."""
    command = [sys.executable, "-W", "ignore", "-c", "from kvpredict.cli import main; main()"]
    started = subprocess.Popen(
        [*command, *SMALL, "policy=lru", "pipeline=simulate"], cwd=tmp_path, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"},
    )  # fmt: skip
    while started.poll() is None and not [*tmp_path.glob("mlartifacts/.new-*/mlflow.db")]:
        time.sleep(0.01)
    time.sleep(seconds)
    assert started.poll() is None
    started.kill()
    started.wait()
    assert not (tmp_path / "mlflow.db").exists()
    done = kvpredict(tmp_path, *SMALL, "policy=lru", "pipeline=simulate")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "mlartifacts").glob(".new-*")] == []


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(full)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        done = kvpredict(tmp_path, *SMALL, "policy=lru", "pipeline=simulate", "tracking=none", f"hydra.run.dir={full}")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].endswith("No space left on device")
        assert len(done.stderr.splitlines()) == 1, done.stderr
    finally:
        subprocess.run(["umount", str(full)], check=True)


def test_where_nothing_can_be_learned_the_learned_policy_learns_while_it_serves(tmp_path: Path) -> None:
    done = kvpredict(tmp_path, *SMALL, "capacity.count=5000", "tracking=none", "pipeline.policies=[learned,sieve]")
    assert done.returncode == 0, done.stderr
    assert "no frozen model to compare with: " in done.stdout
    assert "holds all of its" in done.stdout
    (path,) = results(tmp_path)
    result = json.loads(path.read_text())
    assert {row["policy"] for row in result["policies"]} == {"learned", "sieve", "lru", "belady"}
    assert result["learned"]["settings"]["chosen"] == "guarded"
    asked = kvpredict(tmp_path, *SMALL, "capacity.count=5000", "tracking=none", "learner=lightgbm")
    assert asked.returncode == 1
    assert "holds all of its" in asked.stderr


def test_a_sweep_goes_on_after_a_cell_that_fails(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("\n".join(str(i * i % 91) for i in range(2000)))
    done = kvpredict(
        tmp_path, "policy=lru", "-m", "trace.path=absent.txt,good.txt", "tracking=none", "report.html=false"
    )
    assert done.returncode == 1
    assert "absent.txt" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(results(tmp_path)) == 1
    (cells,) = tmp_path.rglob("cells.csv")
    assert "good.txt" in cells.read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # MLflow's own
def test_a_sweep_in_parallel_processes_on_a_fresh_store(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the joblib launcher is optional")
    done = kvpredict(
        tmp_path, "-m", *SMALL, "hydra/launcher=joblib", "hydra.launcher.n_jobs=4",
        "policy=lru,sieve", "capacity.fraction=0.01,0.1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(results(tmp_path)) == 4
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("kvpredict").experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.params["policy.name"] for run in children} == {"lru", "sieve"}
    stored = {json.loads(p.read_text())["policies"][1]["object_miss_ratio"] for p in results(tmp_path)}
    assert len(stored) == 4, "cells differ"


@pytest.mark.slow
def test_train_track_and_load_the_champion_from_another_process(tmp_path: Path) -> None:
    done = kvpredict(tmp_path, *SMALL, "pipeline.policies=[learned]", "learner=logistic", "fit.rows=3000")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "models:/zipf/1 (champion)" in done.stdout
    code = (
        "import kvpredict\n"
        "policy = kvpredict.load_policy('models:/zipf@champion')\n"
        "print(policy.candidates, policy.artifact.metadata['settings']['learner'])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == ["64", "logistic"]


@pytest.mark.slow
def test_the_wheel_carries_configuration_template_and_sample(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {p.relative_to(ROOT).as_posix() for p in (ROOT / "kvpredict" / "conf").rglob("*.yaml")}
    assert conf <= names
    assert "kvpredict/report/page.html" in names
    assert any(name.startswith("kvpredict/_sample/") for name in names)
    # Installed, not the checkout: unpacked into an empty folder and run from there.
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    site = str(tmp_path / "site")
    done = kvpredict(
        tmp_path / "empty", "policy=sieve", "tracking=none",
        prelude=f"sys.path.insert(0, {site!r}); import kvpredict; assert kvpredict.__file__.startswith({site!r})",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sqlite_shop" in done.stdout
