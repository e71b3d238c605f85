"""The private names of Keras and TensorFlow that tfopt uses, each with its use, because no public name does the same.

An upgrade may move them: `tests/test_keras_names.py` says which ones it has moved, and what they are used for.
"""

import importlib
from typing import Any

# Names to import from here, as `from tfopt._keras import Functional`: (module, use). Each is imported on first use,
# because other backends of Keras have no TensorFlow.
IMPORTED = {
    "AutocastScope": ("keras.src.backend.common.variables", "Reads all weights in one precision."),
    "BaseImagePreprocessingLayer": (
        "keras.src.layers.preprocessing.image_preprocessing.base_image_preprocessing_layer",
        "Recognises random image layers, which are left out of a measurement.",
    ),
    "BaseResourceVariable": ("tensorflow.python.ops.resource_variable_ops", "Replaces how a variable is read."),
    "CompileLoss": ("keras.src.trainers.compile_utils", "Computes a loss as `fit` does, with weights and masks."),
    "CompileMetrics": ("keras.src.trainers.compile_utils", "Resolves metrics as `evaluate` does, by shapes."),
    "ConvLSTM": ("keras.src.layers.rnn.conv_lstm", "Recognises a layer with dropout between its steps."),
    "ConvLSTMCell": ("keras.src.layers.rnn.conv_lstm", "Recognises a layer with dropout between its steps."),
    "EpochIterator": ("keras.src.trainers.epoch_iterator", "Recognises what reads the batches of a `PyDataset`."),
    "FuncGraph": ("tensorflow.python.framework.func_graph", "Recognises the graph of a function."),
    "Functional": ("keras.src.models.functional", "Recognises a model whose connections can be read."),
    "GLOBAL_SEED_GENERATOR": ("keras.src.random.seed_generator", "Finds Keras's seed generator without making it."),
    "Operation": ("keras.src.ops.operation", "Replaces how layers and operations are called."),
    "TFEpochIterator": ("keras.src.backend.tensorflow.trainer", "Makes validation data before the first validation."),
    "ag_ctx": ("tensorflow.python.autograph.core", "Converts a function again as if it was called from outside."),
    "array_slicing": ("keras.src.trainers.data_adapters", "Turns arrays of any library into what `fit` slices."),
    "autograph_util": ("tensorflow.python.eager.polymorphic_function", "Converts the Python code of a tf.function."),
    "auto_control_deps_utils": ("tensorflow.python.framework", "Finds the resources that a graph only reads."),
    "class_weight_to_sample_weights": (
        "keras.src.trainers.data_adapters.data_adapter_utils",
        "Weighs rows of arrays as `fit(class_weight=...)` does.",
    ),
    "context": (
        "tensorflow.python.eager",
        "Holds seeds, generators and the chosen device, and says how functions are optimized.",
    ),
    "control_flow_util": ("tensorflow.python.ops", "Tells whether XLA will compile a graph."),
    "custom_gradient": ("tensorflow.python.ops", "Differentiates through functions with custom gradients."),
    "data_adapters": ("keras.src.trainers", "Recognises data of PyTorch and Grain without importing them."),
    "gen_image_ops": ("tensorflow.python.ops", "Replaces operations that resize images."),
    "gen_nn_ops": ("tensorflow.python.ops", "Replaces operations that have no second derivative."),
    "get_random_seed": ("keras.src.utils.rng_utils", "Tells whether weights without a seed follow from a common one."),
    "get_stateless_scope": ("keras.src.backend.common.stateless_scope", "Finds the values that variables have now."),
    "global_seed_generator": ("keras.src.random.seed_generator", "Makes Keras's seed generator."),
    "global_state": ("keras.src.backend.common", "Holds Keras's seed generator."),
    "is_default": ("keras.src.utils.python_utils", "Tells whether a layer has a `build` of its own."),
    "make_class_weight_map_fn": (
        "keras.src.trainers.data_adapters.tf_dataset_adapter",
        "Weighs rows of data sets as `fit(class_weight=...)` does.",
    ),
    "make_node_key": ("keras.src.ops.function", "Finds the calls of a layer that belong to a model."),
    "nn_impl": ("tensorflow.python.ops", "Replaces an operation by a differentiable one."),
    "nn_ops": ("tensorflow.python.ops", "Leaves out dropout."),
    "op_def_registry": ("tensorflow.python.framework", "Tells whether an operation has a hidden state."),
    "polymorphic_function": ("tensorflow.python.eager.polymorphic_function", "Replaces how a tf.function is called."),
    "record": (
        "tensorflow.python.eager",
        "Sees variables that a custom gradient reads, and whether a tape records.",
    ),
    "stateful_random_ops": ("tensorflow.python.ops", "Finds TensorFlow's generator without making it."),
    "Trackable": ("tensorflow.python.trackable.base", "Recognises objects that hold variables."),
}


