"""The training loop: what it keeps, when it stops, and that a kill at any moment changes nothing of how it ends."""

import contextlib
import json
import multiprocessing
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from stages import io
from stages.training import Diverged, NoRoom, Plan, Run
from tests.arrays import ArrayBatches

SGD = partial(torch.optim.SGD, lr=0.1)
FORKS = "fork" in multiprocessing.get_all_start_methods()
needs_fork = pytest.mark.skipif(not FORKS, reason="kills forked processes, and this system cannot fork")


@pytest.fixture
def run() -> Run:
    return Run(seed=0, quiet=True)


def data(count: int = 10) -> ArrayBatches:
    return ArrayBatches({"x": torch.randn(count, 3, generator=torch.Generator().manual_seed(0))})


def line() -> nn.Module:
    model = nn.Linear(3, 1)
    nn.init.constant_(model.weight, 0.5)
    nn.init.zeros_(model.bias)
    return model


def square(model, batch, generator):
    return (model(batch.features["x"]) - 1).square().mean()


def train(run: Run, model: nn.Module, plan: Plan, batches=None, **more) -> int:
    return run.train(model, batches or data(), partial(square, model), plan, **more)


def test_each_step_is_the_optimisers(run):
    """Full batches: three steps of gradient descent, once by the loop and once by hand."""
    model, by_hand = line(), line()
    train(run, model, Plan(optimiser=SGD, epochs=3, batch_size=10))
    for _ in range(3):
        slopes = torch.autograd.grad(square(by_hand, data().take(list(range(10))), None), list(by_hand.parameters()))
        for value, slope in zip(by_hand.parameters(), slopes, strict=True):
            value.data -= 0.1 * slope
    torch.testing.assert_close(model.weight, by_hand.weight)


def test_every_image_counts_once_an_epoch_in_an_order_of_its_own(run):
    batches, seen = data(10), []
    batches.take = lambda positions, take=batches.take: seen.append(positions) or take(positions)
    train(run, line(), Plan(optimiser=SGD, epochs=3, batch_size=4), batches)
    epochs = [[position for batch in seen[place : place + 3] for position in batch] for place in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) == 3
    assert [len(batch) for batch in seen[:3]] == [4, 4, 2]


def test_steps_cap_the_epochs_and_the_last_step_is_measured(run):
    kept = train(run, line(), Plan(optimiser=SGD, epochs=100, batch_size=4, steps=7))
    assert kept == 7 and [row["step"] for row in run.history] == [3, 6, 7] and [row["epoch"] for row in run.history] == [0, 1, 2]


def test_measurements_can_come_more_often_than_epochs(run):
    train(run, line(), Plan(optimiser=SGD, epochs=1, batch_size=1, every=4))
    assert [row["step"] for row in run.history] == [4, 8, 10]


def test_the_loss_in_the_history_is_the_mean_since_the_row_before(run):
    model, losses = line(), []

    def loss(batch, generator):
        value = square(model, batch, generator)
        losses.append(value.item())
        return value

    run.train(model, data(), loss, Plan(optimiser=SGD, epochs=2, batch_size=5))
    assert [row["loss"] for row in run.history] == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])


def test_a_run_tells_of_each_row_as_it_is_measured_and_the_model_can_be_used_then(run):
    told, model = [], line()
    run.heard = lambda row: told.append((dict(row), model.training))
    train(run, model, Plan(optimiser=SGD, epochs=3, batch_size=4))
    assert [row for row, _ in told] == run.history and [row["epoch"] for row, _ in told] == [0, 1, 2] and not any(mode for _, mode in told)


def test_the_schedule_scales_every_groups_own_rate(run):
    rates = []

    def optimiser(parameters):
        return torch.optim.SGD([{"params": parameters[:1], "lr": 1.0}, {"params": parameters[1:], "lr": 0.1}])

    model = line()

    def loss(batch, generator):
        rates.append([group["lr"] for group in made[0].param_groups])
        return 0 * square(model, batch, generator)

    made = []
    falling = Plan(
        optimiser=lambda p: made.append(optimiser(p)) or made[0], epochs=2, batch_size=5, schedule=lambda step, of: 1 - step / of
    )
    run.train(model, data(), loss, falling)
    assert rates == [[1.0, 0.1], [0.75, pytest.approx(0.075)], [0.5, 0.05], [0.25, 0.025]]


