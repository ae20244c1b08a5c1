"""What a pod asks for, as kubelet hands it over."""

from __future__ import annotations

import json

import pytest

from shoal_csi import request
from shoal_csi.refusals import Refused
from shoal_csi.request import DatasetName

TOKENS = json.dumps({"shoal.dev": {"token": "t-1"}, "other": {"token": "t-2"}})


def _context(**changes: str) -> dict[str, str]:
    about = {
        "pod.name": "job-0",
        "pod.namespace": "team-a",
        "pod.uid": "u-1",
        "serviceAccount.name": "trainer",
        "ephemeral": "true",
        "serviceAccount.tokens": TOKENS,
    }
    prefixed = {f"csi.storage.k8s.io/{name}": value for name, value in about.items()}
    return {"dataset": "images", **prefixed, **{name.replace("__", "/"): value for name, value in changes.items()}}


def test_a_request_says_whose_volume_it_is_and_what_it_reads() -> None:
    asked = request.parse("csi-1", "/target", _context(dataset=" images, team-b/texts "), {})
    assert asked.pod.who == "team-a/job-0" and asked.pod.user == "system:serviceaccount:team-a:trainer"
    assert asked.datasets == (DatasetName("team-a", "images"), DatasetName("team-b", "texts"))
    assert asked.token == "t-1" and "t-1" not in repr(asked)
    assert {name: dataset.on_nodes for name, dataset in asked.names().items()} == {
        "images": "team-a.images",
        "texts": "team-b.texts",
    }


def test_two_of_one_name_are_known_with_their_namespaces() -> None:
    asked = request.parse("csi-1", "/target", _context(dataset="images,team-b/images,team-b/texts"), {})
    assert list(asked.names()) == ["team-a.images", "team-b.images", "texts"]


def test_the_token_may_come_among_the_secrets() -> None:
    context = _context()
    tokens = context.pop("csi.storage.k8s.io/serviceAccount.tokens")
    asked = request.parse("csi-1", "/target", context, {"csi.storage.k8s.io/serviceAccount.tokens": tokens})
    assert asked.token == "t-1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "missing"),
        (" ", "missing"),
        ("images,", "'' is not"),
        ("/images", "'/images' is not"),
        ("a/b/c", "'a/b/c' is not"),
        ("Images", "'Images' is not"),
        ("../images", "'../images' is not"),
        ("team-b/a.b", "'team-b/a.b' is not"),
        ("images,team-a/images", "team-a/images is there twice"),
        (",".join(f"d-{number}" for number in range(33)), "33 data sets, 32 are allowed"),
    ],
)
def test_data_sets_are_checked(text: str, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        request.parse("csi-1", "/target", _context(dataset=text), {})
    assert caught.value.code == "INVALID_ARGUMENT" and not caught.value.is_denial
    assert str(caught.value).startswith("volumeAttributes.dataset: ") and reason in str(caught.value)


@pytest.mark.parametrize("tokens", ["", "{}", "[]", "no JSON", '{"shoal.dev": {}}', '{"shoal.dev": {"token": ""}}'])
def test_a_token_that_is_not_there_is_the_drivers_installation(tokens: str) -> None:
    context = _context(**{"csi.storage.k8s.io__serviceAccount.tokens": tokens})
    with pytest.raises(Refused, match="needs tokenRequests") as caught:
        request.parse("csi-1", "/target", context, {})
    assert caught.value.code == "FAILED_PRECONDITION"
