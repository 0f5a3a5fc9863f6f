"""Two spiking students written out from the formulas, on plain tensors; not tests.

They use nothing of the package but a student's `state_dict`. `Accumulate` fires layer after layer; `Synchronous` ticks
all spiking layers together, with time as its outer loop (SpikingBERT, arXiv 2308.10873, eqs. 1-4).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from spikeprune.models.modeling import SpikingBert


class Naive:
    """What both naive networks share: the formulas of a layer on plain tensors, one neuron's step, and the head."""

    def __init__(
        self,
        student: SpikingBert,
        batch: dict[str, torch.Tensor],
        *,
        spikes: str,
        leak: float,
        residual: str = "spikes",
    ):
        self.w = student.state_dict()
        self.past = "" if residual == "spikes" else "what drives "
        self.batch, self.ternary, self.leak = batch, spikes == "ternary", leak
        self.steps = self.w["t_steps"].tolist()
        self.heads = self.w["heads"].shape[1]
        self.head_size = len(self.w["layers.0.key.bias"]) // self.heads

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name, x):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def embed(self):
        ids, types, e = self.batch["input_ids"], self.batch["token_type_ids"], "embedding"
        summed = self.w[f"{e}.word.weight"][ids] + self.w[f"{e}.segment.weight"][types]
        return self.norm(f"{e}.norm", summed + self.w[f"{e}.position.weight"][: ids.shape[1]])

    def attend(self, q, k, v):
        """One sentence and head at a time; only real tokens are keys."""
        out, d = torch.zeros_like(q), self.head_size
        for b, n in enumerate(self.batch["attention_mask"].sum(1).tolist()):
            for h in range(self.heads):
                part = slice(h * d, (h + 1) * d)
                weights = (q[b, :, part] @ k[b, :n, part].T / math.sqrt(d)).softmax(-1)
                out[b, :, part] = weights @ v[b, :n, part]
        return out

    def functions(self, i):
        """SpikingLayer -> (the layers it reads, f, mask of its channels). "below" is the output of the layer before,
        "what drives" a spiking layer the currents that its neurons get."""
        p, ones = f"layers.{i}", self.w["heads"].new_ones(())
        heads = self.w["heads"][i].repeat_interleave(self.head_size)
        spiking_query = f"{p}.query_neurons.log_theta" in self.w

        def context(a, k, v):
            return self.attend(a if spiking_query else self.linear(f"{p}.query", a), k, v)

        table = {
            "query": (["below"], lambda a: self.linear(f"{p}.query", a), ones),
            "key": (["below"], lambda a: self.linear(f"{p}.key", a), ones),
            "value": (["below"], lambda a: self.linear(f"{p}.value", a), ones),
            "context": (["query" if spiking_query else "below", "key", "value"], context, heads),
            "attention": (
                ["context", f"{self.past}below"],
                lambda c, a: self.norm(f"{p}.attention_norm", self.linear(f"{p}.out", c) + a),
                ones,
            ),
            "intermediate": (["attention"], lambda h: F.gelu(self.linear(f"{p}.up", h)), self.w["ffn"][i]),
            "output": (
                ["intermediate", f"{self.past}attention"],
                lambda f, h: self.norm(f"{p}.output_norm", self.linear(f"{p}.down", f) + h),
                ones,
            ),
        }
        if not spiking_query:
            del table["query"]
        return table

    def theta(self, spiking_layer):
        key = "embedding.neurons" if spiking_layer == "embedding" else f"{spiking_layer}_neurons"
        return self.w[f"{key}.log_theta"].exp()

    def rest(self, spiking_layer, like):
        return torch.zeros_like(like) if self.ternary else torch.zeros_like(like) + self.theta(spiking_layer) / 2

    def fire(self, u, x, theta):
        u = self.leak * u + x
        if self.ternary:
            s = torch.where(u >= theta / 2, 1.0, 0.0) - torch.where(u <= -theta / 2, 1.0, 0.0)
        else:
            s = torch.where(u >= theta, 1.0, 0.0)
        s = s.to(x.dtype)
        return s, u - theta * s

    def logits(self, a):
        tokens = self.batch["attention_mask"][..., None].to(a.dtype)
        if "pooler.weight" in self.w:
            return self.linear("classifier", self.linear("pooler", a[:, 0]).tanh())
        return self.linear("classifier", (a * tokens).sum(1) / tokens.sum(1))


