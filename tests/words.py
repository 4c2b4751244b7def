"""Every message of an error or a warning that parmap's source has, as it stands there.

    python -m tests.words > tests/words.txt

So all of them can be read in one place, by somebody who asks "what do I do now?", and a change of
one shows in a review.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import parmap
from parmap import errors, failures

ROOT = Path(parmap.__file__).parent
WORDS = Path(__file__).with_name("words.txt")
# Calls other than of exceptions that make a message.
_WARN = {"warn", "warn_explicit"}


def messages() -> Iterator[tuple[str, str, str]]:
    """Give the file, the kind of error, and the message, with {…} for what is filled in."""
    for path in sorted(ROOT.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        # A message may be put together before.
        known = {
            node.targets[0].id: _text(node.value)
            for node in nodes
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in nodes:
            if isinstance(node, ast.Call) and _makes_a_message(node):
                texts = (_text(arg) or known.get(_name(arg), "") for arg in node.args)
                if text := next(filter(None, texts), ""):
                    yield path.relative_to(ROOT).as_posix(), _name(node.func), text


def _makes_a_message(call: ast.Call) -> bool:
    name = _name(call.func)
    exceptions = name.endswith("Error") or name in (*errors.__all__, *failures.__all__)
    return (exceptions or name in _WARN) and name != "add_note"


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def _text(node: ast.expr) -> str:
    """Write a literal or an f-string as text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (_text(v) or "{" + ast.unparse(v.value) + "}" for v in node.values)  # type: ignore[attr-defined]
        return "".join(parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return ""


def listed() -> str:
    """Write all messages, file by file."""
    lines, last = [], ""
    for file, kind, text in messages():
        if file != last:
            lines += ["", file] if last else [file]
            last = file
        lines.append(f"  {kind}: {text!r}" if "\n" in text else f"  {kind}: {text}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(listed(), end="")
