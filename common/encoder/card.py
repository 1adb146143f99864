"""The page that goes with an adapter: a Hugging Face model card, its head in YAML."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from common.encoder.spec import DEFAULT_ENCODER, EncoderSpec
from common.privacy import PrivacyClaim

HUB_NAMES = {DEFAULT_ENCODER: "sentence-transformers/all-MiniLM-L6-v2"}
METRICS = ("recall@10", "ndcg@10", "mrr@10")

_LOAD = """import torch
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

base, adapter = "{base}", "."
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter).eval()


def encode(texts):
    tokens = tokenizer(texts, padding=True, truncation=True, max_length={max_tokens}, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
"""


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says.

    Parameters
    ----------
    version, parents
        Of the model.
    encoder, encoder_sha256
        The base encoder's name here, and the hash of its weights.
    data, licence
        The data set's name, and the line on its licence.
    privacy
        The claim, or None.
    metrics
        Row ("random", "popularity", "global") to metric to value; "global" is the adapter, the others are its controls.
    details
        What else is known of how it was made ("round", "strategy", "seed").
    """

    version: str
    parents: tuple[str, ...]
    encoder: str
    encoder_sha256: str
    data: str
    licence: str
    privacy: PrivacyClaim | None
    metrics: Mapping[str, Mapping[str, Any]]
    details: Mapping[str, Any]


def hub_name(encoder: str) -> str | None:
    """Return what others can load the base encoder by; None for a folder of this machine."""
    name = HUB_NAMES.get(encoder, encoder)
    # "name" or "owner/name"; anything else is a path
    return name if name.count("/") <= 1 and not name.startswith((".", "/", "~")) else None


def model_card(facts: CardFacts) -> str:
    """Return the card: a head in YAML between two lines of dashes, then Markdown."""
    base = hub_name(facts.encoder)
    head = ModelCardData(
        base_model=base,
        library_name="peft",
        license="other",
        license_name="see-data-licence",
        tags=["lora", "recommendation", "federated-learning", "differential-privacy", "anabranch"],
        pipeline_tag="feature-extraction",
        model_name=f"anabranch-{facts.version}",
        eval_results=_results(facts) or None,
    )
    loading = _LOAD.format(base=base or "FOLDER-OF-THE-ENCODER", max_tokens=EncoderSpec("", "").max_tokens)
    parts = (
        f"---\n{head.to_yaml().strip()}\n---\n",
        f"# Anabranch adapter {facts.version}\n",
        f"A LoRA adapter on {base or 'a BERT that has no public name'}, for recommending by text: an item's vector is\n"
        "the mean of its tokens, of unit length, and what a user will like next lies near what they liked. Trained in\n"
        "federated rounds: data stayed at its node, adapters were sent.\n",
        f"## Privacy\n\n{_privacy(facts.privacy)}\n",
        f"## Quality\n\n{_table(facts.metrics)}\n",
        f"## Data and licence\n\nTrained on `{facts.data}`. {facts.licence}\n\n"
        "The data is not part of this folder. Whether the adapter may be shared, and on what terms, follows from the\n"
        "licences of the data and of the base encoder.\n",
        f"## Loading it\n\n```python\n{loading}```\n\n"
        f"The base weights it was trained on have SHA-256 `{facts.encoder_sha256}`.\n",
        f"## How it was made\n\n{_made(facts)}\n",
    )
    return "\n".join(parts)


def _results(facts: CardFacts) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="recommendation",
            task_name="next item, full rank over unseen items",
            dataset_type=facts.data,
            dataset_name=facts.data,
            metric_type=metric,
            metric_value=float(facts.metrics["global"][metric]),
        )
        for metric in METRICS
        if metric in facts.metrics.get("global", {})
    ]


def _privacy(claim: PrivacyClaim | None) -> str:
    if claim is None or claim.epsilon is None:
        return "**No differential privacy is claimed** for this version."
    return (
        f"Differentially private per **{claim.unit}**: epsilon **{claim.epsilon:.4g}** at delta {claim.delta:g},\n"
        f"composed over everything that went into it ({claim.accountant} accountant); no node may exceed epsilon\n"
        f"{claim.budget:g}. The claim covers the data of the federated nodes; it is in `manifest.json`, too."
    )


def _table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    if not metrics:
        return "Nothing was measured."
    shown = [metric for metric in METRICS if any(metric in row for row in metrics.values())]
    lines = [f"| row | {' | '.join(shown)} | 95% interval of recall |", "|---" * (len(shown) + 2) + "|"]
    # the controls first: a figure says nothing without them
    for name in sorted(metrics, key=lambda row: row == "global"):
        row = metrics[name]
        low_high = row.get("ci95") or ()
        interval = " to ".join(f"{float(bound):.4f}" for bound in low_high) or "-"
        values = (f"{float(row[metric]):.4f}" if metric in row else "-" for metric in shown)
        label = "**this adapter**" if name == "global" else name.replace("_", " ")
        lines.append(f"| {label} | {' | '.join(values)} | {interval} |")
    return "\n".join(lines) + "\n\nFull rank over all unseen items, ties against the model, on a global time split."


def _made(facts: CardFacts) -> str:
    lines = [f"- made from: {', '.join(facts.parents) or 'the base encoder'}"]
    for name in ("strategy", "round", "seed", "adapter_sha256"):
        if name in facts.details:
            lines.append(f"- {name.replace('_', ' ')}: {facts.details[name]}")
    return "\n".join(lines)
