"""`edgesmith bench RUN --on ssh://...` against a real sshd on loopback, into a Python with numpy and ONNX Runtime only."""

import json
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgesmith.cli import main
from edgesmith.compressor.device import remote_bench
from edgesmith.compressor.run_directory import RunDirectory
from edgesmith.core.errors import ExitCode

from .bare import bare_python
from .loopback import Loopback

RUN = Path("runs/small")
QUICK = ("--seconds", "0.2", "--batch", "1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    found = Loopback(tmp_path_factory.mktemp("loopback"))
    with found.running():
        yield found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_python(tmp_path_factory.mktemp("device") / "python")


@pytest.fixture
def there() -> Iterator[Path]:
    """A folder on the device; its name is short, as it stands in an address."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def bench(server: Loopback, python: Path, on: str, *options: str, config: Path | None = None) -> int:
    where = ["--ssh-config", str(config or server.config()), "--device-python", str(python)]
    return main(["bench", str(RUN), "--on", on, *where, *options])


def test_the_figures_come_back_and_nothing_stays(
    finished: Path, server: Loopback, python: Path, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"ssh://{server.user}@127.0.0.1:{server.port}{there}"
    assert bench(server, python, url, *QUICK, "--samples", "64", "--json") == ExitCode.PASS
    said = json.loads(capsys.readouterr().out)
    kept = json.loads((RUN / "devices" / f"{server.user}@127.0.0.1+{server.port}.json").read_text())
    assert (kept["schema"], kept["url"], kept["samples"]) == ("edgesmith.device/1", url, 64)
    assert said["failed"] == {}
    assert said["devices"][url]["models"] == kept["models"]
    report = json.loads((RUN / "report.json").read_text())
    assert {each["target"]: each["digest"] for each in kept["models"]} == {
        each["target"]: each["digest"] for each in report["artifacts"]
    }
    page = (RUN / "report.html").read_text()
    assert "<h2>On other devices</h2>" in page and url in page and "an earlier file" not in page
    final, tensorrt = kept["models"]
    assert [each["max_abs"] for each in final["parity"]] == [0.0, 0.0]
    assert [each["batch"] for each in final["latency"]] == [1]
    assert tensorrt["reason"] == "no CUDA device"
    assert list(there.iterdir()) == []
    # The next run of the recipe leaves it: it is a result, not a leftover.
    RunDirectory(RUN).tidy(set())
    assert not (RUN / "artifacts" / "onnxruntime-cpu").exists()
    assert json.loads((RUN / "devices" / f"{server.user}@127.0.0.1+{server.port}.json").read_text()) == kept


@pytest.mark.slow
def test_lost_while_it_copies_and_while_it_measures(
    finished: Path,
    server: Loopback,
    python: Path,
    there: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_bench, "PAUSES", (0.0, 0.0, 0.0))
    # probe, have, put (breaks), have, put, run (breaks), have, run, get, remove
    plan: list[dict[str, Any]] = [{}, {}, {"bytes": 120_000}, {}, {}, {"once": f"{there}/*/work/answers-*.json"}]
    code = bench(
        server, python, f"ssh://pi{there}", "--seconds", "3", "--batch", "1", "--keep", config=server.config(plan=plan)
    )
    said = capsys.readouterr()
    assert code == ExitCode.PASS, said.err
    url = f"ssh://pi{there}"
    lines = [line.removeprefix(f"{url}: ") for line in said.err.splitlines()]
    copied = [int(line.split()[1]) for line in lines if line.startswith("copying")]
    assert len(copied) == 2
    assert 0 < copied[1] < copied[0]
    assert len([line for line in lines if line.endswith("trying again in 0 s")]) == 2
    assert "  another process is measuring this bundle; waiting for it" in lines
    assert "    latency-onnxruntime-cpu: measured before" in lines
    (kept,) = there.iterdir()
    assert (kept / "result.json").is_file()
    # And the same command once more finds all of it there.
    assert bench(server, python, url, "--seconds", "3", "--batch", "1") == ExitCode.PASS
    err = capsys.readouterr().err
    assert "copying" not in err
    assert "latency-onnxruntime-cpu: measured before" in err
    assert list(there.iterdir()) == []


def test_lost_for_good(
    finished: Path,
    server: Loopback,
    python: Path,
    there: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_bench, "PAUSES", (0.0,))
    config = server.config(plan=[{}, {}, {"bytes": 60_000}, {}, {"bytes": 5_000}])
    assert bench(server, python, f"ssh://pi{there}", *QUICK, config=config) == ExitCode.FAILED
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"LostConnectionError: ssh://pi{there}: the connection was lost or cannot be made (")
    assert last.endswith("), 2 times; the same command goes on where it stopped")
    (kept,) = there.iterdir()
    assert not [path for path in kept.rglob("*") if path.name.startswith(".partial-")]
    assert not (RUN / "devices").exists()


def test_one_device_that_fails_does_not_stop_the_others(
    finished: Path, server: Loopback, python: Path, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = f"ssh://nowhere@127.0.0.1:{server.port}{there}"
    assert bench(server, python, bad, *QUICK, "--on", f"ssh://pi{there}") == ExitCode.USAGE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip() == "On the device"
    assert f"ssh://pi{there}: tensorrt, s8-symmetric: not measured: no CUDA device" in lines
    assert lines[-1].startswith(f"UsageError: {bad}: the login is refused (nowhere@127.0.0.1: Permission denied (")
    assert [path.name for path in (RUN / "devices").iterdir()] == ["pi.json"]


def test_void_there_is_unproven_here(
    finished: Path, server: Loopback, python: Path, there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Python whose run.py ends as on a GPU that is slowed down, beside a result of an earlier run."""
    hot = tmp_path / "python"
    hot.write_text(
        "#!/bin/sh\n"
        'case "$*" in *run.py*) echo "{}" > "${1%run.py}result.json"; '
        'echo "VoidError: the GPU was slowed down; cool it" >&2; exit 4;; esac\n'
        f'exec {shlex.quote(str(python))} "$@"\n'
    )
    hot.chmod(0o755)
    url = f"ssh://pi{there}"
    assert refused(server, hot, capsys, url, server.config()) == (
        ExitCode.UNPROVEN,
        f"VoidError: {url}: the GPU was slowed down; cool it",
    )
    assert list(there.iterdir()) == []
    assert not (RUN / "devices").exists()


def refused(
    server: Loopback, python: Path, capsys: pytest.CaptureFixture[str], on: str, config: Path
) -> tuple[int, str]:
    code = bench(server, python, on, *QUICK, config=config)
    return code, capsys.readouterr().err.splitlines()[-1]


def test_what_stands_in_the_way_is_said(
    finished: Path, server: Loopback, python: Path, there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"ssh://pi{there}"
    assert refused(server, python, capsys, url, server.config(host_key=None)) == (
        ExitCode.USAGE,
        f"UsageError: {url}: its host key is not known here; log in once by hand (ssh pi) and compare the fingerprint it "
        "shows with the device's own before you accept it",
    )
    code, said = refused(server, python, capsys, url, server.config(host_key="other_host_key"))
    assert (code, said.partition(". ")[0]) == (
        ExitCode.USAGE,
        f"UsageError: {url}: its host key is not the one that is known here",
    )
    code, said = refused(server, python, capsys, url, server.config(key="stranger"))
    assert code == ExitCode.USAGE
    assert said.startswith(
        f"UsageError: {url}: the login is refused ({server.user}@127.0.0.1: Permission denied (publickey"
    )
    assert said.endswith(
        "put your public key there: ssh-copy-id pi; a key with a passphrase has to be in an agent: ssh-add"
    )
    config = server.config()
    assert refused(server, Path("/no/python"), capsys, url, config) == (
        ExitCode.USAGE,
        f"UsageError: {url}: no '/no/python' there; install Python 3.8 or newer, or say where it is with --device-python",
    )
    empty = bare_python(tmp_path / "empty", has=())
    assert refused(server, empty, capsys, url, config) == (
        ExitCode.USAGE,
        f"UsageError: {url}: numpy, onnxruntime not installed there; run there: {empty} -m pip install numpy onnxruntime",
    )
    code, said = refused(server, python, capsys, f"ssh://127.0.0.1:1{there}", config)
    assert code == ExitCode.FAILED
    assert said.startswith(
        f"LostConnectionError: ssh://127.0.0.1:1{there}: the connection was lost or cannot be made (ssh: "
    )
    assert said.endswith("Connection refused)")
    assert list(there.iterdir()) == []


def test_a_folder_that_is_a_link_is_not_written_through(
    finished: Path, server: Loopback, python: Path, there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"ssh://pi{there}"
    packed = remote_bench.pack(RUN, tmp_path / "packed", 256)
    (there / f"edgesmith-bundle-{packed.digest[:16]}").symlink_to(tmp_path)
    code, said = refused(server, python, capsys, url, server.config())
    assert code == ExitCode.USAGE
    assert said == (
        f"UsageError: {url}: {there}/edgesmith-bundle-{packed.digest[:16]}: not a folder of its own; remove it by hand"
    )


ADDRESS = "write it as ssh://user@host, ssh://user@host:port or ssh://user@host:port/folder"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--on", "http://pi"), f"--on http://pi: not an address; {ADDRESS}"),
        (("--on", "ssh://-oProxyCommand=x"), f"--on ssh://-oProxyCommand=x: not an address; {ADDRESS}"),
        (("--on", "ssh://a;b@pi"), f"--on ssh://a;b@pi: not an address; {ADDRESS}"),
        (("--on", "ssh://pi:99999"), f"--on ssh://pi:99999: Port out of range 0-65535; {ADDRESS}"),
        (
            ("--on", "ssh://me:secret@pi"),
            "--on: a password in an address is read by others; log in with a key or an agent",
        ),
        (("--on", "ssh://pi", "--on", "ssh://pi/elsewhere"), "--on ssh://pi/elsewhere: given twice"),
        (("--on", "ssh://pi", "--ssh-config", "none"), "--ssh-config none: no such file"),
        (("--on", "ssh://pi", "--concurrency", "2"), "bench --on measures no throughput: leave out --concurrency"),
        (("--on", "ssh://pi", "--shape", "x=1"), "bench --on takes one run directory alone, without --shape"),
    ],
)
def test_wrong_use(
    options: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    RUN.mkdir(parents=True)
    assert main(["bench", str(RUN), *options]) == ExitCode.USAGE
    assert capsys.readouterr().err == f"UsageError: {said}\n"
