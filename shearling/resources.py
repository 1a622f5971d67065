"""How much memory and disk a stage will take, said before it begins, and refused where it cannot fit.

An estimate is of the peak of the process that does the work. Weights that a stage reads through a mapping of their file
count as well: the system may drop such pages, but a reader that comes back to them waits for the disk.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shearling.errors import ResourceExhausted

_CUDA_LIBRARIES_BYTES = 600 * 2**20
"""Between the two builds of PyTorch 2.13, with transformers."""
_CPU_ALLOCATOR_REFUSES = "DefaultCPUAllocator: can't allocate memory"
"""What torch's allocator says, in a RuntimeError."""
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_MEMORY_FILES = {
    "": ("memory.max", "memory.current", "memory.stat"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"),
}
"""Limit, use and account of memory, by the hierarchy of control groups: of version 2, and of version 1."""


@dataclass(frozen=True)
class Estimate:
    """What a piece of work takes.

    Attributes:
        memory_bytes: the most that its process holds at a time in the memory of the machine.
        disk_bytes: what it writes.
        device_bytes: the most that it holds on a CUDA device; 0 where it computes on none.
    """

    memory_bytes: int
    disk_bytes: int = 0
    device_bytes: int = 0

    def then(self, other: Estimate) -> Estimate:
        """Both, one after the other: the larger memory, and the disk of both."""
        return Estimate(
            max(self.memory_bytes, other.memory_bytes),
            self.disk_bytes + other.disk_bytes,
            max(self.device_bytes, other.device_bytes),
        )

    def __str__(self) -> str:
        device = f", {in_words(self.device_bytes)} of a device" if self.device_bytes else ""
        return f"{in_words(self.memory_bytes)} of memory, {in_words(self.disk_bytes)} of disk{device}"


def require(estimate: Estimate, where: Path, *, remedy: str = "Use a smaller model or a larger machine") -> None:
    """Refuse work that cannot fit.

    Args:
        estimate: of the work.
        where: what it writes, which need not exist.
        remedy: what would fit in less memory.

    Raises:
        ResourceExhausted: too little disk, or too little memory is available, here or on the device.
    """
    disk_bytes = free_disk_bytes(where)
    if disk_bytes < estimate.disk_bytes:
        raise ResourceExhausted(
            f"about {in_words(estimate.disk_bytes)} of disk needed, {in_words(disk_bytes)} free",
            where=where,
            remedy="Free space, or choose another --output",
        )
    available_bytes = available_memory_bytes()
    if available_bytes < estimate.memory_bytes:
        raise ResourceExhausted(
            f"about {in_words(estimate.memory_bytes)} of memory needed, {in_words(available_bytes)} available",
            where=where,
            remedy=remedy,
        )
    device_bytes = free_device_bytes() if estimate.device_bytes else None
    if device_bytes is not None and device_bytes < estimate.device_bytes:
        raise ResourceExhausted(
            f"about {in_words(estimate.device_bytes)} of a device needed, {in_words(device_bytes)} free",
            where=where,
            remedy=remedy,
        )


def in_words(count_bytes: int) -> str:
    """A number of bytes as people read it: `512 bytes`, `1.5 GiB`."""
    amount, unit = float(count_bytes), 0
    while amount >= 1024 and unit + 1 < len(_UNITS):
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit else f"{count_bytes} bytes"


def free_disk_bytes(where: Path) -> int:
    """Free bytes of the disk that a path is on, or would be on."""
    existing = next(parent for parent in (where.resolve(), *where.resolve().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def available_memory_bytes() -> int:
    """Memory that this process can still get, with what it holds already: of the machine, or of its container."""
    import psutil

    own_bytes: int = psutil.Process().memory_info().rss
    in_containers = [_left_in_group(directory, files) for directory, files in _memory_groups()]
    left_bytes = [psutil.virtual_memory().available, *(left for left in in_containers if left is not None)]
    return own_bytes + min(left_bytes)


def free_device_bytes() -> int | None:
    """Memory of the CUDA device that this process computes on, as far as nobody holds it; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    # Launchers of several processes give each its own.
    device = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    free_bytes: int = torch.cuda.mem_get_info(device)[0]
    return free_bytes


def memory_exhausted(error: BaseException) -> ResourceExhausted | None:
    """What to say of an error of Python or of torch, where a device or the machine had too little memory; else None."""
    told, _, asked = str(error).partition(_CPU_ALLOCATOR_REFUSES)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and asked):
        return ResourceExhausted(
            f"too little memory: {(asked.partition(' Error code')[0] or told).strip(' :.') or 'none is left'}",
            remedy="Raise the limit of this process (ulimit -v), use a larger machine, or take less: see "
            "docs/large-models.md",
        )
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, torch.OutOfMemoryError):
        return None
    # What follows is of torch's allocator.
    told = str(error).partition(" Including non-PyTorch memory")[0].partition(" Of the allocated memory")[0]
    return ResourceExhausted(
        f"a device has too little memory: {told.rstrip('.')}",
        remedy='Use a smaller batch size, or less memory (--memory lean of a search, [train] memory = "lean" and '
        "gradient_checkpointing = true), or free the device of what else runs there",
    )


def cuda_libraries_bytes() -> int:
    """What PyTorch's build for CUDA takes more than that for CPUs, when it is imported; 0 where it is not here."""
    found = importlib.util.find_spec("torch")
    places = [] if found is None else found.submodule_search_locations or []
    return _CUDA_LIBRARIES_BYTES if any((Path(place) / "lib" / "libtorch_cuda.so").exists() for place in places) else 0


def _memory_groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The control groups that this process is in, and those above them up to the container's: jobs of SLURM and
    services of systemd have their own.
    """
    lines = _OWN_CGROUPS.read_text().splitlines() if _OWN_CGROUPS.is_file() else []
    own = {controllers: place for _, controllers, place in (line.split(":", 2) for line in lines)}
    for hierarchy, files in _MEMORY_FILES.items():
        # In a container its own group is the root, whatever it is called outside.
        place = Path(own.get(hierarchy, "/").lstrip("/"))
        for directory in (place, *place.parents):
            yield _CGROUPS / hierarchy / directory, files


def _left_in_group(directory: Path, files: tuple[str, str, str]) -> int | None:
    """None where there is no such limit."""
    try:
        limit, used, stat = ((directory / name).read_text().strip() for name in files)
        account = dict(line.split() for line in stat.splitlines())
    except OSError:
        return None
    if not limit.isdecimal():
        return None
    # Pages of files count as used, and are dropped when memory is asked for.
    droppable = int(account.get("inactive_file", 0)) + int(account.get("active_file", 0))
    return max(0, int(limit) - int(used) + droppable)
