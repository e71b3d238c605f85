"""The common base of a model's symmetric matrices, which are known only by their products with vectors."""

import contextlib
import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._checks import check_flag, check_integer
from tfopt.curvature.background import started
from tfopt.curvature.batch import Batch, form_of
from tfopt.curvature.batches_that_fit import with_batches_that_fit
from tfopt.curvature.differences import DerivativesAt
from tfopt.curvature.held_variables import holding
from tfopt.curvature.known_operations import OF_SOME_ROWS, SOFTMAX, check_derivatives, is_in_functions, scopes_of
from tfopt.curvature.known_products import KnownProduct, keep, known, reads_none
from tfopt.curvature.model_checks import refuse_rounding
from tfopt.curvature.objective import Objective, add, as_objective
from tfopt.curvature.probe import Probe
from tfopt.curvature.self_check import SelfCheck
from tfopt.curvature.softmax_targets import check_sums, noted_targets, refusing_targets
from tfopt.curvature.split import SplitFunction
from tfopt.curvature.vectors import VectorForm

# Memory limit of the intermediate results that `shared` caches, over all batches.
SHARED_BYTES = 2**31
COLUMNS = 8  # of a matrix, which share the common part of a batch that is not cached


class CurvatureOperator(ABC):
    """A symmetric matrix over trainable variables of a model, averaged over a probe, as a function v -> Av.

    A product uses the weights that the model has at that time. The first product is checked against finite differences,
    and against a second computation. Arguments and errors are those of `HessianOperator`.

    Attributes:
        objective: The `Objective`.
        shape: (n, n), with n the number of entries of the variables.
        dtype: Dtype of the vectors: float32 or float64.
        num_matvecs: Number of products computed so far.
    """

    def __init__(
        self, objective: Any, *data: Any, self_check: bool = True, max_memory: int | None = None, **options: Any
    ) -> None:
        self._is_checked = not check_flag("self_check", self_check)
        self._max_memory = None if max_memory is None else check_integer("max_memory", max_memory, minimum=1)
        self.objective = as_objective(objective, *data, **options)
        refuse_rounding(self.objective.model)
        self.vectors = VectorForm([tuple(v.shape) for v in self.objective.variables], self.objective.dtypes)
        self.shape = (self.vectors.size, self.vectors.size)
        self.dtype = self.vectors.dtype
        self.num_matvecs = 0
        self._shared: list[Any] | None = None  # within `shared`: the common part of each batch, and the values
        self._values: list[Any] | None = None
        self._bytes_needed: list[int] = []
        self._products: dict[Any, KnownProduct] = {}
        self._traced_fingerprint: Any = None
        chosen = {id(variable) for variable in self.objective.variables}
        self._others = [variable for variable in self.objective.model.variables if id(variable) not in chosen]
        self.objective = self._fitted(self.objective)

    def __repr__(self) -> str:
        precision = "" if self.precision == "model" else f", in {self.precision}"
        return f"<{type(self).__name__} of shape {self.shape} over {self.objective.num_rows:,} rows{precision}>"

    @property
    def variables(self) -> list[Any]:
        """The variables."""
        return self.objective.variables

    @property
    def batch_norm(self) -> str:
        """How batch normalisation was computed: "batch" or "moving"."""
        return self.objective.batch_norm

    @property
    def precision(self) -> str:
        """The precision of the layers: "model", "float32" or "bfloat16", see `Objective`."""
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
        parts = self.vectors.split(vector)
        if self._is_checked:
            (products,) = self._sum_over_batches([parts])
        else:
            products = self._checked_product(parts)
        self.num_matvecs += 1
        return self.vectors.join(products, vector)

    def __matmul__(self, vector: Any) -> Any:
        """Return the product with a vector, or with each column of a matrix.

        Args:
            vector: A vector of n entries, or a matrix of shape (n, k).

        Returns:
            A vector or matrix of the same shape.
        """
        return self.matmat(vector) if np.ndim(vector) == 2 else self.matvec(vector)

    def matmat(self, matrix: Any) -> np.ndarray:
        """Return the products with the columns of a matrix, which share the common part of all products of a batch.

        Args:
            matrix: An array of shape (n, k).

        Returns:
            An array of shape (n, k).

        Raises:
            ValueError: The matrix has another shape.
            RuntimeError: As in `matvec`.
        """
        columns = np.asarray(matrix)
        if columns.ndim != 2 or len(columns) != self.shape[0]:
            raise ValueError(f"`matrix` must have the shape ({self.shape[0]}, k). Received: shape {columns.shape}")
        rows = np.ascontiguousarray(columns.T)
        products = np.empty(rows.shape, self.dtype)
        first = 0 if self._is_checked else min(1, len(rows))
        if first:
            products[0] = self.matvec(rows[0])
        for start in range(first, len(rows), COLUMNS):
            found = self._sum_over_batches([self.vectors.split(row) for row in rows[start : start + COLUMNS]])
            for place, parts in enumerate(found, start):
                products[place] = self.vectors.join(parts, rows[place])
            self.num_matvecs += len(found)
        return products.T

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
        return self.objective.loss_and_gradient()

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
        self._shared, self._values = [None] * len(self.objective.probe.batches), self.objective.values()
        try:
            yield
        finally:
            self._shared = self._values = None

    def over(self, probe: Probe) -> "CurvatureOperator":
        """Return the same matrix over other rows, with the functions compiled for batches of the same form.

        Args:
            probe: The data of this rank.

        Returns:
            An operator, whose count of products starts at 0.
        """
        other = copy.copy(self)
        other.objective = other._fitted(self.objective.over(probe))
        other.num_matvecs, other._shared, other._values, other._bytes_needed = 0, None, None, []
        return other

    # --- memory

    def _fitted(self, objective: Objective) -> Objective:
        """Return the objective with batches whose products take at most the memory that was asked for."""
        if self._max_memory is None:
            return objective
        measure = lambda batch: self._product_on(batch).function.peak_bytes  # noqa: E731
        return with_batches_that_fit(objective, self._max_memory, measure)

    def _may_share(self, index: int) -> bool:
        while len(self._bytes_needed) <= index:  # cumulative over batches
            needed = self._product(len(self._bytes_needed)).function.num_bytes
            self._bytes_needed.append(needed + sum(self._bytes_needed[-1:]))
        if self._max_memory is None:
            return self._bytes_needed[index] <= SHARED_BYTES
        # The product that runs beside what is cached may be that of any other batch.
        peaks = [self._product(at).function.peak_bytes for at in range(len(self.objective.probe.batches))]
        return len(peaks) == 1 or self._bytes_needed[index] + max(peaks) <= self._max_memory

    # --- the self-check

    @property
    def must_check_all_rows(self) -> bool:
        """Whether other rows need a self-check of their own, because derivatives may be wrong for some rows only."""
        graphs = [product.function.graph for product in self._products.values()]
        return any(scopes_of(graph, OF_SOME_ROWS) or is_in_functions(graph, SOFTMAX) for graph in graphs)

    def _checked_product(self, vectors: list[Any]) -> list[Any]:
        values = self.objective.values()
        product = self._product(0)
        check = SelfCheck(repr(self), self.objective, product.function.graph)
        check.refuse_operations()
        self._check_targets(values)
        first = None
        if not product.is_checked and self._max_memory is None and not self.must_check_all_rows:
            # TensorFlow compiles the product while Python traces the check.
            with started(lambda: list(self._products_of(0, [vectors]))) as wait:
                check(self._derivatives, self._check_matrix)
            first = wait()
        elif not product.is_checked:  # Both at once would take more memory.
            check(self._derivatives, self._check_matrix)
        (products,) = self._sum_over_batches([vectors], first)
        check.check_finite(products, vectors)
        self._is_checked = True
        if self._is_kept and check.is_general:
            product.is_checked = True
        return products

    def _check_targets(self, values: list[Any]) -> None:
        # Raises ValueError if targets of categorical cross-entropies do not sum to 1, in any batch of this rank.
        functions: dict[int, Any] = {}
        for index, batch in enumerate(self.objective.probe.batches):
            product = self._product(index).function
            sums = noted_targets(product.graph)
            if sums:
                if id(product) not in functions:
                    functions[id(product)] = product.pruned_to(sums)
                check_sums(functions[id(product)](*self._fixed(values, batch.tensors)))
            if is_in_functions(product.graph, SOFTMAX):
                with refusing_targets():
                    product(self._fixed(values, batch.tensors), values)

    # --- specific to each kind of matrix

    _is_kept = False  # whether a product and its check serve other operators of the same function

    @abstractmethod
    def _trace_product(self, values: Any, batch: Any, vectors: Any) -> list[Any]:
        """Return the product for one batch."""

    @abstractmethod
    def _derivatives(self, objective: Objective) -> DerivativesAt:
        """Return the derivatives that make up products, on the first batch of an objective."""

    @abstractmethod
    def _check_matrix(self, derivatives: Any) -> None:
        """Check what only this kind of matrix needs; `derivatives` are those of a few rows."""

    # --- one product

    def _sum_over_batches(self, vectors: list[list[Any]], first: list[list[Any]] | None = None) -> list[list[Any]]:
        # `first` are the products of the first batch if they are known.
        sums: list[list[Any]] = [[] for _ in vectors] if first is None else first
        for index in range(first is not None, len(self.objective.probe.batches)):
            for place, product in enumerate(self._products_of(index, vectors)):
                sums[place] = add(sums[place], product)
        return [self.objective.communicator.allreduce_sum(one, name="products") for one in sums]

    def _products_of(self, index: int, vectors: list[list[Any]]) -> Iterator[list[Any]]:
        """Yield the batch's share in the product of each vector."""
        values = self.objective.values() if self._values is None else self._values
        share = self.objective.probe.batches[index].num_rows / self.objective.num_rows
        with refusing_targets():
            multiply = self._multiplier(index, values, len(vectors))
            for parts in vectors:
                # The product is linear, so that scaling the vector scales the product.
                yield multiply(parts if share == 1.0 else [tf.constant(share, part.dtype) * part for part in parts])

    def _multiplier(self, index: int, values: list[Any], count: int) -> Callable[[list[Any]], list[Any]]:
        """Return the product of a batch as a function of the vector, to be called `count` times."""
        product = self._product(index).function
        fixed = self._fixed(values, self.objective.probe.batches[index].tensors)
        if self._shared is None or not self._may_share(index):
            if count == 1 or self._max_memory is not None or product.num_bytes > SHARED_BYTES:
                return functools.partial(product, fixed)
            return functools.partial(product.finish, product.prepare(*fixed))
        if self._shared[index] is None:
            self._shared[index] = product.prepare(*fixed)
        return functools.partial(product.finish, self._shared[index])

    def _product(self, index: int) -> KnownProduct:
        return self._product_on(self.objective.probe.batches[index])

    def _product_on(self, batch: Batch) -> KnownProduct:
        # Each form of batch needs its own function: the last batch often has fewer rows.
        form = form_of(batch.tensors)
        if form not in self._products:
            self._products[form] = self._make_product(form, batch.tensors, self.objective.values())
        return self._products[form]

    def _make_product(self, form: Any, batch: Any, values: list[Any]) -> KnownProduct:
        loss, variables = self.objective.batch_loss, self.objective.model.variables
        places = {id(variable): index for index, variable in enumerate(variables)}
        chosen = tuple(places.get(id(variable)) for variable in self.variables)
        is_known = self._is_kept and loss.fingerprint is not None and form == loss.form
        # A graph does not show the shapes of variables, nor those that it does not read.
        key = type(self), loss.fingerprint, form, chosen, form_of(self._fixed(values, None))
        if is_known and (found := known(key)):
            return found
        made = KnownProduct(SplitFunction(self._trace_with_others, self._fixed(values, batch), values))
        check_derivatives(made.function.graph)
        # Values of attributes may have changed since the objective was made.
        if is_known and self._traced_fingerprint == loss.fingerprint and reads_none(made.function.graph, variables):
            keep(key, made)
        return made

    def _fixed(self, values: list[Any], batch: Any) -> tuple[Any, ...]:
        return values, [tf.convert_to_tensor(variable.value) for variable in self._others], batch

    def _trace_with_others(self, values: Any, others: Any, batch: Any, vectors: Any) -> list[Any]:
        # All values are arguments, so that the function serves equal models.
        with holding(list(zip(self._others, others, strict=True)), [], contextlib.nullcontext):
            product = self._trace_product(values, batch, vectors)
        if self._is_kept:
            weights = zip(map(id, [*self.variables, *self._others]), [*values, *others], strict=True)
            self._traced_fingerprint = self.objective.batch_loss.fingerprint_of(dict(weights), batch)
        return product