def __getattr__(name: str) -> Any:
    if name not in IMPORTED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = IMPORTED[name][0]
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:  # It is a module.
        return importlib.import_module(f"{module}.{name}")


class Attribute:
    """A private attribute: called with an object, it returns the attribute, or a default if one is given."""

    def __init__(self, owner: str, name: str, use: str) -> None:
        self.owner, self.name, self.use = owner, name, use

    def __call__(self, thing: Any, *default: Any) -> Any:
        """Return the attribute of an object; without a default, AttributeError if the object has none."""
        return getattr(thing, self.name, *default)

    def set(self, thing: Any, value: Any) -> None:
        """Set the attribute of an object."""
        setattr(thing, self.name, value)


# Each is called like its attribute without the underscore, where that says enough.

compile_loss = Attribute("model", "_compile_loss", "The loss with which a model was compiled.")
compile_config = Attribute("model", "_compile_config", "Changes if a model is compiled again.")
compile_metrics = Attribute("model", "_compile_metrics", "Holds the metrics with which a model was compiled.")
flatten_layers = Attribute("model", "_flatten_layers", "Lists the layers of all depths.")
initial_epoch = Attribute("model", "_initial_epoch", "The epoch at which `fit` begins.")
eval_epoch_iterator = Attribute("validated model", "_eval_epoch_iterator", "Serves the validation data of `fit`.")
symbolic_build = Attribute("model", "_symbolic_build", "Builds a model from the shapes of its data.")
call_has_training_arg = Attribute("model", "_call_has_training_arg", "Whether a model takes `training`.")
compute_loss = Attribute("model", "_compute_loss", "Computes the loss of a `train_step`, without its own metrics.")
functional = Attribute("sequential model", "_functional", "The connections of a Sequential model.")
nodes = Attribute("functional model", "_nodes", "The calls of layers that belong to a model.")
operations_by_depth = Attribute("functional model", "_operations_by_depth", "Says that a model is a graph of layers.")

layers = Attribute("layer", "_layers", "The layers that a layer holds, in the order of creation.")
auto_config = Attribute("layer", "_auto_config", "The arguments with which a layer was made.")
inbound_nodes = Attribute("layer", "_inbound_nodes", "The calls of a layer.")
layer_dtype_policy = Attribute("layer", "_dtype_policy", "The precision of a layer, to be replaced in a copy.")
maybe_build = Attribute("layer", "_maybe_build", "Refuses a call that would create variables.")
keras_history = Attribute("symbolic tensor", "_keras_history", "The layer of which a tensor is the output.")
is_explained = Attribute(
    "error of a layer's call", "_keras_call_info_injected", "Keeps Keras from replacing an error by one of its own."
)
policy_compute_dtype = Attribute("dtype policy", "_compute_dtype", "The precision in which layers compute.")
policy_variable_dtype = Attribute("dtype policy", "_variable_dtype", "The precision of a layer's variables.")

keras_logits = Attribute("softmax output", "_keras_logits", "The logits before a softmax, which losses use.")
keras_mask = Attribute("masked output", "_keras_mask", "The mask of an output, which losses and metrics use.")

user_loss = Attribute("compiled loss", "_user_loss", "The loss as it was given.")
user_loss_weights = Attribute("compiled loss", "_user_loss_weights", "The weights of losses as they were given.")
flat_losses = Attribute("compiled loss", "_flat_losses", "The losses of all outputs.")
user_metrics = Attribute("compiled metrics", "_user_metrics", "The metrics as they were given.")
user_weighted_metrics = Attribute("compiled metrics", "_user_weighted_metrics", "The metrics as they were given.")
loss_options = Attribute("loss", "_fn_kwargs", "Arguments of a loss that its config lacks.")
loss_dtype_policy = Attribute("loss", "_dtype_policy", "The precision of a loss, to be replaced in a copy.")
loss_dtype = Attribute("loss", "_dtype", "The same.")

