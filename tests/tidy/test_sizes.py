"""A file over 400 lines or a function over 60 is a question: is it one thing? sizes.toml lists the answers."""

import ast
import tomllib

from tests.tidy import tracked

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
LISTED = tomllib.loads(tracked.text("tests/tidy/sizes.toml"))


def _file_sizes() -> dict[str, int]:
    return {name: len(tracked.text(name).splitlines()) for name in tracked.python_files()}


def _function_sizes() -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name in tracked.python_files():
        pending: list[tuple[str, ast.AST]] = [("", ast.parse(tracked.text(name)))]
        while pending:
            prefix, parent = pending.pop()
            for node in ast.iter_child_nodes(parent):
                inner = prefix
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    inner = f"{prefix}{node.name}."
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    sizes[f"{name}::{inner[:-1]}"] = (node.end_lineno or node.lineno) - node.lineno + 1
                pending.append((inner, node))
    return sizes


def _complaints(sizes: dict[str, int], listed: dict[str, int], most: int) -> list[str]:
    found = [
        f"{name}: {size} lines, over {most}" for name, size in sizes.items() if size > max(most, listed.get(name, 0))
    ]
    for name, size in listed.items():
        now = sizes.get(name, 0)
        if now <= most:
            found.append(f"{name}: now {now} lines, take it off the list")
        elif now < size:
            found.append(f"{name}: shrank to {now} lines, write that into the list")
    return sorted(found)


def test_files_are_short() -> None:
    assert _complaints(_file_sizes(), LISTED["files"], FILE_LINES_MAX) == []


def test_functions_are_short() -> None:
    assert _complaints(_function_sizes(), LISTED["functions"], FUNCTION_LINES_MAX) == []


def test_the_list_may_only_shrink() -> None:
    sizes = {"grew": 450, "same": 420, "shrank": 410, "short": 30, "new": 401}
    listed = {"grew": 440, "same": 420, "shrank": 415, "short": 402, "gone": 500}
    assert _complaints(sizes, listed, 400) == [
        "gone: now 0 lines, take it off the list",
        "grew: 450 lines, over 400",
        "new: 401 lines, over 400",
        "short: now 30 lines, take it off the list",
        "shrank: shrank to 410 lines, write that into the list",
    ]
