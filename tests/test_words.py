"""All error messages stand in one file, to be read by somebody who asks what to do now."""

from tests.words import WORDS, listed


def test_the_list_of_messages_is_complete():
    # After a change: python -m tests.words > tests/words.txt, and read what it changed.
    assert listed() == WORDS.read_text(encoding="utf-8")
