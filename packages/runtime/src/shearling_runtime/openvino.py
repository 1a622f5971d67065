"""The operators in OpenVINO."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from shearling_runtime.build_facts import DIRECTORY, read_build_facts
from shearling_runtime.faults import RuntimeUnavailable

if TYPE_CHECKING:
    import openvino


def extension() -> str:
    """The library that `openvino.Core.add_extension` and the `extensions` of `openvino_genai.LLMPipeline` take.

    Raises:
        RuntimeUnavailable: OpenVINO is not installed, or is another release than the one that these were built for.
    """
    facts = read_build_facts()
    try:
        # The library finds OpenVINO's and TBB's by name among those that the process has loaded.
        import openvino
    except ImportError as error:
        raise RuntimeUnavailable(
            f"OpenVINO cannot be imported: {error}", remedy=f"pip install openvino=={facts.openvino}"
        ) from error
    installed = ".".join(openvino.__version__.partition("-")[0].split(".")[:3])
    if installed != facts.openvino:
        raise RuntimeUnavailable(
            f"these operators were built for OpenVINO {facts.openvino}, and {installed} is installed",
            remedy=f"pip install 'openvino=={facts.openvino}', or the wheel shearling_runtime-{installed}.*",
        )
    return str(DIRECTORY / facts.openvino_library)


def register(core: openvino.Core) -> None:
    """Let a core read and compile models with the operators.

    Raises:
        RuntimeUnavailable: see `extension`.
    """
    core.add_extension(extension())


def preferred_properties() -> dict[str, str]:
    """Properties of OpenVINO that packed models ran fastest with; for `compile_model`, `LLMPipeline` and `ov_config`.

    Raises:
        RuntimeUnavailable: this installation holds no libraries.
    """
    return dict(read_build_facts().properties)


def kernels_in_use() -> str:
    """The instruction set that this processor gets, or that `SHEARLING_KERNEL` names: `amx`, `avx512_bf16`,
    `avx512`, `avx_vnni`, `avx2` or `portable`.

    Raises:
        RuntimeUnavailable: see `extension`.
    """
    kernels = ctypes.CDLL(extension()).shearling_kernels
    kernels.argtypes, kernels.restype = [], ctypes.c_char_p
    name: bytes = kernels()
    return name.decode()
