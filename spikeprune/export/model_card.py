"""The model card `README.md` of an exported student: metadata that the hub reads, and tables for people."""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from spikeprune import __version__
from spikeprune.config.tasks import CUSTOM
from spikeprune.export.facts import Facts
from spikeprune.models.modeling import SpikingBert
from spikeprune.report.energy_table import energy_markdown
from spikeprune.report.markdown import table

NAMES = {  # of a metric on the hub, where it is another
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}


def card(student: SpikingBert, facts: Facts) -> ModelCard:
    """Content and metadata in one text."""
    parts = [f"---\n{metadata(facts).to_yaml()}\n---", *body(student, facts)]
    return ModelCard("\n\n".join(parts) + "\n")


def metadata(facts: Facts) -> ModelCardData:
    """Scores are the model index; a licence is given where the teacher's checkpoint states one."""
    return ModelCardData(
        language=None if facts.task.name == CUSTOM else "en",  # GLUE's
        license=facts.teacher.licence,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["spikeprune", "spiking-neural-network", "spiking_bert"],
        base_model=facts.teacher.name if facts.teacher.on_hub else None,
        model_name=title(facts),
        eval_results=list(eval_results(facts)),
    )


def title(facts: Facts) -> str:
    return f"spiking-bert-{facts.task.name}"


def eval_results(facts: Facts) -> Iterator[EvalResult]:
    """Every metric of every dev split; those of a further split are named `<split>/<metric>` in a record."""
    for name, value in facts.record["metrics"].items():
        split, _, metric = name.rpartition("/")
        yield EvalResult(
            task_type="text-classification",
            task_name="Text regression" if facts.task.regression else "Text classification",
            dataset_name=facts.task.name,
            dataset_type=facts.data["source"],
            dataset_split=split or facts.task.dev_splits[0],
            dataset_args={"fingerprint": facts.data["fingerprint"]},
            metric_type=NAMES.get(metric, metric),
            metric_name=metric,
            metric_value=round(value, 6),
        )


def body(student: SpikingBert, facts: Facts) -> Iterator[str]:
    """The card's sections."""
    yield f"# {title(facts)}"
    yield (
        f"A spiking BERT for the task `{facts.task.name}`, distilled from a dense teacher and compressed by SpikePrune "
        f"{__version__}. It is the student of the stage `{facts.stage}`, without its pruned heads and neurons."
    )
    yield f"## Use\n\n```python\n{USE}```"
    if facts.data["banner"]:
        yield f"**{facts.data['banner']}**"
    yield f"## Data\n\n{table(('', ''), data_rows(facts))}"
    yield f"## Scores on the dev split\n\n{table(('metric', 'dense teacher', 'this model'), score_rows(facts))}"
    operations = table(("per sentence", "dense teacher", "this model"), cost_rows(facts))
    if "note" in facts.dense:
        yield facts.dense["note"]
    yield f"## Energy\n\n{operations}\n\n{ENERGY}\n\n{energy_markdown(facts.record['energy'])}"
    yield f"## Network\n\n{table(('', ''), network_rows(student, facts))}"
    yield f"## Made by\n\n```\n{facts.trained}\n{facts.command}\n```"
    yield f"## Licence\n\n{licence_line(facts)}"


USE = """\
from spikeprune import SpikingBertForSequenceClassification  # registers the architecture with transformers
from transformers import pipeline

print(pipeline("text-classification", "DIRECTORY")("a fine film"))
"""
ENERGY = (
    "An addition (AC) adds a weight for a spike, a multiplication (MAC) is one of two real numbers. Energy is a "
    "function of such counts under a published model: pJ of a sentence, and ÷ an opponent's energy over this network's."
)


def data_rows(facts: Facts) -> list[tuple[str, str]]:
    labels = "a number" if facts.task.regression else ", ".join(f"`{name}`" for name in facts.task.labels)
    return [
        ("task", facts.task.name),
        ("labels", labels),
        ("source", facts.data["source"]),
        ("fingerprint", f"`{facts.data['fingerprint']}`"),
        ("longest text", f"{facts.max_length} tokens"),
    ]


def score_rows(facts: Facts) -> list[tuple[str, str, str]]:
    dense, own = facts.dense["metrics"], facts.record["metrics"]
    rows = [(name, f"{100 * dense[name]:.1f}", f"{100 * value:.1f}") for name, value in own.items()]
    agreement = facts.record.get("fidelity", {}).get("agreement")
    return rows + ([("labels that agree with the teacher", "", f"{100 * agreement:.1f} %")] if agreement else [])


def cost_rows(facts: Facts) -> list[tuple[str, str, str]]:
    names = {
        "ac": "additions (AC)",
        "mac": "multiplications (MAC)",
        "elementwise": "element-wise operations",
    }
    dense, own = facts.dense["cost"], facts.record["cost"]
    return [(words, *(f"{cost[key]:,.0f}" for cost in (dense, own))) for key, words in names.items()]


def network_rows(student: SpikingBert, facts: Facts) -> list[tuple[str, str]]:
    values = student.values
    shape = [values["layer_heads"], values["layer_ffn"]]
    heads, ffn = (" ".join(map(str, own)) for own in shape)
    rate = facts.record["cost"].get("rate")
    return [
        ("spikes, residual connections, coding", f"{values['spikes']}, {values['residual']}, {values['coding']}"),
        ("time steps, of the embedding and each layer", " ".join(map(str, student.steps))),
        (f"heads of {values['heads']}, by layer", heads),
        (f"neurons of {values['ffn']}, by layer", ffn),
        ("encoder weights", values["weights"]),
        *([("firing rate, spikes per neuron and step", f"{rate:.3f}")] if rate is not None else []),
    ]


def licence_line(facts: Facts) -> str:
    """The teacher's licence, since the student's weights started as the teacher's."""
    teacher = facts.teacher
    if teacher.name is None:
        return "The teacher was trained from random weights; no checkpoint's licence applies."
    if teacher.licence is None:
        return f"The checkpoint `{teacher.name}`, from which this model descends, states no licence here: look it up."
    return f"The checkpoint `{teacher.name}`, from which this model descends, states: {teacher.licence}."
