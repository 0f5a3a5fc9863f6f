"""LightningModules: the teacher learning the task, and the student learning from the teacher. Plain values in."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import lightning as L
import torch
from torch import Tensor, nn

from spikeprune import distill, operations, ranks
from spikeprune.graphs import GraphedAnswers, GraphedTerms
from spikeprune.metrics import main_metric, task_metrics
from spikeprune.models.answer import CHUNK, answer, replayable, state
from spikeprune.models.outputs import INPUTS, Outputs
from spikeprune.models.student import Student, layer_of
from spikeprune.models.teacher import Teacher
from spikeprune.size import Shape
from spikeprune.tasks import Task


@dataclass(frozen=True)
class Optimization:
    """AdamW with a linear warm-up and a linear fall to zero. `theta_lr` is the rate of log(theta)."""

    lr: float
    theta_lr: float
    warmup: float  # share of all steps
    weight_decay: float


def adamw(module: nn.Module, how: Optimization, total_steps: int) -> dict:
    """Matrices decay; biases, norms and thresholds do not."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    thetas = [p for name, p in named if name.endswith("log_theta")]
    plain = [p for name, p in named if p.dim() < 2 and not name.endswith("log_theta")]
    groups = [
        {"params": [p for _, p in named if p.dim() >= 2], "lr": how.lr, "weight_decay": how.weight_decay},
        {"params": plain, "lr": how.lr, "weight_decay": 0.0},
        {"params": thetas, "lr": how.theta_lr, "weight_decay": 0.0},
    ]
    fused = next(module.parameters()).is_cuda
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], fused=fused)
    warm = max(1, round(how.warmup * total_steps))

    def share(step: int) -> float:
        return min((step + 1) / warm, max(0.0, (total_steps - step) / max(1, total_steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


# What each loss term is a mean over: a column of a batch's `share` (see `data.loader.shares`).
MEAN_OVER = {"hard": 0, "soft": 0, "hidden": 1, "firing": 1, "additions": 1, "scores": 2}


def whole_batch(terms: dict[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The terms of one process' part of a batch, weighted so that their mean over the processes, which DDP takes of the
    gradients, is the term of the whole batch; of a batch that is not shared the terms as they are. Exact but for
    `additions` near their limit, with which each process compares its own part."""
    if "share" not in batch:
        return terms
    return {name: term * batch["share"][MEAN_OVER[name]].to(term.dtype) for name, term in terms.items()}


class TaskModule(L.LightningModule):
    """What teacher and student share: optimization, and quality on each dev split under `val/`.

    The first split logs `val/accuracy` …; a further one (MNLI's mismatched) `val/<split>/accuracy` …. `val/main` is
    GLUE's number for the first.
    """

    def __init__(self, *, task: Task, dev_splits: Sequence[str], optimization: Optimization, graphs: bool = False):
        super().__init__()
        self.task, self.optimization = task, optimization
        self.graphed = GraphedTerms(self.learn, self.models) if graphs else None
        self.dev_splits = list(dev_splits)
        self.dev_metrics = nn.ModuleList(task_metrics(task) for _ in self.dev_splits)

    def configure_optimizers(self):
        # not trainer.estimated_stepping_batches: that sets up the loader before a checkpoint is restored, and Lightning
        # then never loads the loader's state, so a resumed run would begin with the first epoch's batches again
        self.total_steps = len(self.trainer.datamodule.train_dataloader()) * self.trainer.max_epochs
        return adamw(self, self.optimization, self.total_steps)

    def answer(self, batch: Mapping[str, Tensor]) -> Outputs:
        """The outputs that quality is judged by."""
        raise NotImplementedError

    def models(self) -> list[nn.Module]:
        """Those that `learn` runs."""
        raise NotImplementedError

    def learn(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a training batch teaches: `loss`, and each of its terms without gradient, all scalar."""
        raise NotImplementedError

    def learn_state(self) -> Hashable:
        """What `learn` reads from Python and may change in the course of a stage."""
        return None

    def varied(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch as it is learnt from."""
        return batch

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        batch = self.varied(batch)
        terms = self.learn(batch) if self.graphed is None else self.graphed(batch, self.learn_state())
        loss = terms["loss"]
        logged = self.over_ranks({**terms, "loss": loss.detach().clone()})
        self.log("train/loss", logged.pop("loss"), prog_bar=True)
        if logged:
            self.log_dict({f"train/{name}": term for name, term in logged.items()})
        return loss

    def over_ranks(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Their means over the processes, at the steps that are recorded; between those the process' own."""
        if ranks.world() == 1 or (self.global_step + 1) % self.trainer.log_every_n_steps:
            return values
        return dict(zip(values, ranks.total(torch.stack(list(values.values()))) / ranks.world(), strict=True))

    def idle_parameters(self) -> list[str]:
        """Names of the trainable parameters that this stage's losses give no gradient, found on one sentence."""
        batch = self.trainer.datamodule.fixed_batches(1, 1, 0)[0]
        loss = self.learn({key: value.to(self.device) for key, value in batch.items()})["loss"]
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
        return [name for (name, _), grad in zip(named, grads, strict=True) if grad is None]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Outputs:
        outputs = self.answer(batch)
        logits = outputs.logits.float()
        predictions = logits[:, 0] if self.task.regression else logits.argmax(-1)
        self.dev_metrics[dataloader_idx].update(predictions, batch["labels"])
        return outputs

    def on_validation_epoch_end(self) -> None:
        for i, (split, metrics) in enumerate(zip(self.dev_splits, self.dev_metrics, strict=True)):
            results = metrics.compute()
            metrics.reset()
            prefix = "val" if i == 0 else f"val/{split}"
            self.log_dict({f"{prefix}/{name}": value for name, value in results.items()}, rank_zero_only=True)
            if i == 0:
                self.log("val/main", main_metric(self.task, results), prog_bar=True, rank_zero_only=True)


class TeacherModule(TaskModule):
    """Fine-tunes the teacher on true labels."""

    def __init__(self, teacher: Teacher, **common):
        super().__init__(**common)
        self.teacher = teacher

    def answer(self, batch: Mapping[str, Tensor]) -> Outputs:
        return self.teacher(*(batch[name] for name in INPUTS))

    def models(self) -> list[nn.Module]:
        return [self.teacher]

    def learn(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = self.answer(batch).logits.float()
        loss = distill.hard_loss(logits, batch["labels"], regression=self.task.regression).mean()
        return {"loss": whole_batch({"hard": loss}, batch)["hard"]}


@dataclass(frozen=True)
class LossWeights:
    """See `schema.Losses`; zero leaves a term out."""

    hidden: float = 0.0
    scores: float = 0.0
    soft: float = 0.0
    hard: float = 0.0
    firing: float = 0.0
    additions: float = 0.0
    additions_limit: float | None = None
    additions_from: float = 0.0
    additions_fall: float = 0.5
    temperature: float = 2.0


class StudentModule(TaskModule):
    """Trains the student against the frozen teacher. Validation answers as `models.answer` says: the simulation, or its
    closed form where there is one and `stepwise` does not ask for the steps."""

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        *,
        losses: LossWeights,
        layer_map: Sequence[int],
        shape: Shape,
        forward_mode: str = "equilibrium",
        replace_words: float = 0.0,
        special: Sequence[int] = (),
        stepwise: bool = False,
        chunk: int = CHUNK,
        **common,
    ):
        super().__init__(**common)
        self.stepwise, self.chunk = stepwise, chunk
        self.answers = None if self.graphed is None else GraphedAnswers(self.measured)
        self.student, self.shape = student, shape
        self.teacher = teacher.freeze()
        self.losses, self.layer_map, self.forward_mode = losses, list(layer_map), forward_mode
        self.replace_words = replace_words
        self.solved: dict[str, float] = {}  # of the last step's fixed points, where there is feedback
        # of additions, and times their weight: tensors, so that what CUDA graphs replay reads them anew
        self.register_buffer("limit", torch.tensor(losses.additions_limit or 0.0), persistent=False)
        self.register_buffer("press", torch.tensor(1.0), persistent=False)
        self.register_buffer("special", torch.tensor(list(special), dtype=torch.long), persistent=False)

    def answer(self, batch: Mapping[str, Tensor]) -> Outputs:
        inputs = {name: batch[name] for name in INPUTS}
        if self.answers is None or not replayable(self.student, inputs["attention_mask"], self.stepwise):
            return self.measured(inputs)
        return self.answers(inputs, state(self.student))

    def measured(self, inputs: Mapping[str, Tensor]) -> Outputs:
        return answer(self.student, *inputs.values(), stepwise=self.stepwise, chunk=self.chunk)

    def models(self) -> list[nn.Module]:
        return [self.student, self.teacher]

    def learn(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inputs = [batch[name] for name in INPUTS]
        outputs = self.student(*inputs, mode=self.forward_mode, rate=bool(self.losses.firing or self.losses.additions))
        terms = self.terms(batch, outputs)
        self.solved = outputs.solved
        loss = sum(self.weight(name) * term for name, term in terms.items())
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def weight(self, term: str) -> Tensor | float:
        weight = getattr(self.losses, term)
        return weight * self.press if term == "additions" else weight

    def learn_state(self) -> Hashable:
        return tuple(self.student.steps), self.student.quantized

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        if self.losses.additions_from:
            ends = {"begin": self.losses.additions_from, "end": self.losses.additions_limit}
            self.limit.fill_(distill.falling(self.global_step / self.total_steps / self.losses.additions_fall, **ends))

    def on_after_backward(self) -> None:
        """Steps and residuals of the fixed points, where there is feedback: backward has found the second."""
        self.log_dict({f"train/feedback_{name}": float(value) for name, value in self.solved.items()})

    def varied(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch with random words replaced where the configuration asks for it."""
        if not self.replace_words:
            return dict(batch)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        changed = distill.replace_words(ids, mask, share=self.replace_words, special=self.special)
        return {**batch, "input_ids": changed}

    def terms(self, batch: Mapping[str, Tensor], outputs: Outputs) -> dict[str, Tensor]:
        """Each loss term that has a weight, without it, scalar."""
        losses, tokens = self.losses, batch["attention_mask"].bool()
        terms: dict[str, Tensor] = {}
        if losses.hidden or losses.scores or losses.soft:
            with torch.no_grad():
                lesson = self.teacher(*(batch[name] for name in INPUTS), features=bool(losses.hidden or losses.scores))
        if losses.hidden:
            terms["hidden"] = distill.hidden_loss(outputs.hidden, lesson.hidden, tokens, self.layer_map)
        if losses.scores:
            terms["scores"] = distill.scores_loss(outputs.scores, lesson.scores, tokens, self.layer_map)
        if losses.soft:
            terms["soft"] = self.soft(outputs, lesson).mean()
        if losses.hard:
            terms["hard"] = self.hard(batch, outputs).mean()
        if losses.firing:
            terms["firing"] = distill.firing_loss(outputs.rates)
        if losses.additions:
            own = tokens.sum(1).float().mean()
            own = batch["share"][3].to(own.dtype) if "share" in batch else own
            terms["additions"] = self.additions(outputs, own, self.limit)
        return whole_batch(terms, batch)

    def additions(self, outputs: Outputs, n: Tensor, limit: Tensor | float = 0.0) -> Tensor:
        """As far as above `limit`, scalar; `n`: mean tokens of a sentence."""
        student, shape = self.student, self.shape
        steps = {name: student.steps[layer_of(name) + 1] for name in outputs.rates}
        fan_out = operations.fan_out(shape=shape, heads=student.heads, ffn=student.ffn, tokens=n)
        dense = shape.layers * shape.hidden * (4 * shape.hidden + 2 * shape.ffn)
        prices = {"fan_out": fan_out, "t_steps": steps, "dense": dense}
        return distill.additions_loss(outputs.rates, **prices, limit=limit)

    @torch.no_grad()
    def mean_additions(self, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """The term on whole `batches` without limit and without dropout, scalar."""
        was_training = self.student.training
        self.student.eval()
        found = []
        for batch in batches:
            inputs = [batch[name] for name in INPUTS]
            outputs = self.student(*inputs, mode=self.forward_mode, rate=True)
            found.append(self.additions(outputs, batch["attention_mask"].sum(1).float().mean()))
        self.student.train(was_training)
        return torch.stack(found).mean()

    def soft(self, outputs: Outputs, lesson: Outputs) -> Tensor:
        return distill.soft_loss(
            outputs.logits.float(),
            lesson.logits.float(),
            temperature=self.losses.temperature,
            regression=self.task.regression,
        )

    def hard(self, batch: Mapping[str, Tensor], outputs: Outputs) -> Tensor:
        return distill.hard_loss(outputs.logits.float(), batch["labels"], regression=self.task.regression)

    def sample_loss(self, batch: dict[str, Tensor], outputs: Outputs, lesson: Outputs | None = None) -> Tensor:
        """`[B]`: the prediction losses of this stage, which criteria differentiate; the true labels' if it has none.
        `lesson`: what the teacher says to this batch, where it has been asked already."""
        losses = self.losses
        if not losses.soft:
            return self.hard(batch, outputs)
        loss = losses.soft * self.soft(outputs, self.lesson(batch) if lesson is None else lesson)
        return loss + losses.hard * self.hard(batch, outputs) if losses.hard else loss

    @torch.no_grad()
    def lesson(self, batch: Mapping[str, Tensor]) -> Outputs:
        return self.teacher(*(batch[name] for name in INPUTS))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """The frozen teacher is the teacher stage's to keep; a resume checkpoint need not carry it again."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("teacher.")}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["state_dict"].update({f"teacher.{k}": v for k, v in self.teacher.state_dict().items()})
