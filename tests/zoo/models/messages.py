"""Customers' messages as tokens, and whether their embedding is nearest to that of their topic."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from stages.runtime.metrics import Metric

TOPICS = {
    "billing and payment": ["I was charged twice", "the invoice is wrong", "my card was declined", "when do I get my money back"],
    "delivery of a parcel": ["my parcel has not arrived", "the courier was late", "where is my order", "it went to the old address"],
    "broken product": ["the screen is cracked", "it does not turn on any more", "a button fell off", "it makes a strange noise"],
    "account and login": ["I forgot my password", "the login page rejects me", "someone uses my profile", "delete my user name"],
    "opening hours": ["when do you close today", "are you open on Sunday", "at what time can I come", "is the shop open now"],
    "job application": ["I want to work for you", "is the position still free", "whom do I send my resume", "how long is the internship"],
    "product advice": ["which size should I take", "does it run on batteries", "is it suitable for children", "which one is better"],
    "complaint about staff": ["your colleague was rude", "nobody picks up the phone", "I was laughed at", "the lady hung up on me"],
}
OPENINGS = ["", "Hello,", "Good morning,", "Excuse me,", "Again:", "Dear team,", "To whom it may concern:", "Hi, quick question,"]
CLOSINGS = ["", "Thanks.", "Please help!", "This is the second time I write.", "Best regards, Kim", "I am waiting.", "What now?"]
START, END, UNKNOWN = "[CLS]", "[SEP]", "[UNK]"


class Tokens:
    """BERT's word pieces by longest match: numbers of a text, between those of start and end."""

    def __init__(self, vocabulary: str) -> None:
        self.numbers = {piece: number for number, piece in enumerate(Path(vocabulary).read_text("utf-8").splitlines())}

    def __call__(self, text: str) -> list[int]:
        spaced = "".join(sign if sign.isalnum() or sign == " " else f" {sign} " for sign in text.lower())
        pieces = [piece for word in spaced.split() for piece in self.pieces(word)]
        return [self.numbers[piece] for piece in (START, *pieces, END)]

    def pieces(self, word: str) -> list[str]:
        split: list[str] = []
        rest = word
        while rest:
            head = "" if not split else "##"
            piece = next((head + rest[:end] for end in range(len(rest), 0, -1) if head + rest[:end] in self.numbers), None)
            if piece is None:
                return [UNKNOWN]
            split.append(piece)
            rest = rest[len(piece) - len(head) :]
        return split


class Messages:
    """Token numbers and mask, [1, L] each; the target is the number of the topic. No message twice."""

    def __init__(self, count: int, vocabulary: str, length: int | None = None) -> None:
        """
        Args:
            length: tokens of every message, padded and masked; null: as many as it has.
        """
        phrases = [(topic, phrase) for topic, choices in enumerate(TOPICS.values()) for phrase in choices]
        drawn = np.random.default_rng(0).permutation(len(phrases) * len(OPENINGS) * len(CLOSINGS))[:count]
        self.drawn = [np.unravel_index(number, (len(phrases), len(OPENINGS), len(CLOSINGS))) for number in drawn]
        self.phrases = phrases
        self.tokens = Tokens(vocabulary)
        self.length = length

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], int]:
        phrase, opening, closing = self.drawn[index]
        topic, text = self.phrases[phrase]
        return inputs(self.tokens(f"{OPENINGS[opening]} {text} {CLOSINGS[closing]}"), self.length), topic


def inputs(tokens: list[int], length: int | None) -> dict[str, np.ndarray]:
    """What the model is given for a list of token numbers."""
    room = length or len(tokens)
    numbers, mask = np.zeros((1, room), dtype=np.int64), np.zeros((1, room), dtype=np.int64)
    numbers[0, : len(tokens)], mask[0, : len(tokens)] = tokens[:room], 1
    return {"input_ids": numbers, "attention_mask": mask}


class NearestTopic(Metric):
    """Share of messages whose embedding is nearest to that of their topic in FP32."""

    def __init__(self, vocabulary: str, output: int, length: int | None = None) -> None:
        """
        Args:
            output: index of the model's output [1, D] that is the embedding.
            length: as for `Messages`.
        """
        self.tokens = Tokens(vocabulary)
        self.output = output
        self.length = length

    def bind(self, model: ov.Model) -> None:
        compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self.topics = np.array([normalised(compiled(inputs(self.tokens(topic), self.length))[self.output][0]) for topic in TOPICS])

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> float:
        return float(np.argmax(self.topics @ normalised(outputs[self.output][0])) == target)


def normalised(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
