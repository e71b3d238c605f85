"""When to measure."""

from dataclasses import dataclass

from tfopt._checks import check_integer

_PARTS = 10  # of training


@dataclass(frozen=True)
class Cadence:
    """Every n-th step, at the end of every n-th epoch, or where neither is given after every tenth part of training.

    Attributes:
        every_n_steps: Number of training batches from one measurement to the next; None for a cadence of epochs.
        every_n_epochs: Number of epochs; None for a cadence of steps or of parts of training.
    """

    every_n_steps: int | None
    every_n_epochs: int | None

    @classmethod
    def of(cls, every_n_steps: int | None, every_n_epochs: int | None, default_epochs: int | None = 1) -> "Cadence":
        """Make one of what users pass.

        Args:
            every_n_steps: An integer >= 1, or None.
            every_n_epochs: An integer >= 1, or None.
            default_epochs: What it is where they pass nothing: a number of epochs, or None for a tenth of training.

        Returns:
            The cadence.

        Raises:
            ValueError: Both are given, or one is out of its range.
        """
        if every_n_steps is not None and every_n_epochs is not None:
            raise ValueError(
                "Only one of `every_n_steps` and `every_n_epochs` can be given. "
                f"Received: every_n_steps={every_n_steps} and every_n_epochs={every_n_epochs}"
            )
        if every_n_steps is not None:
            return cls(check_integer("every_n_steps", every_n_steps, minimum=1), None)
        if every_n_epochs is not None:
            return cls(None, check_integer("every_n_epochs", every_n_epochs, minimum=1))
        return cls(None, default_epochs)

    def is_due_between(self, before: int, after: int) -> bool:
        """Return whether a step to be measured is among those that have just been, or are about to be, made.

        Args:
            before: Number of steps before them.
            after: Number of steps after them.

        Returns:
            Whether the number of one of them is a multiple of n.
        """
        return self.every_n_steps is not None and after // self.every_n_steps > before // self.every_n_steps

    def is_due_after_epoch(self, epochs: int, first: int, last: int) -> bool:
        """Return whether to measure after an epoch.

        Args:
            epochs: Number of epochs completed.
            first: That number before this training began.
            last: That number when it will have ended.

        Returns:
            Whether it is a multiple of n, or a tenth of this training is over.
        """
        if self.every_n_steps is not None:
            return False
        if self.every_n_epochs is not None:
            return epochs % self.every_n_epochs == 0
        done, total = epochs - first, max(last - first, 1)
        return _PARTS * done // total > _PARTS * (done - 1) // total
