"""When callbacks measure."""

from dataclasses import dataclass

from tfopt._checks import check_integer

# Without other arguments, callbacks measure after each of this many equal parts of training.
_PARTS = 10


@dataclass(frozen=True)
class Cadence:
    """Due every n training batches, every n epochs, or, if both are None, after every tenth part of training."""

    every_n_steps: int | None
    every_n_epochs: int | None

    @classmethod
    def from_arguments(
        cls, every_n_steps: int | None, every_n_epochs: int | None, default_epochs: int | None = 1
    ) -> "Cadence":
        """Check the user's integers (>= 1) or Nones; `default_epochs` replaces two Nones (None: tenths of training)."""
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
        """Return whether a multiple of n is among the step numbers `before` + 1 to `after`."""
        return self.every_n_steps is not None and after // self.every_n_steps > before // self.every_n_steps

    def is_due_after_epoch(self, epochs: int, first: int, last: int) -> bool:
        """Return whether to measure after `epochs` epochs of a training from epoch `first` to epoch `last`."""
        if self.every_n_steps is not None:
            return False
        if self.every_n_epochs is not None:
            return epochs % self.every_n_epochs == 0
        done, total = epochs - first, max(last - first, 1)
        return _PARTS * done // total > _PARTS * (done - 1) // total
