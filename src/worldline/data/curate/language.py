"""Captions and the judgement of countable motion by language models behind an endpoint (spec section 5, a and b)."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch

from worldline.data.curate.endpoint import Endpoint, EndpointFailed
from worldline.scene import Video

PROMPTS = ("caption", "countable", "again")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a clip shows, and whether it is of the wanted kind.

    Attributes:
        caption: one paragraph.
        countable: whether things move that can be counted.
        reason: why, in a sentence.
        entities: the things that move.
        source: who said so: a model's name, or "rules".
        malformed: answers that had to be asked for again.
    """

    caption: str
    countable: bool
    reason: str
    entities: tuple[str, ...] = ()
    source: str
    malformed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "entities": list(self.entities)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Judgement:
        """The inverse of `to_json`."""
        return cls(**{**values, "entities": tuple(values["entities"])})


def read_prompts(path: Path | None = None) -> dict[str, str]:
    """Prompts by name, from a Markdown file with a heading for each; None: our own.

    Raises:
        ValueError: a prompt is missing, or "countable" has no place for the {caption}.
        FileNotFoundError: there is no such file.
    """
    text = (resources.files(__package__) / "prompts.md").read_text() if path is None else path.read_text()
    parts = re.split(r"^# *(\w+) *$", text, flags=re.MULTILINE)
    found = {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}
    missing = [name for name in PROMPTS if not found.get(name)]
    if missing:
        raise ValueError(f"{path} has no prompt '{missing[0]}': give each under a heading '# {missing[0]}'.")
    if "{caption}" not in found["countable"]:
        raise ValueError(f"The prompt 'countable' of {path} must hold {{caption}} where the description goes.")
    return found


@dataclass(frozen=True, kw_only=True)
class LanguageJudge:
    """A model that sees describes; one that reads judges the description.

    Attributes:
        endpoint: where both are.
        model: the one that sees.
        reader: the one that judges; None: the same.
        prompts: see `read_prompts`.
        pictures: frames that are sent.
        longest_side: of them, in pixels.
    """

    endpoint: Endpoint
    model: str
    prompts: Mapping[str, str]
    reader: str | None = None
    pictures: int = 6
    longest_side: int = 512

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its answers, JSON-able."""
        text = json.dumps([self.prompts[name] for name in PROMPTS])
        return {
            "model": self.model,
            "reader": self.reader or self.model,
            "prompts": hashlib.sha256(text.encode()).hexdigest(),
            "pictures": [self.pictures, self.longest_side],
        }

    def __call__(self, video: Video) -> Judgement:
        """Describe, then judge.

        Raises:
            EndpointRefused: the endpoint will answer no question.
            EndpointFailed: it did not answer these, or twice not in the form asked for.
        """
        asked: list[dict[str, Any]] = [{"type": "text", "text": self.prompts["caption"]}]
        asked += [{"type": "image_url", "image_url": {"url": url}} for url in self._pictures(video)]
        caption = plain(self.endpoint.chat(self.model, [{"role": "user", "content": asked}]))
        if not caption:
            raise EndpointFailed(f"{self.model} thought but did not describe.")
        reader, question = self.reader or self.model, self.prompts["countable"].replace("{caption}", caption)
        messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
        for malformed in range(2):
            answer = self.endpoint.chat(reader, messages)
            found = verdict(answer)
            if found is not None:
                return Judgement(
                    caption=caption,
                    countable=found["countable"],
                    reason=str(found.get("reason", "")),
                    entities=_names(found.get("entities")),
                    source=reader if reader == self.model else f"{self.model}, {reader}",
                    malformed=malformed,
                )
            again = {"role": "user", "content": self.prompts["again"]}
            messages = [*messages, {"role": "assistant", "content": answer}, again]
        raise EndpointFailed(f"{reader} did not answer in the form asked for, twice.")

    def _pictures(self, video: Video) -> list[str]:
        """Frames spread over the clip as data URLs."""
        from PIL import Image

        count = min(self.pictures, len(video))
        chosen = torch.linspace(0, len(video) - 1, count).round().long().tolist()
        urls = []
        for frame in (video.select(chosen).rgb() * 255).round().to(torch.uint8):
            image = Image.fromarray(frame.numpy())
            image.thumbnail((self.longest_side, self.longest_side))
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=85)
            urls.append("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())
        return urls


def plain(answer: str) -> str:
    """An answer on one line, without the thoughts that some models write before it."""
    return " ".join(re.sub(r"<think>.*?(</think>|\Z)", " ", answer, flags=re.DOTALL).split())


def verdict(answer: str) -> dict[Literal["countable", "entities", "reason"], Any] | None:
    """The last JSON object of an answer that has a true or false "countable"; None if there is none."""
    text, decoder = re.sub(r"<think>.*?</think>", " ", answer, flags=re.DOTALL), json.JSONDecoder()
    for start in reversed([match.start() for match in re.finditer(r"\{", text)]):
        try:
            found, _ = decoder.raw_decode(text, start)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("countable"), bool):
            return found  # type: ignore[return-value]
    return None


def _names(value: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in value) if isinstance(value, list) else ()
