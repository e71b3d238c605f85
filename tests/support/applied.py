"""A layer that applies a function, as users write it."""

import keras


class Applied(keras.layers.Layer):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, inputs):
        return self.function(inputs)
