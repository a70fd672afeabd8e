from __future__ import annotations

import tomli
from hypothesis import given
from hypothesis import strategies as st

from refractium.config.lines import Lines
from refractium.problems import key_path

TEXT = '''\
top = 1 # [not.a.table]
"quoted key" = 2
a.b = """
[server]
port = 3
\\""" " ""\"""
list = [ # comment ]
  "]", '[x]', { y = "}",
    z = 1 },
]
literal = \'\'\'
port = 4
\'\'\'

[server]   # comment
 port = 5
"esc\\u0061ped" = 6
bind = "b"

[[protocols]]
name = "one"
[protocols.health]
kind = "tcp"
[[ protocols ]]
name = "two"
[[protocols.deep]]
x = 1
[[protocols.deep]]
x = 2
["esc\\u0061ped"]
hidden = 1
'''


def test_keys_are_found_among_strings_comments_and_brackets() -> None:
    tomli.loads(TEXT)
    lines = Lines(TEXT)
    expected = {
        "top": "top =",
        '"quoted key"': '"quoted',
        "a.b": "a.b",
        "list": "list =",
        "list[1].z": "list =",
        "literal": "literal",
        "server": "[server]   #",
        "server.port": " port = 5",
        "server.bind": "bind",
        "server.missing": "[server]   #",
        "protocols[0]": "[[protocols]]",
        "protocols[0].name": 'name = "one"',
        "protocols[0].health.kind": "kind",
        "protocols[1]": "[[ protocols ]]",
        "protocols[1].name": 'name = "two"',
        "protocols[1].name[3].x": 'name = "two"',
        "protocols[1].deep[1].x": "x = 2",
    }
    rows = TEXT.splitlines()
    found = {path: lines.find(path) for path in expected}
    assert None not in found.values()
    assert {path: rows[line - 1].startswith(expected[path]) for path, line in found.items() if line} == (
        dict.fromkeys(expected, True)
    )


def test_a_path_that_is_not_in_the_file_has_no_line() -> None:
    lines = Lines(TEXT)
    assert lines.find("port") is None
    assert lines.find("hidden") is None
    assert lines.find("not.a.table") is None
    assert lines.find("escaped") is None
    assert lines.find("protocols[2].name") is None
    assert lines.find("") is None


def test_crlf_counts_as_one_line() -> None:
    assert Lines("a = 1\r\n\r\n[b]\r\nc = 2\r\n").find("b.c") == 4


def test_a_key_that_is_not_bare_is_quoted_in_its_path() -> None:
    assert key_path("", "a-b_1") == "a-b_1"
    assert key_path("server", "a.b") == 'server."a.b"'
    assert Lines("[server]\n'a.b' = 1").find(key_path("server", "a.b")) == 2


@given(st.text(st.sampled_from("ab.=[]{}\"'\\#\n \r1")))
def test_no_text_makes_the_search_for_lines_fail(text: str) -> None:
    Lines(text).find("a.b[1]")


@given(
    st.lists(
        st.sampled_from(["k{} = 1", "k{} = '''\nk0 = 1\n'''", "k{} = [\n1, '[' ]", "# k0 = 1", "", "[t{}]"]),
        max_size=8,
    )
)
def test_every_key_of_a_generated_file_is_at_its_line(statements: list[str]) -> None:
    text, table, expected = "", "", {}
    for number, statement in enumerate(statements):
        line = text.count("\n") + 1
        if statement.startswith("["):
            table = f"t{number}"
            expected[table] = line
        elif statement.startswith("k"):
            expected[key_path(table, f"k{number}")] = line
        text += statement.format(number) + "\n"
    tomli.loads(text)
    lines = Lines(text)
    assert {path: lines.find(path) for path in expected} == expected
