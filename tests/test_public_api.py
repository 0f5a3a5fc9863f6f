"""The public names, the callbacks on a LightningModule that is not this package's, and operations as a metric."""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path

import lightning as L
import pytest
import students
import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, BertModel

import spikeprune
from spikeprune import (
    BudgetPruning,
    MaskSearch,
    SpatialPruning,
    SynapsePruning,
    SynapticOperations,
    TemporalPruning,
    WeightQuantization,
    compact,
    count_operations,
    from_bert,
)
from spikeprune.errors import InputError
from spikeprune.models.shape import dense_shape, student_shape
from spikeprune.models.sparsity import share
from spikeprune.models.variants import add_quantizer, add_synapse_masks
from spikeprune.training.losses import hard_loss
from spikeprune.training.protocol import PrunableModule

EXAMPLE = Path(__file__).resolve().parents[1] / "docs" / "examples" / "prune_your_own_module.py"


def test_every_public_name_is_found_and_a_wrong_one_is_not() -> None:
    assert set(spikeprune.__all__) <= set(dir(spikeprune))
    assert all(getattr(spikeprune, name) is not None for name in spikeprune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'SpatialPrunin'"):
        spikeprune.SpatialPrunin  # noqa: B018


def test_the_example_prunes_and_prints_operations(capsys) -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 40
    names: dict = {"__name__": "example"}
    exec(compile(EXAMPLE.read_text(encoding="utf-8"), str(EXAMPLE), "exec"), names)
    student = names["student"]
    assert student.heads.mean() == 0.5 and abs(student.ffn.mean() - 0.3) < 0.01
    assert student.steps == [2, 2, 2] and student.quantized == 1 and student.weights == "ternary"
    assert 0 < names["after"]["ac"] < names["before"]["ac"] / 2
    assert f"pruned: {names['after']['ac']:.0f}" in capsys.readouterr().out
    inputs = {name: names["batch"][name] for name in ("input_ids", "attention_mask")}
    small = compact(student.eval())
    torch.testing.assert_close(small(**inputs).logits, student(**inputs).logits)
    assert small.layers[0].up.out_features < student.layers[0].up.out_features


# ------------------------------------------------------------------------------------------------ a module of one's own


class Wrapped(torch.nn.Module):
    """A student inside another module, as a PreTrainedModel holds it."""

    def __init__(self, student):
        super().__init__()
        self.inner = student

    def forward(self, **inputs):
        return self.inner(**inputs)


class Own(L.LightningModule):
    def __init__(self, student):
        super().__init__()
        self.student = student

    def sample_loss(self, batch, outputs):
        return hard_loss(outputs.logits, batch["labels"], regression=False)

    def training_step(self, batch, batch_idx):
        inputs = {name: x for name, x in batch.items() if name != "labels"}
        return self.sample_loss(batch, self.student(**inputs)).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Gated(Own):
    """One that learns gates, as docs/compression.md says."""

    gates = None

    def training_step(self, batch, batch_idx):
        inputs = {name: x for name, x in batch.items() if name != "labels"}
        outputs = self.student(**inputs, rate=True, **self.gates.relaxed())
        loss = self.sample_loss(batch, outputs).mean()
        return loss + self.gates.penalty(outputs, inputs["attention_mask"].sum(1).float().mean())


def loader() -> DataLoader:
    batch = {**students.sentences((8, 5, 2, 7, 3, 8)), "labels": torch.tensor([0, 1, 2, 0, 1, 2])}
    return DataLoader([{name: x[i] for name, x in batch.items()} for i in range(6)], batch_size=3, shuffle=True)


def fit(module: L.LightningModule, *callbacks: L.Callback, epochs: int = 2, data=None) -> None:
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, callbacks=list(callbacks), **silent)
    trainer.fit(module, data or loader())


CALLBACKS = {
    "spatial": (SpatialPruning(heads=0.5, ffn=0.5), lambda s: (int(s.heads.sum()), int(s.ffn.sum())) == (3, 37)),
    "temporal": (TemporalPruning(t_steps=1), lambda s: s.steps == [1, 1, 1]),
    "quantize": (WeightQuantization("int8"), lambda s: s.quantized == 1 and s.weights == "int8"),
    "synapses": (SynapsePruning(kept=0.25), lambda s: abs(share(s) - 0.25) < 0.01),
    "search": (MaskSearch(operations=0.5, min_ffn=4), lambda s: s.ffn.mean() < 1),
}


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
def test_each_callback_compresses_a_module_of_ones_own(name, wrapped) -> None:
    callback, compressed = CALLBACKS[name]
    callback = copy.deepcopy(callback)
    student = students.make(dtype=torch.float32)
    module = Own(Wrapped(student) if wrapped else student)
    assert isinstance(module, PrunableModule) and not compressed(student)
    fit(module, callback)
    assert compressed(student)
    assert compact(module.student).values["layer_ffn"] == student.ffn.sum(1).tolist()
    other = students.make(dtype=torch.float32)
    fit(Own(other), callback)  # a second fit begins anew
    assert compressed(other)


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
def test_gates_are_learnt_in_a_module_of_ones_own(wrapped) -> None:
    student = students.make(dtype=torch.float32)
    mine = BudgetPruning(share=0.3, relative_to="student", min_ffn=4, measured=8)
    for own in (student, students.make(dtype=torch.float32)):  # a second fit begins anew
        fit(Gated(Wrapped(own) if wrapped else own), mine, epochs=4)
        assert own.ffn.mean() < 1 and not mine.gates.learning and mine.value <= mine.goal
        assert mine.gates.factor != 1  # calibrated


