"""The name of the repository to publish to."""

from __future__ import annotations

import re
from dataclasses import replace

from dynquant.checkpoint.hub import HubName, parse_hub_name, refuse_address
from dynquant.errors import CheckpointError, PublishError


def repository_name(text: str, branch: str | None = None) -> HubName:
    """Parse hf://ORG/NAME[@BRANCH]; raise PublishError for other forms.

    branch: given separately
    """
    try:
        refuse_address(text)
        name = parse_hub_name(text)
    except CheckpointError as e:
        raise PublishError(*e.messages) from e
    if name.file:
        raise PublishError(f"{text}: names a file; write hf://{name.repo}")
    if branch and name.revision not in (None, branch):
        raise PublishError(f"{text}: has a branch, and {branch!r} is another; give one")
    found = branch or name.revision
    if found and re.fullmatch("[0-9a-f]{40}", found):
        raise PublishError(f"{text}: {found} is a commit, which cannot change; name a branch")
    return replace(name, revision=found)
