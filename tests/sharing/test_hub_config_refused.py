"""sharpness_config.json: what is refused, and what a name of a folder may be."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_values import command_line, content

from hf_sharpness import SharpnessArguments
from hf_sharpness.sharing.config import parse_config

REFUSED = [
    (b"", "is not valid JSON"),
    (b"\x80\x04\x95", "is not valid JSON"),  # a pickle
    (b"optim: wsam", "is not valid JSON"),
    (b"[]", "is a mapping of arguments, not \\[\\]"),
    (b"[" * 60_000, "nested too deeply"),
    (
        b'{"format_version": 1, "optim": ' + b'{"a":' * 9_000 + b"1" + b"}" * 9_001,
        "nested too deeply|optim=.* is not valid",
    ),
    (b" " * 65_537, "is larger than 64 KiB"),
    (b'{"format_version": 1, "optim": "sam", "optim": "wsam"}', "the key 'optim' stands twice"),
    (b'{"format_version": 1, "sam_rho": NaN}', "NaN is not valid"),
    (b'{"format_version": 1, "sam_rho": -Infinity}', "-Infinity is not valid"),
    (b'{"format_version": 1, "sam_rho": 1e999}', "'1e999' is not valid: too long or too large"),
    (b'{"format_version": 1, "sam_steps": ' + b"9" * 5000 + b"}", "is not valid: too long or too large"),
    (b"{}", "format_version=None is not valid"),
    (content(format_version=True), "format_version=True is not valid"),
    (content(format_version="1"), "format_version='1' is not valid"),
    (content(format_version=0), "format_version=0 is not valid"),
    (
        content(format_version=2, hf_sharpness_version="9.1", new=[]),
        "format_version=2 is of a later hf_sharpness .* '9.1': pip install -U hf_sharpness",
    ),
    (
        content(sam_roh=1),
        "the key 'sam_roh' is not allowed: did you mean 'sam_rho'\\? remove it; a config can set optim",
    ),
    (content(output_dir="/"), "the key 'output_dir' is not allowed"),
    (content(hub_token="x"), "the key 'hub_token' is not allowed"),
    (content(sharpness_config="user/other"), "the key 'sharpness_config' is not allowed"),
    (content(__class__="x"), "the key '__class__' is not allowed"),
    ('{"format_version": 1, "\x1b[31mred‮": 1}'.encode(), "is not valid JSON"),
    (content(**{"\x1b[31mred‮": 1}), r"the key '\\x1b\[31mred\\u202e' is not allowed"),
    (content(paper=["x"]), "paper=\\['x'\\] is not valid: must be a string"),
    (content(hf_sharpness_version=1), "hf_sharpness_version=1 is not valid: must be a string"),
    (content(optim=["sam"]), "optim=\\['sam'\\] is not valid: must be a string"),
    (content(optim="sgdd"), "optim='sgdd' is not known: must be one of sam, wsam, xsam"),
    (content(optim="x" * 60_000), "optim='x+\\.\\.\\.x+' is not valid"),
    (content(base_optim="sam"), "base_optim='sam' is not known"),
    (content(sam_rho="0.1"), "sam_rho='0.1' is not valid: must be a number"),
    (content(sam_rho=True), "sam_rho=True is not valid: must be a number"),
    (content(sam_rho=None), "sam_rho=None is not valid: must be a number"),
    (content(sam_rho=-0.1), "sam_rho=-0.1 is not valid: must be a finite number >= 0"),
    (content(sam_adaptive=1), "sam_adaptive=1 is not valid: must be true or false"),
    (content(sam_steps=1.0), "sam_steps=1.0 is not valid: must be a whole number"),
    (content(sam_steps=10**9), "sam_steps=1000000000 is too large for a config: must be at most 1000"),
    (content(xsam_alpha_points=10**9), "is too large for a config: must be at most 10000"),
    (content(sam_scope={}), "sam_scope={} is not valid: must be a string"),
    (content(wsam_gamma=1), "wsam_gamma=1 is not valid: must be a number with 0 <= gamma < 1"),
    (content(xsam_refresh="²"), "xsam_refresh='²' is not valid: must be 'epoch' or"),
    (content(optim="xsam", sam_scope="device"), "sam_scope='device' is not defined for optim='xsam'"),
]


@pytest.mark.parametrize(("text", "problem"), REFUSED)
def test_one_clear_error(text: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^the file: .*{problem}") as caught:
        parse_config(SharpnessArguments, text, "the file")
    assert len(str(caught.value)) < 1500
    assert str(caught.value).isprintable()


def test_a_part_of_the_arguments_is_enough() -> None:
    assert parse_config(SharpnessArguments, content(optim="sam", sam_rho=1), "the file") == {
        "optim": "sam",
        "sam_rho": 1,
    }
    assert parse_config(SharpnessArguments, content(xsam_refresh="12"), "the file") == {"xsam_refresh": 12}
    assert parse_config(SharpnessArguments, content(wsam_gamma=None, paper=None), "the file") == {"wsam_gamma": None}


def test_what_a_name_may_be(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "too-large.json").write_bytes(b" " * 70_000)
    with pytest.raises(OSError, match="this folder holds no sharpness_config"):
        SharpnessArguments.from_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"too-large\.json: is larger than 64 KiB"):
        SharpnessArguments(sharpness_config=str(tmp_path / "too-large.json"))
    for name in (
        "a/b/c",
        "./missing",
        str(tmp_path / "missing"),
        "missing.json",
        "user/../x",
        "~/x",
        "user/repo\0",
        "@v1",
    ):
        with pytest.raises(ValueError, match="is no local file or folder, and cannot be a repo on the Hub"):
            SharpnessArguments.from_pretrained(name)
    with pytest.raises(ValueError, match="user/repo@: names no revision after '@'"):
        SharpnessArguments.from_pretrained("user/repo@")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_current_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SharpnessArguments(optim="sam").save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="names nothing"):
        SharpnessArguments.from_pretrained(name)
    with pytest.raises(ValueError, match="names nothing"):
        command_line("--sharpness_config", name)
    assert SharpnessArguments.from_pretrained(".").optim == "sam"


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = SharpnessArguments(optim="sam").save_pretrained(tmp_path)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert SharpnessArguments.from_pretrained(path).optim == "sam"
