"""The system's OpenSSH client: an address, what it runs there, and what its failures mean.

A key or an agent logs in, never a password; the host key is checked strictly, whatever a configuration file says.
"""

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ...core.errors import EdgesmithError, LostConnectionError, MeasurementError, UsageError
from . import device_agent

_OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "PermitLocalCommand": "no",
}
_LOST = 255  # how ssh says that it failed itself
_NOT_FOUND = (126, 127)  # how a shell says that there is no such command
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_USAGE = "write it as ssh://user@host, ssh://user@host:port or ssh://user@host:port/folder"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Address:
    """Where a device is."""

    host: str
    user: str | None = None  # None: as ssh's own configuration says
    port: int | None = None
    folder: str | None = None  # where the bundle's folder goes; None: where a login starts

    @property
    def url(self) -> str:
        """As it was given."""
        user, port = (f"{self.user}@" if self.user else ""), (f":{self.port}" if self.port else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{user}{host}{port}{self.folder or ''}"

    @property
    def name(self) -> str:
        """As a file name."""
        user, port = (f"{self.user}@" if self.user else ""), (f":{self.port}" if self.port else "")
        return f"{user}{self.host}{port}".replace(":", "+")

    @property
    def login(self) -> str:
        """What a user types to log in by hand, less `ssh`."""
        port = [] if self.port is None else ["-p", str(self.port)]
        return shlex.join([*port, f"{self.user}@{self.host}" if self.user else self.host])


def parse(text: str) -> Address:
    """An `ssh://` URL.

    Raises:
        UsageError: something else, or a password in it.
    """
    try:
        found = urllib.parse.urlsplit(text)
        port = found.port
    except ValueError as error:
        raise UsageError(f"--on {text}: {error}; {_USAGE}") from error
    if found.password is not None:
        raise UsageError("--on: a password in an address is read by others; log in with a key or an agent")
    host, user = found.hostname or "", found.username
    plain = (_WORD.fullmatch(host) or re.fullmatch(r"[0-9A-Fa-f:.]+", host)) and (user is None or _WORD.fullmatch(user))
    if found.scheme != "ssh" or not plain or found.query or found.fragment or port == 0:
        raise UsageError(f"--on {text}: not an address; {_USAGE}")
    folder = urllib.parse.unquote(found.path).rstrip("/") or None
    return Address(host=host, user=user, port=port, folder=folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Connection:
    """Runs commands on a device, each in a connection of its own."""

    address: Address
    config: Path | None = None  # ssh's `-F`; None: its own configuration files
    python: str = "python3"  # of the device

    def ask(self, request: dict[str, Any], feed: Callable[[IO[bytes]], None] | None = None) -> dict[str, Any]:
        """One request to `device_agent`; `feed` writes what follows it.

        Raises:
            LostConnectionError: the connection broke, or cannot be made.
            UsageError: host key, login, Python, or a folder that must not be touched.
            MeasurementError: the device could not do it.
        """
        script = Path(device_agent.__file__).read_bytes()
        boot = f"import sys;exec(compile(sys.stdin.buffer.read({len(script)}),'device_agent','exec'))"

        def send(stream: IO[bytes]) -> None:
            stream.write(script + json.dumps(request).encode() + b"\n")
            if feed is not None:
                feed(stream)

        code, lines, stderr = self._run([self.python, "-c", boot], send)
        self._check(code, stderr)
        answers = [line.removeprefix(device_agent.ANSWER) for line in lines if line.startswith(device_agent.ANSWER)]
        if not answers:
            said = _last_line(stderr) or (lines[-1].strip() if lines else "")
            raise MeasurementError(f"{self.address.url}: {self.python} there gave no answer (code {code}): {said}")
        answer = _answer(answers[-1], self.address.url)
        if "refused" in answer:
            raise UsageError(f"{self.address.url}: {answer['refused']}")
        if "failed" in answer:
            raise MeasurementError(f"{self.address.url}: {answer['failed']}")
        return answer

    def run(self, arguments: list[str], on_line: Callable[[str], None]) -> tuple[int, str]:
        """Run a program with the device's Python; its exit code and what it said on standard error.

        Raises:
            LostConnectionError, UsageError: as `ask`.
        """
        code, _, stderr = self._run([self.python, *arguments], None, on_line)
        self._check(code, stderr)
        return code, stderr

    def _run(
        self,
        command: list[str],
        feed: Callable[[IO[bytes]], None] | None,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> tuple[int, list[str], str]:
        if shutil.which("ssh") is None:
            raise UsageError("--on: no ssh here; install OpenSSH's client (Debian: apt install openssh-client)")
        with tempfile.TemporaryFile() as errors:
            stdin = subprocess.DEVNULL if feed is None else subprocess.PIPE
            with subprocess.Popen(
                [*self._ssh(), shlex.join(command)], stdin=stdin, stdout=subprocess.PIPE, stderr=errors
            ) as process:
                try:
                    writer = _writing(process, feed)
                    lines = []
                    assert process.stdout is not None
                    for raw in process.stdout:
                        lines.append(raw.decode(errors="replace").rstrip("\r\n"))
                        on_line(lines[-1])
                    if writer is not None:
                        writer.join()
                    code = process.wait()
                except BaseException:  # Ctrl-C above all
                    process.kill()
                    raise
            errors.seek(0)
            return code, lines, errors.read().decode(errors="replace")

    def _ssh(self) -> list[str]:
        config = [] if self.config is None else ["-F", str(self.config)]
        options = [part for name, value in _OPTIONS.items() for part in ("-o", f"{name}={value}")]
        user = [] if self.address.user is None else ["-l", self.address.user]
        port = [] if self.address.port is None else ["-p", str(self.address.port)]
        return ["ssh", "-T", *config, *options, *user, *port, "--", self.address.host]

    def _check(self, code: int, stderr: str) -> None:
        if code == _LOST:
            raise failure(self.address, stderr)
        if code in _NOT_FOUND:
            raise UsageError(
                f"{self.address.url}: no '{self.python}' there; install Python 3.8 or newer, or say where it is with "
                "--device-python"
            )


def _writing(process: subprocess.Popen[bytes], feed: Callable[[IO[bytes]], None] | None) -> threading.Thread | None:
    """Write to the process while its output is read; a reader that is gone is seen by its exit code."""
    if feed is None:
        return None
    stream = process.stdin
    assert stream is not None

    def write() -> None:
        try:
            with stream:
                feed(stream)
        except OSError:
            pass

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def failure(address: Address, stderr: str) -> EdgesmithError:
    """What a failure of ssh itself means and what to do."""
    url, last = address.url, _last_line(stderr)
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in stderr:
        return UsageError(
            f"{url}: its host key is not the one that is known here. Either the device was set up anew, or somebody "
            "else answers: ask its owner. Only then remove the old key: ssh-keygen -R HOST"
        )
    if "Host key verification failed" in stderr:
        return UsageError(
            f"{url}: its host key is not known here; log in once by hand (ssh {address.login}) and compare the "
            "fingerprint it shows with the device's own before you accept it"
        )
    if "Permission denied" in stderr:
        return UsageError(
            f"{url}: the login is refused ({last}); put your public key there: ssh-copy-id {address.login}; a key with "
            "a passphrase has to be in an agent: ssh-add"
        )
    if "Could not resolve hostname" in stderr:
        return UsageError(f"{url}: no such host ({last})")
    return LostConnectionError(f"{url}: the connection was lost or cannot be made ({last or 'ssh gave no reason'})")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _answer(text: str, url: str) -> dict[str, Any]:
    """An answer of `device_agent`: what comes from a device is a stranger's text."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise MeasurementError(f"{url}: gave an answer that is none: {text[:80]!r}; look at what answers there")
    return answer
