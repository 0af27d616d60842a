"""Captions and judgements over HTTP: a server on 127.0.0.1 speaks the API, well and badly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curate_case import agreeable, noise_video, said, server, tracked
from worldline.data.curate import rules
from worldline.data.curate.endpoint import Endpoint, EndpointFailed, EndpointRefused
from worldline.data.curate.language import LanguageJudge, plain, read_prompts, verdict

VERDICT = '{"countable": true, "entities": ["dog"], "camera_moves": false, "reason": "it runs"}'


def judge(url: str, **settings: Any) -> LanguageJudge:
    settings = {"sleep": lambda seconds: None, "timeout_seconds": 5.0, **settings}
    return LanguageJudge(endpoint=Endpoint(url=url, **settings), model="seer", reader="reader", prompts=read_prompts())


def test_pictures_are_described_and_the_description_is_judged() -> None:
    with server() as (url, asked):
        found = judge(url, api_key="secret")(noise_video())
    assert found.countable and found.entities == ("dog", "dog") and found.source == "seer, reader"
    assert found.caption == "Two dogs run over a lawn."
    assert [a["body"]["model"] for a in asked] == ["seer", "reader"] and asked[0]["path"] == "/v1/chat/completions"
    assert [a["key"] for a in asked] == ["Bearer secret"] * 2
    pictures = [p for p in asked[0]["body"]["messages"][0]["content"] if p["type"] == "image_url"]
    assert len(pictures) == 6 and pictures[0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert "Two dogs run over a lawn." in asked[1]["body"]["messages"][0]["content"]


def test_the_key_is_never_shown() -> None:
    assert "secret" not in repr(Endpoint(url="http://a", api_key="secret"))


def test_a_busy_server_is_asked_again_after_growing_waits() -> None:
    waits: list[float] = []

    def busy(question: Any, headers: Any, number: int) -> Any:
        return (503, {}, {}) if number < 3 else (429, {}, {"Retry-After": "7"}) if number == 3 else said("fine")

    with server(busy) as (url, asked):
        text = Endpoint(url=url, sleep=waits.append).chat("m", [{"role": "user", "content": "hello"}])
    assert text == "fine" and len(asked) == 4 and waits == [1.0, 2.0, 7.0]


def test_retries_end() -> None:
    with server(lambda *a: (500, {}, {})) as (url, asked):
        with pytest.raises(EndpointFailed, match="status 500 .3 attempts"):
            Endpoint(url=url, retries=2, sleep=lambda s: None).chat("m", [])
    assert len(asked) == 3


def test_an_answer_that_takes_too_long_is_a_failure() -> None:
    import time

    with server(lambda *a: (time.sleep(0.4), said("late"))[1]) as (url, _):
        with pytest.raises(EndpointFailed, match="no answer in 0.1 s|no connection"):
            Endpoint(url=url, retries=1, timeout_seconds=0.1, sleep=lambda s: None).chat("m", [])


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"<html>", "not JSON"), ({"error": "?"}, "choices"), (said("  ")[1], "nothing"), ([], "choices")],
)
def test_answers_that_are_not_of_the_api_are_failures(content: Any, words: str) -> None:
    with server(lambda *a: (200, content, {})) as (url, _):
        with pytest.raises(EndpointFailed, match=words):
            Endpoint(url=url, retries=1, sleep=lambda s: None).chat("m", [])


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refusals_are_not_tried_again(status: int) -> None:
    with server(lambda *a: (status, {"error": "no"}, {})) as (url, asked):
        with pytest.raises(EndpointRefused, match=str(status)):
            Endpoint(url=url).chat("m", [])
    assert len(asked) == 1


def test_a_key_does_not_follow_a_redirect() -> None:
    with server() as (other, reached):
        with server(lambda *a: (302, {}, {"Location": other + "/chat/completions"})) as (url, _):
            with pytest.raises(EndpointFailed, match="302"):
                Endpoint(url=url, api_key="secret", retries=0).chat("m", [])
        assert not reached


def test_nobody_there_is_found_out_before_any_work() -> None:
    with server() as (url, _):
        Endpoint(url=url).check()
    with pytest.raises(EndpointRefused, match="no connection"):
        Endpoint(url=url, retries=0).check()
    with pytest.raises(ValueError, match="http"):
        Endpoint(url="ftp://x")


def test_a_malformed_verdict_is_asked_for_once_more_and_counted() -> None:
    def muddled(question: Any, headers: Any, number: int) -> Any:
        return agreeable(question, headers, number) if number == 1 else said("Yes!" if number == 2 else VERDICT)

    with server(muddled) as (url, asked):
        found = judge(url)(noise_video())
    assert found.malformed == 1 and found.countable and len(asked) == 3
    assert [m["role"] for m in asked[2]["body"]["messages"]] == ["user", "assistant", "user"]
    with server(lambda q, h, n: agreeable(q, h, n) if n == 1 else said("Yes!")) as (url, _):
        with pytest.raises(EndpointFailed, match="twice"):
            judge(url)(noise_video())


@pytest.mark.parametrize(
    ("answer", "countable"),
    [
        (f"Reasons.\n{VERDICT}", True),
        (f"<think>{VERDICT}</think> no: " + VERDICT.replace("true", "false"), False),
        ("```json\n" + VERDICT + "\n```", True),
        ('{"countable": "true"}', None),
        ("{", None),
        ("true", None),
    ],
)
def test_verdicts_in_the_forms_that_models_write(answer: str, countable: bool | None) -> None:
    found = verdict(answer)
    assert (None if found is None else found["countable"]) is countable


def test_thoughts_are_no_part_of_a_caption() -> None:
    assert plain("<think>hm\n</think>\nA dog\nruns.") == "A dog runs." and plain("<think>never ends") == ""


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "p.md"
    path.write_text("# caption\nSay.\n# countable\nJudge {caption}.\n# again\nAgain.")
    assert read_prompts(path)["countable"] == "Judge {caption}."
    assert judge("http://a").identity != LanguageJudge(
        endpoint=Endpoint(url="http://a"), model="seer", reader="reader", prompts=read_prompts(path)
    ).identity  # fmt: skip
    path.write_text("# caption\nSay.\n# countable\nJudge.\n# again\nAgain.")
    with pytest.raises(ValueError, match="caption"):
        read_prompts(path)
    path.write_text("# caption\nSay.")
    with pytest.raises(ValueError, match="countable"):
        read_prompts(path)


def test_rules_count_what_moves() -> None:
    found = rules.judge(tracked(noise_video(), squares=2))
    assert found.countable and len(found.entities) == 2 and found.source == "rules"
    assert found.caption.startswith("Two things move: something ") and "to the right" in found.caption
    assert found.caption.endswith("The camera moves.")


def test_rules_reject_what_cannot_be_counted() -> None:
    from dataclasses import replace

    clip = tracked(noise_video())
    still = rules.judge(replace(clip, moving=clip.moving & False))
    assert not still.countable and still.reason == "nothing moves but the camera"
    everything = rules.judge(replace(clip, moving=clip.moving | True))
    assert not everything.countable and "100%" in everything.reason
    lost = replace(clip.tracks, visible=clip.tracks.visible & (clip.tracks.timestamps == 0)[:, None, None])
    assert "lost" in rules.judge(replace(clip, tracks=lost)).reason
    many = rules.judge(tracked(noise_video(), squares=5), rules.RuleConfig(most=4))
    assert not many.countable and "too many" in many.reason
