"""Products of whole numbers: by hand, against exact sums, in every student that may use them, and in a run."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from micro import GLUE, micro, write_sst2
from pruning import batches, inputs, make

from spikeprune import cli, evaluation, pipeline, saved
from spikeprune.config import load
from spikeprune.errors import InputError
from spikeprune.models.compact import compact
from spikeprune.models.integer import exact, int_matmul, integer_linear, spike_counts, steps_behind
from spikeprune.models.quant import QUANTIZERS
from spikeprune.models.student import Student
from spikeprune.report.table import evaluation_lines
from spikeprune.rundir import RunDir
from spikeprune.spiking.coding import CODINGS
from spikeprune.spiking.neurons import NEURONS


def numbers(seed: int, rows: int, columns: int, most: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, (rows, columns), generator=generator).to(torch.int8)


@given(st.integers(0, 99), st.integers(0, 40), st.integers(0, 70), st.integers(0, 20), st.sampled_from([1, 127]))
def test_sums_are_exact(seed, m, k, n, most) -> None:
    a, b = numbers(seed, m, k, 127), numbers(seed + 1, n, k, most)
    found = int_matmul(a, b)
    assert found.dtype == torch.int32 and torch.equal(found.long(), a.long() @ b.long().T)


def test_small_shapes_are_exact() -> None:
    """Of which torch's own product is wrong for K = 1."""
    for m, k, n in itertools.product((0, 1, 2, 17), range(10), (0, 1, 2, 8, 9)):
        a, b = numbers(m, m, k, 127), numbers(n, n, k, 127)
        assert torch.equal(int_matmul(a, b).long(), a.long() @ b.long().T), (m, k, n)


def test_this_machine_may_use_them() -> None:
    assert exact(torch.device("cpu"))


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    assert exact(torch.device("cuda"))
    for m, k, n in ((1, 1, 1), (17, 37, 5), (33, 384, 1536), (0, 8, 8)):
        a, b = numbers(0, m, k, 127), numbers(1, n, k, 127)
        assert torch.equal(int_matmul(a.cuda(), b.cuda()).cpu().long(), a.long() @ b.long().T)
    student, batch = quantized("ternary", fold=True).float().cuda().eval(), batches((3,))[0]
    batch = {name: x.cuda() for name, x in inputs(batch).items()}
    torch.testing.assert_close(*(answer(student, batch, products) for products in ("int8", "float")))


def test_by_hand() -> None:
    counts = torch.tensor([[[2.0, -1.0, 3.0]]])  # of 4 steps
    codes, theta = torch.tensor([[1, 0, -1], [1, 1, 1]], dtype=torch.int8), torch.tensor([0.5])
    unit, bias = torch.tensor([0.25, 2.0]) * theta, torch.tensor([1.0, 0.0])
    found = integer_linear(theta * counts / 4, codes=codes, unit=unit, bias=bias, theta=theta, steps=lambda x: 4.0)
    assert found.tolist() == [[[1 + 0.25 * 0.5 * (2 - 3) / 4, 2 * 0.5 * (2 - 1 + 3) / 4]]]


@pytest.mark.parametrize("t_steps", [1, 3, 4, 7, 100, 127])
def test_counts_come_back_from_float32_rates(t_steps) -> None:
    n = torch.arange(-t_steps, t_steps + 1).expand(500, -1).T
    theta = torch.logspace(-6, 4, 500)
    assert torch.equal(spike_counts(theta * (n.float() / t_steps), theta, torch.tensor(t_steps)), n.to(torch.int8))


def test_the_steps_behind_a_value() -> None:
    rate, read = torch.zeros(2, 3, 4), torch.zeros(5, 2, 3, 4)
    assert steps_behind(rate, t_steps=3, coding="running_mean") == 3
    assert steps_behind(read, t_steps=3, coding="running_mean").flatten().tolist() == [1, 2, 3, 3, 3]
    assert steps_behind(read, t_steps=3, coding="per_step").flatten().tolist() == [1, 1, 1, 3, 3]  # then its mean
    assert steps_behind(read, t_steps=9, coding="running_mean").flatten().tolist() == [1, 2, 3, 4, 5]


# ---------------------------------------------------------------------------------------------------------- a student


def quantized(name: str, **options) -> Student:
    student = make(weights=name, **options)
    student.set_strength(1.0)
    student.heads[0, 1] = student.ffn[0, 3] = 0
    student.heads[1] = 0
    student.ffn[1, ::3] = 0
    return student.eval()