class Accumulate(Naive):
    """Each spiking layer takes one mean input, then fires for its T steps; the next one starts when it is done."""

    def spiking_layer(self, name, x, t_steps, mask=1.0):
        u, theta, total, norm = self.rest(name, x), self.theta(name), torch.zeros_like(x), 0.0
        for _ in range(t_steps):
            s, u = self.fire(u, x, theta)
            total, norm = self.leak * total + s, self.leak * norm + 1
        return theta * total / norm * mask

    def run(self):
        drive = self.embed()
        below = self.spiking_layer("embedding", drive, self.steps[0])
        hidden = [below]
        for i, t_steps in enumerate(self.steps[1:]):
            values = {"below": below, "what drives below": drive}
            for name, (sources, f, mask) in self.functions(i).items():
                drive = values[f"what drives {name}"] = f(*(values[s] for s in sources))
                values[name] = self.spiking_layer(f"layers.{i}.{name}", drive, t_steps, mask)
            below = values["output"]
            hidden.append(below)
        return self.logits(below), hidden


class Clock:
    """One spiking layer of the synchronous network: membrane, and the sums of what it has sent and seen."""

    def __init__(self, net: Synchronous, name: str, t_steps: int, mask):
        self.net, self.name, self.t_steps, self.mask = net, name, t_steps, mask
        self.u = self.before = None
        self.sent, self.norm, self.told = 0.0, 0.0, 0.0
        self.pulse = self.answer = None

    @property
    def mean(self):
        return self.sent / self.norm

    def seen(self, tick):
        """What a reader sees at `tick`: the pulse of this step or the mean so far; of a silent layer its mean."""
        held = self.net.coding == "running_mean" or tick > self.t_steps
        return self.mean if held else self.pulse

    def driven(self, tick):
        """What a residual sees at `tick` of the currents: this step's f; of a silent spiking layer the last, or in
        per_step the mean of all."""
        return self.told / self.norm if self.net.coding == "per_step" and tick > self.t_steps else self.answer

    def tick(self, tick, answer):
        """`answer`: f of what the spiking layer sees now."""
        if tick > self.t_steps:
            return
        current = self.answer = answer
        self.told = self.net.leak * self.told + answer
        if self.net.coding == "running_mean" and self.name != "embedding":
            norm = sum(self.net.leak**j for j in range(tick))
            current = norm * answer - (0.0 if tick == 1 else (norm - 1) * self.before)  # leak S_(t-1) = S_t - 1
            self.before = answer
        theta = self.net.theta(self.name)
        s, self.u = self.net.fire(self.net.rest(self.name, current) if self.u is None else self.u, current, theta)
        self.pulse = theta * s * self.mask
        self.sent, self.norm = self.net.leak * self.sent + self.pulse, self.net.leak * self.norm + 1


class Synchronous(Naive):
    """Every layer moves at every tick (SpikingBERT, arXiv 2308.10873, eqs. 1-4); a layer falls silent after its T."""

    def __init__(self, *args, coding: str, **options):
        super().__init__(*args, **options)
        self.coding = coding

    def clocks(self):
        """The first spiking layer, and for each layer its functions and spiking layers, by name."""
        layers = []
        for i, t_steps in enumerate(self.steps[1:]):
            table = self.functions(i)
            clocks = {name: Clock(self, f"layers.{i}.{name}", t_steps, mask) for name, (_, _, mask) in table.items()}
            layers.append((table, clocks))
        return Clock(self, "embedding", self.steps[0], 1.0), layers

    def run(self):
        (embedding, layers), constant = self.clocks(), self.embed()
        for tick in range(1, max(self.steps) + 1):
            embedding.tick(tick, constant)
            self.upwards(tick, embedding, layers)
        return self.answer(embedding, layers)

    @staticmethod
    def upwards(tick, below, layers) -> None:
        """The rest of a tick, from the layer that hears the first spiking layer to the last."""
        for table, clocks in layers:
            for name, (sources, f, _) in table.items():
                read = []
                for source in sources:
                    said = source.removeprefix("what drives ")
                    clock = below if said == "below" else clocks[said]
                    read.append(clock.seen(tick) if said == source else clock.driven(tick))
                clocks[name].tick(tick, f(*read))
            below = clocks["output"]

    def answer(self, embedding, layers):
        hidden = [embedding.mean, *(clocks["output"].mean for _, clocks in layers)]
        return self.logits(hidden[-1]), hidden
