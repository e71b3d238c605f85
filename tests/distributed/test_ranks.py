"""What several ranks do together, against what one process does."""

import re
import subprocess
import sys
from pathlib import Path

import bregman_parity
import callback_table
import curvature_parity
import keras
import numpy as np
import parity
import pytest
from rank_subjects import make_data

from tfopt.communicator import SerialCommunicator

# Of the distance that training has moved the weights. Half precision rounds the sum of 12 rows otherwise than the mean
# of the sums of 6, or of 4; a schedule computes in float32, and TensorFlow's optimising may change its last bit.
TOLERANCES = {"overflow": 3e-3, "overflow_accumulation": 3e-3, "float32": 1e-4, "schedule": 1e-7}


@pytest.fixture(scope="module")
def one_process():
    return {case: parity.train(case, SerialCommunicator()) for case in parity.CASES}


TRAINABLE = (0, 1, 2, 3, 6, 7)  # of a Dense layer, a BatchNormalization with two moving means, and a Dense layer


def same_on_all(results):
    assert all(result == results[0] for result in results)
    return results[0]


# --- the communicator


def test_reductions(launch):
    total = launch.size * (launch.size + 1) / 2
    for result in launch.results("reductions"):
        assert result["eager"] == [[total, 2 * total], launch.size * (launch.size - 1) // 2]
        assert result["mean"] == [total / launch.size, [60000.0]]  # in float16 the sum would be infinite
        twos = [[float(launch.size)] * 2] * 2
        assert result["graph"] == [[total], [2 * total], twos, [total / launch.size]]
        assert result["shapes"] == [[2], []]
        in_graph = 3 * (4 + 4 + 4) + 4 * 8
        assert result["bytes"] == (2 * 4 + 8) + (8 + 2) + in_graph
        assert result["bytes_of_second_run"] == (4 + 4 + 4) + 4 * 8


def test_other_collectives(launch):
    root = launch.size - 1
    result = same_on_all(launch.results("other_collectives"))
    assert result["gathered"] == [[float(rank)] * 2 for rank in range(launch.size) for _ in range(rank + 1)]
    assert result["objects"] == [{"rank": rank} for rank in range(launch.size)]
    assert result["broadcast"] == [root, 10 + root]
    assert result["in_graph"] == root
    assert result["current_is_the_same"]


def test_ranks_that_are_done_join_in_with_zeros(launch):
    for rank, sums in enumerate(launch.results("joining")):
        # In the k-th sum of a round, the ranks below k are done already.
        assert sums == [float(launch.size - k) for k in range(rank + 1)] * 3


def test_operations_in_graphs_keep_the_order_of_the_program(two_ranks):
    size = float(two_ranks.size)
    for result in two_ranks.results("order_in_graphs"):
        assert result["functions"] == result["conditions"] == [size, 10 * size]
        assert result["loop"] == size * sum(range(20))
        assert result["apart"] == [size * place for place in range(20)]


# --- gradients


def test_tables_are_not_averaged_with_each_other(two_ranks):
    for result in two_ranks.results("several_tables"):
        assert result == [[-5.0], [-10.0], [-5.0]]


def test_means_of_sparse_gradients(launch):
    for result in launch.results("sparse_means"):
        for name in ("small", "gathered", "averaged"):
            assert result[name]["error"] < 1e-6
            assert result[name]["others"] == [True, [1.0, 1.0]]
        small, gathered, averaged = result["small"], result["gathered"], result["averaged"]
        assert not small["is_sparse"]
        assert small["bytes"] == 50 * 3 * 4 + 2 * 4
        assert gathered["is_sparse"]
        assert gathered["rows_are_different"]
        assert gathered["num_rows"] < 7 * launch.size  # some tokens occur on more than one rank
        assert gathered["bytes"] == 2 * 4 + 2 * 8  # the dense gradient, and the number of rows of each rank
        assert averaged["is_sparse"]
        assert averaged["bytes"] == 10_000 * 3 * 4 + 2 * 4 + 2 * 8
        assert result["merged"] == [[3, 1], [[5.0], [2.0]]]


def test_compression_halves_the_bytes(launch):
    result = same_on_all(launch.results("compressed_means"))
    middle = (launch.size - 1) / 2
    np.testing.assert_allclose(result["means"][0], [1 + middle, 1e-3], rtol=1e-3)
    np.testing.assert_allclose(result["means"][1], [4 * middle], rtol=1e-3)
    assert result["dtypes"] == ["float32", "float64"]
    assert result["bytes"] == 3 * 2


def test_repeated_tokens_are_added_up_before_adam_squares_them(two_ranks):
    assert max(two_ranks.results("repeated_tokens")) < 1e-6


def test_overwritten_variables_take_the_value_of_rank_0(launch):
    plain, scale = same_on_all(launch.results("overwritten_variables"))
    assert plain == [1 - (launch.size - 1) / 2] * 2
    assert scale == [10.0] * 3


@pytest.mark.parametrize("case", parity.CASES)
def test_two_ranks_give_what_one_process_gives(two_ranks, one_process, case):
    assert_same_on_ranks(two_ranks, one_process, case)


@pytest.mark.parametrize("case", parity.ON_THREE_RANKS)
def test_three_ranks_give_what_one_process_gives(three_ranks, one_process, case):
    assert_same_on_ranks(three_ranks, one_process, case)


def assert_same_on_ranks(launch, one_process, case):
    ranks, expected, feature = [], one_process[case], case.split("-")[1]
    for rank in range(launch.size):
        with np.load(launch.folder / "parity_with_one_process" / f"parity-{rank}.npz") as arrays:
            ranks.append({name.split("/")[1]: arrays[name] for name in arrays.files if name.split("/")[0] == case})
    assert set(ranks[0]) == set(expected), case
    parity.set_precision(feature)
    initial = [np.array(weight) for weight in parity.make_model(feature).get_weights()]
    for name, value in expected.items():
        for rank in ranks:
            np.testing.assert_array_equal(rank[name], ranks[0][name], case)
        if name.startswith("weight"):
            tolerance = TOLERANCES.get(feature, 1e-9)
            movement = np.linalg.norm(value - initial[int(name[6:])])
            assert movement > 0, case
            assert np.linalg.norm(ranks[0][name] - value) <= tolerance * movement, case
        else:
            assert ranks[0][name] == value, case
    if feature == "overflow":
        assert expected["iterations"] == 8, case  # of 10; the two with the large row were left out


def test_accumulated_gradients_are_reduced_once_per_step(launch):
    num_bytes = same_on_all(launch.results("parity_with_one_process"))
    model = parity.make_model("plain")
    steps = parity.EPOCHS * parity.NUM_ROWS // parity.GLOBAL_BATCH
    assert num_bytes["sgd-plain"] == steps * model.count_params() * 8
    assert num_bytes["sgd-accumulation"] == steps // 2 * model.count_params() * 8


# --- callbacks


def test_ranks_start_from_equal_variables(launch):
    results = launch.results("equal_starts")
    root = results[-1]["by_callback"]
    for result in results:
        assert result["by_callback"]["weights"] == root["initial"]
        assert result["by_callback"]["momentum"] == [[0.5 * (launch.size - 1)] * 6] * 4
        # Without the callback: the trainable variables, by the optimizer; moving means stay each rank's own.
        for place in TRAINABLE:
            assert result["by_optimizer"]["weights"][place] == results[0]["by_optimizer"]["weights"][place]
            assert result["deferred"][place] == results[0]["deferred"][place]
    assert results[0]["by_optimizer"]["weights"][4] != results[1]["by_optimizer"]["weights"][4]
    assert results[0]["by_optimizer"]["initial"] != results[1]["by_optimizer"]["initial"]


def test_measurements_follow_a_model_that_is_unfrozen_on_all_ranks(two_ranks):
    found = same_on_all(two_ranks.results("unfrozen_on_all_ranks"))
    assert found["steps"] == [[0, 2, 4], [1, 2, 3, 4]]
    assert found["variables"] == [2, 2, 6, 6]
    assert found["lambda_max"][-1] == pytest.approx(found["now"], rel=1e-4)
    assert found["lambda_max"][0] < found["now"]


def test_callbacks_share_an_objective_where_all_ranks_have_equal_data(two_ranks):
    assert same_on_all(two_ranks.results("shared_objectives")) == [1, 2]


def test_optimizers_of_a_models_own_start_and_stay_equal(two_ranks):
    assert same_on_all(two_ranks.results("optimizers_of_its_own"))["step"] == [0, 2]


def test_optimizers_in_the_place_of_compiles_train_as_one_process_does(two_ranks):
    x, y = (part.astype(float) for part in make_data(16))
    results = two_ranks.results("optimizers_in_the_place_of_compiles")
    for case, found in enumerate(results[0]):
        kernel, bias = (np.array(part) for part in found["before"])
        for rows in (slice(8), slice(8, 16)) * 2:
            residuals = x[rows] @ kernel + bias - y[rows]
            kernel, bias = kernel - 0.05 * x[rows].T @ residuals / 4, bias - 0.02 * residuals.mean(axis=0) * 2
        for rank in results:
            assert rank[case]["after"] == found["after"]
        np.testing.assert_allclose(np.array(found["after"][0]), kernel, rtol=1e-5)
        np.testing.assert_allclose(np.array(found["after"][1]), bias, rtol=1e-5, atol=1e-7)


def test_seeds_stay_each_ranks_own(two_ranks):
    assert [result[0][0] for result in two_ranks.results("seeds_stay_apart")] == list(range(two_ranks.size))


def test_sums_over_rows_are_summed_over_ranks(two_ranks):
    result = same_on_all(two_ranks.results("summed_losses"))
    x, y = make_data(12, seed=3)
    x, y = x.astype(float), y.astype(float)
    kernel, bias = (np.array(part, float) for part in result["before"])
    losses = []
    for _ in range(3):
        residual = x @ kernel + bias - y
        losses.append(np.sum(residual**2))
        kernel, bias = kernel - 0.02 * x.T @ residual, bias - 0.02 * residual.sum(axis=0)
    after = [*losses[1:], np.sum((x @ kernel + bias - y) ** 2)]
    for value, expected in ((result["after"][0], kernel), (result["after"][1], bias), (result["val_loss"], after)):
        np.testing.assert_allclose(np.array(value), expected, rtol=1e-4)
    np.testing.assert_allclose(result["loss"], losses, rtol=1e-4)


def test_losses_that_ranks_compute_otherwise_are_warned_of_once(two_ranks):
    first, second = two_ranks.results("losses_that_are_warned_of")
    assert second == {"mean": [], "ignoring": []}
    assert first["mean"] == []
    (text,) = first["ignoring"]
    assert "2 ranks do not train as one process" in text
    assert "SparseCategoricalCrossentropy is a mean over the targets that ignore_class=0 leaves" in text


def test_metrics_are_averaged(launch):
    history = same_on_all(launch.results("metrics"))
    middle = (launch.size - 1) / 2
    assert history["value"] == [middle, middle + 1]
    assert history["text"] == ["kept", "kept"]
    assert {"loss", "mae", "val_loss", "val_mae"} <= set(history)


def test_learning_rate_warms_up_from_its_share(launch):
    first, target = 0.6 / launch.size, 0.6
    ramp = [first + (target - first) * step / 4 for step in range(5)]
    for result in launch.results("warm_up"):
        np.testing.assert_allclose(result["rates"], [*ramp, target], rtol=1e-6)
        np.testing.assert_allclose(result["logged"], [ramp[1], ramp[3], target], rtol=1e-6)


def test_shards_are_equal_and_disjoint(launch):
    size = launch.size
    for rank, result in enumerate(launch.results("shards")):
        mine = [rank, size + rank, 2 * size + rank]
        assert result["known"] == result["unknown"] == mine
        assert result["arrays"] == [mine, mine]
        pairs = [[2 * k, 2 * k + 1][: 3 * size + 1 - 2 * k] for k in range((3 * size + 2) // 2)]
        assert result["unknown_batches"] == pairs[rank : len(pairs) // size * size : size]
        assert result["unknown_pairs"] == [[rank, rank], [size + rank, size + rank]]
        assert result["infinite"] == [*mine, (3 * size + rank) % (3 * size + 1)]


def test_mixed_precision_brings_its_loss_scaling(two_ranks):
    results = two_ranks.results("automatic_loss_scaling")
    for kind, stands_for, weights in results:
        assert (kind, stands_for) == ("DistributedOptimizer", "LossScaleOptimizer")
        assert [weights[place] for place in TRAINABLE] == [results[0][2][place] for place in TRAINABLE]


def test_curvature_is_that_of_all_rows(launch):
    found = same_on_all(launch.results("curvature"))
    x, y, _ = curvature_parity.make_rows(launch.size)
    for name, values in curvature_parity.measure(x, y, SerialCommunicator()).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5 * np.abs(values).max(), err_msg=name)


def test_a_fit_is_that_of_all_rows(two_ranks):
    *_, floor, num_examples, num_rows = same_on_all(two_ranks.results("a_fit_on_unequal_shards"))
    assert num_examples == 600
    x, y = curvature_parity.make_noisy_rows()
    design = np.column_stack([x, np.ones(len(x))])
    least = np.mean((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2)
    np.testing.assert_allclose(floor, least, rtol=1e-3)
    assert num_rows == 4 * 600


# --- callbacks that measure


def test_every_callback(two_ranks):
    cells = two_ranks.results("every_callback")
    assert set(cells[0]) == {"adam/eager", "lars/steps_per_execution"}
    for cell in cells[0]:
        mode = cell.split("/")[1]
        for rank in cells:
            assert rank[cell]["same"], cell
            assert rank[cell]["same_history"], cell
            assert rank[cell]["in_csv"], cell
            assert rank[cell]["in_board"], cell
            for name, steps in rank[cell]["steps"].items():
                expected = callback_table.expected_steps(name, mode) or [7, 14, 21]  # the last: between ranks
                assert steps == expected, (cell, name)
            if mode != "eager":
                assert np.isfinite(rank[cell]["history"]["hessian/lambda_min"]).all()
            np.testing.assert_equal(rank[cell]["history"], cells[0][cell]["history"], err_msg=cell)


def test_noise_between_ranks_is_that_of_the_gradients(launch):
    results = launch.results("noise_between_ranks")
    local = np.array([result["local_gradients"] for result in results])  # rank, step, entry
    small = (local**2).sum(axis=2).mean(axis=0)
    big = (local.mean(axis=0) ** 2).sum(axis=1)
    noise = (small - big) / (1 - 1 / launch.size)
    signal = (launch.size * big - small) / (launch.size - 1)
    scale = 3 * noise.mean() / signal.mean() if signal.mean() > 0 else np.inf
    tolerances = {"plain": 1e-5, "compressed": 2e-2, "mixed": 2e-2}
    for name, tolerance in tolerances.items() if launch.size == 2 else [("plain", 1e-5)]:
        parts = [denan(result)[name] for result in results]
        found = same_on_all([{k: v for k, v in part.items() if not k.endswith("seconds")} for part in parts])
        assert len(found["step"]) == 2
        for epoch in range(2):
            row = {key.split("/")[-1]: series[epoch] for key, series in found.items() if "/" in key}
            assert row["covariance_trace"] == pytest.approx(3 * noise.mean(), rel=tolerance)
            assert row["squared_gradient_norm"] == pytest.approx(signal.mean(), rel=tolerance, abs=tolerance)
            assert row["noise_scale"] == pytest.approx(scale, rel=10 * tolerance)


def test_noise_between_ranks_is_of_the_batches_of_the_moment(two_ranks):
    again, new = same_on_all([result["second"] for result in two_ranks.results("noise_between_ranks")])
    assert again == new


def denan(value):
    """NaN as None, which equals itself."""
    if isinstance(value, dict):
        return {name: denan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [denan(part) for part in value]
    return None if isinstance(value, float) and np.isnan(value) else value


# --- misuse

MISUSE = {
    "other_calls": "have reached different points: rank 0 is at pears, rank 1 at apples",
    "gather_of_a_scalar": "`tensor` must have at least one axis",
    "root_that_is_no_rank": "`root_rank` must be an integer >= 0 and <= ",
    "different_numbers_of_batches": "do not agree on the number of batches: rank 0 has 2, rank 1 has 3",
    "unknown_numbers_of_batches": "rank 0 has the end of epoch 1, after 4 batches in the last epoch, rank 1 has the "
    "end of epoch 1, after 7 batches",
    "unknown_numbers_with_sparse_gradients": "after 5 batches in the last epoch, rank 1 has the end of epoch 1, "
    "after 4 batches",
    "frozen_on_one_rank": "do not agree on the variables: .* not trainable",
    "frozen_on_one_rank_without_callbacks": "do not agree on the trainable variables: rank 0 has "
    "sequential/dense/kernel",
    "other_learning_rate": "do not agree on the learning rate: rank 0 has 0.1.*, rank 1 has 0.2",
    "other_optimizer_state": "do not agree on the optimizer's arguments: rank 0 has momentum=0.0, rank 1 has momentum",
    "other_clipping": "do not agree on the optimizer's arguments: rank 0 has clipnorm=None, rank 1 has clipnorm=0.01",
    "frozen_later_on_one_rank": "do not agree on the variables: .* not trainable",
    "a_callback_on_one_rank": "do not agree on the callbacks: rank 0 has AverageMetrics, rank 1 has none",
    "the_only_callback_on_one_rank": "different points: rank 0 is at the start of training, rank 1 at the first step",
    "plain_optimizer": "compiled with a plain SGD: each rank would train on its own",
    "plain_optimizer_on_one_rank": "Rank 1: The model was compiled with a plain SGD",
    "xla": r"model.compile\(..., jit_compile=False\)",
    "xla_without_callbacks": r"compiled with XLA.*model.compile\(..., jit_compile=False\)",
    "horovods_own_wrapper": "horovod.tensorflow.keras.DistributedOptimizer, which does not average",
    "early_stopping_on_local_metrics": "rank 1 has the end of training.*must come after AverageMetrics",
    "model_built_by_its_first_step": "creates its variables during the first step",
    "optimizer_inside_loss_scaling": "must not be wrapped in a LossScaleOptimizer",
    "a_measurement_on_one_rank": "do not agree on the callbacks: rank 0 has Convexity, rank 1 has none",
    "compiled_again_on_one_rank": "do not agree on the model: rank 0 has the one before, rank 1 has one that is new",
    "a_plain_optimizer_of_its_own": r"has the optimizer \"own\['kernel'\]\", a plain SGD: each rank would train",
    "a_plain_optimizer_that_takes_a_step": r"Rank \d: The model was compiled with a plain RMSprop: each rank would",
    "sample_weights_on_one_rank": "Rank 1: Convexity would measure another loss than `fit` minimises",
    "measuring_unequal_weights": "do not agree on the weights.*BroadcastVariables",
    "a_sum_over_rows": r"`loss` must not depend on how rows are divided into batches. .* and \d batches over all ranks",
    "masks_that_differ_between_ranks": "`loss` must be a mean over rows",
    "masks_on_one_rank": "`loss` must be a mean over rows",
    "a_certificate_that_one_rank_refuses": "does not cover this: the data have sample weights",
    "noise_of_a_plain_optimizer": "compares the gradients of ranks, which needs .*DistributedOptimizer",
    "noise_of_accumulated_gradients": "accumulated over several steps. Received: gradient_accumulation_steps=2",
    "noise_of_batches_of_unknown_size": "does not know how many rows a batch of one rank has: pass `local_batch_size`",
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_ends_in_a_clear_error_on_every_rank(two_ranks, name):
    """And not in Horovod's error after a stall, which is of another class."""
    assert_refused(two_ranks, name)


@pytest.mark.parametrize("name", ["other_calls", "root_that_is_no_rank", "masks_that_differ_between_ranks"])
def test_misuse_ends_in_a_clear_error_on_each_of_three_ranks(three_ranks, name):
    assert_refused(three_ranks, name)


def assert_refused(launch, name):
    for result in launch.results(name):
        assert result["error"] in ("ValueError", "NotAMeanError"), result["message"]
        assert re.search(MISUSE[name], result["message"], flags=re.DOTALL), result["message"]


@pytest.mark.slow_by_nature
def test_ranks_that_wait_in_vain_end_the_job(start_ranks):
    """Without callbacks nobody compares the numbers of batches; Horovod's own limit, set here to seconds, is left."""
    limits = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "2", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "4"}
    done = start_ranks(2, "run_uneven_ranks.py", **limits)
    assert done.returncode != 0
    assert re.search(r"Missing ranks:\s*.*0!: \[", done.stdout, flags=re.DOTALL), done.stdout[-3000:]


# --- saved models and checkpoints


def test_training_resumes_bit_for_bit(two_ranks):
    for rank, result in enumerate(two_ranks.results("resumed")):
        assert result["same"]
        assert result["files"] == [f"epoch-00000{e}.rank-{rank}-of-{two_ranks.size}.npz" for e in (2, 3)]
        assert result["epochs"] == list(range(6))


def test_a_truncated_file_is_passed_over_for_the_older_one(two_ranks):
    *others, last = two_ranks.results("resumed")
    assert all(result["same_after_truncation"] for result in [*others, last])
    assert len(last["warnings"]) == 1
    assert "epoch-000006" in last["warnings"][0]
    assert not any(result["warnings"] for result in others)


def test_saved_models_hold_the_plain_optimizer(two_ranks):
    assert all(two_ranks.results("saved_model"))
    model = keras.models.load_model(two_ranks.folder / "saved_model" / "model.keras")
    assert type(model.optimizer).__name__ == "LARS"
    with np.load(two_ranks.folder / "saved_model" / "variables.npz") as arrays:
        found = [np.asarray(v) for v in [*model.variables, *model.optimizer.variables]]
        assert len(found) == len(arrays.files)
        for value, name in zip(found, arrays.files, strict=True):
            np.testing.assert_array_equal(value, arrays[name])


def test_saved_models_load_where_horovod_cannot_be_imported(two_ranks):
    script = Path(__file__).resolve().parents[1] / "support" / "load_without_horovod.py"
    command = [sys.executable, script, two_ranks.folder / "saved_model"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "loaded without Horovod" in done.stdout


# --- training without gradients


@pytest.fixture(scope="module")
def bregman_on_one_process():
    return {case: bregman_parity.train(case, SerialCommunicator()) for case in bregman_parity.CASES}


@pytest.mark.parametrize(
    ("size", "case"),
    [(2, case) for case in bregman_parity.CASES] + [(3, case) for case in bregman_parity.ON_THREE_RANKS],
)
def test_training_without_gradients_is_that_of_one_process(launch_once, bregman_on_one_process, size, case):
    found, expected = same_on_all(launch_once(size).results("bregman_parity"))[case], bregman_on_one_process[case]
    for ours, theirs in zip(found["weights"], expected["weights"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert found["logs"].keys() == expected["logs"].keys()
    for name, values in found["logs"].items():
        np.testing.assert_allclose(values, expected["logs"][name], rtol=1e-6, atol=1e-12, err_msg=name)


def test_bytes_of_a_sweep_do_not_depend_on_the_rows(two_ranks):
    for name, found in same_on_all(two_ranks.results("bregman_bytes_reduced")).items():
        preset, width, _ = name.split()
        sizes = [(7, int(width)), (int(width) + 1, 3)]  # inputs, their bias counted, and outputs of each layer
        numbers = sum(inputs * outputs for inputs, outputs in sizes)
        numbers += sum(
            inputs * (inputs + 1) // 2 for inputs, _ in sizes[1:]
        )  # that of the data was summed at the start
        # Restarted: a distance a layer, and the loss; else 5 sums and a residual a layer, and the loss.
        numbers += 2 + 1 if preset == "restarted" else 5 + 2 + 1
        assert found == [8 * numbers] * 2, name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan_on_the_last_rank", "Rank {last}: `x` must be finite. Received: NaN or infinity in row 2"),
        ("an_empty_shard", "Rank 1: `x` must have at least one row. Received: no rows"),
        ("other_inputs_on_one_rank", "Rank 0: `x` must have the shape (rows, 6). Received: shape ("),
        (
            "other_options_on_one_rank",
            "The ranks do not agree on the options: rank 0 has ridge=0.1, rank 1 has ridge=0.2",
        ),
        ("more_epochs_on_one_rank", "The ranks do not agree on the epochs: rank 0 has 2, rank 1 has 1"),
        ("validation_on_one_rank", "The ranks do not agree on the use of validation: rank 0 has True"),
        ("a_refused_callback_on_one_rank", "Rank 1: `callbacks` has a ReduceLROnPlateau, which does nothing here"),
        ("a_pipeline_that_breaks_on_one_rank", "Rank 1: InvalidArgumentError: "),
        ("another_checkpoint_on_one_rank", "Rank 1: The checkpoint in "),
    ],
)
def test_what_is_wrong_on_one_rank_is_the_same_error_on_all(two_ranks, name, message):
    said = same_on_all(two_ranks.results(f"bregman_{name}"))
    assert said.startswith(message.format(last=two_ranks.size - 1)), said


def test_training_without_gradients_is_measured_on_ranks(two_ranks):
    """Rows may differ in number, and steps are sweeps."""
    found, expected = same_on_all(two_ranks.results("bregman_measuring")), bregman_parity.measure(SerialCommunicator())
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)
    assert [expected[f"steps {place}"] for place in range(3)] == [[0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3]]


def test_training_without_gradients_stops_on_all_ranks(two_ranks):
    assert same_on_all(two_ranks.results("bregman_stopping_on_one_rank")) == [0, 1]


def test_training_without_gradients_resumes_on_ranks(two_ranks):
    assert same_on_all(two_ranks.results("bregman_resuming"))
