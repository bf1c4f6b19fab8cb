"""Downloads from a hub on loopback by the real client: what is refused, what is cut, what is never downloaded twice."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import try_to_load_from_cache

from unlearnbench.config.errors import UserError
from unlearnbench.storage import hub as hub_module
from unlearnbench.storage.downloads import FileDownload, fetch
from unlearnbench.storage.hub import HubDownload, HubRepository, choose_by_patterns

REPAIR = "fetch it once online: `hf download a/b`"


def download(repository=None):
    return HubDownload("model a/b", "not in the hub's cache", REPAIR, repository or HubRepository("a/b"), choose_by_patterns("*"))


def test_a_download_has_its_files_in_the_cache_and_nothing_is_downloaded_twice(hub):
    hub.add("a/b", {"x.json": b"{}", "sub/y.bin": b"1234"})
    assert download().line() == "model a/b: 6 B from the hub"
    fetch([download()])
    assert HubRepository("a/b").missing(["x.json", "sub/y.bin"]) == []
    sent = dict(hub.sent)
    fetch([download()])
    assert hub.sent == sent == {"a/b/resolve/" + "a" * 40 + "/x.json": 2, "a/b/resolve/" + "a" * 40 + "/sub/y.bin": 4}


@pytest.mark.parametrize(
    ("gate", "revision", "problem"),
    [
        ("gated", None, "it is gated: accept its terms at https://huggingface.co/a/b, then `hf auth login`"),
        ("private", None, "the hub has no such model; if it is private, `hf auth login`"),
        ("", "v9", "the hub has no revision v9 of it"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_the_repair(gate, revision, problem, hub):
    hub.add("a/b", {"x.json": b"{}"}, gate=gate)
    expected = f"model a/b is not in the hub's cache, and {problem}; {REPAIR}"
    assert download(HubRepository("a/b", revision)).problem() == expected
    with pytest.raises(UserError) as refusal:
        fetch([download(HubRepository("a/b", revision))])
    assert str(refusal.value) == expected


def test_a_hub_that_is_down_is_not_taken_for_a_missing_model(hub):
    hub.add("a/b", {"x.json": b"{}"})
    hub.status = 503
    assert ", and the hub answers 503; " in download().problem()


def test_never_and_offline_ask_nobody(hub, monkeypatch):
    state = "model a/b is not in the hub's cache"
    assert download().problem(allowed=False) == f"{state}, and fetch=never is set; leave it out, or {REPAIR}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert download().problem() == f"{state}, and HF_HUB_OFFLINE is set; unset it, or {REPAIR}"
    assert hub.requests == []


def test_a_cut_download_says_that_it_goes_on_and_does(hub, monkeypatch):
    monkeypatch.setattr(hub_module, "LARGE", 1000)
    monkeypatch.setattr("unlearnbench.storage.downloads.TRIES", 1)
    content = bytes(range(256)) * 40
    hub.add("a/b", {"x.json": b"{}", "weights.safetensors": content})
    hub.cut = 4000
    with pytest.raises(
        UserError, match=r"model a/b: the download was cut after 4\.0 kB of 10\.2 kB .*; the same command goes on"
    ):
        fetch([download()])
    hub.cut = None
    fetch([download()])
    [sent] = [size for path, size in hub.sent.items() if path.endswith("weights.safetensors")]
    assert sent == len(content)
    assert Path(try_to_load_from_cache("a/b", "weights.safetensors")).read_bytes() == content


def test_a_connection_that_is_cut_now_and_then_is_taken_up_again(hub, monkeypatch):
    monkeypatch.setattr(hub_module, "LARGE", 1000)
    hub.add("a/b", {"weights.safetensors": b"x" * 10_000})
    hub.cut = 3000
    fetch([download()])
    assert sum(hub.sent.values()) == 10_000


def test_a_link_that_expires_between_two_connections_is_renewed_and_never_gets_the_token(hub, monkeypatch):
    monkeypatch.setattr(hub_module, "LARGE", 1000)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.add("a/b", {"weights.safetensors": b"x" * 10_000}, private=True)
    hub.cut, hub.links = 3000, []
    fetch([download()])
    assert Path(try_to_load_from_cache("a/b", "weights.safetensors")).read_bytes() == b"x" * 10_000
    assert sum(hub.sent.values()) == 10_000


def test_a_branch_that_moves_on_meanwhile_does_not_mix_two_files(hub, monkeypatch):
    monkeypatch.setattr(hub_module, "LARGE", 1000)
    hub.add("a/b", {"weights.safetensors": b"x" * 10_000})
    hub.cut = 3000
    fetch([download()])
    assert {path for path in hub.sent if "/main/" in path} == set()


def test_a_file_of_a_server_is_checked_by_its_hash(hub, tmp_path):
    hub.add("a/b", {"w.pth": b"weights"})
    url, good = f"{hub.url}/a/b/resolve/main/w.pth", hashlib.sha256(b"weights").hexdigest()
    path = tmp_path / "new" / "w.pth"
    bad = FileDownload("weights", url, path, "0" * 8)
    with pytest.raises(UserError, match=r"weights: the downloaded w\.pth is damaged and was removed; the same command"):
        fetch([bad])
    assert not path.exists()
    fetch([FileDownload("weights", url, path, good[:8])])
    assert path.read_bytes() == b"weights"
    gone = FileDownload("weights", url + "x", tmp_path / "gone", good[:8])
    assert gone.problem().startswith(f"weights is not on this machine, and {url}x answers 404; download {url}x to ")
