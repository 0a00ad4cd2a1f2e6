"""A real sshd on loopback with keys of its own, and connections that break where a test says."""

import contextlib
import getpass
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"

# What ssh talks through: each connection takes the next line of the plan, and breaks where that says so.
CUT = """
import fcntl, glob, json, os, select, socket, sys
plan, host, port = sys.argv[1:]
with open(plan, "r+") as stream:
    fcntl.flock(stream, fcntl.LOCK_EX)
    steps = json.load(stream)
    step = steps.pop(0) if steps else {}
    stream.seek(0), stream.truncate(), json.dump(steps, stream)
peer, sent = socket.create_connection((host, int(port))), 0
while True:
    ready, _, _ = select.select([0, peer], [], [], 0.05)
    if sent > step.get("bytes", 1e9) or glob.glob(step.get("once", "")):
        break
    if 0 in ready:
        data = os.read(0, 4096)
        if not data:
            peer.shutdown(socket.SHUT_WR)
            break
        peer.sendall(data)
        sent += len(data)
    if peer in ready:
        data = peer.recv(65536)
        if not data:
            break
        os.write(1, data)
"""


class Loopback:
    """The server, and configuration files for the client."""

    def __init__(self, folder: Path) -> None:
        if not Path(SSHD).is_file():
            raise RuntimeError(f"{SSHD} is missing: apt-get install -y openssh-server")
        self.folder, self.user = folder, getpass.getuser()
        for name in ("host_key", "id", "stranger", "other_host_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, timeout=30)
        shutil.copy(folder / "id.pub", folder / "authorized_keys")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.plan = folder / "plan.json"
        (folder / "cut.py").write_text(CUT)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Serve until the block ends."""
        config = self.folder / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {self.folder}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\n"
        )
        with contextlib.suppress(PermissionError):
            Path("/run/sshd").mkdir(exist_ok=True)  # a system service's own start makes it
        log = self.folder / "sshd.log"
        with log.open("w") as stream, subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=stream) as server:
            try:
                for _ in range(200):
                    if "Server listening" in log.read_text():
                        break
                    time.sleep(0.05)
                else:
                    raise RuntimeError(log.read_text())
                yield
            finally:
                server.terminate()

    def config(
        self, key: str = "id", host_key: str | None = "host_key", plan: list[dict[str, Any]] | None = None
    ) -> Path:
        """For `--ssh-config`: hosts "pi" and "nano" are this server.

        Args:
            key: that logs in.
            host_key: the only one that is known; None: none is.
            plan: where each connection breaks, in their order: after `bytes` sent, or once a file of the pattern `once` is there.
        """
        known = self.folder / "known_hosts"
        text = "" if host_key is None else (self.folder / f"{host_key}.pub").read_text()
        known.write_text("".join(f"{name} {text}" for name in ("device", f"[127.0.0.1]:{self.port}") if text))
        lines = [f"IdentityFile {self.folder}/{key}", "IdentitiesOnly yes", f"UserKnownHostsFile {known}"]
        lines += ["GlobalKnownHostsFile none", "StrictHostKeyChecking no"]  # the last must not count
        if plan is not None:
            self.plan.write_text(json.dumps(plan))
            lines.append(f"ProxyCommand {sys.executable} {self.folder}/cut.py {self.plan} %h %p")
        alias = f"Host pi nano\n  HostName 127.0.0.1\n  Port {self.port}\n  User {self.user}\n  HostKeyAlias device\n"
        path = self.folder / "ssh_config"
        path.write_text(alias + "Host *\n" + "".join(f"  {line}\n" for line in lines))
        return path