def test_the_best_state_is_kept_not_the_last(run):
    model, values, states = line(), iter([3.0, 1.0, 2.0, 4.0]), []

    def measure():
        states.append(model.weight.clone())
        return {"val_loss": next(values), "other": 0.0}

    kept = train(run, model, Plan(optimiser=SGD, epochs=4, batch_size=10, watch="val_loss"), measure=measure)
    assert kept == 2 and torch.equal(model.weight, states[1]) and not torch.equal(model.weight, states[3])


def test_it_stops_after_patience_measurements_without_a_better_one(run):
    values = iter([3.0, 3.0, 2.0, 2.0, 2.5, 1.0])
    plan = Plan(optimiser=SGD, epochs=6, batch_size=10, watch="v", patience=2)
    assert train(run, line(), plan, measure=lambda: {"v": next(values)}) == 3
    assert [row["v"] for row in run.history] == [3.0, 3.0, 2.0, 2.0, 2.5]


def test_a_plateau_divides_the_rate_by_ten_again_and_again(run):
    values = iter([3.0, 3.0, 3.0, 2.0, 2.5, 2.5, 2.5, 2.5])
    plan = Plan(optimiser=SGD, epochs=8, batch_size=10, watch="v", plateau=2)
    train(run, line(), plan, measure=lambda: {"v": next(values)})
    assert [row["lr"] for row in run.history] == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001])


def test_a_plan_may_say_in_what_order_an_epoch_takes_its_samples(run):
    seen = []

    def loss(batch, generator):
        seen.append(batch.sample_id)
        return square(line_of, batch, generator)

    line_of, batches = line(), data()
    orders = iter([[0] * 10, list(range(10))])
    run.train(line_of, batches, loss, Plan(optimiser=SGD, epochs=2, batch_size=5, order=lambda generator: next(orders)))
    names = batches.take(list(range(10))).sample_id
    assert seen == [names[:1] * 5, names[:1] * 5, names[:5], names[5:]]


def test_an_order_of_another_length_is_refused(run):
    with pytest.raises(ValueError, match="must have 10 positions, one a sample, got 3"):
        train(run, line(), Plan(optimiser=SGD, epochs=1, batch_size=5, order=lambda generator: [0, 1, 2]))


def test_mixed_precision_without_cuda_is_said_once_and_changes_nothing(capsys):
    models = []
    for mixed in (False, True):
        models.append(line())
        train(Run(seed=0), models[-1], Plan(optimiser=SGD, epochs=2, batch_size=5, mixed_precision=mixed))
    assert torch.equal(models[0].weight, models[1].weight)
    assert capsys.readouterr().out.count("mixed precision needs CUDA") == 1


def test_the_model_trains_in_train_mode_and_is_measured_and_left_in_eval_mode(run):
    model, modes = nn.Sequential(line(), nn.Dropout(0.5)), []

    def loss(batch, generator):
        modes.append(("train", model.training, torch.is_grad_enabled()))
        return square(model, batch, generator)

    def measure():
        modes.append(("measure", model.training, torch.is_grad_enabled()))
        return {}

    run.train(model, data(), loss, Plan(optimiser=SGD, epochs=2, batch_size=10), measure)
    assert modes == [("train", True, True), ("measure", False, False)] * 2 and not model.training


def test_random_numbers_of_a_step_depend_on_seed_and_step_alone(run):
    """Both the generator that a loss gets and the global one, which dropout draws from; and neither is left changed."""
    draws = []

    def loss(model, batch, generator):
        draws.append((torch.rand(1, generator=generator).item(), torch.rand(1).item()))
        return square(model, batch, generator)

    for seed in (0, 0, 1):
        model = line()
        torch.manual_seed(seed + 77)
        before = torch.random.get_rng_state()
        Run(seed=seed, quiet=True).train(model, data(), partial(loss, model), Plan(optimiser=SGD, epochs=2, batch_size=10))
        assert torch.equal(before, torch.random.get_rng_state())
    assert draws[0:2] == draws[2:4] and draws[0] != draws[1] and draws[0] != draws[4]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_says_what_where_and_what_to_do(value):
    model = line()

    def loss(batch, generator):
        steps.append(0)
        return square(model, batch, generator) * (value if len(steps) == 6 else 1.0)

    steps: list[int] = []
    expected = r"mono seed 0: the loss became (nan|inf) at step 6 of 20 \(epoch 2, learning rate 0\.1\)\. Lower the learning rate"
    with pytest.raises(Diverged, match=expected):
        Run(seed=0, quiet=True, label="mono seed 0").train(model, data(), loss, Plan(optimiser=SGD, epochs=10, batch_size=5))
    assert model.weight.isfinite().all(), "the step that diverged must not be taken"


