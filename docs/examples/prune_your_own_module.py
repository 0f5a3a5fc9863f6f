"""Prune a spiking BERT in a LightningModule of your own. Needs no download and takes seconds on a CPU."""

import lightning as L
import torch
from transformers import BertConfig, BertForSequenceClassification

from spikeprune import SpatialPruning, TemporalPruning, WeightQuantization, count_operations, from_bert


class Classifier(L.LightningModule):
    def __init__(self, student):
        super().__init__()
        self.student = student  # the callbacks need this member …

    def sample_loss(self, batch, outputs):  # … and this method, which returns the loss of each sample, [B]
        return torch.nn.functional.cross_entropy(outputs.logits, batch["labels"], reduction="none")

    def training_step(self, batch, batch_idx):
        return self.sample_loss(batch, self.student(batch["input_ids"], batch["attention_mask"])).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


L.seed_everything(0, verbose=False)
config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
texts = [{"input_ids": x, "attention_mask": torch.ones(12), "labels": x[0] % 2} for x in torch.randint(50, (64, 12))]
loader = torch.utils.data.DataLoader(texts, batch_size=16, shuffle=True)
batch = next(iter(loader))
student = from_bert(BertForSequenceClassification(config), batch, t_steps=4)
before = count_operations(student, batch)
callbacks = [SpatialPruning(heads=0.5, ffn=0.3), TemporalPruning(t_steps=2), WeightQuantization("ternary")]
trainer = L.Trainer(max_epochs=4, accelerator="cpu", callbacks=callbacks, logger=False, enable_checkpointing=False)
trainer.fit(Classifier(student), loader)
after = count_operations(student, batch)
print(f"multiply-accumulates of a sentence in the dense BERT: {before['dense_mac']:.0f}")
print(f"additions of a sentence in the spiking BERT: {before['ac']:.0f}, pruned: {after['ac']:.0f}")
print(f"heads {student.heads.mean():.0%}, neurons {student.ffn.mean():.0%}, time steps {student.steps}")
