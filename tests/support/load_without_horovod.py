"""Loads the files that two ranks have saved, in a process that cannot import Horovod, and continues training."""

import sys

sys.modules["horovod"] = None

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import tfopt.optimizers  # noqa: E402


def main(folder):
    with np.load(f"{folder}/variables.npz") as arrays:
        expected = [arrays[name] for name in arrays.files]
    with np.load(f"{folder}/data.npz") as arrays:
        x, y = (arrays[name] for name in arrays.files)
    loaded = keras.models.load_model(f"{folder}/model.keras")
    fresh = keras.models.clone_model(loaded)
    fresh.compile(tfopt.optimizers.LARS(weight_decay=1e-3), "mse")
    fresh.optimizer.build(fresh.trainable_variables)
    fresh.load_weights(f"{folder}/model.weights.h5")
    restored = keras.models.clone_model(loaded)
    restored.compile(tfopt.optimizers.LARS(weight_decay=1e-3), "mse")
    restored.optimizer.build(restored.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=restored, optimizer=restored.optimizer)
    checkpoint.restore(tf.train.latest_checkpoint(folder)).assert_existing_objects_matched()
    for model in (loaded, fresh, restored):
        assert type(model.optimizer) is tfopt.optimizers.LARS
        # The learning rate of `fresh` and `restored` also comes from the file.
        for variable, value in zip([*model.variables, *model.optimizer.variables], expected, strict=True):
            np.testing.assert_array_equal(np.asarray(variable), value)
        model.fit(x, y, verbose=0)
    try:
        import horovod.tensorflow  # noqa: F401
    except ImportError:
        print("loaded without Horovod")


if __name__ == "__main__":
    main(sys.argv[1])
