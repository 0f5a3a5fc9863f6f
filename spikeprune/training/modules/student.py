"""DistillationModule: the student trained against the teacher."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor, nn

from spikeprune.data.augmentation import Augment
from spikeprune.errors import known
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import Outputs, inputs_of
from spikeprune.models.shape import student_shape
from spikeprune.models.teacher import Teacher
from spikeprune.training.gates import Gates
from spikeprune.training.metrics import Fidelity
from spikeprune.training.modules.task import TaskModule
from spikeprune.training.objective import LossWeights, Objective, mean_tokens

FORWARDS = ("equilibrium", "spiking")  # that training may use


class DistillationModule(TaskModule):
    """Trains the student against the frozen teacher. Validation is `models.inference.infer`: the simulation, or its
    closed form where there is one and `stepwise` is false; how near its outputs are to the teacher's is logged beside
    the quality (see `metrics.Fidelity`)."""

    def __init__(
        self,
        student: SpikingBert,
        teacher: Teacher,
        *,
        losses: LossWeights,
        layer_map: Sequence[int],
        forward_mode: str = "equilibrium",
        augment: Augment | None = None,
        stepwise: bool = False,
        **common,
    ):
        known("forward mode", forward_mode, FORWARDS)
        super().__init__(**common)
        self.stepwise = stepwise
        self.student = student
        self.teacher = teacher.freeze()
        self.augment = augment
        self.losses, self.forward_mode = losses, forward_mode
        self.objective = Objective(
            losses,
            layer_map=layer_map,
            shape=student_shape(student),
            regression=self.task.regression,
            class_weights=self.class_weights,
        )
        self.fidelity = nn.ModuleList(Fidelity(regression=self.task.regression) for _ in self.dev_splits)
        self.gates: Gates | None = None  # while `BudgetPruning` limits the student's cost
        self.solved: dict[str, float] = {}  # of the last step's fixed points, where there is feedback

    def infer(self, batch: Mapping[str, Tensor]) -> Outputs:
        return infer(self.student, **inputs_of(batch), stepwise=self.stepwise)

    def models(self) -> list[nn.Module | Gates]:
        return [self.student, self.teacher, *([] if self.gates is None else [self.gates])]

    def loss_terms(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        objective, gates = self.objective, self.gates
        outputs = self.student(
            **inputs_of(batch),
            mode=self.forward_mode,
            rate="rates" in objective.reads or gates is not None,
            scores="scores" in objective.reads,
            **({} if gates is None else gates.relaxed()),
        )
        terms = objective(batch, outputs, self.student, objective.teacher_outputs(batch, self.teacher))
        self.solved, loss = outputs.solved, objective.total(terms)
        if gates is not None:
            terms["budget"] = gates.penalty(outputs, mean_tokens(batch))
            loss = loss + terms["budget"]
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def python_state(self) -> Hashable:
        learning = self.gates is not None and self.gates.learning
        return tuple(self.student.steps), self.student.quantized, learning

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.objective.additions.fall(self.global_step / self.total_steps)

    def on_after_backward(self) -> None:
        """Steps and residuals of the fixed points, where there is feedback: backward has found the second."""
        self.log_dict({f"train/feedback_{name}": float(value) for name, value in self.solved.items()})

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Outputs:
        outputs = super().validation_step(batch, batch_idx, dataloader_idx)
        self.fidelity[dataloader_idx].update(outputs.logits, self.teacher_outputs(batch).logits)
        return outputs

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        for i, fidelity in enumerate(self.fidelity):
            self.log_quality(i, fidelity.compute())
            fidelity.reset()

    def augmented(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch with words of its sentences replaced, where there is an `augment`."""
        return dict(batch) if self.augment is None else self.augment(batch)

    def decision_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch as pruning decisions use it: `augmented` where the teacher gives the targets, since a true label
        would not fit a changed sentence."""
        return self.augmented(batch) if self.losses.soft else batch

    def sample_loss(self, batch: dict[str, Tensor], outputs: Outputs) -> Tensor:
        """`[B]`: the prediction losses of this stage, which criteria differentiate; the true labels' if it has none."""
        losses, objective = self.losses, self.objective
        if not losses.soft:
            return objective.hard(batch, outputs)
        loss = losses.soft * objective.soft(outputs, self.teacher_outputs(batch))
        return loss + losses.hard * objective.hard(batch, outputs) if losses.hard else loss

    @torch.no_grad()
    def teacher_outputs(self, batch: Mapping[str, Tensor]) -> Outputs:
        """The teacher's outputs of this batch."""
        return self.teacher(**inputs_of(batch))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Without the frozen teacher, which the teacher stage has saved."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("teacher.")}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["state_dict"].update({f"teacher.{k}": v for k, v in self.teacher.state_dict().items()})
