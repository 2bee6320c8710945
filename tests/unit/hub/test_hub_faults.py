# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What publishing refuses before it speaks with the Hub, and what it never says."""

import pytest

from modeling_mcm.hub import PublishingError, check_name
from modeling_mcm.hub.publish import LOGIN, _explain, _redact, is_publishable


@pytest.mark.parametrize("name", ["../../x y", "org/..", "a/b/c", "org/mcm base", "", "org/", "/x", "org/a--b"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(PublishingError, match="is no name for the Hub"):
        check_name(name)


@pytest.mark.parametrize("password", ["secret", "p@ss", "p/w", "a:b"])
def test_a_password_in_the_endpoint_is_never_said(password):
    endpoint = f"https://joe:{password}@hub.example/base"
    said = _redact(f"no answer of {endpoint}/api", "hf_token")
    assert password not in said and "joe" not in said and "https://hub.example/base/api" in said
    assert _explain(404, "org/x", LOGIN.sub("", endpoint), "").startswith("https://hub.example/base answered 404")


def test_only_results_of_evaluations_lie_in_a_folder():
    assert is_publishable(".eval_results/shop.yaml")
    for name in (".eval_results/x.json", ".eval_results/a/b.yaml", ".eval_results_/x.yaml", ".eval_results/..yaml"):
        assert not is_publishable(name)
