"""The user's own Python: found by name, in the words of whoever asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.stage import StageError
from stages.users_python import find, imports_from, place_of


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "users_own_words.py").write_text(
        "import json\n\nnumber = 3\n\n\n"
        "def outer():\n    return inner()\n\n\ndef inner():\n    return json.loads('{')\n"
    )
    return tmp_path


def test_what_is_missing_or_no_function_is_said_in_the_callers_words(home: Path) -> None:
    with imports_from(home):
        assert find("users_own_words:outer").__name__ == "outer"
        with pytest.raises(StageError) as caught:
            find("users_own_words:absent", called="pass users_own_words.absent", next_step="name one")
        assert caught.value.what.startswith("pass users_own_words.absent cannot be imported: AttributeError")
        assert caught.value.next_step == "name one"
        with pytest.raises(StageError, match=r"^users_own_words:number is no function: it is int"):
            find("users_own_words:number")


def test_an_error_is_placed_at_the_users_innermost_line_not_at_pythons(home: Path) -> None:
    with imports_from(home), pytest.raises(ValueError) as caught:
        find("users_own_words:outer")()
    assert place_of(caught.value) == f" ({home}/users_own_words.py:11)"
