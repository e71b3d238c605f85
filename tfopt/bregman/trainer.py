"""Training of Dense networks without gradients, with the interface of Keras's `fit`."""

from pathlib import Path
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfopt._checkpoints.generations import CheckpointFiles
from tfopt._checks import check_folder, check_integer, check_keras_3, check_number
from tfopt.bregman.arrays import as_array
from tfopt.bregman.engine import Problem
from tfopt.bregman.evaluation import Evaluation
from tfopt.bregman.keras_loss import read_loss
from tfopt.bregman.network import DenseChain
from tfopt.bregman.rows import Rows, choose_num_blocks
from tfopt.bregman.run import FitLoop, make_callbacks
from tfopt.bregman.settings import RestartedSettings, Settings, SplittingSettings
from tfopt.communicator import Communicator, check_communicator
from tfopt.communicator.agreement import check_agreement, in_agreement

__all__ = ["BregmanTrainer"]

_VALIDATION_NAMES = ("validation_data[0]", "validation_data[1]")


class BregmanTrainer:
    """Train a chain of Dense layers by exact minimisation over blocks of variables, without gradients.

    The network's equations become penalties (Taylor et al. 2016, arXiv 1605.02026):

        minimise  loss(Z_L, y) + <Z_L, lambda> + beta_L |Z_L - A_(L-1) W_L - b_L|^2
                  + sum_(l<L) ( gamma_l |A_l - h_l(Z_l)|^2 + beta_l |Z_l - A_(l-1) W_l - b_l|^2 )

    A block of variables is the weights W_l of a layer, its activations A_l, or its pre-activations Z_l. Each block is
    minimised over exactly, with all others fixed. The weight updates need only sums over rows, whose size is that of
    the layer. Ranks that hold shards of the rows therefore exchange small matrices, for any number of rows. Under
    `horovodrun` each rank passes its own shard to `fit`. The result is that of one process with all rows.

    One sweep through the variables is one epoch. `preset` chooses the algorithm: "restarted", the default, which was
    designed to train well; "paper", as printed; "penalty", without multiplier; "admm", the classical method of
    multipliers.

    The model is a chain of `Dense` layers, after `Flatten`, `Rescaling` or `Normalization`. Activations are inline or
    layers: ReLU, leaky ReLU, clipped ReLU, linear, tanh, sigmoid, softplus, gelu. If a softmax or sigmoid is last,
    training works on the logits before it. The model always holds the current weights.

    Units and origins do not matter. Training standardises the inputs, and for a squared error the targets, over the
    rows of all ranks. The model's first and last layer undo this. Untrained layers are taken as meant for standardised
    rows, even if they were loaded, cloned, or drawn from a `SeedGenerator`. All other weights keep the function that
    the model computes.

    Args:
        model: A built Keras model.
        loss: "mse", "binary_crossentropy", "categorical_crossentropy", "sparse_categorical_crossentropy", "hinge"
            (Keras's), "unit_hinge" (for targets in {0, 1}: max(0, 1 - z) and max(0, z)), or the Keras object. Labels
            may be integers or one-hot for either name.
        metrics: A list of what Keras takes as metrics: names, objects, classes, functions. They receive what
            `keras.Model.evaluate` passes to them: the targets as they were given, and the model's outputs, which are
            logits if the model ends with no softmax or sigmoid. As in Keras, the shapes decide what "accuracy" is. For
            one logit use `keras.metrics.BinaryAccuracy(threshold=0.0)`: "accuracy" counts outputs above 0.5. Default
            None, for none.
        preset: A set of options: "restarted" (default), "paper", "penalty", "admm".
        measure_every_n_epochs: Number of sweeps between computations of the metrics and of the validation. Default 1.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`.
        **options: Options that replace those of the preset: see `tfopt.bregman.RestartedSettings` for
            "restarted", and `tfopt.bregman.SplittingSettings` for the others.

    Attributes:
        model: The model.
        settings: All options.

    Raises:
        TypeError: An argument has the wrong type, or an option is unknown.
        ValueError: An argument is out of its range, a layer cannot be trained without gradients, or the loss does not
            match the model's outputs.

    Example:
        >>> from tfopt import datasets, models
        >>> data = datasets.load("breast_cancer")
        >>> model = models.mlp(30, hidden_units=(32,), num_outputs=1, output_activation="sigmoid", seed=0)
        >>> trainer = BregmanTrainer(model, "binary_crossentropy", metrics=["accuracy"])
        >>> history = trainer.fit(data.x_train, data.y_train, epochs=20, verbose=0)
        >>> bool(history.history["accuracy"][-1] > 0.97)
        True
    """

    def __init__(
        self,
        model: Any,
        loss: Any,
        metrics: Any = None,
        *,
        preset: str = "restarted",
        measure_every_n_epochs: int = 1,
        communicator: Communicator | None = None,
        **options: Any,
    ) -> None:
        check_keras_3()
        chain = DenseChain.from_model(model)
        read = read_loss(loss, chain)
        self.model = model
        self.settings = Settings.from_arguments(preset, options)
        self.settings.penalties(len(chain.layers))
        self._measure_every = check_integer("measure_every_n_epochs", measure_every_n_epochs, minimum=1)
        ranks = check_communicator(communicator)
        self._problem = Problem(chain, read, self.settings, Evaluation(chain, read, metrics, ranks), ranks)

    def fit(
        self,
        x: Any,
        y: Any = None,
        *,
        epochs: int = 50,
        initial_epoch: int = 0,
        verbose: int | str = "auto",
        validation_split: float = 0.0,
        validation_data: Any = None,
        callbacks: Any = None,
        checkpoint: str | Path | None = None,
        checkpoint_every_n_epochs: int = 1,
    ) -> keras.callbacks.History:
        """Train from the model's current weights.

        With `initialization="gaussian"` the first layer's weights are not used.

        Args:
            x: Inputs, shape `(rows, *input_shape)`: an array; a memory-mapped array, which is read chunk by chunk; or a
                `tf.data.Dataset` of batches `(x, y)`, which is read once. Under `horovodrun`, this rank's shard.
            y: Targets, shape `(rows,)`, `(rows, 1)` or `(rows, outputs)`. None (default) with a dataset.
            epochs: Number of the last sweep. Default 50.
            initial_epoch: Number of the first sweep, for logs. Default 0. Adapted quantities of an earlier `fit`
                (steps, penalties, multipliers) are lost; a `checkpoint` keeps them.
            verbose: 0 for silence, 1 for a progress bar, 2 for a line per sweep; "auto" (default) is 1 on rank 0, else
                0.
            validation_split: Fraction of the rows, the last ones, to hold out for validation, in [0, 1). Default 0.
            validation_data: `(x, y)` or a `tf.data.Dataset` for validation, instead. Default None.
            callbacks: Keras callbacks; an epoch is a sweep.
            checkpoint: A folder for the whole state of training. `fit` continues from the state in this folder, with
                the same bits. Two generations are kept. Delete the folder to start again. Use one folder for each
                model: a training that began with other weights is refused. Weights that initializers draw without a
                seed may differ in a restart. None (default) writes nothing.
            checkpoint_every_n_epochs: Number of sweeps between checkpoints. Default 1. The last sweep is always saved.

        Returns:
            The history, as of Keras's `fit`, with two more attributes. `best_epoch` is the epoch of the lowest
            `val_loss`, or `loss` without validation. `diverged` is True if training diverged: it then stopped with a
            warning, and the model has the weights of `best_epoch`, or the first weights if that is None.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of its range, the data do not match the model, a rank has no rows, the
                checkpoint is of another training, or an earlier `fit` of this process has completed this one.
        """
        check_integer("initial_epoch", initial_epoch, minimum=0)
        if check_integer("epochs", epochs, minimum=0) < initial_epoch:
            raise ValueError(
                f"`epochs` must be at least `initial_epoch`. Received: epochs={epochs}, initial_epoch={initial_epoch}"
            )
        check_integer("checkpoint_every_n_epochs", checkpoint_every_n_epochs, minimum=1)
        if verbose not in ("auto", 0, 1, 2):
            raise ValueError(f"`verbose` must be 'auto', 0, 1 or 2. Received: verbose={verbose!r}")
        ranks = self._problem.communicator

        def prepare() -> Any:
            folder = _check_checkpoint(checkpoint)
            listed = make_callbacks(self.model, callbacks, verbose, epochs, ranks.rank, folder is not None)
            return folder, listed, *_split(x, y, validation_split, validation_data)

        folder, listed, train, validation = in_agreement(ranks, prepare)
        self._check_ranks(epochs, initial_epoch, validation, folder, checkpoint_every_n_epochs)
        rows = self._rows(train, self._num_blocks)
        held_out = None if validation is None else self._rows(validation, 1)
        files = None if folder is None else CheckpointFiles(folder, ranks, "BregmanTrainer")
        run = FitLoop(self._problem, rows, held_out, listed, epochs, self._measure_every)
        return run.train(initial_epoch, files, checkpoint_every_n_epochs)

    def _check_ranks(self, epochs: int, initial_epoch: int, validation: Any, folder: Any, every: int) -> None:
        chain, problem = self._problem.chain, self._problem
        facts = {
            "network": [*chain.widths, *(h.name for h in chain.activations), str(chain.dtype), *chain.uses_bias],
            "loss": problem.loss.name,
            "options": [f"{name}={value!r}" for name, value in vars(self.settings).items()],
            "metrics": problem.evaluation.metric_names,
            "measure_every_n_epochs": self._measure_every,
            "epochs": [initial_epoch, epochs],
            "use of validation": validation is not None,
            "use of checkpoints": "none" if folder is None else f"every {every} epochs",
        }
        advice = "Every rank must build the same model and BregmanTrainer, and call `fit` in the same way."
        check_agreement(problem.communicator, "the start of training without gradients", facts, advice)

    def evaluate(self, x: Any, y: Any = None) -> dict[str, float]:
        """Compute the loss and the metrics of the model.

        Args:
            x: Inputs, as in `fit`.
            y: Targets. None (default) with a dataset.

        Returns:
            Keras's loss, and the metrics.
        """
        rows = self._rows(Part(x, y), 1)
        return self._problem.evaluation(rows, self._problem.chain.read_weights())[1]

    def _rows(self, part: "Part", num_blocks: int | str) -> Rows:
        chain, loss, ranks = self._problem.chain, self._problem.loss, self._problem.communicator
        return Rows(part.x, part.y, chain, loss, ranks, self.settings.chunk_rows, num_blocks, part.names)

    def expected_memory(self, num_rows: int, *, is_memory_mapped: bool = False) -> int:
        """Estimate the peak memory of `fit`, without the arrays passed to it and compiled programs (about 50 MB).

        With d input features, n_l units of layer l, s bytes of a number of the state and f of the weights:

            rows (d + n_L + 1) f, a copy of the inputs and targets, unless they are memory-mapped
            + rows (state) s, where the state is, for "splitting", sum n_l + sum_(l<L) n_l + the multipliers; for
              "restarted", sum n_l over the rows of one block
            + 2 chunk_rows (d + 2 sum n_l) f for the current chunk
            + 40 sum (n_(l-1) + 1)^2 for matrices

        This is memory in use. The process may show 50 to 120 MB more, freed memory that its allocator keeps.

        Args:
            num_rows: Rows of this rank, validation rows included, >= 1.
            is_memory_mapped: Whether `x` is a `numpy.memmap`. Default False.

        Returns:
            Bytes.
        """
        check_integer("num_rows", num_rows, minimum=1)
        chain = self._problem.chain
        widths = chain.widths
        outputs, hidden = sum(widths[1:]), sum(widths[1:-1])
        size = chain.dtype.size
        state_size = tf.as_dtype(self.settings.state_dtype or chain.dtype).size
        copy = 0 if is_memory_mapped else num_rows * (widths[0] + widths[-1] + 1) * size
        if not isinstance(self.settings, SplittingSettings):
            blocks = self._num_blocks
            total = num_rows * self._problem.communicator.size
            num_blocks = choose_num_blocks(total, chain) if blocks == "auto" else int(blocks)
            state = -(-num_rows // num_blocks) * outputs
        else:
            multipliers = {"none": 0, "bregman": widths[-1], "admm": outputs + hidden}[self.settings.multiplier]
            state = num_rows * (outputs + hidden + multipliers)
        chunk = 2 * min(self.settings.chunk_rows, num_rows) * (widths[0] + 2 * outputs) * size
        matrices = 40 * sum((width + 1) ** 2 for width in widths[:-1])
        return copy + state * state_size + chunk + matrices

    @property
    def _num_blocks(self) -> int | str:
        return self.settings.num_blocks if isinstance(self.settings, RestartedSettings) else 1


def _check_checkpoint(checkpoint: Any) -> Path | None:
    if checkpoint is None:
        return None
    folder = check_folder("checkpoint", checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Part(NamedTuple):
    """Rows to train or to validate on, and their names in messages."""

    x: Any
    y: Any
    names: tuple[str, str] = ("x", "y")


def _split(x: Any, y: Any, share: Any, validation_data: Any) -> tuple[Part, Part | None]:
    check_number("validation_split", share, minimum=0.0, maximum=1.0, exclusive_maximum=True)
    if validation_data is not None:
        if share:
            raise ValueError("Only one of `validation_split` and `validation_data` can be given")
        if isinstance(validation_data, tf.data.Dataset):
            return Part(x, y), Part(validation_data, None, _VALIDATION_NAMES)
        if not isinstance(validation_data, tuple | list) or len(validation_data) != 2:
            raise ValueError(
                "`validation_data` must be a pair (x, y) or a tf.data.Dataset. "
                f"Received: {type(validation_data).__name__}"
            )
        return Part(x, y), Part(validation_data[0], validation_data[1], _VALIDATION_NAMES)
    if not share:
        return Part(x, y), None
    if isinstance(x, tf.data.Dataset) or y is None:
        raise ValueError("`validation_split` needs arrays. Pass `validation_data` with a tf.data.Dataset")
    x, y = as_array("x", x), as_array("y", y)
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        return Part(x, y), None  # `check_arrays` refuses these shapes.
    held_out = int(len(x) * share)
    if held_out in (0, len(x)):
        raise ValueError(
            f"`validation_split` must leave rows to train and to validate on. Received: validation_split={share} of "
            f"{len(x)} rows"
        )
    cut = len(x) - held_out
    return Part(x[:cut], y[:cut]), Part(x[cut:], y[cut:], (f"x[{cut}:]", f"y[{cut}:]"))
