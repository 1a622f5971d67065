"""The general text: what is measured is never what may be calibrated on."""

import json

from benchmarks.quality import general_text


def test_what_may_be_calibrated_on_is_not_what_is_held_back(tmp_path, monkeypatch):
    passages = [f"{number} " + "words of a passage " * 12 for number in range(12)]
    wheel = tmp_path / "wikipedia.jsonl"
    wheel.write_text("".join(json.dumps({"0": text, "1": "shuffled"}) + "\n" for text in ["a list", *passages]))
    monkeypatch.setattr(general_text, "fetch", lambda asset: wheel)
    monkeypatch.setattr(general_text, "GENERAL_BYTES", 900)
    general_text.held_back_text.cache_clear()
    held_back = general_text.held_back_text().passages
    general_text.held_back_text.cache_clear()
    output = tmp_path / "general.jsonl"
    assert general_text.main(["--output", str(output)]) == 0
    others = [json.loads(line)["text"] for line in output.read_text().splitlines()]
    assert [*held_back, *others] == [text.strip() for text in passages]
    assert sum(len(text) for text in held_back[:-1]) < 900 <= sum(len(text) for text in held_back)
