"""Stages: which run in what order, what each learns from, which callbacks it has."""

from __future__ import annotations

from collections.abc import Iterator

from spikeprune.config.derived import active, stage_rows
from spikeprune.config.schema import Config, Losses, Stage
from spikeprune.config.validation.names import CALLBACKS
from spikeprune.errors import Problem, nearest


def order(config: Config) -> Iterator[Problem]:
    names, known, key = config.run.stages, [name for name, _ in stage_rows(config)], ("run.stages",)
    for name in names:
        if name not in known:
            yield key, f"run.stages: unknown stage {name}; the stages are {nearest(name, known)}"
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield key, f"run.stages: {name} stands there more than once"
    if active(config, "teacher") and names[0] != "teacher":
        yield key, "run.stages: teacher must come first, since the others learn from it"
    if not names:
        yield key, "run.stages: is empty"


def rows(config: Config) -> Iterator[Problem]:
    for name, stage in stage_rows(config):
        key = f"stages.{name}.callbacks"
        for callback in stage.callbacks:
            if callback not in CALLBACKS:
                yield (key,), f"{key}: unknown callback {callback}; choose from {nearest(callback, CALLBACKS)}"
        if len(set(stage.callbacks)) < len(stage.callbacks):
            yield (key,), f"{key} = {stage.callbacks}: names one twice"
        if name == "general_kd" and stage.losses.soft == 0 and _asks_for_loss(config, stage):
            text = "its criterion asks for a loss of the answer, but the text has no labels; give losses.soft a weight"
            yield (key, f"stages.{name}.losses.soft"), f"{key} = {stage.callbacks}: {text}"
        if name == "teacher" and stage.callbacks:
            yield (key,), f"{key} = {stage.callbacks}: the teacher is not compressed"
        if active(config, name):
            yield from _losses(name, stage.losses, config.distill.replace_words)


def _asks_for_loss(config: Config, stage: Stage) -> bool:
    by_loss = config.compress.temporal.criterion == "sensitivity" and "temporal" in stage.callbacks
    return by_loss or "spatial" in stage.callbacks or "joint" in stage.callbacks


def _losses(name: str, losses: Losses, replaced: float) -> Iterator[Problem]:
    key = f"stages.{name}.losses"
    terms = {"hidden": losses.hidden, "scores": losses.scores, "soft": losses.soft, "hard": losses.hard}
    terms |= {"firing": losses.firing, "additions": losses.additions}
    without = {
        "teacher": ("it has no teacher and does not spike", ("hidden", "scores", "soft", "firing", "additions")),
        "general_kd": ("its text has no labels", ("hard",)),
    }
    reason, absent = without.get(name, ("", ()))
    for term in absent:
        if terms[term] > 0:
            yield (f"{key}.{term}",), f"{key}.{term} = {terms[term]}: does not apply to the stage {name}; {reason}"
    if name != "teacher" and replaced > 0 and losses.hard > 0:
        text = "the true label is not that of a sentence changed by distill.replace_words; set one of the two to 0"
        yield (f"{key}.hard", "distill.replace_words"), f"{key}.hard = {losses.hard}: {text}"
    if losses.additions_from and not (losses.additions and 0 < (losses.additions_limit or 0) <= losses.additions_from):
        text = "falls to additions_limit, which must be above 0 and no more, with a weight in additions"
        keys = tuple(f"{key}.{term}" for term in ("additions_from", "additions_limit", "additions"))
        yield keys, f"{keys[0]} = {losses.additions_from}: {text}"
    if losses.additions_fall != Losses().additions_fall and not losses.additions_from:
        keys = (f"{key}.additions_fall", f"{key}.additions_from")
        yield (
            keys,
            f"{keys[0]} = {losses.additions_fall}: nothing falls while {keys[1]} = 0; give it a value to fall from",
        )
    if losses.additions_limit and not losses.additions:
        text = f"limits nothing while {key}.additions = 0; give that a weight, or set {key}.additions_limit=null"
        keys = (f"{key}.additions_limit", f"{key}.additions")
        yield keys, f"{key}.additions_limit = {losses.additions_limit}: {text}"
    if not any(weight > 0 for term, weight in terms.items() if term not in absent):
        yield (key, *(f"{key}.{t}" for t in terms)), f"{key}: every weight is zero, so {name} would learn nothing"
