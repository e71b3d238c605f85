"""The common base of a model's symmetric matrices, which are known only by their products with vectors."""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt._checks import check_flag
from tfopt.communicator import Communicator, SerialCommunicator
from tfopt.curvature.differences import Derivatives
from tfopt.curvature.known_operations import SOFTMAX, check_derivatives, is_in_functions
from tfopt.curvature.model_checks import refuse_rounding
from tfopt.curvature.objective import Objective
from tfopt.curvature.probe import Batch, Probe
from tfopt.curvature.probe_loss import ProbeLoss, add
from tfopt.curvature.self_check import check_finite, check_product
from tfopt.curvature.softmax_targets import check_sums, noted_targets, refusing_targets
from tfopt.curvature.split import SplitFunction

# Memory limit of the intermediate results that `shared` caches, over all batches.
SHARED_BYTES = 2**31


class CurvatureOperator(ABC):
    """A symmetric matrix over trainable variables of a model, averaged over a probe, as a function v -> Av.

    A product uses the weights that the model has at that time. The first product is checked against finite differences,
    and against a second computation. See `HessianOperator` and `GaussNewtonOperator`.

    Args:
        model: A Keras model with its variables, compiled or not.
        loss: As `compile` takes it. None (default) means the loss that the model was compiled with.
        x: The data: a `tfopt.curvature.Probe`, or what `Probe` takes as its `x`.
        y: As `Probe` takes it.
        sample_weight: As `Probe` takes it.
        batch_size: As `Probe` takes it.
        class_weight: Not supported, as in `Probe`.
        batch_norm: "batch" (default): the model is called as in training, and batch normalisation uses each batch's own
            statistics; "moving": as in prediction, with its moving averages. Noise is off in both.
        variables: The variables of the wanted block: a variable, a layer, or a list of these. None (default) means all
            trainable variables.
        self_check: Whether to check the first product. Default True.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`. Products are averaged
            over the rows of all ranks, whose models must have the same weights.

    Attributes:
        shape: (n, n), with n the number of entries of the variables.
        dtype: Dtype of the vectors: float32 or float64.
        variables: The variables.
        num_matvecs: Number of products computed so far.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or the model or data cannot be measured; the message says why.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Any = None,
        x: Any = None,
        y: Any = None,
        sample_weight: Any = None,
        *,
        batch_size: int | None = None,
        class_weight: None = None,
        batch_norm: str = "batch",
        variables: Any = None,
        self_check: bool = True,
        communicator: Communicator | None = None,
    ) -> None:
        self._is_checked = not check_flag("self_check", self_check)
        self.num_matvecs = 0
        self._set_up(
            ProbeLoss.of(
                model,
                loss,
                x,
                y,
                sample_weight,
                batch_size=batch_size,
                class_weight=class_weight,
                batch_norm=batch_norm,
                variables=variables,
                communicator=communicator,
            )
        )

        refuse_rounding(self.objective.model)

    def _set_up(self, probe_loss: ProbeLoss) -> None:
        self.probe_loss = probe_loss
        self.objective, self.probe = probe_loss.objective, probe_loss.probe
        self.variables, self.num_rows = probe_loss.variables, probe_loss.num_rows
        self.communicator = probe_loss.communicator
        self._shapes = [tuple(v.shape) for v in self.variables]
        self._sizes = [int(np.prod(shape)) for shape in self._shapes]
        self._dtypes = probe_loss.dtypes
        self.dtype = np.result_type(*(dtype.as_numpy_dtype for dtype in self._dtypes))
        self.shape = (sum(self._sizes), sum(self._sizes))
        self._shared: list[Any] | None = None
        self._bytes_needed: list[int] = []
        self._products: dict[Any, SplitFunction] = {}
        self._checks: Any = None  # the compiled functions of `derivatives`

    def __repr__(self) -> str:
        precision = "" if self.precision == "model" else f", in {self.precision}"
        return f"<{type(self).__name__} of shape {self.shape} over {self.num_rows:,} rows{precision}>"

    @property
    def batch_norm(self) -> str:
        """How batch normalisation was computed: "batch" or "moving"."""
        return self.objective.batch_norm

    @property
    def precision(self) -> str:
        """The precision of the layers: "model", "float32" or "bfloat16".

        "model" means as in training. "float32" means that training computes some layers in half precision. "bfloat16"
        means that the code of the model or the loss casts to it.
        """
        return self.objective.precision

    def matvec(self, vector: Any) -> Any:
        """Return the product of the matrix and a vector.

        Args:
            vector: A list of arrays shaped like the variables, or one vector of n entries.

        Returns:
            The product: a list of tensors for a list, a vector of the same kind (NumPy's or TensorFlow's) for a vector.

        Raises:
            ValueError: The vector has another shape.
            RuntimeError: The first product disagrees with finite differences, or with a second computation.
        """
        parts = self._split(vector)
        is_checked = self._is_checked
        if not is_checked:
            check_product(self)
        products = self._sum_over_batches(parts)
        if not is_checked:
            check_finite(self, products, parts)
            self._is_checked = True
        self.num_matvecs += 1
        return self._join(products, vector)

    def __matmul__(self, vector: Any) -> Any:
        """Return the product with a vector, or with each column of a matrix.

        Args:
            vector: A vector of n entries, or a matrix of shape (n, k).

        Returns:
            A vector or matrix of the same shape.
        """
        if np.ndim(vector) == 2:
            return np.stack([np.asarray(self.matvec(np.asarray(column))) for column in np.asarray(vector).T], axis=1)
        return self.matvec(vector)

    def to_scipy(self) -> Any:
        """Return the matrix as a `scipy.sparse.linalg.LinearOperator`, for scipy's solvers.

        Returns:
            The linear operator.
        """
        from scipy.sparse.linalg import LinearOperator

        multiply = lambda vector: self.matvec(np.asarray(vector).reshape(-1))  # noqa: E731
        return LinearOperator(self.shape, matvec=multiply, rmatvec=multiply, dtype=self.dtype)

    def to_dense(self) -> np.ndarray:
        """Return the matrix itself, column by column: n products.

        Returns:
            An array of shape (n, n).
        """
        with self.shared():
            return np.asarray(self @ np.eye(self.shape[0], dtype=self.dtype))

    def loss_and_gradient(self) -> tuple[float, list[Any]]:
        """Return the loss on the probe and its gradient, over the rows of all ranks.

        Returns:
            The loss, and a list of tensors shaped like the variables.
        """
        return self.probe_loss.loss_and_gradient()

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Within this context compute the common part of all products only once; the weights must not change.

        The intermediate results of as many batches as fit into 2 GiB are cached.

        Yields:
            Nothing.
        """
        if self._shared is not None:
            yield
            return
        self._shared = [None] * len(self.probe.batches)
        try:
            yield
        finally:
            self._shared = None

    def over(self, probe: Probe) -> "CurvatureOperator":
        """Return the same matrix over other rows, with the functions compiled for batches of the same form.

        Args:
            probe: The data of this rank.

        Returns:
            An operator, whose count of products starts at 0.
        """
        other = copy.copy(self)
        other.probe_loss = self.probe_loss.over(probe)
        other.probe, other.num_rows = probe, other.probe_loss.num_rows
        other.num_matvecs, other._shared, other._bytes_needed = 0, None, []
        return other

    # --- for the self-check

    def on_rows_of(self, batch: Batch, dtype: str | None) -> "CurvatureOperator":
        """Return the same matrix over the rows of a batch, compiled anew in `dtype`; None for the model's dtype."""
        small = type(self).__new__(type(self))
        probe = Probe.of([batch])
        objective = Objective(self.objective.model, self.objective.given_loss, probe, self.batch_norm, dtype)
        small._is_checked, small.num_matvecs = True, 0
        small._set_up(ProbeLoss(objective, probe, self.variables, SerialCommunicator()))
        return small

    def values(self) -> list[Any]:
        """Return the values of the variables, a list of tensors."""
        return self.probe_loss.values()

    def product_graph(self) -> Any:
        """Return the graph of the product for the first batch, a `tf.Graph`."""
        values = self.values()
        return self._product_for(0, values, values).graph

    def check_targets(self) -> None:
        """Raise ValueError if targets of categorical cross-entropies do not sum to 1, in any batch of this rank."""
        values = self.values()
        functions: dict[int, Any] = {}
        for index, batch in enumerate(self.probe.batches):
            product = self._product_for(index, values, values)
            sums = noted_targets(product.graph)
            if sums:
                if id(product) not in functions:
                    functions[id(product)] = product.pruned_to(sums)
                check_sums(functions[id(product)](values, batch.tensors))
            if is_in_functions(product.graph, SOFTMAX):
                self._product_of(index, values, values)

    @abstractmethod
    def check_matrix(self, small: "CurvatureOperator") -> None:
        """Check what only this kind of matrix needs; `small` is the same matrix over a few rows, compiled."""

    @property
    def checks_graph(self) -> Any:
        """The graph that `derivatives` has compiled, a `tf.Graph`."""
        return self._checks[0].graph

    @abstractmethod
    def derivatives(self, values: list[Any]) -> list[Derivatives]:
        """Return the derivatives that make up products, on the first batch, at `values`."""

    # --- specific to each kind of matrix

    @abstractmethod
    def _trace_product(self, values: Any, batch: Any, vectors: Any) -> list[Any]:
        """Return the product for one batch."""

    # --- one product

    def _sum_over_batches(self, vectors: list[Any]) -> list[Any]:
        values = self.values()
        sums: list[Any] = []
        for index, batch in enumerate(self.probe.batches):
            share = batch.num_rows / self.num_rows
            # The product is linear, so that scaling the vector scales the product.
            scaled = vectors if share == 1.0 else [tf.constant(share, part.dtype) * part for part in vectors]
            sums = add(sums, self._product_of(index, values, scaled))
        return self.communicator.allreduce_sum(sums, name="products")

    def _product_of(self, index: int, values: list[Any], vectors: list[Any]) -> list[Any]:
        batch = self.probe.batches[index].tensors
        product = self._product_for(index, values, vectors)
        with refusing_targets():
            if self._shared is None or not self._may_share(index, values, vectors):
                return product((values, batch), vectors)
            if self._shared[index] is None:
                self._shared[index] = product.prepare(values, batch)
            return product.finish(self._shared[index], vectors)

    def _product_for(self, index: int, values: list[Any], vectors: list[Any]) -> SplitFunction:
        # Each form of batch needs its own function: the last batch often has fewer rows.
        batch = self.probe.batches[index].tensors
        form = tuple((tuple(leaf.shape), leaf.dtype) for leaf in tf.nest.flatten(batch) if leaf is not None)
        if form not in self._products:
            product = SplitFunction(self._trace_product, (values, batch), vectors)
            check_derivatives(product.graph)
            self._products[form] = product
        return self._products[form]

    def _may_share(self, index: int, values: list[Any], vectors: list[Any]) -> bool:
        while len(self._bytes_needed) <= index:  # cumulative over batches
            needed = self._product_for(len(self._bytes_needed), values, vectors).num_bytes
            self._bytes_needed.append(needed + sum(self._bytes_needed[-1:]))
        return self._bytes_needed[index] <= SHARED_BYTES

    # --- vectors

    def _is_in_parts(self, vector: Any) -> bool:
        is_list = isinstance(vector, list | tuple) and len(vector) == len(self._shapes)
        return is_list and np.ndim(vector[0]) == len(self._shapes[0])

    def check_vector(self, name: str, vector: Any) -> None:
        """Raise ValueError if a vector, as in `matvec`, does not fit the variables; `name` is the argument's name."""
        self._split(vector, name)

    def _split(self, vector: Any, name: str = "vector") -> list[Any]:
        if self._is_in_parts(vector):
            parts = list(vector)
            shapes = [tuple(np.shape(part)) for part in parts]
            if shapes != self._shapes:
                raise ValueError(f"`{name}` must have the shapes {self._shapes}. Received: {shapes}")
        else:
            if tuple(np.shape(vector)) != self.shape[:1]:
                raise ValueError(
                    f"`{name}` must have {self.shape[0]} entries, or be a list of {len(self._shapes)} arrays shaped "
                    f"like the variables. Received: a {type(vector).__name__} of shape {tuple(np.shape(vector))}"
                )
            vector = vector if isinstance(vector, tf.Tensor) else np.asarray(vector)
            ends = np.cumsum(self._sizes)
            parts = [vector[end - size : end] for end, size in zip(ends, self._sizes, strict=True)]
            parts = [
                (tf.reshape if isinstance(part, tf.Tensor) else np.reshape)(part, shape)
                for part, shape in zip(parts, self._shapes, strict=True)
            ]
        return [tf.cast(part, dtype) for part, dtype in zip(parts, self._dtypes, strict=True)]

    def _join(self, parts: Sequence[Any], like: Any) -> Any:
        if self._is_in_parts(like):
            return list(parts)
        if isinstance(like, tf.Tensor):
            return tf.concat([tf.reshape(tf.cast(part, self.dtype), [-1]) for part in parts], axis=0)
        return np.concatenate([np.asarray(memoryview(part)).reshape(-1) for part in parts], dtype=self.dtype)