learning_rate = Attribute("optimizer", "_learning_rate", "The learning rate as it was given: a number or a schedule.")
optimizer_variables = Attribute("optimizer", "_trainable_variables", "The variables that an optimizer was built for.")
accumulated_gradients = Attribute("accumulating optimizer", "_accumulated_gradients", "Sums of earlier gradients.")
iterations = Attribute("optimizer", "_iterations", "The number of calls, where `iterations` counts steps.")
variable_index = Attribute("optimizer", "_get_variable_index", "Finds the state of a variable.")
overwrites_variable = Attribute(
    "optimizer", "_overwrite_variable_with_gradient", "Tells whether a gradient is a variable's next value."
)
use_weight_decay = Attribute("optimizer", "_use_weight_decay", "Decides which variables decay.")
excluded_variables = Attribute("excluding optimizer", "_exclude_from_weight_decay", "Variables that do not decay.")
excluded_patterns = Attribute("excluding optimizer", "_exclude_from_weight_decay_pattern", "The same by their names.")
variable_key = Attribute("optimizer", "_var_key", "Identifies a variable.")
variable_layout = Attribute("variable", "_layout", "Spreads the state of a variable over devices like the variable.")
variable_value = Attribute("variable", "_value", "The value of a variable, to be replaced for a time.")
read_variable = Attribute("tf.Variable", "_read_variable_op", "Replaces how a variable is read.")

# What serves the data of `fit`. Adapters are recognised by the names of their classes.
distributed_dataset = Attribute("epoch iterator", "_distributed_dataset", "The data set that `fit` reads.")
current_iterator = Attribute("epoch iterator", "_current_iterator", "The iterator that `steps_per_epoch` keeps.")
steps_seen = Attribute("epoch iterator", "_steps_seen", "The number of batches that this iterator has served.")
num_batches = Attribute("epoch iterator", "_num_batches", "The number of batches that data turned out to have.")
get_iterator = Attribute("epoch iterator", "_get_iterator", "Makes the iterator over an epoch.")
array_shuffle = Attribute("ArrayDataAdapter", "_shuffle", "Whether and how `fit` shuffles arrays.")
array_inputs = Attribute("ArrayDataAdapter", "_inputs", "The arrays.")
array_batch_size = Attribute("ArrayDataAdapter", "_batch_size", "The number of rows in a batch.")
array_num_samples = Attribute("ArrayDataAdapter", "_num_samples", "The number of rows.")
dataset = Attribute("TFDatasetAdapter", "_dataset", "The data set that was given to `fit`.")
dataloader = Attribute("TorchDataLoaderAdapter", "_dataloader", "The data loader that was given to `fit`.")

dataset_inputs = Attribute("shuffled data set", "_inputs", "The data sets that a data set is made of.")
dataset_functions = Attribute("shuffled data set", "_functions", "The functions that a data set calls.")
dataset_deterministic = Attribute("parallel data set", "_deterministic", "Whether rows come in a fixed order.")
cache_filename = Attribute("cached data set", "_filename", "The file of a cache.")
iterator_resource = Attribute("data set's iterator", "_iterator_resource", "Saves and restores an iterator's state.")

eager_generator = Attribute("eager context", "_rng", "Draws the seeds of eager operations that have none.")
is_function = Attribute("graph", "_is_function", "Tells whether a graph knows a function that it calls.")
get_function = Attribute("graph", "_get_function", "Finds a function that a graph calls.")
without_retracing_warning = Attribute(
    "tf.function", "_omit_frequent_tracing_warning", "Many small programs are no mistake here."
)
autograph = Attribute("tf.function", "_autograph", "Whether AutoGraph converts a tf.function.")
autograph_options = Attribute("tf.function", "_experimental_autograph_options", "How AutoGraph converts it.")

# Functions of modules, which are replaced while a thread measures.
dropout = Attribute("nn_ops", "_dropout", "Leaves out dropout.")
graph_mode_decorator = Attribute(
    "custom_gradient", "_graph_mode_decorator", "Differentiates through functions with custom gradients."
)
eager_mode_decorator = Attribute("custom_gradient", "_eager_mode_decorator", "The same.")

tensorboard_push = Attribute("TensorBoard", "_push_writer", "Continues TensorBoard's steps after a resume.")
tensorboard_pop = Attribute("TensorBoard", "_pop_writer", "The same.")
tensorboard_train_writer = Attribute("TensorBoard", "_train_writer", "The same.")
tensorboard_train_batch = Attribute("TensorBoard", "_global_train_batch", "The same.")

ATTRIBUTES = [thing for thing in list(globals().values()) if isinstance(thing, Attribute)]
# Functions of Keras that look at the first batch for its shapes, before training.
LOOKS_FOR_SHAPES = ("_symbolic_build", "_maybe_symbolic_build")
# Local variables of `keras.Model.fit`, which Keras does not pass to callbacks.
LOCALS_OF_FIT = (
    *("epoch_iterator", "callbacks", "class_weight", "sample_weight", "initial_epoch", "batch_size"),
    *("validation_data", "val_x", "val_y", "val_sample_weight", "validation_batch_size", "validation_steps"),
)
