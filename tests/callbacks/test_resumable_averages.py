"""Training in which averages of the weights take the weights' place is resumed to the same bits."""

import keras
import numpy as np
import pytest

from tfopt.callbacks import ResumableCheckpoint

pytestmark = pytest.mark.usefixtures("each_fit_in_its_own_process")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = X[:, :1] ** 2


class Interrupt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def train(folder, epochs, interrupt_at=None, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.8), "mse", jit_compile=False)
    callbacks = [keras.callbacks.SwapEMAWeights(**options)]
    callbacks += [] if folder is None else [ResumableCheckpoint(folder, stateless=[Interrupt], verbose=0)]
    callbacks += [] if interrupt_at is None else [Interrupt(interrupt_at)]
    try:
        model.fit(X, Y, batch_size=8, epochs=epochs, validation_data=(X, Y), verbose=0, callbacks=callbacks)
    except KeyboardInterrupt:
        return None
    return model.history.history, [np.array(v).tobytes() for v in (*model.variables, *model.optimizer.variables)]


@pytest.mark.parametrize("swap_on_epoch", [True, False])
def test_swapped_averages_resume(swap_on_epoch, tmp_path):
    expected = train(None, 4, swap_on_epoch=swap_on_epoch)
    assert train(tmp_path / "whole", 4, swap_on_epoch=swap_on_epoch) == expected
    for epoch in (1, 3):
        train(tmp_path / "parts", 4, interrupt_at=epoch, swap_on_epoch=swap_on_epoch)
    for _ in range(2):  # the second time there is nothing left to do
        assert train(tmp_path / "parts", 4, swap_on_epoch=swap_on_epoch) == expected


def test_more_epochs_than_planned_are_refused_where_the_weights_are_lost(tmp_path):
    train(tmp_path, 1, swap_on_epoch=True)
    with pytest.raises(ValueError, match="SwapEMAWeights.*after the last epoch, 1, so training cannot go on.* to 2"):
        train(tmp_path, 2, swap_on_epoch=True)
