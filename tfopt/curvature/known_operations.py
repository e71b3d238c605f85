"""Lists of TensorFlow operations with missing or wrong derivatives, and a search for them in graphs."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt import _keras

# Operations of first derivatives for whose own derivative TensorFlow silently returns zero.
SILENT = (
    "ResizeBilinearGrad",
    "FakeQuantWithMinMaxArgsGradient",
    "FakeQuantWithMinMaxVarsGradient",
    "FakeQuantWithMinMaxVarsPerChannelGradient",
)
# TensorFlow inserts this operation if an operation inside a loop has no derivative; it fails when it runs.
WITHOUT_DERIVATIVE = ("SymbolicGradient",)
# TensorFlow computes the derivatives of these products by division, which is wrong if a factor is exactly zero.
PRODUCTS = ("Prod", "Cumprod", "SegmentProd", "UnsortedSegmentProd")
# Operations whose derivatives may be wrong for a few rows only: factors of zero, and weights with stopped gradients.
OF_SOME_ROWS = (*PRODUCTS, "StopGradient")
# The gradient by the logits is right only for targets that sum to 1. `softmax_targets` checks all rows, but not inside
# functions that were compiled before.
SOFTMAX = ("SoftmaxCrossEntropyWithLogits",)
# Operations with kinks or jumps. A step across a kink does not measure the derivative on one smooth piece.
KINKED = (
    *("Relu", "Relu6", "LeakyRelu", "Selu", "Abs", "Sign", "Round", "Rint", "Floor", "Ceil", "FloorMod", "ClipByValue"),
    *("MaxPool", "MaxPoolV2", "MaxPool3D", "FractionalMaxPool", "Dilation2D", "Max", "Min", "Maximum", "Minimum"),
    *("SegmentMax", "SegmentMin", "UnsortedSegmentMax", "UnsortedSegmentMin", "TopK", "TopKV2", "ArgMax", "ArgMin"),
    *("Greater", "GreaterEqual", "Less", "LessEqual"),
)
# Operations that stop or replace a gradient, or have none.
SUSPECTS = (
    *("StopGradient", "PreventGradient", "CustomGradient", "Round", "Rint", "Floor", "Ceil", "Sign"),
    *("QuantizeAndDequantizeV2", "QuantizeAndDequantizeV3", "QuantizeAndDequantizeV4", "PyFunc", "EagerPyFunc"),
    *("ResizeArea", "CropAndResize"),
    *PRODUCTS,
)
# Operations whose derivatives are infinite somewhere: at zero, at equal eigenvalues, at the ends of their domain.
SINGULAR = (
    *("Sqrt", "Rsqrt", "EuclideanNorm", "Pow", "Log", "Log1p", "Reciprocal", "Xlogy", "Atan2", "Acos", "RealDiv"),
    *(
        "Asin",
        "Acosh",
        "Atanh",
        "SelfAdjointEigV2",
        "Eig",
        "Svd",
        "Qr",
        "Cholesky",
        "MatrixInverse",
        "LogMatrixDeterminant",
    ),
    *PRODUCTS,
)


class MissingDerivativeError(RuntimeError):
    """An operation inside a loop or a branch has no second derivative."""

    def __init__(self, where: Sequence[str] = ()) -> None:
        super().__init__(
            "Products with the matrix of this model cannot be computed: TensorFlow has no second derivative of an "
            f"operation in a loop{''.join(f', {one}' for one in where)}. Examples: tf.nn.ctc_loss, keras.losses.CTC. "
            "tfopt.curvature.gradient_noise and tfopt.relative_trust need only first derivatives"
        )


def check_derivatives(graph: tf.Graph) -> None:
    """Raise MissingDerivativeError if a derivative in a graph cannot be computed."""
    if found := scopes_of(graph, WITHOUT_DERIVATIVE):
        raise MissingDerivativeError(describe(found))


def scopes_of(graph: tf.Graph, kinds: Iterable[str]) -> dict[str, list[str]]:
    """Return, for each of some types of operation in a graph and its functions and loops, the names of its scopes."""
    # Only operations on floats count. "CustomGradient" means `tf.custom_gradient`. A scope is, for example, a layer's.
    wanted, found = set(kinds), {}  # type: set[str], dict[str, dict[str, None]]
    for node in _nodes(graph):
        kind = "CustomGradient" if node.attr["_gradient_op_type"].s.startswith(b"CustomGradient") else node.op
        if kind in wanted and _is_of_numbers(node):
            found.setdefault(kind, {})[_scope(node.name)] = None
    return {kind: list(scopes) for kind, scopes in sorted(found.items())}


def is_in_functions(graph: tf.Graph, kinds: Iterable[str]) -> bool:
    """Return whether functions that a graph calls, such as branches and loops, contain operations of some types."""
    functions = graph.as_graph_def().library.function
    return any(node.op in kinds for function in functions for node in function.node_def)


def rounds_to_half(graph: tf.Graph) -> bool:
    """Return whether a graph casts to half precision, which is constant along small steps."""
    half = (tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum)
    return any(node.op == "Cast" and node.attr["DstT"].type in half for node in _nodes(graph))


def describe(found: dict[str, list[str]]) -> list[str]:
    """Return a text for each type of operation from `scopes_of`, with its first three scopes."""
    texts = []
    for kind, scopes in found.items():
        own = [s for s in scopes if s and not any(s.startswith(other + "/") for other in scopes)]
        more = f" and {len(own) - 3} more" if len(own) > 3 else ""
        texts.append(kind + (f" (in {', '.join(own[:3])}{more})" if own else ""))
    return texts


def suspicious_layers(model: keras.Model) -> list[str]:
    """Return a text for each layer whose derivatives are known to be stopped, replaced or missing."""
    return [
        f"{layer.name} ({type(layer).__name__}, {reason})"
        for layer in _keras.flatten_layers(model)()
        if (reason := _reason(layer))
    ]


def _reason(layer: Any) -> str:
    if getattr(layer, "renorm", False):
        return "renorm=True"
    if isinstance(layer, keras.layers.SpectralNormalization):
        return "which stops the gradient of its estimate"
    mode = getattr(layer, "quantization_mode", None)
    return f"quantization_mode={mode!r}" if mode else ""


def _nodes(graph: tf.Graph) -> Iterator[Any]:
    definition = graph.as_graph_def()
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def _is_of_numbers(node: Any) -> bool:
    # Operations on shapes have the same types, with integers.
    kind = node.attr["T"].type
    return not kind or tf.as_dtype(kind).is_floating or tf.as_dtype(kind).is_complex


def _scope(name: str) -> str:
    parts = [part for part in name.split("/")[:-1] if part not in ("gradient_tape", "gradients")]
    return "/".join(parts)