@pytest.mark.parametrize(("size", "mend"), [(8, "Set batch_size to 4 in params.yaml, or compute.device to cpu"), (1, "Use smaller images, or set")])
def test_a_device_that_is_full_says_what_fits(run, size, mend):
    def loss(batch, generator):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(NoRoom, match=rf"E502 cpu has no room for a batch of {size} \(train\)\. {mend}"):
        run.train(line(), data(), loss, Plan(optimiser=SGD, epochs=1, batch_size=size))


def test_a_watched_quantity_that_is_not_finite_is_an_error_too(run):
    with pytest.raises(Diverged, match="the v became nan"):
        train(run, line(), Plan(optimiser=SGD, epochs=1, batch_size=5, watch="v"), measure=lambda: {"v": float("nan")})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"patience": 3}, "patience needs a quantity to watch"),
        ({"watch": "v"}, "watching 'v' needs something that measures it"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(run, changes, message):
    with pytest.raises(ValueError, match=message):
        train(run, line(), Plan(**{"optimiser": SGD, "epochs": 1, "batch_size": 5, **changes}))


def test_a_watched_quantity_that_nobody_measures_is_named_with_what_is_measured(run):
    with pytest.raises(ValueError, match="nothing measures 'v'; measured: loss_a, loss_b"):
        train(run, line(), Plan(optimiser=SGD, epochs=1, batch_size=5, watch="v"), measure=lambda: {"loss_b": 1.0, "loss_a": 2.0})


def test_no_images_is_an_error(run):
    with pytest.raises(ValueError, match="no images to train on"):
        train(run, line(), Plan(optimiser=SGD, epochs=1, batch_size=5), data(0))


def test_two_trainings_of_one_fit_need_two_names(run):
    plan = Plan(optimiser=SGD, epochs=1, batch_size=5)
    train(run, line(), plan, name="teacher")
    train(run, line(), plan, name="student")
    with pytest.raises(ValueError, match="already trained 'teacher'"):
        train(run, line(), plan, name="teacher")


def test_auto_is_a_device_that_is_here():
    assert Run(seed=0, device="auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none_is_said_at_once():
    with pytest.raises(RuntimeError, match=r"set compute\.device to cpu or auto"):
        Run(seed=0, device="cuda")


class Dies:
    """Kills this process with SIGKILL at one call of one of the functions that report to it."""

    def __init__(self, where: str, call: int) -> None:
        self.where, self.call, self.calls = where, call, dict.fromkeys(("loss", "measure", "replace", "replaced"), 0)

    def at(self, name: str) -> None:
        self.calls[name] += 1
        if name == self.where and self.calls[name] == self.call:
            os.kill(os.getpid(), signal.SIGKILL)


def everything_that_has_a_state(folder: Path, optimiser: str, dies: Dies) -> None:
    """Moments of the optimiser, a schedule, dropout, batch statistics, draws of the loss, a best state; a checkpoint at every step."""
    replace = os.replace

    def watched_replace(*paths):
        dies.at("replace")
        replace(*paths)
        dies.at("replaced")

    os.replace = watched_replace
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
    values = torch.randn(22, 4, generator=torch.Generator().manual_seed(0))

    def error(x):
        return (model(x) - x.sum(dim=1, keepdim=True)).square().mean()

    def loss(batch, generator):
        dies.at("loss")
        x = batch.features["x"]
        return error(x + 0.1 * torch.randn(x.shape, generator=generator))

    def measure():
        dies.at("measure")
        return {"val": error(values).item()}

    make = {"sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9), "adamw": partial(torch.optim.AdamW, lr=0.01)}[optimiser]
    plan = Plan(optimiser=make, epochs=5, batch_size=5, watch="val", schedule=lambda step, total: 1 - 0.5 * step / total)
    run = Run(seed=1, resume=folder / "resume", quiet=True, checkpoint_s=0.0)
    kept = run.train(model, ArrayBatches({"x": values}), loss, plan, measure)
    io.write_model(folder / "end.safetensors", model.state_dict(), {"kept": kept, "history": run.history})


def end_of(folder: Path, optimiser: str, where: str = "loss", call: int = 0) -> tuple[int, bytes | None]:
    """Exit code and result of that training in a process of its own. Forked: importing torch anew would take longer than all tests here."""
    child = multiprocessing.get_context("fork").Process(target=everything_that_has_a_state, args=(folder, optimiser, Dies(where, call)))
    child.start()
    child.join()
    end = folder / "end.safetensors"
    return child.exitcode, end.read_bytes() if end.is_file() else None


@pytest.fixture(scope="module")
def clean_end(tmp_path_factory):
    return {optimiser: end_of(tmp_path_factory.mktemp(optimiser), optimiser) for optimiser in ("sgd", "adamw")}


@needs_fork
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("where", "call"),
    [
        ("loss", 1),
        ("loss", 13),
        ("loss", 25),
        ("measure", 3),
        ("replace", 1),  # while the first checkpoint is being written
        ("replace", 9),
        ("replaced", 9),  # right after one was
        ("replaced", 25),  # trained to the end, the result not yet written
    ],
)
def test_killed_and_started_again_it_ends_bit_for_bit_as_if_it_had_not_been(where, call, optimiser, clean_end, tmp_path):
    assert end_of(tmp_path, optimiser, where, call) == (-signal.SIGKILL, None)
    assert end_of(tmp_path, optimiser) == clean_end[optimiser]
    assert clean_end[optimiser][0] == 0


@needs_fork
def test_killed_again_and_again_it_still_ends_the_same(clean_end, tmp_path):
    for _ in range(4):
        assert end_of(tmp_path, "adamw", "loss", 6) == (-signal.SIGKILL, None)
    assert end_of(tmp_path, "adamw") == clean_end["adamw"]


@needs_fork
def test_a_killed_training_goes_on_from_its_last_checkpoint_not_from_the_start(tmp_path):
    """Killed at its 13th step it has 12 behind it; the 14th step of the second process would be the 26th of 25."""
    end_of(tmp_path, "sgd", "loss", 13)
    assert end_of(tmp_path, "sgd", "loss", 14)[0] == 0


def test_patience_counts_on_where_it_was_interrupted(tmp_path):
    """Two measurements without a new best stop it: one before the interruption, one after."""
    plan, values, calls = Plan(optimiser=SGD, epochs=9, batch_size=10, watch="v", patience=2), iter([1.0, 2.0, 3.0, 4.0]), []

    def loss(model, batch, generator):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return square(model, batch, generator)

    runs = [Run(seed=0, resume=tmp_path, quiet=True, checkpoint_s=0.0) for _ in range(2)]
    for run, ends in zip(runs, (pytest.raises(KeyboardInterrupt), contextlib.nullcontext()), strict=True):
        model = line()
        with ends:
            run.train(model, data(), partial(loss, model), plan, measure=lambda: {"v": next(values)})
    assert [row["v"] for row in runs[1].history] == [1.0, 2.0, 3.0]


def test_a_training_that_was_finished_is_not_run_again(tmp_path):
    plan = Plan(optimiser=SGD, epochs=3, batch_size=5, watch="v")
    first, second = line(), line()
    runs = [Run(seed=0, resume=tmp_path, quiet=True) for _ in range(2)]
    values = iter([2.0, 1.0, 3.0])
    kept = train(runs[0], first, plan, measure=lambda: {"v": next(values)})
    never = data()
    never.take = lambda positions: pytest.fail("it trained again")
    assert train(runs[1], second, plan, never, measure=lambda: pytest.fail("it measured again")) == kept == 4
    assert torch.equal(first.weight, second.weight) and runs[0].history == runs[1].history


def test_a_checkpoint_holds_tensors_and_json_and_nothing_else(tmp_path):
    train(Run(seed=0, resume=tmp_path, quiet=True), line(), Plan(optimiser=partial(torch.optim.Adam, lr=0.1), epochs=1, batch_size=5))
    (file,) = tmp_path.iterdir()
    names = set(io.read_model(file))
    assert file.name == "train.safetensors" and {"model.weight", "optimiser.0.exp_avg", "optimiser.0.step"} <= names


def test_a_file_that_is_no_checkpoint_says_what_to_delete(tmp_path):
    (tmp_path / "train.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=rf"delete the folder {tmp_path} to start afresh"):
        train(Run(seed=0, resume=tmp_path, quiet=True), line(), Plan(optimiser=SGD, epochs=1, batch_size=5))


def test_without_a_folder_nothing_is_written(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(run, line(), Plan(optimiser=SGD, epochs=1, batch_size=5))
    assert list(tmp_path.iterdir()) == []


def test_the_history_is_plain_json(run):
    train(run, line(), Plan(optimiser=SGD, epochs=1, batch_size=5, watch="v"), measure=lambda: {"v": 1.0})
    assert json.loads(json.dumps(run.history, allow_nan=False)) == run.history
