"""For the tests of the page: a waiting line that is looked at often."""

import pytest

from live2diff.ui import live_session


@pytest.fixture(autouse=True)
def frequent_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll the waiting line ten times a second: with the page's own second, tests would wait for it."""
    monkeypatch.setattr(live_session, "POLL_SECONDS", 0.1)
