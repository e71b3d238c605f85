"""When to measure."""

from dataclasses import dataclass

from tfopt._checks import check_integer


@dataclass(frozen=True)
class Cadence:
    """Every n-th step, or at the end of every n-th epoch.

    Attributes:
        every_n_steps: Number of training batches from one measurement to the next; None for a cadence of epochs.
        every_n_epochs: Number of epochs; None for a cadence of steps.
    """

    every_n_steps: int | None
    every_n_epochs: int | None

    @classmethod
    def of(cls, every_n_steps: int | None, every_n_epochs: int | None) -> "Cadence":
        """Make one of what users pass; every epoch where they pass nothing.

        Args:
            every_n_steps: An integer >= 1, or None.
            every_n_epochs: An integer >= 1, or None.

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
        return cls(None, check_integer("every_n_epochs", 1 if every_n_epochs is None else every_n_epochs, minimum=1))

    def is_due_between(self, before: int, after: int) -> bool:
        """Return whether a step to be measured is among those that have just been, or are about to be, made.

        Args:
            before: Number of steps before them.
            after: Number of steps after them.

        Returns:
            Whether the number of one of them is a multiple of n.
        """
        return self.every_n_steps is not None and after // self.every_n_steps > before // self.every_n_steps

    def is_due_after_epoch(self, epochs: int) -> bool:
        """Return whether to measure after an epoch.

        Args:
            epochs: Number of epochs completed.

        Returns:
            Whether it is a multiple of n.
        """
        return self.every_n_epochs is not None and epochs % self.every_n_epochs == 0