@pytest.mark.parametrize("steps", [[5, 4, 3], [4, 4, 4]], ids=["one rises", "too many"])
def test_a_criterion_that_breaks_its_contract_is_told(steps) -> None:
    callback = TemporalPruning(t_steps=3)
    callback.criterion = lambda stats, total: steps
    with pytest.raises(ValueError, match="a criterion gave time steps"):
        fit(Own(students.make(dtype=torch.float32)), callback)


LAST = {"quantize": lambda: WeightQuantization("ternary", end=3), "synapses": lambda: SynapsePruning(kept=0.5, end=3)}


@pytest.mark.parametrize("last", LAST)
def test_a_checkpoint_of_ones_own_trainer_resumes_between_decisions(last, tmp_path) -> None:
    """Masks, time steps, strength and synapses are the checkpoint's, and the remaining decisions are made."""

    def trainer(epochs: int) -> tuple[Own, L.Trainer]:
        callbacks = [SpatialPruning(heads=0.5, ffn=0.5, end=3), TemporalPruning(t_steps=1, end=3), LAST[last]()]
        silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        options = {"max_epochs": epochs, "accelerator": "cpu", "logger": False, **silent}
        return Own(students.make(epochs, dtype=torch.float32)), L.Trainer(callbacks=callbacks, **options)

    first, before = trainer(2)
    before.fit(first, loader())
    before.save_checkpoint(tmp_path / "first.ckpt")
    second, after = trainer(4)
    after.fit(second, loader(), ckpt_path=tmp_path / "first.ckpt", weights_only=False)
    old, new = first.student, second.student
    assert 0.5 < old.ffn.mean() < 1 and 1 < max(old.steps)  # the first two of four decisions
    assert new.heads.sum() == 3 and new.ffn.sum() == 37 and (new.ffn <= old.ffn).all() and new.steps == [1, 1, 1]
    assert (old.quantized, new.quantized) == (0.5, 1) or share(old) > share(new) == pytest.approx(0.5, abs=0.01)
    assert all(callback.decided == 3 for callback in after.callbacks if hasattr(callback, "decided"))


