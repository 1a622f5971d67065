"""The model card of an export: what it is, how it was made, how it was checked, how to run it."""

from __future__ import annotations

from pathlib import Path

from export.reporting.report import ExportReport

USAGE = {
    "openvino": (
        'import openvino_genai\n\npipe = openvino_genai.LLMPipeline("openvino", '
        '"CPU")\nprint(pipe.generate("...", max_new_tokens=32))'
    ),
    "model": "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    'model = AutoModelForCausalLM.from_pretrained("model")\ntokenizer = AutoTokenizer.from_pretrained("model")',
    "base": "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
    'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "adapter")',
    "onnx": (
        'import onnxruntime\n\nsession = onnxruntime.InferenceSession("onnx/model.onnx")'
        "  # or: python -m serve generate . --format onnx --prompt Hello"
    ),
    "adapter": (
        "from shearling.elastic.sub_adapter import load_sub_adapter\n\nmodel = "
        'load_sub_adapter("RUN/sparse", "adapter")'
    ),
}

SPARSE_USAGE = (
    "import openvino_genai\nfrom pathlib import Path\n\nfrom shearling.kernel.openvino_extension "
    "import PREFERRED_PROPERTIES, required_extensions\n\n"
    'libraries = [str(path) for path in required_extensions(Path("openvino/openvino_model.xml"))]\n'
    'pipe = openvino_genai.LLMPipeline("openvino", "CPU", extensions=libraries, **PREFERRED_PROPERTIES)\n'
    'print(pipe.generate("...", max_new_tokens=32))'
)
SPARSE_ONNX_USAGE = (
    "import onnxruntime\nfrom pathlib import Path\n\nfrom shearling.kernel.onnx_runtime_extension "
    "import session_options_for\n\n"
    'path = Path("onnx/model.onnx")\n'
    "session = onnxruntime.InferenceSession(str(path), session_options_for(path))  # or: python -m "
    "serve generate . --format onnx --prompt Hello"
)
SPARSE_USAGES = {"openvino": SPARSE_USAGE, "onnx": SPARSE_ONNX_USAGE}
"""Libraries are built where they run, for the processor and the runtime that are there; ONNX Runtime's needs its C
headers."""

CLASSIFIER_USAGE = {
    "openvino": (
        'import openvino\n\nmodel = openvino.compile_model("openvino/openvino_model.xml", '
        '"CPU")  # input_ids, attention_mask, ...'
    ),
    "model": (
        "from pathlib import Path\n\nfrom shearling.model.checkpoint import load_model\n\nmodel "
        '= load_model(Path("model"))'
    ),
    "onnx": 'import onnxruntime\n\nsession = onnxruntime.InferenceSession("onnx/model.onnx")  # the same inputs',
}
SPARSE_CLASSIFIER_USAGE = {
    "openvino": (
        "from pathlib import Path\n\n"
        "from shearling.kernel.openvino_extension import PREFERRED_PROPERTIES, compile_ir\n\n"
        'path = Path("openvino/openvino_model.xml")\n'
        "model = compile_ir(path, properties=PREFERRED_PROPERTIES)  # input_ids, attention_mask, ..."
    ),
    "onnx": (
        "import onnxruntime\nfrom pathlib import Path\n\n"
        "from shearling.kernel.onnx_runtime_extension import session_options_for\n\n"
        'path = Path("onnx/model.onnx")\n'
        "session = onnxruntime.InferenceSession(str(path), session_options_for(path))  # the same inputs"
    ),
}
NARROWED_USAGE = {"model": CLASSIFIER_USAGE["model"]}
"""Stock transformers has one width for all layers."""


def write_card(path: Path, report: ExportReport) -> None:
    """Write `README.md` of an export."""
    path.write_text("\n\n".join(_sections(report)) + "\n", encoding="utf-8")


def _sections(report: ExportReport) -> list[str]:
    tag = "text-classification" if report.head == "classifier" else "text-generation"
    sections = [
        f"---\nbase_model: {report.model_id}\nlibrary_name: shearling\npipeline_tag: {tag}\n---",
        f"# {report.model_id}, sub-network {report.subnet_id or 'none'}",
        _made(report),
        "## Verified\n\n" + _parity(report),
    ]
    classifies = report.head == "classifier"
    examples = CLASSIFIER_USAGE if classifies else {**USAGE, **(NARROWED_USAGE if report.narrowed else {})}
    packed = SPARSE_CLASSIFIER_USAGE if classifies else SPARSE_USAGES
    examples = examples | {name: usage for name, usage in packed.items() if name in report.packings}
    usage = [f"`{name}/`\n\n```python\n{examples[name]}\n```" for name in report.sizes_bytes if name in examples]
    return [*sections, "## Use", *usage]


def _made(report: ExportReport) -> str:
    exact = "exact" if report.exact else "approximate: the adapter was trained without the mask"
    lines = [
        f"- merge: {report.merge} ({exact})",
        f"- adapter weights: {report.adapter_params:,}",
        f"- stored weights: {report.weights}",
    ]
    if report.narrowed:
        lines.append(
            f"- narrowed: {report.narrowed} linear layers; {report.parameters:,} weights, "
            f"{report.macs_m / 1e3:.2f} G MACs at 256 tokens"
        )
    if report.sparsity is not None:
        lines.append(
            f"- pruned by {report.sparsity['method']} ({report.sparsity['pattern']}), target "
            f"{report.sparsity['target']:.0%}"
        )
    if report.certificate is not None:
        lines.append(
            f"- NNCF counts {report.certificate.sparsity:.4%} zeros in {report.certificate.modules} pruned modules"
        )
    if report.packings:
        lines += [f"- {name}: {kernel} kernel" for name, kernel in report.kernels.items()]
    for name, packing in report.packings.items():
        lines.append(
            f"- {name} is packed for the sparse kernel: {len(packing.layers)} matrices, "
            f"{packing.bytes_before:,} bytes became "
            f"{packing.bytes_after:,}; the runtime needs the operators of this project to read them"
        )
    lines += [
        f"- {check.format}: {check.zeros:,} of {check.pruned:,} pruned weights are exactly zero"
        for check in report.zeros
    ]
    return "\n".join(lines)


def _parity(report: ExportReport) -> str:
    head = "| compared | with | precision | max abs Δlogit | mean KL | top-1 | verdict |\n|---|---|---|---|---|---|---|"
    rows = [
        f"| {check.candidate} | {check.reference} | {check.precision} | {check.parity.max_abs:.2e} | "
        f"{check.parity.kl_mean:.2e} "
        f"| {check.parity.top1_agreement:.1%} | {check.verdict} |"
        for check in report.parity
    ]
    return "\n".join([head, *rows])
