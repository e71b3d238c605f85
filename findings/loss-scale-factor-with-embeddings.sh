#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow 2.21.0: every optimizer takes `loss_scale_factor`, a fixed factor against underflow in half
# precision. With an Embedding in the model, the first step of `fit` raises a TypeError.
#
# The gradient of an Embedding's table is a tf.IndexedSlices. `Optimizer.apply` divides gradients by the factor with the
# operator "/", which IndexedSlices do not have. `LossScaleOptimizer` divides by `keras.ops.divide`, which takes them.
#
# Seen: Dense trains with loss_scale_factor=2.0, Embedding raises TypeError with SGD and Adam: "unsupported operand type(s)
# for /: 'IndexedSlices' and 'float'". Embedding trains without the factor, and with LossScaleOptimizer(SGD).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
export TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= KERAS_BACKEND=tensorflow
cat > "$folder/train.py" <<'PYTHON'
import keras
import numpy as np

x = np.random.default_rng(0).integers(0, 9, (16, 3))
y = np.zeros((16, 1), "float32")
kinds = {"dense": lambda: keras.layers.Rescaling(0.1), "embedding": lambda: keras.layers.Embedding(9, 4)}
optimizers = {
    "SGD": lambda: keras.optimizers.SGD(0.1),
    "SGD with factor": lambda: keras.optimizers.SGD(0.1, loss_scale_factor=2.0),
    "Adam with factor": lambda: keras.optimizers.Adam(0.1, loss_scale_factor=2.0),
    "LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
}
for kind, first in kinds.items():
    for name, optimizer in optimizers.items():
        model = keras.Sequential([keras.Input((3,)), first(), keras.layers.Flatten(), keras.layers.Dense(1)])
        model.compile(optimizer(), "mse", jit_compile=False)
        try:
            model.fit(x, y, batch_size=8, verbose=0)
            print(f"{kind}, {name}: trains")
        except TypeError as error:
            print(f"{kind}, {name}: {error}")
PYTHON
"$folder/venv/bin/python" "$folder/train.py" > "$folder/found" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
cat "$folder/found"
fails="unsupported operand type(s) for /: 'IndexedSlices' and 'float'"
for row in "dense, SGD with factor: trains" "dense, Adam with factor: trains" "embedding, SGD: trains" \
    "embedding, SGD with factor: $fails" "embedding, Adam with factor: $fails" "embedding, LossScaleOptimizer: trains"; do
    grep -qxF "$row" "$folder/found"
done