def answer(student: Student, batch, products: str, mode: str = "spiking") -> torch.Tensor:
    student.use_products(products)
    with torch.no_grad():
        out = student(**batch, mode=mode)
    student.use_products("float")
    return torch.cat([x.flatten() for x in (out.logits, *out.hidden)])


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("spikes", [name for name, neuron in NEURONS.items() if neuron.gain is None])
@pytest.mark.parametrize("theta", [{"theta": "tensor"}, {"theta": "channel", "fold": True}], ids=["tensor", "folded"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_student_answers_as_with_floats(name, theta, spikes, coding) -> None:
    masked, batch = quantized(name, spikes=spikes, coding=coding, **theta), inputs(batches((3,))[0])
    small = compact(masked)
    for mode in ("spiking", "equilibrium"):
        wanted = answer(masked, batch, "float", mode)
        assert (wanted != 0).any()
        torch.testing.assert_close(answer(masked, batch, "int8", mode), wanted)
        torch.testing.assert_close(answer(small, batch, "int8", mode), wanted)
    student = quantized(name, spikes=spikes, coding=coding, query="spiking", **theta)
    torch.testing.assert_close(answer(student, batch, "int8"), answer(student, batch, "float"))


def test_they_are_really_used_and_have_no_gradient(monkeypatch) -> None:
    from spikeprune.models import integer

    student, calls = quantized("ternary", fold=True), []
    batch = inputs(batches((3,))[0])

    def spy(a, b):
        calls.append((a.dtype, b.dtype, tuple(b.shape), int(b.abs().max()) if b.numel() else 0))
        return int_matmul(a, b)

    assert exact(torch.device("cpu"))  # asked once a process, by a product
    monkeypatch.setattr(integer, "int_matmul", spy)
    answer(student, batch, "float")
    assert calls == []
    answer(student, batch, "int8")
    assert len(calls) == 2 * 6  # of two layers
    assert all(call[:2] == (torch.int8, torch.int8) for call in calls)
    assert [call[3] for call in calls] == [1] * 9 + [0] + [1] * 2  # the second layer's heads are all pruned
    student.use_products("int8")
    with pytest.raises(RuntimeError, match="int8 products have no gradient"):
        student(**batch)


def test_a_folded_student_learns_and_is_not_the_plain_one() -> None:
    folded, plain = quantized("ternary", fold=True), quantized("ternary")
    batch = inputs(batches((3,))[0])
    assert not torch.equal(answer(folded, batch, "float"), answer(plain, batch, "float"))
    folded.train()(**batch).logits.square().sum().backward()
    assert folded.layers[0].down.weight.grad.abs().max() > 0
    assert folded.layers[0].intermediate_site.log_theta.grad.abs().max() > 0


def test_what_whole_numbers_cannot_do_is_said() -> None:
    for student, words in (
        (make(), "int8 products need quantized weights; these are float"),
        (make(weights="ternary", fold=True), "need quantized weights; these are ternary, 0% quantized"),
        (quantized("ternary"), "need one threshold per tensor, or thresholds that were folded before quantizing"),
        (quantized("ternary", theta="tensor", leak=0.9), "need neurons without leak"),
        (quantized("ternary", theta="tensor", t_steps=(3, 128, 1)), "need trains of at most 127 steps"),
    ):
        with pytest.raises(ValueError, match=words):
            student.use_products("int8")
        assert student.products == "float"
    with pytest.raises(ValueError, match="unknown products 'int4'; known: float, int8"):
        make().use_products("int4")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["run.products=int8"], "run.products = int8: needs few-bit weights; set compress.weights"),
        (
            ["run.products=int8", "compress.weights=ternary"],
            "needs compress.quantize.fold=true or student.theta=tensor",
        ),
        (["run.products=int8", "student.leak=0.9"], "needs student.leak=1"),
        (["run.products=int8", "student.t_steps=[4,200,3]"], "needs at most 127 time steps"),
        (["run.products=int4"], "run.products = int4: choose from float, int8"),
        (["compress.quantize.fold=true", "student.theta=tensor"], "with nothing to fold; leave it false"),
        (["compress.quantize.fold=true"], "compress.quantize.fold = true: nothing is quantized"),
    ],
)
def test_a_configuration_that_cannot_is_refused(given, words) -> None:
    with pytest.raises(InputError, match=words):
        load(GLUE, ["preset=tiny", *given])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDir:
    folder = tmp_path_factory.mktemp("runs")
    stages = ["run.stages=[teacher,internal_kd,quantize]", "stages.internal_kd.epochs=1", "stages.quantize.epochs=2"]
    few = ["compress.weights=ternary", "compress.quantize.fold=true", "run.products=int8"]
    none = ["compress.heads=1", "compress.ffn=1", "compress.t_steps=null", "stages.teacher.epochs=2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.run(load(GLUE, [*micro(folder / "sst2", write_sst2(folder / "glue")), *stages, *few, *none]))
    return RunDir(folder / "sst2")


def test_a_run_measures_with_them_and_says_so(run, capsys) -> None:
    assert run.record("internal_kd")["encoder_weights"]["products"] == "float"  # not quantized yet
    record = run.record("quantize")
    assert record["encoder_weights"]["products"] == "int8"
    whole, real = evaluation.evaluate(run.path), evaluation.evaluate(run.path, products="float")
    assert whole["encoder_weights"]["products"] == "int8" and real["encoder_weights"]["products"] == "float"
    assert whole["metrics"] == real["metrics"] == record["metrics"]
    assert whole["cost"]["ac"] == pytest.approx(real["cost"]["ac"], rel=1e-3)
    assert "int8" in evaluation_lines(whole).splitlines()[-1]
    assert saved.load_student(run, "quantize").fold
    with pytest.raises(InputError, match="int8 products are for spikes, and the teacher has none"):
        evaluation.evaluate(run.path, "teacher", products="int8")
    capsys.readouterr()
    assert cli.main(["evaluate", str(run.path), "--stage", "internal_kd", "--products", "int8"]) == 2
    assert "int8 products of stage internal_kd need quantized weights" in capsys.readouterr().err
