"""Whether there is a Ray cluster at an address, found out in seconds.

Ray ends the whole process that connects to an address where no cluster answers, after a quarter of a minute. So the
first connection is made by a process that nothing hangs on.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys

from shearling.errors import EnvironmentFault, PackageMissing, UsageError
from shearling.executors.executor import Workforce

INSTALL = "pip install -e '.[ray]', in a checkout"
HOW_TO_START = "Start one with `ray start --head`, and give the address that it prints"
FINDS_ONE = "auto"

PORT_TIMEOUT_S = 1.5
PROBE_TIMEOUT_S = 6.5
"""Of a process that has imported Ray, which takes as long again on a busy machine."""

GRPC_BEGINS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""RFC 9113, section 3.4, with settings that are empty."""

PROBE = """
import sys, ray
print("imported", flush=True)
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
except Exception as error:
    sys.exit(f"{type(error).__name__}: " + " ".join(str(error).split()))
"""


def check_cluster(workforce: Workforce) -> None:
    """Refuse an address where no cluster answers that this process could work with.

    Raises:
        PackageMissing: Ray is not installed.
        UsageError: the address is neither HOST:PORT nor auto.
        EnvironmentFault: nothing answers there, or a cluster of another version of Ray or Python does.
    """
    if importlib.util.find_spec("ray") is None:
        raise PackageMissing("Ray is not installed", where="--executor ray", remedy=f"Install it with: {INSTALL}")
    address = workforce.address or FINDS_ONE
    if address != FINDS_ONE:
        _check_port(address)
    exit_code, said = _probe(address)
    if exit_code:
        reason = said[-1] if said else f"exit code {exit_code}"
        if "ersion mismatch" in reason:
            raise EnvironmentFault(
                f"the cluster runs other versions: {reason}",
                where=f"--address {address}",
                remedy="Install the same versions of Ray and Python here and on every node",
            )
        raise _no_cluster(address, reason)


def _probe(address: str) -> tuple[int, list[str]]:
    """Exit code and last words of a process that connects to a cluster."""
    with subprocess.Popen(
        [sys.executable, "-c", PROBE, address],
        env={**os.environ, "RAY_gcs_rpc_server_connect_timeout_s": "5"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            if process.stdout is not None:
                process.stdout.readline()
            _, stderr = process.communicate(timeout=PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise _no_cluster(address, f"what listens there did not answer as one within {PROBE_TIMEOUT_S} s") from None
        finally:
            process.kill()
    return process.returncode, stderr.strip().splitlines()


def _check_port(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in host:
        raise UsageError(
            f"{address!r} is no address of a Ray cluster", where="--address", remedy="Give HOST:PORT, or auto"
        )
    try:
        with socket.create_connection((host, int(port)), timeout=PORT_TIMEOUT_S) as connection:
            answers_in_text = _answers_in_text(connection)
    except OSError as error:
        raise _no_cluster(address, str(error)) from error
    if answers_in_text:
        raise _no_cluster(address, "what listens there speaks another protocol")


def _answers_in_text(connection: socket.socket) -> bool:
    """Whether the beginning of gRPC is answered by a readable character, as HTTP/1 and SSH do; Ray answers with a frame
    or, with TLS, an alert. Silence is no answer.
    """
    try:
        connection.sendall(GRPC_BEGINS)
        first = connection.recv(1)
    except OSError:
        return False
    return first != b"" and first.isascii() and first.decode("ascii").isprintable()


def _no_cluster(address: str, reason: str) -> EnvironmentFault:
    found = "no Ray cluster runs on this machine" if address == FINDS_ONE else f"no Ray cluster answers: {reason}"
    return EnvironmentFault(found, where=f"--address {address}", remedy=HOW_TO_START)
