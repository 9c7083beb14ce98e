"""Which servers are asked? Each in a process of its own on loopback, with one thread of torch, ended by its id."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep

import httpx2
import psutil

from chronostat.models.load import BUNDLED

_START_S = 300.0


class ServerError(RuntimeError):
    """A server does not answer."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that answers.

    Attributes:
        errors: what it has printed as errors.
        run: where ours stores its requests; None: not ours.
    """

    name: str
    model: str
    address: str
    process: "subprocess.Popen[bytes]"
    errors: Path
    run: Path | None = None

    @property
    def resident_mib(self) -> float:
        """Memory of its process."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Signal it, and wait until it is gone."""
        self.process.send_signal(how)
        self.process.wait(_START_S)


@contextmanager
def ours(name: str, folder: Path, *words: str) -> Generator[Server]:
    """``chronostat serve`` with some words more; stores in a folder below ``folder``."""
    run = folder / f"{name.replace(' ', '-')}-{os.getpid()}-{perf_counter():.0f}"
    command = [sys.executable, "-m", "chronostat", "serve", "--run-dir", str(run), *words]
    with _started(name, "demo_vlm", [*command, "--port"], folder, run) as server:
        yield server


@contextmanager
def theirs(folder: Path) -> Generator[Server]:
    """``transformers serve`` with the bundled model, in the type that ours has on a CPU."""
    command = [
        str(Path(sys.executable).parent / "transformers"),
        "serve",
        str(BUNDLED),
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    with _started("transformers serve", str(BUNDLED), [*command, "--port"], folder, None) as server:
        yield server


@contextmanager
def _started(name: str, model: str, command: Sequence[str], folder: Path, run: Path | None) -> Generator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment: dict[str, str] = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["TRANSFORMERS_VERBOSITY"] = "error"
    folder.mkdir(parents=True, exist_ok=True)
    errors = folder / f"{name.replace(' ', '-')}-{os.getpid()}.log"
    with errors.open("ab") as file:
        process = subprocess.Popen([*command, str(port)], env=environment, stdout=subprocess.DEVNULL, stderr=file)
    address = f"http://127.0.0.1:{port}"
    server = Server(name=name, model=model, address=address, process=process, errors=errors, run=run)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            server.end()


def _wait_until_ready(server: Server) -> None:
    started_s = perf_counter()
    while perf_counter() - started_s < _START_S:
        if server.process.poll() is not None:
            status = server.process.returncode
            raise ServerError(f"{server.name} ended with {status} before it was ready; see {server.errors}")
        try:
            if httpx2.get(f"{server.address}/health", timeout=5.0).status_code == 200:
                return
        except httpx2.TransportError:
            pass  # it does not listen yet
        sleep(0.1)
    raise ServerError(f"{server.name} was not ready after {_START_S:.0f} s; see {server.errors}")