@pytest.mark.parametrize("lacking", ["student", "sample_loss"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_module_without_the_protocol_is_refused(name, lacking) -> None:
    class Without(L.LightningModule):
        def configure_optimizers(self):
            return None

    module = Without()
    other = {"student": students.make(), "sample_loss": lambda batch, outputs: None}
    for member in other.keys() - {lacking}:
        setattr(module, member, other[member])
    with pytest.raises(InputError, match=f"cannot prune Without: it has no {lacking}; give it"):
        CALLBACKS[name][0].setup(None, module, "fit")


@pytest.mark.parametrize("count", [0, 2])
def test_a_student_of_none_or_two_networks_is_refused(count) -> None:
    module = Own(torch.nn.ModuleList(students.make() for _ in range(count)))
    with pytest.raises(InputError, match=f"holds {count} SpikingBert networks"):
        SpatialPruning(heads=0.5, ffn=0.5).setup(None, module, "fit")


@pytest.mark.parametrize("made", [SpatialPruning, SynapsePruning, MaskSearch, BudgetPruning])
def test_a_percentage_is_no_share(made) -> None:
    (name,) = {"ffn", "kept", "operations", "share"} & inspect.signature(made).parameters.keys()
    with pytest.raises(ValueError, match=f"{name} = 50: must be from 0 to 1"):
        made(**{name: 50})


BERT = BertForSequenceClassification(
    BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
)


def test_an_encoder_without_a_classifier_is_refused() -> None:
    with pytest.raises(InputError, match="BertModel has no classifier"):
        from_bert(BertModel(BERT.config), students.sentences())


def test_batches_of_another_kind_are_refused() -> None:
    rows = [(x["input_ids"], x["attention_mask"]) for x in loader().dataset]
    with pytest.raises(InputError, match="must be a mapping with input_ids and attention_mask .* not a list"):
        fit(Own(students.make(dtype=torch.float32)), SpatialPruning(heads=0.5, ffn=0.5), data=DataLoader(rows))


WRONG = {
    "heads = '0.5': must be from 0 to 1": lambda: SpatialPruning(heads="0.5"),
    "min_ffn = -1: must be a whole number of at least 0": lambda: SpatialPruning(min_ffn=-1),
    "batches = 0: must be a whole number of at least 1": lambda: MaskSearch(operations=0.5, batches=0),
    "t_steps = 2.5: must be a whole number of at least 1": lambda: TemporalPruning(t_steps=2.5),
    "block = 0: must be a whole number of at least 1": lambda: SynapsePruning(kept=0.5, block=0),
    "sentences = 0: must be a whole number of at least 1": lambda: BudgetPruning(share=0.1, sentences=0),
    "unknown weights 'int5'; known: binary, ternary, int8": lambda: WeightQuantization("int5"),
    "t_steps must be 2 whole numbers of at least 1, got [2.5, 2.5]": lambda: from_bert(
        BERT, students.sentences(), t_steps=2.5
    ),
    "a str is no model: load it by": lambda: from_bert("bert-base-uncased", students.sentences()),
    "a batch must be a mapping with input_ids and attention_mask (and token_type_ids), not a dict with ids": lambda: (
        from_bert(BERT, {"ids": torch.ones(2, 3).long()})
    ),
    "not a list: let the collate function": lambda: count_operations(students.make(), [1, 2]),
    "a str is no network: give a SpikingBert": lambda: compact("runs/sst2"),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_wrong_argument_is_refused_in_a_sentence(sentence) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        WRONG[sentence]()


@pytest.mark.parametrize(
    "callback",
    [SpatialPruning(heads=0.5), MaskSearch(operations=0.5), TemporalPruning(t_steps=1, criterion="sensitivity")],
)
def test_a_mean_is_no_loss_of_each_sample(callback) -> None:
    module = Own(students.make(dtype=torch.float32))
    module.sample_loss = lambda batch, outputs: hard_loss(outputs.logits, batch["labels"], regression=False).mean()
    with pytest.raises(InputError, match=r"sample_loss returned \[\] and not \[3\], the loss of each sample"):
        fit(module, callback)


def test_training_without_an_end_needs_the_last_epoch() -> None:
    with pytest.raises(InputError, match="SpatialPruning needs `end`"):
        fit(Own(students.make(dtype=torch.float32)), SpatialPruning(heads=0.5, ffn=0.5), epochs=-1)


def test_decisions_leave_the_order_of_training_as_it_is() -> None:
    class Watched(Own):
        def training_step(self, batch, batch_idx):
            seen.append(batch["input_ids"].tolist())
            return super().training_step(batch, batch_idx)

    orders = []
    for callbacks in ([], [TemporalPruning(t_steps=2, criterion="sensitivity")]):
        seen: list = []
        L.seed_everything(3, verbose=False)
        fit(Watched(students.make(dtype=torch.float32)), *callbacks)
        orders.append(seen)
    assert orders[0] == orders[1]


def test_a_quantizer_does_not_replace_another_and_starts_without_effect() -> None:
    student, batch = students.make(), students.sentences()
    before = student(**batch).logits
    add_quantizer(student, "ternary")
    assert torch.equal(student(**batch).logits, before) and student.quantized == 0
    again = students.make(weights="ternary")
    again.load_state_dict(student.state_dict())
    assert again.values == student.values
    with pytest.raises(InputError, match="ternary weights cannot be given int8 weights"):
        add_quantizer(student, "int8")
    with pytest.raises(InputError, match="cannot lose synapses"):
        add_synapse_masks(student)


# ----------------------------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize("coding", students.CODINGS)
def test_the_metric_is_the_mean_over_batches_and_equals_the_function(coding) -> None:
    student = students.prune(students.make(coding=coding)).train()
    whole, part = students.sentences((8, 5, 2)), students.sentences((8, 5, 2))
    metric = SynapticOperations()
    for rows in (slice(0, 1), slice(1, 3)):
        metric.update(student, {name: x[rows] for name, x in part.items()})
    found, once = metric.compute(), count_operations(student, whole)
    assert student.training and set(found) == set(once)
    for name in found:
        torch.testing.assert_close(found[name], once[name])
    assert found["ac_per_layer"].shape == (students.L + 2,) and found["ac"] == found["ac_per_layer"].sum() > 0
    metric.reset()
    counts = student.eval()(**whole, mode="spiking", count=True).counts
    metric.update(student, counts, whole["attention_mask"].sum(1))
    for name in found:
        torch.testing.assert_close(metric.compute()[name], once[name])


def test_the_dense_counterpart_by_hand() -> None:
    """One sentence of n = 2 tokens: L(4nD² + 2n²D + 2nDF) + D² + DC."""
    student = students.make()
    d, ffn, layers, classes, n = students.D, students.FFN, students.L, students.C, 2
    found = count_operations(student, students.sentences((n,)))["dense_mac"]
    assert found == layers * (4 * n * d**2 + 2 * n**2 * d + 2 * n * d * ffn) + d**2 + d * classes
    assert dense_shape(student).pooling == "cls" and student_shape(student).pooling == "mean"
